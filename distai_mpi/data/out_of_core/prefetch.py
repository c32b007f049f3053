"""Blocks of a file, read ahead by a thread into a few buffers, which bound the memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

from .cache_file import CacheFile
from .reader import BlockReader
from .settings import BUFFERS

Array = Any


class Held(NamedTuple):
    """Memory with a block in it."""

    buffer: Any
    block: memoryview


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
        self.cache, self.bytes_read, self.reader = cache, 0, BlockReader(cache)
        self._nbytes = cache.nbytes.tolist()
        self._free: list[Any] = []
        self._left = most_bytes - BUFFERS * max(self._nbytes, default=0)  # for blocks that stay
        self._kept: dict[int, Held] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1, "distai-mpi-prefetch")

    def blocks(self, order: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield each block's number and its bytes, which hold until the next one is asked for."""
        waiting: deque[tuple[int, Held | Future[Held]]] = deque()
        numbers = iter(order)

        def ask() -> None:
            number = next(numbers, None)
            if number is not None:
                kept = self._kept.get(number)
                waiting.append((number, self._pool.submit(self._read, number) if kept is None else kept))

        used: Held | None = None
        try:
            for _ in range(BUFFERS - 1):
                ask()
            while waiting:
                number, held = waiting.popleft()
                ask()  # read while those before it are worked on
                used = self._arrived(held)
                yield number, used.block
                self._give_back(number, used)
                used = None
        finally:
            if used is not None:
                self._give_back(number, used)
            for number, held in waiting:
                if isinstance(held, Future) and not held.cancel():
                    self._give_back(number, held.result())

    @staticmethod
    def _arrived(held: Held | Future[Held]) -> Held:
        return held.result() if isinstance(held, Future) else held

    def _read(self, number: int) -> Held:
        """Fill a free buffer, or a new one, with a block."""
        size = self._nbytes[number]
        with self._lock:
            keeps = number not in self._kept and size <= self._left
            if keeps:
                self._left -= size
            buffer = self._free.pop() if self._free and not keeps else None
        if buffer is None:
            buffer = self.reader.buffer(self.reader.room(size) if keeps else self.reader.buffer_bytes)
        held = Held(buffer, self.reader.read(number, buffer))
        self.bytes_read += size
        if keeps:
            with self._lock:
                self._kept[number] = held
        return held

    def _give_back(self, number: int, held: Held) -> None:
        with self._lock:
            if self._kept.get(number) is not held:
                self._free.append(held.buffer)
                del self._free[BUFFERS:]
