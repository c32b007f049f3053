"""A model from a PyTorch module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from ...data import Batch
from ...data.streams import stream_key
from ...errors import ConfigError
from .common import Adapted, Decay, check_losses, load

Array = Any


class TorchModel(Adapted):
    """See `from_torch`.  The parameters bear the names of ``module.named_parameters()`` and lie in that order."""

    def __init__(
        self,
        module: Any,
        loss: Callable[..., Any],
        *,
        predict: Callable[..., Any] | None,
        target_dtype: Any,
        decay: Decay,
    ) -> None:
        self._torch = torch = load("torch", "PyTorch")
        _check_module(torch, module, loss)
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        dtype = _check_parameters(torch, trained)
        super().__init__([(name, p.detach().numpy()) for name, p in trained], dtype, target_dtype, decay)
        self.module, self._loss, self._predict = module, loss, predict
        self.tells_labels = True  # unless the trial of `check_data` shows otherwise
        index = {id(p): i for i, (_, p) in enumerate(trained)}
        # every entry of a module that holds a trained parameter: several, where it is tied
        self._entries = [
            (part._parameters, name, index[id(p)])
            for part in module.modules()
            for name, p in part._parameters.items()
            if id(p) in index
        ]
        with warnings.catch_warnings():  # torch tells once that it cannot protect read-only arrays; nothing writes them
            warnings.simplefilter("ignore")
            torch.from_numpy(np.broadcast_to(np.zeros(1), (1,)))

    def limit_threads(self, threads: int) -> None:
        """Let torch use so many threads in this process, as `torch.set_num_threads` does."""
        self._torch.set_num_threads(threads)

    def load(self, w: Array) -> Any:
        """Copy ``w``, shape (layout.size,), into the module's parameters, and return the module."""
        with self._torch.no_grad():
            views = self._leaves(w)
            for parameters, name, i in self._entries:
                parameters[name].copy_(views[i])
        return self.module

    def predict(self, w: Array, x: Array) -> Array:
        """Labels or values for ``x``, shape (rows, features), by the rule of `from_torch`; shape (rows,)."""
        integers = np.dtype(getattr(self, "target_dtype", self.dtype)).kind == "i"
        if len(x) == 0:
            return np.empty(0, np.int64 if integers else self.dtype)
        with self._torch.inference_mode(), self._at(self._leaves(w), train=False):
            predicted = self._predicted(self.module(self._torch.from_numpy(x)))
        return predicted.astype(np.int64) if predicted.dtype == bool else predicted

    def curvature_at(self, w: Array, batch: Batch) -> Callable[[Array, Array], None]:
        """Hessian products with the sum of losses over ``batch`` at ``w``.

        The result, ``product(v, out)``, overwrites ``out`` with ∇²f v, both of shape (layout.size,): the gradient is
        formed once, and differentiated once more for each product.  It reads ``w`` and the batch's arrays,
        and holds as long as they do.
        """
        torch = self._torch
        leaves = self._leaves(w, grad=True)
        slopes: list[Any] = []
        if len(batch.x):
            losses = self._losses(leaves, batch)
            slopes = self._slopes(losses, leaves, batch, create_graph=True)
        curved = [i for i, slope in enumerate(slopes) if slope is not None and slope.requires_grad]

        def product(v: Array, out: Array) -> None:
            if not curved:
                out[:] = 0
                return
            along = self._leaves(v)
            products = torch.autograd.grad(
                [slopes[i] for i in curved],
                leaves,
                [along[i] for i in curved],
                retain_graph=True,
                allow_unused=True,
            )
            self._write(products, out)

        return product

    def _losses_and_grad(self, w: Array, batch: Batch, grad: Array) -> Array:
        leaves = self._leaves(w, grad=True)
        losses = self._losses(leaves, batch)
        self._write(self._slopes(losses, leaves, batch), grad)
        return losses.detach().numpy()

    def _losses_and_predictions(self, w: Array, batch: Batch) -> tuple[Array, Array | None]:
        torch = self._torch
        with torch.inference_mode(), self._at(self._leaves(w), train=False):
            outputs = self.module(torch.from_numpy(batch.x))
            losses = self._loss(outputs, torch.from_numpy(batch.y))
            self._check(losses, len(batch.x))
            single = outputs.ndim == 1 or outputs.shape[1:] == (1,)
            guesses = self._predict is None and single and not hasattr(self, "target_dtype")
            predicted = None if guesses else self._predicted(outputs)
        return losses.numpy(), predicted

    def _try(self, batch: Batch) -> None:
        """One training pass; a module that changes its buffers in it is refused."""
        kept = [(name, buffer, buffer.clone()) for name, buffer in self.module.named_buffers()]
        try:
            with self._torch.random.fork_rng(devices=[]):
                self._losses_and_grad(self._start, batch, np.empty_like(self._start))
        finally:
            changed = [name for name, buffer, before in kept if not buffer.equal(before)]
            for _, buffer, before in kept:
                buffer.copy_(before)
        if changed:
            raise ConfigError(
                f"the module changes its buffer {changed[0]} in training: every rank would have values of its own; "
                "use layers without running statistics, such as LayerNorm or GroupNorm"
            )
        _, predicted = self._losses_and_predictions(self._start, batch)
        self.tells_labels = predicted is not None

    def _leaves(self, flat: Array, grad: bool = False) -> list[Any]:
        """The parameters as tensors that share memory with ``flat``, shape (layout.size,)."""
        whole = self._torch.from_numpy(flat)
        views = [whole[slot.start : slot.stop].view(slot.shape) for slot in self.layout.slots]
        return [view.requires_grad_() for view in views] if grad else views

    @contextmanager
    def _at(self, leaves: list[Any], train: bool) -> Iterator[None]:
        """Put ``leaves`` in the place of the module's parameters.

        Not for good: they may lie in memory that is given back when training ends.
        """
        if self.module.training is not train:
            self.module.train(train)
        own = [parameters[name] for parameters, name, _ in self._entries]
        try:
            for parameters, name, i in self._entries:
                parameters[name] = leaves[i]
            yield
        finally:
            for (parameters, name, _), parameter in zip(self._entries, own, strict=True):
                parameters[name] = parameter

    def _losses(self, leaves: list[Any], batch: Batch) -> Any:
        """Losses of the rows, shape (rows,), as a tensor that knows its gradient."""
        torch = self._torch
        if batch.train:
            torch.default_generator.manual_seed(stream_key(batch.key, "torch", batch.position))
        with torch.enable_grad(), self._at(leaves, batch.train):
            losses = self._loss(self.module(torch.from_numpy(batch.x)), torch.from_numpy(batch.y))
        self._check(losses, len(batch.x))
        if not losses.requires_grad:
            raise ConfigError("the loss does not depend on the module's parameters: was it detached?")
        return losses

    def _slopes(self, losses: Any, leaves: list[Any], batch: Batch, create_graph: bool = False) -> Any:
        """The gradient of Σ weight · loss by each of ``leaves``; None for one that has no part in it."""
        torch = self._torch
        weight = torch.ones_like(losses) if batch.weight is None else torch.from_numpy(batch.weight).to(losses.dtype)
        return torch.autograd.grad(losses, leaves, weight, create_graph=create_graph, allow_unused=True)

    def _write(self, slopes: Any, flat: Array) -> None:
        """Copy ``slopes`` into ``flat``: less traffic than zeros to which torch would add them."""
        with self._torch.no_grad():
            for view, slope in zip(self._leaves(flat), slopes, strict=True):
                if slope is None:
                    view.zero_()
                else:
                    view.copy_(slope)

    def _check(self, losses: Any, rows: int) -> None:
        if not isinstance(losses, self._torch.Tensor):
            raise ConfigError(f"the loss gives a {type(losses).__name__}: it must give a tensor")
        check_losses(tuple(losses.shape), losses.is_floating_point(), rows)

    def _predicted(self, outputs: Any) -> Array:
        """Labels, whether labels are positive (bool), or values, for the ``outputs`` of some rows."""
        if self._predict is not None:
            return np.asarray(self._predict(outputs))
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return outputs.argmax(1).numpy()
        if outputs.ndim > 2:
            raise ConfigError(f"outputs of shape {tuple(outputs.shape)} need a rule: give from_torch(..., predict=)")
        single = outputs.reshape(len(outputs)).numpy()
        return single > 0 if np.dtype(getattr(self, "target_dtype", self.dtype)).kind == "i" else single.copy()


