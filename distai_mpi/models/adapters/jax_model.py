"""A model from a loss that JAX differentiates."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ...data import Batch
from ...errors import ConfigError
from .common import Adapted, Decay, check_losses, load

Array = Any
EXACT_BITS = 4  # leading bits of a batch length that is compiled: at most 12.5 % of the rows are filling


class JaxModel(Adapted):
    """See `from_jax`.  The parameters lie in the order of the tree's leaves; names are the paths, joined by dots."""

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Any,
        *,
        predict: Callable[..., Any] | None,
        dtype: Any,
        target_dtype: Any,
        decay: Decay,
    ) -> None:
        self._jax = jax = load("jax", "JAX")
        wanted = np.dtype(dtype)
        if wanted not in (np.float32, np.float64):
            raise ConfigError(f"dtype {wanted} is not supported: choose float32 or float64")
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator=".") or "params" for path, _ in leaves]
        start = [(name, _real(name, leaf, wanted)) for name, (_, leaf) in zip(names, leaves, strict=True)]
        super().__init__(start, wanted, target_dtype, decay)
        self._loss, self._predict = loss, predict
        self._keyed = "key" in inspect.signature(loss).parameters
        self._single: bool | None = None
        self.limit_threads(1 if os.environ.get("OMP_NUM_THREADS") == "1" else 0)

    def limit_threads(self, threads: int) -> None:
        """Keep matrix products of this model to one thread if ``threads`` is 1; more are JAX's own choice.

        JAX sizes its pool when it starts, by the CPUs that the process may then use; it has no other limit.
        """
        single = threads == 1
        if single is self._single:  # what is compiled stays
            return
        self._single = single
        options, jit = {"xla_cpu_multi_thread_eigen": False} if single else None, self._jax.jit
        self._gradients = jit(self._gradients_of, compiler_options=options)
        self._scores = jit(self._scores_of, compiler_options=options)
        self._outputs = jit(self._outputs_of, compiler_options=options)
        self._products = jit(self._products_of, compiler_options=options)

    @property
    def can_predict(self) -> bool:
        """Whether the user gave ``predict``."""
        return self._predict is not None

    def params(self, w: Array) -> Any:
        """The pytree of parameters with the values of ``w``, shape (layout.size,): NumPy arrays, copied."""
        leaves = [view.copy() for view in self.layout.views(np.asarray(w)).values()]
        return self._jax.tree_util.tree_unflatten(self._tree, leaves)

    def predict(self, w: Array, x: Array) -> Array:
        """What the user's ``predict`` gives for ``x``, shape (rows, features): labels or values, shape (rows,)."""
        if not self.can_predict:
            raise ConfigError("this model cannot predict: give from_jax(..., predict=) a function of (params, x)")
        rows = len(x)
        if rows == 0:
            return np.empty(0, getattr(self, "target_dtype", self.dtype))
        with self._precision():
            return np.array(self._outputs(self._leaves(w), _filled(x, _length(rows)))[:rows])

    def curvature_at(self, w: Array, batch: Batch) -> Callable[[Array, Array], None]:
        """Hessian products with the sum of losses over ``batch`` at ``w``.

        The result, ``product(v, out)``, overwrites ``out`` with ∇²f v, both of shape (layout.size,), by a
        forward derivative of the gradient (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
        It reads ``w`` and the batch's arrays, and holds as long as they do.
        """

        def product(v: Array, out: Array) -> None:
            if len(batch.x) == 0:
                out[:] = 0
                return
            with self._precision():
                self._write(self._products(self._leaves(w), self._leaves(v), *self._arguments(batch)), out)

        return product

    def _losses_and_grad(self, w: Array, batch: Batch, grad: Array) -> Array:
        with self._precision():
            grads, losses = self._gradients(self._leaves(w), *self._arguments(batch))
            self._write(grads, grad)
            return np.asarray(losses)[: len(batch.x)]

    def _losses_and_predictions(self, w: Array, batch: Batch) -> tuple[Array, Array | None]:
        rows = len(batch.x)
        x, y, *_ = self._arguments(batch._replace(train=False))
        with self._precision():
            losses, predicted = self._scores(self._leaves(w), x, y)
            return np.asarray(losses)[:rows], None if predicted is None else np.asarray(predicted)[:rows]

    def _try(self, batch: Batch) -> None:
        arguments = self._arguments(batch)
        with self._precision():
            self._jax.eval_shape(self._gradients_of, self._leaves(self._start), *arguments)
            self._jax.eval_shape(self._scores_of, self._leaves(self._start), *arguments[:2])

    def _precision(self) -> AbstractContextManager[Any]:
        """JAX's 64-bit mode where the model needs it, and as the user has it elsewhere."""
        return self._jax.enable_x64(True) if self.dtype == np.float64 else nullcontext()

    def _leaves(self, flat: Array) -> list[Array]:
        return list(self.layout.views(flat).values())

    def _write(self, leaves: list[Any], flat: Array) -> None:
        """Copy JAX's arrays into ``flat``: the one copy of a gradient, for JAX owns its results."""
        for view, leaf in zip(self._leaves(flat), leaves, strict=True):
            np.copyto(view, leaf)

    def _arguments(self, batch: Batch) -> tuple[Any, ...]:
        """x, y, row weights, stream key and position of ``batch``, filled up to a length that is compiled."""
        rows = len(batch.x)
        length = _length(rows)
        weight = np.zeros(length, self.dtype)
        weight[:rows] = 1 if batch.weight is None else batch.weight
        key = None
        if batch.train and self._keyed:
            key = np.array([batch.key >> 32, batch.key & 0xFFFFFFFF], np.uint32)
        # a stream repeats after 2**32 positions of an epoch, which then share their dropout
        return _filled(batch.x, length), _filled(batch.y, length), weight, key, np.uint32(batch.position & 0xFFFFFFFF)

    # The functions below are traced by JAX; leaves are lists of arrays.

    def _row_losses(self, leaves: Any, x: Any, y: Any, key: Any, position: Any) -> Any:
        params = self._jax.tree_util.tree_unflatten(self._tree, leaves)
        rows = len(x)
        if not self._keyed:
            losses = self._loss(params, x, y)
        else:
            losses = self._loss(params, x, y, key=None if key is None else self._row_keys(key, position, rows))
        dtype = getattr(losses, "dtype", np.dtype(type(losses)))
        check_losses(np.shape(losses), self._jax.numpy.issubdtype(dtype, np.floating), rows)
        return losses

    def _row_keys(self, key: Any, position: Any, rows: int) -> Any:
        random = self._jax.random
        stream = random.wrap_key_data(key, impl="threefry2x32")
        return self._jax.vmap(random.fold_in, (None, 0))(stream, position + np.arange(rows, dtype=np.uint32))

    def _gradients_of(self, leaves: Any, x: Any, y: Any, weight: Any, key: Any, position: Any) -> Any:
        def total(leaves: Any) -> tuple[Any, Any]:
            losses = self._row_losses(leaves, x, y, key, position)
            return (losses * weight).sum(), losses

        return self._jax.grad(total, has_aux=True)(leaves)

    def _products_of(self, leaves: Any, v: Any, *arguments: Any) -> Any:
        def gradient(leaves: Any) -> Any:
            return self._gradients_of(leaves, *arguments)[0]

        return self._jax.jvp(gradient, (leaves,), (v,))[1]

    def _outputs_of(self, leaves: Any, x: Any) -> Any:
        outputs = self._predict(self._jax.tree_util.tree_unflatten(self._tree, leaves), x)  # type: ignore[misc]
        if outputs.ndim == 2 and len(outputs) == len(x):
            return outputs.argmax(axis=1)
        if outputs.shape != (len(x),):
            raise ConfigError(
                f"predict gives shape {outputs.shape} for {len(x)} rows: it must give ({len(x)},) labels or values, "
                f"or ({len(x)}, classes) scores"
            )
        return outputs

    def _scores_of(self, leaves: Any, x: Any, y: Any) -> tuple[Any, Any]:
        losses = self._row_losses(leaves, x, y, None, None)
        return losses, None if self._predict is None else self._outputs_of(leaves, x)


def _real(name: str, leaf: Any, dtype: np.dtype) -> Array:
    """A leaf of the parameters as an array of ``dtype``."""
    kind = np.asarray(leaf).dtype
    if kind.kind not in "fV" or kind.names:  # V: bfloat16 and its like, which NumPy does not know
        raise ConfigError(
            f"parameter {name} is of type {kind}: parameters are arrays of real numbers; leave others in the "
            "function of the loss"
        )
    return np.asarray(leaf).astype(dtype)


def _length(rows: int) -> int:
    """The least length from ``rows`` up whose binary form is `EXACT_BITS` digits and then zeros."""
    step = 1 << max(0, rows.bit_length() - EXACT_BITS)
    return -(-rows // step) * step


def _filled(values: Array, length: int) -> Array:
    """``values``, shape (rows, ...), with copies of the last row up to ``length``: zeros might have no finite loss."""
    rows = len(values)
    if rows == length:
        return values
    filled = np.empty((length, *values.shape[1:]), values.dtype)
    filled[:rows], filled[rows:] = values, values[-1]
    return filled
