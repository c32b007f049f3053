"""Loss and gradient of linear models on the host, in one reading of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backend import HOST
from .losses import SOFTMAX, SQUARED

Array = Any
BLOCK_BYTES = 1 << 18  # of rows that are in the second-level cache for both products
# 200,000 × 200, 1,000,000 × 50 and 20,000 × 5000 numbers took the kernel's one thread 6, 9 and 15 ms, one of BLAS
# 12, 25 and 20, two 8, 20 and 13: with more than four BLAS should be ahead (not measured).
KERNEL_THREADS = 4
# Of rows for both products, for each thread: 200,000 × 200 numbers then take one thread of BLAS 12 ms and two 8.
BLAS_BYTES = 1 << 20
# With several outputs 60,000 × 784 numbers took the kernel 33 ms for 10 of them and 122 for 40; one thread of BLAS 48
# and 165, two 51 and 120.
OUTPUTS_THREADS, MOST_OUTPUTS = 2, 40
WIDE = 256  # features from which BLAS is faster with few outputs' parameters lying one after another


def by_margins(
    kind: int, batch: Any, weight: Array, w: Array, grad: Array, kept: tuple[Array, Array], threads: int = 1
) -> float:
    """One output: the loss, and its gradient into ``grad``; margins and curvatures are left in ``kept``, if not empty.

    ``w`` and ``grad`` end with the bias where they are longer than a row; see `kernels.linear`, which one thread runs.
    Where this is not for the kernel, see `reads_once`, it is two products of BLAS a block.
    """
    n = batch.x.shape[1]
    offset = w[n] if w.size > n else w.dtype.type(0)
    if not reads_once(batch.x, threads):
        total, loss = np.zeros(grad.size), 0.0
        for part in _blas_blocks(batch.x, threads):
            margin = batch.x[part] @ w[:n] + offset
            losses, residual, curvature = derivatives(kind, margin.astype(np.float64), batch.y[part], weight[part])
            total[:n] += residual.astype(grad.dtype) @ batch.x[part]
            total[n:] += residual.sum()
            loss += float(losses.sum())
            for out, value in zip(kept, (margin, curvature), strict=True):
                if out.size:
                    out[part] = value
        grad[:] = total
        return loss
    from .kernels import linear

    rows = read_only(batch.x, batch.y, weight, w[:n])
    loss, of_bias = linear.loss_and_grad(kind, *rows, offset, grad[:n], *kept)
    grad[n:] = of_bias
    return loss


def curved_by_margins(x: Array, curvature: Array, p: Array, out: Array, threads: int) -> None:
    """One output: out ← the Hessian's product with ``p``, which ends with the bias where it is longer than a row.

    ``curvature`` are those that `by_margins` has left.
    """
    n = x.shape[1]
    offset = p[n] if p.size > n else p.dtype.type(0)
    if not reads_once(x, threads):
        total = np.zeros(out.size)
        for part in _blas_blocks(x, threads):
            u = (x[part] @ p[:n] + offset) * curvature[part]
            total[:n] += u @ x[part]
            total[n:] += u.sum(dtype=np.float64)
        out[:] = total
        return
    from .kernels import linear

    out[n:] = linear.product(*read_only(x), curvature, *read_only(p[:n]), offset, out[:n], curvature[:0])


def _blas_blocks(x: Array, threads: int) -> Iterator[slice]:
    step = max(256, threads * BLAS_BYTES // max(1, x.shape[1] * x.itemsize))
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))


def reads_once(x: Array, threads: int) -> bool:
    """Whether a pass over ``x`` with one output is the kernel's, which takes rows one after another in memory."""
    return threads <= KERNEL_THREADS and x.flags.c_contiguous


def read_only(*arrays: Array) -> tuple[Array, ...]:
    """Views that cannot be written to: kernels would be compiled once for these and once for others, in seconds."""
    return tuple(map(HOST.read_only, arrays))


