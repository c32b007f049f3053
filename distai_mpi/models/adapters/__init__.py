"""Models whose gradients JAX or PyTorch computes; neither is loaded before one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .common import Decay, matrices

if TYPE_CHECKING:
    from .jax_model import JaxModel
    from .torch_model import TorchModel

__all__ = ["from_jax", "from_torch"]


def from_jax(
    loss: Callable[..., Any],
    params: Any,
    *,
    predict: Callable[..., Any] | None = None,
    dtype: Any = "float32",
    target_dtype: Any = None,
    decay: Decay = matrices,
) -> JaxModel:
    """A model from a loss that JAX can differentiate.

    Args:
        loss: ``loss(params, x, y)`` gives the loss of each row, shape (rows,), of ``x``, shape (rows, features),
            and ``y``, shape (rows,).  A row's loss must depend on that row alone: batches are filled up
            with copies of their last row, which then weigh nothing, so that few lengths are compiled.  If
            it has an argument called ``key``, it gets there a random key for each row, shape (rows,), or
            None where dropout and the like are off.  The keys come from the seed, the epoch and the
            row's position in the epoch: dropout does not depend on the number of ranks.
        params: the starting parameters, a pytree of arrays; the same on every rank.
        predict: ``predict(params, x)`` gives labels or values, shape (rows,), or scores of classes, shape
            (rows, classes), of which the greatest names the label.  Without it there is no accuracy.
        dtype: float32 or float64, of parameters, features and gradient; ``params`` are converted.
            For float64 JAX's 64-bit mode is on while this model computes, and only then.
        target_dtype: of ``y``; without it whole numbers come as integers and others in ``dtype``.
        decay: ``decay(name, shape)`` says whether the l2 penalty and weight decay apply to a parameter;
            by default to those with two or more axes: not to biases, scales and other vectors.

    Raises:
        ConfigError: JAX is missing, or a parameter is no finite array of real numbers.
    """
    from .jax_model import JaxModel

    return JaxModel(loss, params, predict=predict, dtype=dtype, target_dtype=target_dtype, decay=decay)


def from_torch(
    module: Any,
    loss: Callable[..., Any],
    *,
    predict: Callable[..., Any] | None = None,
    target_dtype: Any = None,
    decay: Decay = matrices,
) -> TorchModel:
    """A model from a PyTorch module on the CPU.

    Args:
        module: ``module(x)`` gives the outputs for ``x``, shape (rows, features).  Its parameters that
            require a gradient are trained, in their dtype, float32 or float64; a tied one counts once.
            The others stay as they are, and so do buffers: a module that changes buffers in training, or
            couples rows, such as BatchNorm, is refused.  It must be built alike on every rank (seed torch
            first); `fit` starts from rank 0's trained parameters.  Training leaves the module's own
            parameters alone: `TorchModel.load` puts the result there.
        loss: ``loss(outputs, y)`` gives the loss of each row, shape (rows,): reduction "none".
        predict: ``predict(outputs)`` gives labels or values, shape (rows,).  By default outputs of shape
            (rows, classes) name the class with the greatest; single outputs are values or, where
            ``target_dtype`` is an integer, margins, whose sign names the label 0 or 1.
        target_dtype: of ``y``; without it whole numbers come as int64 and others in the module's dtype.
        decay: ``decay(name, shape)`` says whether the l2 penalty and weight decay apply to a parameter;
            by default to those with two or more axes: not to biases, scales and other vectors.

    Dropout draws from torch's own generator, seeded for each batch from the seed, the epoch and the position
    of the batch's first row: a run can be repeated on as many ranks, and is another sample on others.

    Raises:
        ConfigError: PyTorch is missing, or the module cannot be trained.
    """
    from .torch_model import TorchModel

    return TorchModel(module, loss, predict=predict, target_dtype=target_dtype, decay=decay)
