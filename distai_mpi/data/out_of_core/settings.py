"""How much memory rows on disk may take, and where the disk is."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...settings import called, setting, settings

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MOST_BLOCK_BYTES = 32 << 20  # longer blocks were no faster to read
BUFFERS = 4  # of a pass: one block is worked on, others are read; with two, who is late once keeps the other waiting


@settings
class OutOfCore:
    """That rows are kept on disk, and how.

    Attributes:
        memory: bytes that rows read from disk may take on a node, all ranks together: a number, or a text such as
            ``"2GiB"``.  Labels and weights (8 bytes a row each) and what a solver keeps of rows come on top.
        cache_dir: folder of the cache, on a disk of each node; None: one of the user's in the folder of temporary
            files (TMPDIR).
        dtype: in which values of sparse rows are held, float32 or float64; float32 of a float64 that it cannot hold
            exactly is its rounding, as in a model of float32.
        block_bytes: of the blocks that are read at a time; None: 32 MiB, or what the memory allows.
    """

    memory: int | str = setting(default="1GiB")
    cache_dir: str | None = setting(default=None)
    dtype: Any = setting(default="float32")
    block_bytes: int | None = setting(kind="int", default=None, low=1)

    def check(self) -> None:
        """Raise a ConfigError unless ``memory`` is a size, and ``dtype`` one that rows are held in."""
        parse_size(self.memory)
        if np.dtype(self.dtype) not in (np.float32, np.float64):
            raise ConfigError(f"the dtype of rows on disk must be float32 or float64, not {np.dtype(self.dtype)}")

    @property
    def folder(self) -> str:
        """Where the cache is."""
        return self.cache_dir or os.path.join(tempfile.gettempdir(), f"distai-mpi-{getpass.getuser()}")

    def share(self, ranks: int) -> int:
        """Bytes for rows on one of so many ``ranks`` of a node."""
        return parse_size(self.memory) // ranks


def parse_size(size: int | str) -> int:
    """Bytes of ``size``: a whole number, or a text such as 500MB, 2GiB or 1.5g, all of them powers of 1,024."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(size), re.IGNORECASE)
    if found is None or float(found[1]) <= 0 or isinstance(size, bool):
        raise ConfigError(f"{called('memory')} must be a size such as 500MiB or 2GiB, got {size!r}")
    return int(float(found[1]) * UNITS[found[2].lower()])
