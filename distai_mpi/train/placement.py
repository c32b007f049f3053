"""On which device a run computes; all ranks decide alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..backend import HOST, Device, choose
from ..errors import ConfigError
from ..models import Abilities, Model
from ..settings import called

if TYPE_CHECKING:
    from ..comm import Communicator


def agree_on_device(asked: str | Device, model: Model, comm: Communicator) -> Device:
    """The device of this rank, of the same kind on every rank; collective.

    ``auto`` takes GPUs where every rank has one and the model can use it; see `backend.choose`.

    Raises:
        ConfigError: a GPU was asked for, and a rank has none or the model computes on the host alone; on every rank.
    """
    able = Abilities.of(model).on_devices
    if asked == "auto" and not able:
        return HOST
    with comm.agreed():
        device = asked if isinstance(asked, Device) else choose(asked, comm.node.rank)
        if device is not HOST and not able:
            raise ConfigError(
                f"{called('device')} {device.name}: {type(model).__name__} computes on the host alone (its on_devices"
                f" is not set); use {called('device')} cpu"
            )
    if asked == "auto" and not all(comm.allgather_object(device is not HOST)):
        return HOST
    return device
