"""Random permutations of any length, computed point by point."""

from __future__ import annotations

from typing import Any

import numpy as np

from .streams import GOLDEN, mix, stream_key

Array = Any

MINIMUM_BITS = 10  # a wider domain than n needs makes every order of few rows equally likely


class Permutation:
    """A bijection of 0 .. n-1 named by a key, such as ``Permutation(n, seed, "shuffle", epoch)``.

    Nothing is stored: any rank computes any range of the order, at some 5 ns a point,
    and pays for its own rows alone.

    The points of the next power of two, cut in two halves of bits, pass through a Feistel
    network with SplitMix64 as its round function; points that fall outside 0 .. n-1 pass
    again until they are inside (cycle walking).  See Mitchell, Stokes, Frank & Holmes 2022,
    "Bandwidth-optimal random shuffling for GPUs", ACM TOPC 9(1), sections 4 and 5.
    """

    def __init__(self, n: int, *key: int | str) -> None:
        from .kernels import ROUNDS, permute, unpermute

        self.n, self._permute, self._unpermute = n, permute, unpermute
        bits = max(MINIMUM_BITS, (n - 1).bit_length())
        start = stream_key(*key)
        keys = np.array([mix(start + GOLDEN * i) for i in range(1, ROUNDS + 1)], dtype=np.uint64)
        self._network = (n, bits // 2, bits - bits // 2, keys)

    def apply(self, positions: Array, out: Array | None = None, shift: int = 0) -> Array:
        """Images of ``positions + shift``, shape (rows,), int64, each in 0 .. n-1 (not checked).

        ``out`` may be ``positions`` itself.
        """
        out = np.empty_like(positions) if out is None else out
        self._permute(positions, shift, *self._network, out)
        return out

    def positions(self, start: int, stop: int) -> Array:
        """Images of start .. stop-1, shape (stop - start,), int64: a range of the order."""
        positions = np.arange(start, stop, dtype=np.int64)
        return self.apply(positions, out=positions)

    def inverse(self, images: Array) -> Array:
        """The positions whose images are ``images``, shape (rows,), int64."""
        out = np.empty_like(images)
        self._unpermute(images, *self._network, out)
        return out
