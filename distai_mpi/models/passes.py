"""Loss and gradient of linear models on the host, in one reading of the rows.

Dense rows have kernels of their own; others, and these on many threads, take two products a block of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import numpy as np

from ..backend import HOST
from ..data import Batch
from ..data.rows import DenseRows, Rows
from ..data.sparse_rows import SparseRows, TransposedSums
from .losses import PointLoss

Array = Any
BLOCK_BYTES = 1 << 18  # of rows that are in the second-level cache for both products
# 200,000 × 200, 1,000,000 × 50 and 20,000 × 5000 numbers took the kernel's one thread 6, 9 and 15 ms, one of BLAS
# 12, 25 and 20, two 8, 20 and 13: with more than four BLAS should be ahead (not measured).
KERNEL_THREADS = 4
# Of rows for both products, for each thread: 200,000 × 200 numbers then take one thread of BLAS 12 ms and two 8.
BLAS_BYTES = 1 << 20
# Of sparse rows in a block at least; else as many as of parameters, since each product brings its own into the cache:
# 23 MB of them, for 105 classes, took 57 ms for 512,000 entries in blocks of 100 rows, and 38 all at once.
SPARSE_BYTES = 1 << 17
# With several outputs 60,000 × 784 numbers took the kernel 33 ms for 10 of them and 122 for 40; one thread of BLAS 48
# and 165, two 51 and 120.
OUTPUTS_THREADS, MOST_OUTPUTS = 2, 40
WIDE = 256  # features from which BLAS is faster with few outputs' parameters lying one after another


def by_margins(
    loss: PointLoss, batch: Batch, weight: Array, w: Array, grad: Array, kept: tuple[Array, Array], threads: int = 1
) -> float:
    """One output: the loss, and its gradient into ``grad``; margins and curvatures are left in ``kept``, if not empty.

    ``w`` and ``grad`` end with the bias where they are longer than a row; see `kernels.linear`, which one thread runs.
    Where this is not for the kernel, see `reads_once`, it is two products a block.
    """
    rows, n = batch.rows, batch.rows.shape[1]
    offset = w[n] if w.size > n else w.dtype.type(0)
    if reads_once(rows, threads):
        from .kernels.linear import margins

        arrays = read_only(rows.x, batch.y, weight, w[:n])
        value, of_bias = margins(loss).loss_and_grad(*arrays, offset, grad[:n], *kept)
        grad[n:] = of_bias
        return value
    if isinstance(rows, SparseRows):
        from .kernels.sparse import sparse_margins

        arrays = read_only(batch.y, weight, w[:n])
        value, of_bias = sparse_margins(loss).loss_and_grad(rows, *arrays, offset, grad[:n], *kept)
        grad[n:] = of_bias
        return value
    total, value = np.zeros(grad.size), 0.0
    for part in _blocks(rows, max(256, threads * BLAS_BYTES // rows.row_bytes)):
        block, factor = rows.take(part), weight[part] if weight.size else 1.0
        margin = block.dot(w[:n]) + offset
        with np.errstate(over="ignore", invalid="ignore"):
            losses, slope, curvature = (factor * each for each in loss.point(margin.astype(np.float64), batch.y[part]))
        total[:n] += block.t_dot(slope.astype(grad.dtype))
        total[n:] += slope.sum()
        value += float(losses.sum())
        for out, found in zip(kept, (margin, curvature), strict=True):
            if out.size:
                out[part] = found
    grad[:] = total
    return value


def curved_by_margins(loss: PointLoss, batch: Batch, curvature: Array, p: Array, out: Array, threads: int) -> None:
    """One output: out ← the Hessian's product with ``p``, which ends with the bias where it is longer than a row.

    ``curvature`` are those that `by_margins` has left.
    """
    rows, n = batch.rows, batch.rows.shape[1]
    offset = p[n] if p.size > n else p.dtype.type(0)
    if reads_once(rows, threads):
        from .kernels.linear import margins

        arrays = read_only(rows.x, batch.y, curvature, p[:n])
        out[n:] = margins(loss).product(*arrays, offset, out[:n], np.empty(0, out.dtype))
        return
    if isinstance(rows, SparseRows):
        from .kernels.sparse import sparse_margins

        arrays = read_only(batch.y, curvature, p[:n])
        out[n:] = sparse_margins(loss).product(rows, *arrays, offset, out[:n], np.empty(0, out.dtype))
        return
    total = np.zeros(out.size)
    for part in _blocks(rows, max(256, threads * BLAS_BYTES // rows.row_bytes)):
        block = rows.take(part)
        u = (block.dot(p[:n]) + offset) * curvature[part]
        total[:n] += block.t_dot(u)
        total[n:] += u.sum(dtype=np.float64)
    out[:] = total


def _blocks(rows: Rows, step: int) -> Iterator[slice]:
    for start in range(0, rows.shape[0], step):
        yield slice(start, min(start + step, rows.shape[0]))


def reads_once(rows: Rows, threads: int) -> TypeGuard[DenseRows]:
    """Whether a pass over ``rows`` with one output is the kernel's, which takes them one after another in memory."""
    return threads <= KERNEL_THREADS and isinstance(rows, DenseRows) and rows.x.flags.c_contiguous


