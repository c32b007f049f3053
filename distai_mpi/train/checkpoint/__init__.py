"""Checkpoints: when a run is saved, what of it and in which form, and how it goes on."""

from .resume import refuse_unfinished
from .saver import Saver, saving
from .settings import Checkpoint, stored_settings

__all__ = ["Checkpoint", "Saver", "refuse_unfinished", "saving", "stored_settings"]
