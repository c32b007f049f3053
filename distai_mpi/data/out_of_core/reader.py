"""How blocks of a cache come from the disk: through the page cache, or past it where that does not keep them."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Any

from ...errors import DataError
from .cache_file import CacheFile, read_into

ALIGNMENT = 4096  # of reads past the page cache: of place, length and memory


class BlockReader:
    """Reads blocks into buffers; for one thread at a time.

    The first time a block is read through the page cache, which is then asked whether it still holds the block
    whenever that is read again.  While it does, memory that is free makes passes fast.  Where it does not, data is
    larger than the memory: reads that go past it (O_DIRECT) then take a tenth of the CPU time, brought 1.3 to 2 times
    as many bytes a second beside ranks that compute, and leave the memory to others.

    Args:
        cache: the file.

    Attributes:
        buffer_bytes: of a buffer for any block.
        past: blocks that were read past the page cache so far.
    """

    def __init__(self, cache: CacheFile) -> None:
        self.cache, self.past = cache, 0
        self._sizes, self._offsets = cache.nbytes.tolist(), cache.offsets.tolist()
        self.buffer_bytes = self.room(max(self._sizes, default=0))
        self._seen: set[int] = set()
        self._direct = _opened_past(cache)

    @staticmethod
    def room(size: int) -> int:
        """Bytes of a buffer for a block of ``size`` bytes, wherever it begins."""
        return -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT

    @staticmethod
    def buffer(size: int) -> Any:
        """Aligned memory of `room` for ``size`` bytes."""
        return mmap.mmap(-1, size)

    def read(self, number: int, buffer: Any) -> memoryview:
        """The bytes of a block, in ``buffer``.

        Raises:
            DataError: the file has become shorter.
        """
        size, offset = self._sizes[number], self._offsets[number]
        shift = offset % ALIGNMENT
        block = memoryview(buffer)[shift : shift + size]
        if self._direct is None or self._is_cached(number):
            count = read_into(self.cache.file, block, offset)
        else:
            count = self._read_past(memoryview(buffer), shift, size, offset)
        if count != size:
            raise DataError(f"{self.cache.path}: has become shorter while it was read; start again")
        self._seen.add(number)
        return block

    def _read_past(self, buffer: memoryview, shift: int, size: int, offset: int) -> int:
        """Bytes of the block that were read, in whole pages; the last one ends with the file."""
        whole, done = -(-(shift + size) // ALIGNMENT) * ALIGNMENT, 0
        try:
            while done < whole:
                count = os.preadv(self._direct, [buffer[done:whole]], offset - shift + done)  # type: ignore[arg-type]
                done += count
                if count % ALIGNMENT or not count:
                    break
        except OSError:  # the disk wants another alignment
            self._close()
            return read_into(self.cache.file, buffer[shift : shift + size], offset)
        self.past += 1
        return min(size, done - shift)

    def _is_cached(self, number: int) -> bool:
        """Whether a read through the page cache is the one to make: of a block that is new, or is there."""
        if number not in self._seen:
            return True
        middle = self._offsets[number] + self._sizes[number] // 2
        try:
            os.preadv(self.cache.file, [bytearray(1)], middle, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it cannot be asked
            self._close()
        return True

    def _close(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
        self._direct = None

    def __del__(self) -> None:
        self._close()


def _opened_past(cache: CacheFile) -> int | None:
    """A descriptor of the file whose reads go past the page cache; None where there are none."""
    if not (hasattr(os, "O_DIRECT") and hasattr(os, "RWF_NOWAIT")):
        return None
    with contextlib.suppress(OSError):
        file = os.open(cache.path, os.O_RDONLY | os.O_DIRECT)
        if os.path.samestat(os.fstat(file), os.fstat(cache.file)):
            return file
        os.close(file)
    return None