def read_only(*arrays: Array) -> tuple[Array, ...]:
    """Views that cannot be written to: kernels would be compiled once for these and once for others, in seconds."""
    return tuple(map(HOST.read_only, arrays))


def by_outputs(
    batch: Batch,
    weight: Array,
    w: Array,
    bias: Array,
    z: Array,
    grad: Array,
    bias_grad: Array,
    threads: int,
    residual: Callable[..., float],
) -> float:
    """Softmax: the loss, its gradient into ``grad`` and ``bias_grad``, and that by the outputs into ``z``.

    ``residual`` is the kernel of the loss, see `kernels.cpu`.
    """
    rows = batch.rows
    if takes_kernel(rows, w, threads):
        from .kernels import outputs

        return outputs.sweep(False, read_only(rows.x, batch.y, weight, w, bias), z, z, grad, bias_grad)
    part, loss, none = np.empty_like(bias_grad), 0.0, weight[:0]
    bias_grad[:] = 0

    def row_wise(z: Array, rows: slice) -> None:
        nonlocal loss
        loss += residual(z, bias, batch.y[rows], weight[rows], part, none)
        np.add(bias_grad, part, out=bias_grad)

    _by_blocks(rows, w, z, row_wise, grad)
    return loss


def curved_by_outputs(
    batch: Batch,
    kept: tuple[Array, Array],
    p: Array,
    p_bias: Array,
    u: Array,
    out: Array,
    bias_out: Array,
    threads: int,
) -> None:
    """Softmax: the Hessian's product with (p, p_bias) into (out, bias_out); ``u``, like z, is overwritten.

    ``kept`` are the weights (or nothing), and the derivatives by the outputs that `by_outputs` has left in z.
    """
    weight, delta = kept
    from .kernels.curvature import curve

    rows = batch.rows
    if takes_kernel(rows, p, threads):
        from .kernels import outputs

        outputs.sweep(True, read_only(rows.x, batch.y, weight, p, p_bias), delta, u, out, bias_out)
        return
    bias_out[:] = 0

    def row_wise(u: Array, part: slice) -> None:
        u += p_bias
        curve(delta[part], batch.y[part], weight[part], u)
        np.add(bias_out, u.sum(axis=0), out=bias_out)

    _by_blocks(rows, p, u, row_wise, out)


def takes_kernel(rows: Rows, w: Array, threads: int) -> TypeGuard[DenseRows]:
    """Whether a pass with several outputs is the kernel's, which one thread runs; as `reads_once`."""
    few = w.shape[1] <= MOST_OUTPUTS and threads <= OUTPUTS_THREADS
    return few and isinstance(rows, DenseRows) and rows.x.flags.c_contiguous


def _by_blocks(rows: Rows, matrix: Array, z: Array, row_wise: Callable[[Array, slice], None], out: Array) -> None:
    """z ← ``row_wise`` of X · ``matrix``, in place, and out ← Xᵀ · z, block by block, so that X is read once.

    Args:
        rows: X, shape (rows, features).
        matrix, out: shape (features, outputs); ``out`` is overwritten.
        z: shape (rows, outputs).
        row_wise: is given rows of z, and where they are.
    """
    if isinstance(rows, SparseRows):
        _by_entries(rows, matrix, z, row_wise, out)
        return
    features, outputs = matrix.shape
    order: Any = "F" if features >= WIDE else "C"
    matrix = np.asarray(matrix, order=order)
    total, more = np.zeros((features, outputs), z.dtype, order=order), np.empty((features, outputs), z.dtype, order)
    for part in _blocks(rows, max(16, BLOCK_BYTES // rows.row_bytes)):
        block = rows.take(part)
        block.dot(matrix, out=z[part])
        row_wise(z[part], part)
        total += block.t_dot(z[part], out=more)
    out[:] = total


def _by_entries(
    rows: SparseRows, matrix: Array, z: Array, row_wise: Callable[[Array, slice], None], out: Array
) -> None:
    """As `_by_blocks`, of which a block's gradient is added to ``out`` where its rows have entries."""
    sums = TransposedSums(rows, out)
    for part in _blocks(rows, max(16, max(SPARSE_BYTES, matrix.nbytes) // rows.row_bytes)):
        block = rows.take(part)
        block.dot(matrix, out=z[part])
        row_wise(z[part], part)
        sums.add(block, z[part])
    sums.finish()