def _check_module(torch: Any, module: Any, loss: Any) -> None:
    """Raise `ConfigError` for kinds of modules that cannot be trained here."""
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(f"expected a torch.nn.Module (not a script), got {type(module).__name__}")
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{type(part).__name__} {name or 'itself'} couples the rows of a batch, which ranks share out: "
                "use layers that do not, such as LayerNorm or GroupNorm"
            )
    if isinstance(loss, torch.nn.Module) and any(True for _ in loss.parameters()):
        raise ConfigError("the loss has parameters of its own: make them the module's")


def _check_parameters(torch: Any, trained: list[tuple[str, Any]]) -> np.dtype:
    """The dtype of all parameters; raise `ConfigError` where there is no such thing."""
    if not trained:
        raise ConfigError("the module has no parameter that requires a gradient: there is nothing to train")
    for name, p in trained:
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ConfigError(f"parameter {name} has no shape yet: run the module once on a row")
        if p.device.type != "cpu":
            raise ConfigError(f"parameter {name} is on {p.device}: move the module by module.cpu()")
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in trained})
    if dtypes not in (["float32"], ["float64"]):
        raise ConfigError(
            f"parameters are {' and '.join(dtypes)}: make all float32 by module.float() or float64 by module.double()"
        )
    spans = sorted((p.data_ptr(), p.data_ptr() + _extent(p), name) for name, p in trained if p.numel())
    for (_, stop, first), (start, _, second) in pairwise(spans):
        if start < stop:
            raise ConfigError(f"parameters {first} and {second} share memory: to tie them, use one Parameter twice")
    return np.dtype(dtypes[0])


def _extent(p: Any) -> int:
    """Bytes from a tensor's first element to the end of its last, gaps included."""
    last = sum((length - 1) * stride for length, stride in zip(p.shape, p.stride(), strict=True))
    return (last + 1) * p.element_size()
