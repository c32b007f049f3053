"""Where parameters live: named views of one flat vector, and who owns which slice of it."""

from .layout import Layout, Slot
from .ownership import Ownership

__all__ = ["Layout", "Ownership", "Slot"]
