"""Losses, one in each file: a file with an object LOSS, and a line in `options.LOSSES_OF_MODELS`, add one."""

from __future__ import annotations

from importlib import import_module

from ...errors import ConfigError
from ...options import LOSSES_OF_MODELS
from .base import Loss, PointLoss, TwoClassLoss

LOSSES: dict[str, Loss] = {name: import_module(f".{name}", __name__).LOSS for name in LOSSES_OF_MODELS.values()}


def loss_of(loss: str | Loss) -> Loss:
    """The loss of this name, or ``loss`` itself, which may be of a user's own class.

    Raises:
        ConfigError: there is no such loss.
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise ConfigError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}, or give a models.Loss")
    return LOSSES[loss]


__all__ = ["LOSSES", "Loss", "PointLoss", "TwoClassLoss", "loss_of"]
