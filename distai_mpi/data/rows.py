"""Rows of features as models see them: what is computed with them, whatever way they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..backend import HOST, namespace

Array = Any
SCALED_BYTES = 1 << 19  # of rows that are scaled and multiplied at a time: they stay in the second-level cache


@runtime_checkable
class Rows(Protocol):
    """Rows of features, X of shape (rows, features) and one dtype; local to the rank, and not to be written to.

    Models compute with them by these methods alone, and by kernels that they have for a kind of rows.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the features, and of what is multiplied with them."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes on average, at least 1."""
        ...

    @property
    def touched(self) -> Any:
        """What picks the features that some row has, and perhaps others: numbers, also repeated, or a slice."""
        ...

    def dot(self, w: Array, out: Array = None) -> Array:
        """X w, shape (rows,) or (rows, outputs), for ``w`` of shape (features,) or (features, outputs)."""
        ...

    def t_dot(self, v: Array, out: Array = None) -> Array:
        """Xᵀ v, shape (features,) or (features, outputs), for ``v`` of shape (rows,) or (rows, outputs)."""
        ...

    def take(self, rows: slice) -> Rows:
        """These of the rows; a view."""
        ...

    def columns(self, features: Array) -> Any:
        """These of the features, ascending numbers: a copy, of the same kind as what `Dataset` holds."""
        ...

    def squares(self, scale: Array, out: Array) -> None:
        """out ← Σ scale · x² over the rows; shapes as in `t_dot`, any dtype."""
        ...

    def scaled_gram(self, scale: Array, bias: bool, out: Array, dtype: Any = None) -> None:
        """out ← out + AᵀA, A the rows, and a column of ones where there is a ``bias``, times ``scale``.

        ``scale`` has shape (rows,), ``out`` is float64, shape (columns, columns).  Products are summed in ``dtype``,
        or where it is None in that of the rows, within blocks of rows; blocks in float64.
        """
        ...

    def fill(self, out: Array) -> None:
        """out ← X, an array of that shape, and of a dtype that holds X's."""
        ...


class DenseRows:
    """Rows that are an array, on the host or on a GPU; see `Rows`.

    Attributes:
        x: shape (rows, features).
    """

    __slots__ = ("x",)

    def __init__(self, x: Array) -> None:
        self.x = x

    @property
    def shape(self) -> tuple[int, int]:
        """See `Rows`."""
        return self.x.shape

    @property
    def dtype(self) -> np.dtype:
        """See `Rows`."""
        return self.x.dtype

    @property
    def row_bytes(self) -> int:
        """See `Rows`."""
        return max(1, self.x.shape[1] * self.x.itemsize)

    @property
    def touched(self) -> Any:
        """See `Rows`."""
        return slice(None)

    def dot(self, w: Array, out: Array = None) -> Array:
        """See `Rows`."""
        return namespace(self.x).dot(self.x, w, out=out)

    def t_dot(self, v: Array, out: Array = None) -> Array:
        """See `Rows`; into an ``out`` in Fortran order of several columns as the transpose of vᵀ X."""
        xp = namespace(self.x)
        if out is not None and out.ndim == 2 and not out.flags.c_contiguous:
            return xp.dot(v.T, self.x, out=out.T).T
        return xp.dot(self.x.T, v, out=out)

    def take(self, rows: slice) -> DenseRows:
        """See `Rows`."""
        return DenseRows(self.x[rows])

    def columns(self, features: Array) -> Array:
        """See `Rows`."""
        return self.x[:, features]

    def squares(self, scale: Array, out: Array) -> None:
        """See `Rows`; on the host alone."""
        if scale.ndim == 1:
            from .row_kernels import squares

            squares(HOST.read_only(np.ascontiguousarray(self.x)), scale, out)
            return
        out[:] = 0
        for part in self._blocks(self.shape[1], self.x.itemsize):
            out += np.square(self.x[part]).T @ scale[part]

    def scaled_gram(self, scale: Array, bias: bool, out: Array, dtype: Any = None) -> None:
        """See `Rows`; by BLAS (syrk, which NumPy takes for a matrix and its own transpose), on the host alone."""
        rows, features = self.shape
        dtype, columns = np.dtype(dtype or self.dtype), features + bias
        scaled = np.empty((min(_step(columns, dtype.itemsize), rows), columns), dtype)
        square = np.empty((columns, columns), dtype)
        for part in self._blocks(columns, dtype.itemsize):
            a = scaled[: part.stop - part.start]
            np.multiply(self.x[part], scale[part, None], out=a[:, :features])
            if bias:
                a[:, features] = scale[part]
            np.dot(a.T, a, out=square)
            out += square

    def fill(self, out: Array) -> None:
        """See `Rows`."""
        out[...] = self.x

    def _blocks(self, columns: int, itemsize: int) -> Iterator[slice]:
        return blocks(len(self.x), columns, itemsize)


def rows_of(x: Array) -> Rows:
    """``x`` itself where it is `Rows`, else the array ``x``, shape (rows, features), as such."""
    # asked of every batch: `isinstance` of a protocol would take longer than a step of one row
    return x if hasattr(x, "scaled_gram") else DenseRows(x)


def blocks(rows: int, columns: int, itemsize: int) -> Iterator[slice]:
    """Ranges of rows of which so many columns stay in the second-level cache."""
    step = _step(columns, itemsize)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _step(columns: int, itemsize: int) -> int:
    return max(256, SCALED_BYTES // max(1, columns * itemsize))
