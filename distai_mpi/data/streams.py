"""Counter-based random numbers, which do not depend on the rank that draws them.

A stream is named by a 64-bit key; its i-th number is a hash of the key and of i.
Any rank can thus compute any range of any stream without drawing the rest.
The hash is the output function of SplitMix64 (Steele, Lea & Flood 2014, "Fast
splittable pseudorandom number generators", figure 15; constants of Stafford's
variant 13): five arithmetic operations that compilers turn into vector code.
"""

from __future__ import annotations

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, made odd: the step between counters
MIX_FIRST, MIX_SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the hash's multipliers


def mix(z: int) -> int:
    """Scramble a 64-bit integer one to one (SplitMix64)."""
    z &= MASK
    z = ((z ^ (z >> 30)) * MIX_FIRST) & MASK
    z = ((z ^ (z >> 27)) * MIX_SECOND) & MASK
    return z ^ (z >> 31)


def stream_key(*parts: int | str) -> int:
    """The key of the stream that ``parts`` name, such as ``(seed, "dropout", epoch, layer)``.

    Order matters, and a string counts by its characters.  Returns an unsigned 64-bit integer.
    """
    key = 0
    for part in parts:
        number = int.from_bytes(part.encode(), "little") if isinstance(part, str) else part
        while True:
            key = mix(key + GOLDEN + (number & MASK))
            number >>= 64
            if number in (0, -1):
                break
    return key
