"""Blocks of a file, read ahead by a thread into a few buffers, which bound the memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

from ...errors import DataError
from .cache_file import CacheFile, read_into
from .settings import BUFFERS

Array = Any


class Prefetcher:
    """Reads blocks of a cache in any order; what memory there is beyond its buffers keeps blocks from pass to pass.

    Plain reads into buffers that are used again, not a mapping: pages of a mapping count as memory of the process, and
    its faults are served one after another, by the thread that computes.

    Args:
        cache: the file.
        most_bytes: of all blocks that are held, buffers included; at least those.

    Attributes:
        bytes_read: from the file so far.
    """

    def __init__(self, cache: CacheFile, most_bytes: int) -> None:
        self.cache, self.bytes_read = cache, 0
        self._nbytes = cache.nbytes.tolist()
        self._largest = max(self._nbytes, default=0)
        self._free: list[bytearray] = []
        self._left = most_bytes - BUFFERS * self._largest  # for blocks that stay
        self._kept: dict[int, bytearray] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1, "distai-mpi-prefetch")

    def blocks(self, order: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield each block's number and its bytes, which hold until the next one is asked for."""
        waiting: deque[tuple[int, Any]] = deque()
        numbers = iter(order)

        def ask() -> None:
            number = next(numbers, None)
            if number is not None:
                kept = self._kept.get(number)
                waiting.append((number, self._pool.submit(self._read, number) if kept is None else kept))

        used: bytearray | None = None
        try:
            ask()
            while waiting:
                number, held = waiting.popleft()
                ask()  # read while the one before it is worked on
                used = self._arrived(held)
                yield number, used
                self._give_back(number, used)
                used = None
        finally:
            if used is not None:
                self._give_back(number, used)
            for number, held in waiting:
                if isinstance(held, Future):
                    self._give_back(number, held.result())

    @staticmethod
    def _arrived(held: Any) -> bytearray:
        return held.result() if isinstance(held, Future) else held

    def _read(self, number: int) -> bytearray:
        """Fill a free buffer, or a new one, with a block."""
        size = self._nbytes[number]
        with self._lock:
            keeps = number not in self._kept and size <= self._left
            if keeps:
                self._left -= size
            buffer = bytearray(size) if keeps else self._free.pop() if self._free else bytearray(self._largest)
        count = read_into(self.cache.file, memoryview(buffer)[:size], int(self.cache.offsets[number]))
        if count != size:
            raise DataError(f"{self.cache.path}: has become shorter while it was read; start again")
        self.bytes_read += size
        if keeps:
            with self._lock:
                self._kept[number] = buffer
        return buffer

    def _give_back(self, number: int, buffer: bytearray) -> None:
        with self._lock:
            if self._kept.get(number) is not buffer:
                self._free.append(buffer)
                del self._free[BUFFERS:]
