"""Costs of the collective algorithms in closed form: messages, bytes and seconds.

Two views of the same algorithms (those of ``comm/collectives.py``, and ``compressed`` of ``comm/compression.py``):

* `sent` counts exactly what every rank sends, for slices of any sizes; a
  counting wire reproduces it message by message.
* `path` gives the critical path in the words of Thakur, Rabenseifner & Gropp
  (2005), "Optimization of collective communication operations in MPICH", Int.
  J. High Perform. Comput. Appl. 19(1), 49-66, section 4.5: with p ranks, n
  bytes, latency α, β seconds per byte sent and γ per byte summed, an
  allreduce takes

      recursive doubling   ⌈lg p⌉ (α + nβ + nγ)
      Rabenseifner         2 lg p α + 2 (p-1)/p nβ + (p-1)/p nγ
      ring                 2 (p-1) α + 2 (p-1)/p nβ + (p-1)/p nγ
      binomial tree        2 ⌈lg p⌉ (α + nβ) + ⌈lg p⌉ nγ

  for p a power of two; `path` adds the fold of other rank counts.  ``compressed`` sends
  what the ring does in half the bytes, and sums as much.

Nothing here knows MPI or the rest of the package.  Sizes are bytes: of vectors, float32 ones where they
travel as float16 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

ALIGNMENT = 64
COLLECTIVES = ("allreduce", "reduce_scatter", "allgather")
SLICED = ("ring", "rabenseifner")
ALGORITHMS = ("ring", "tree", "recursive_doubling", "rabenseifner")
COMPRESSED = "compressed"  # rounds what it sends, so it is none of those that may stand for each other
PAIRS_HEADER = 16  # bytes ahead of index-value pairs
HALF_BLOCK = 4096  # elements under one 2-byte exponent


@dataclass(frozen=True)
class Traffic:
    """What one rank, or several together, send: a number of messages and of bytes."""

    messages: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.bytes + other.bytes)


@dataclass(frozen=True)
class Path:
    """The critical path of a collective: messages one after another, bytes sent and bytes summed along it."""

    messages: float
    sent: float
    summed: float

    def __add__(self, other: Path) -> Path:
        return Path(self.messages + other.messages, self.sent + other.sent, self.summed + other.summed)

    def seconds(self, latency: float, bandwidth: float, reduce_rate: float) -> float:
        """Return the time at ``latency`` seconds per message and the rates in bytes per second."""
        return self.messages * latency + self.sent / bandwidth + self.summed / reduce_rate


def slice_sizes(nbytes: int, parts: int) -> list[int]:
    """Share ``nbytes`` out evenly over ``parts``, cut at multiples of 64 bytes, as an ownership table does."""
    units = -(-nbytes // ALIGNMENT)
    cuts = [min(nbytes, units * part // parts * ALIGNMENT) for part in range(parts + 1)]
    return [b - a for a, b in pairwise(cuts)]


def sent(
    collective: str,
    algorithm: str,
    ranks: int,
    nbytes: int,
    slices: Sequence[int] | None = None,
    segment: int | None = None,
) -> list[Traffic]:
    """Return what each rank sends in one collective over ``nbytes`` bytes.

    ``slices`` are the sizes of the owned slices, one per rank, for
    reduce_scatter and allgather; by default `slice_sizes`.  ``segment`` is the
    largest message of the phases that sum (None: no limit); copies travel
    whole, empty slices not at all.  ``compressed`` fills half a segment with a message,
    in both phases.  Raises ValueError for unknown names.
    """
    _check(collective, algorithm)
    sizes = slice_sizes(nbytes, ranks) if slices is None else list(slices)
    if len(sizes) != ranks or sum(sizes) != nbytes:
        raise ValueError(f"slices {sizes} do not make up {nbytes} bytes on {ranks} ranks")
    if algorithm == "tree":
        return [_tree_sent(rank, ranks, nbytes, segment) for rank in range(ranks)]
    if algorithm == "recursive_doubling":
        return [_doubling_sent(rank, ranks, nbytes, segment) for rank in range(ranks)]
    if algorithm == "rabenseifner":
        return _rabenseifner_sent(collective, sizes, segment)
    if algorithm == COMPRESSED:
        return _compressed_sent(collective, sizes, segment)
    total = [Traffic()] * ranks
    if collective != "allgather":
        total = [a + b for a, b in zip(total, _all_but(sizes, 0, segment), strict=True)]
    if collective != "reduce_scatter":
        total = [a + b for a, b in zip(total, _all_but(sizes, 1, None), strict=True)]
    return total


def pairs_sent(pairs: Sequence[Sequence[int]], slices: Sequence[int], pair_bytes: int) -> list[Traffic]:
    """Return what each rank sends of a sparse vector to the owners of slices, of ``slices`` bytes each.

    ``pairs[r][o]`` is how many index-value pairs of ``pair_bytes`` bytes rank r has in the slice of rank o.  A message
    is a header and the pairs, or the slice itself where that is no longer (Renggli et al. 2019, section 5.3).
    """
    traffic = []
    for rank, counts in enumerate(pairs):
        others = [
            (count * pair_bytes, size)
            for owner, (count, size) in enumerate(zip(counts, slices, strict=True))
            if owner != rank
        ]
        sizes = [min(pair, whole) for pair, whole in others]
        traffic.append(sum((_message(size) for size in sizes), Traffic(len(sizes), PAIRS_HEADER * len(sizes))))
    return traffic


def touched_sent(
    collective: str, touched: Sequence[Sequence[int]], itemsize: int, segment: int | None = None
) -> list[Traffic]:
    """Return what each rank sends in a reduce_scatter, or an allgather, of values that ranks touch, without indices.

    ``touched[r][o]`` is how many elements of ``itemsize`` bytes rank r touches in the slice of rank o: it sends these
    to have them summed, and gets them back.  ``segment`` is the largest message.
    """
    ranks = range(len(touched))
    counts = touched if collective == "reduce_scatter" else list(zip(*touched, strict=True))
    return [together([_message(counts[r][o] * itemsize, segment) for o in ranks if o != r]) for r in ranks]


def together(traffic: Sequence[Traffic]) -> Traffic:
    """Return what all ranks send together."""
    return sum(traffic, Traffic())


def path(collective: str, algorithm: str, ranks: int, nbytes: float) -> Path:
    """Return the critical path, for even slices and unlimited messages (exact for evenly divided bytes)."""
    _check(collective, algorithm)
    if ranks == 1:
        return Path(0, 0, 0)
    moved = (ranks - 1) / ranks * nbytes
    levels = (ranks - 1).bit_length()
    core = 1 << (ranks.bit_length() - 1)
    doublings = core.bit_length() - 1
    folded = ranks > core
    if algorithm == "tree":
        return Path(2 * levels, 2 * levels * nbytes, levels * nbytes)
    if algorithm == "recursive_doubling":
        fold = Path(2, 2 * nbytes, nbytes) if folded else Path(0, 0, 0)
        return fold + Path(doublings, doublings * nbytes, doublings * nbytes)
    if algorithm == COMPRESSED:
        down, up = Path(ranks - 1, moved / 2, moved), Path(ranks - 1, moved / 2, 0)
    elif algorithm == "ring":
        down, up = Path(ranks - 1, moved, moved), Path(ranks - 1, moved, 0)
    else:
        moved = (core - 1) / core * nbytes
        down, up = Path(doublings, moved, moved), Path(doublings, moved, 0)
        if folded:  # halves are swapped and one handed over; at the end the odd rank is sent the whole
            handed = Path(1, nbytes / ranks, 0) if collective != "allreduce" else Path(0, 0, 0)
            down += Path(2, nbytes, nbytes / 2) + handed
            up += Path(1, nbytes, 0) + handed
    return {"reduce_scatter": down, "allgather": up, "allreduce": down + up}[collective]


def seconds(
    algorithm: str,
    ranks: int,
    nbytes: float,
    latency: float,
    bandwidth: float,
    reduce_rate: float,
    collective: str = "allreduce",
) -> float:
    """Return the modelled time of a collective, in seconds.

    ``latency`` in seconds, ``bandwidth`` and ``reduce_rate`` in bytes per
    second.  ``native`` is taken to be as good as the best of the others.
    """
    names = [algorithm]
    if algorithm == "native":
        names = list(ALGORITHMS if collective == "allreduce" else SLICED)
    return min(path(collective, name, ranks, nbytes).seconds(latency, bandwidth, reduce_rate) for name in names)


def _check(collective: str, algorithm: str) -> None:
    if collective not in COLLECTIVES or algorithm not in (*ALGORITHMS, COMPRESSED):
        raise ValueError(f"no cost known for {collective!r} by {algorithm!r}: know {COLLECTIVES} by {ALGORITHMS}")
    if collective != "allreduce" and algorithm not in (*SLICED, COMPRESSED):
        raise ValueError(f"{algorithm} has no {collective}: only {SLICED} have slices")


def _message(nbytes: int, segment: int | None = None) -> Traffic:
    """Traffic of one transfer: none if empty, several messages if longer than ``segment``."""
    return Traffic(-(-nbytes // (segment or max(nbytes, 1))), nbytes)


def _all_but(sizes: list[int], offset: int, segment: int | None) -> list[Traffic]:
    """Ring, one way around: rank r passes on every slice but number r + offset."""
    parts = [_message(size, segment) for size in sizes]
    whole = together(parts)
    skipped = parts[offset:] + parts[:offset]
    return [Traffic(whole.messages - s.messages, whole.bytes - s.bytes) for s in skipped]


def _compressed_sent(collective: str, sizes: list[int], segment: int | None) -> list[Traffic]:
    """Every slice but the own one to its owner, then the own one to every other rank."""
    parts = [_compressed_message(size, segment) for size in sizes]
    whole, others = together(parts), len(parts) - 1
    traffic = []
    for own in parts:
        down = Traffic(whole.messages - own.messages, whole.bytes - own.bytes)
        up = Traffic(others * own.messages, others * own.bytes)
        traffic.append({"reduce_scatter": down, "allgather": up, "allreduce": down + up}[collective])
    return traffic


def _compressed_message(nbytes: int, segment: int | None) -> Traffic:
    """Traffic of ``nbytes`` of float32 as float16, with the exponents of its blocks; messages hold whole blocks."""
    elements = nbytes // 4
    longest = max(elements, 1)
    if segment is not None:
        words = segment // 4  # of 2 bytes, in half a segment
        longest = words // (HALF_BLOCK + 1) * HALF_BLOCK or words - 1
    whole, rest = divmod(elements, longest)
    exponents = whole * -(-longest // HALF_BLOCK) + -(-rest // HALF_BLOCK)
    return Traffic(whole + (rest > 0), 2 * (elements + exponents))


def _tree_sent(rank: int, ranks: int, nbytes: int, segment: int | None) -> Traffic:
    """Up once (but for the root), down once to each child: distances below the rank's lowest set bit."""
    reach = rank & -rank if rank else ranks
    children = sum(1 for level in range(ranks.bit_length()) if 1 << level < reach and rank + (1 << level) < ranks)
    up = _message(nbytes, segment) if rank else Traffic()
    down = _message(nbytes)
    return up + Traffic(children * down.messages, children * down.bytes)