def derivatives(kind: int, margin: Array, y: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Weighted losses of rows at their margins, and first and second derivatives; float64, shape (rows,)."""
    if kind == SQUARED.code:
        off = margin - y
        found = [0.5 * off * off, off, np.ones_like(off)]
    else:
        sign = np.where(y > 0, 1.0, -1.0)
        signed = sign * margin
        tail = np.exp(-np.abs(signed))
        share = 1.0 / (1.0 + tail)
        residual = -sign * np.where(signed >= 0, tail, 1.0) * share
        found = [np.log1p(tail) + np.maximum(-signed, 0.0), residual, tail * share * share]
    losses, first, second = (weight * part for part in found) if weight.size else found
    return losses, first, second


def by_outputs(
    kind: int, batch: Any, weight: Array, w: Array, bias: Array, z: Array, grad: Array, bias_grad: Array, threads: int
) -> float:
    """Several outputs: the loss, its gradient into ``grad`` and ``bias_grad``, and that by the outputs into ``z``."""
    if takes_kernel(kind, batch.x, w, threads):
        from .kernels import outputs

        rows = read_only(batch.x, batch.y, weight, w, bias)
        return outputs.sweep(False, *rows, z, z, grad, bias_grad)
    from .kernels.cpu import residual

    part, loss = np.empty_like(bias_grad), 0.0
    bias_grad[:] = 0

    def row_wise(z: Array, rows: slice) -> None:
        nonlocal loss
        loss += residual(kind, z, bias, batch.y[rows], weight[rows], part)
        np.add(bias_grad, part, out=bias_grad)

    _by_blocks(batch.x, w, z, row_wise, grad)
    return loss


def curved_by_outputs(
    kind: int,
    rows: tuple[Array, Array, Array, Array],
    p: Array,
    p_bias: Array,
    u: Array,
    out: Array,
    bias_out: Array,
    threads: int,
) -> None:
    """Several outputs: the Hessian's product with (p, p_bias) into (out, bias_out); ``u``, like z, is overwritten.

    ``rows`` are x, y, the weights (or nothing), and the derivatives by the outputs that `by_outputs` has left in z.
    """
    x, y, weight, delta = rows
    from .kernels.curvature import curve

    if takes_kernel(kind, x, p, threads):
        from .kernels import outputs

        outputs.sweep(True, *read_only(x, y, weight, p, p_bias), delta, u, out, bias_out)
        return
    bias_out[:] = 0

    def row_wise(u: Array, part: slice) -> None:
        u += p_bias
        curve(kind, delta[part], y[part], weight[part], u)
        np.add(bias_out, u.sum(axis=0), out=bias_out)

    _by_blocks(x, p, u, row_wise, out)


def takes_kernel(kind: int, x: Array, w: Array, threads: int) -> bool:
    """Whether a pass with several outputs is the kernel's, which one thread runs; as `reads_once`."""
    few = w.shape[1] <= MOST_OUTPUTS and threads <= OUTPUTS_THREADS
    return kind == SOFTMAX.code and few and x.flags.c_contiguous


def _by_blocks(x: Array, matrix: Array, z: Array, row_wise: Callable[[Array, slice], None], out: Array) -> None:
    """z ← ``row_wise`` of x · ``matrix``, in place, and out ← xᵀ · z, block by block, so that x is read once.

    Args:
        x: shape (rows, features).
        matrix, out: shape (features, outputs); ``out`` is overwritten.
        z: shape (rows, outputs).
        row_wise: is given rows of z, and where they are.
    """
    features, outputs = matrix.shape
    step = max(16, BLOCK_BYTES // max(1, features * x.itemsize))
    wide = features >= WIDE
    matrix = np.asarray(matrix, order="F") if wide else matrix
    total = np.zeros((outputs, features) if wide else (features, outputs), x.dtype)
    part = np.empty_like(total)
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        np.dot(x[rows], matrix, out=z[rows])
        row_wise(z[rows], rows)
        total += np.dot(z[rows].T, x[rows], out=part) if wide else np.dot(x[rows].T, z[rows], out=part)
    out[:] = total.T if wide else total