def _doubling_sent(rank: int, ranks: int, nbytes: int, segment: int | None) -> Traffic:
    """The whole vector lg p times; the odd rank of a folded pair once, its neighbour once more."""
    whole = _message(nbytes, segment)
    core = 1 << (ranks.bit_length() - 1)
    paired = rank < 2 * (ranks - core)
    if paired and rank % 2:
        return whole
    doublings = core.bit_length() - 1
    rounds = Traffic(doublings * whole.messages, doublings * whole.bytes)
    return rounds + _message(nbytes) if paired else rounds


def _rabenseifner_sent(collective: str, sizes: list[int], segment: int | None) -> list[Traffic]:
    """Halving and doubling among a power of two of ranks, with the fold around it."""
    ranks, nbytes = len(sizes), sum(sizes)
    core = 1 << (ranks.bit_length() - 1)
    pairs = ranks - core
    if collective == "allreduce":
        merged = slice_sizes(nbytes, core)
    else:
        merged = [sizes[r] + sizes[r + 1] for r in range(0, 2 * pairs, 2)] + sizes[2 * pairs :]
    low = sum(merged[: core // 2])
    sums, copies = collective != "allgather", collective != "reduce_scatter"
    halves = collective != "allreduce"
    traffic = []
    for rank in range(ranks):
        total = Traffic()
        paired, waits = rank < 2 * pairs, rank < 2 * pairs and rank % 2 == 1
        number = rank // 2 if paired else rank - pairs
        if sums and paired:  # swap halves; the odd rank hands its sum over
            total += _message(low, segment) + _message(nbytes - low) if waits else _message(nbytes - low, segment)
        if not waits:
            total += _core_sent(merged, number, segment, sums, copies)
        if halves and sums and paired and not waits:  # the waiting rank gets its slice
            total += _message(sizes[rank + 1])
        if halves and copies and waits:  # it hands its slice in
            total += _message(sizes[rank])
        if copies and paired and not waits:  # it gets the whole
            total += _message(nbytes)
        traffic.append(total)
    return traffic


def _core_sent(merged: list[int], number: int, segment: int | None, sums: bool, copies: bool) -> Traffic:
    """Halving sends the partner's block at every distance, doubling one's own; both add up to about n (p-1)/p."""
    total = Traffic()
    width = 1
    while width < len(merged):
        mine, partner = number & -width, (number ^ width) & -width
        if sums:
            total += _message(sum(merged[partner : partner + width]), segment)
        if copies:
            total += _message(sum(merged[mine : mine + width]))
        width <<= 1
    return total
