"""Sets of rows on disk: those of a cache that fits, or of one that is made now; ``comm`` is a `comm.Communicator`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...files import claimed, write_json
from ...settings import called
from ...version import __version__
from ..dataset import Dataset
from ..labels import merge, summarize
from ..parsed import Parsed
from ..readers.chunk import Chunk
from ..sharded import ShardedDataset, sum_over_ranks
from ..sharder import Sharder
from ..sources import check_pair
from .build import Build, Rules
from .cache_file import CacheFile, Damaged, check_blocks, open_cache
from .settings import BUFFERS, MOST_BLOCK_BYTES, OutOfCore, parse_size
from .spool import unwritable
from .stored_rows import StoredRows

MANIFEST = "cache.json"
MOST_PIECE_BYTES = 16 << 20  # of text that is parsed at a time: it takes about twice that while it is
KEPT = 4  # blocks, of which one is for copies
LEAST_BLOCK_BYTES = 64 << 10  # shorter reads take longer than what they bring
KNOWN = ("features", "base", "weighted", "label_names", "notes", "entries", "counts")  # of `Parsed`, kept for each file


@dataclass(frozen=True)
class Cache:
    """Where the rows of a data set are on this rank's disk, and what they were made of.

    Attributes:
        folder: of this rank.
        identity: paths, sizes and times of change of the files, and how they were read; the same on all ranks.
    """

    folder: str
    identity: dict[str, Any]

    def opened(self) -> tuple[dict[str, Any], dict[str, CacheFile]]:
        """The manifest, and the files by set; their blocks are compared with their checksums.

        Raises:
            Damaged: there is none, or it is of other files, another version, or not whole; says why.
        """
        kept = self._manifest()
        if not isinstance(kept, dict) or kept.get("identity") != self.identity:
            raise Damaged(_difference(kept.get("identity") if isinstance(kept, dict) else None, self.identity))
        files = {name: open_cache(os.path.join(self.folder, f"{name}.rows")) for name in kept["rows"]}
        if self._manifest() != kept:  # it is removed before files are written, and written behind them
            raise Damaged("another run has changed it")
        for name, cache in files.items():
            if int(cache.rows.sum()) != kept["rows"][name] or len(cache.y) != kept["rows"][name]:
                raise Damaged(f"{cache.path} holds other rows than {MANIFEST} says")
            for _ in check_blocks(cache):
                pass
        return kept, files

    def _manifest(self) -> Any:
        """What the manifest holds; raises `Damaged`."""
        path = os.path.join(self.folder, MANIFEST)
        try:
            with open(path, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            raise Damaged("") from None
        except (OSError, ValueError) as error:
            raise Damaged(f"{path} is damaged ({error})") from None


def _difference(kept: Any, now: dict[str, Any]) -> str:
    """Why a cache is not of this run."""
    if not isinstance(kept, dict) or kept.get("version") != now["version"]:
        return "it was written by another version"
    if kept.get("files") != now["files"]:
        return "the data has changed since"
    return "it was made with other settings"


def stored_sets(
    found: dict[str, Any], comm: Any, sharder: Sharder, settings: OutOfCore, rules: Rules
) -> dict[str, ShardedDataset]:
    """The sets by name, their rows on disk; collective.

    Args:
        found: the files, as `formats.find` gives them on rank 0, the same on all ranks.
        sharder: knows names, fractions and columns; its sources are those of the cache afterwards.
        settings: see `OutOfCore`.
        rules: how files are read, with block sizes that `sized` fills in.

    Raises:
        DataError: the data is refused; Unwritable: the cache cannot be written; ConfigError: the memory is too small,
            or another run writes the same cache now; on all ranks.
    """
    names = [*found, *(name for name, part in sharder.fractions.items() if part > 0 and name not in found)]
    rules = _sized(rules, settings, comm, len(names))
    cache = _cache(found, comm, sharder, settings, rules)
    began = time.perf_counter()
    opened, note = _open(cache, comm, settings, len(names))[0], ""
    if opened is None:
        with contextlib.ExitStack() as held:
            for first in (True, False):  # of two runs that begin together one gets it: that whose rank 0 is ahead
                with comm.agreed():
                    if first == (comm.rank == 0):
                        held.enter_context(_claimed(cache.folder, settings.folder))
            opened, why = _open(cache, comm, settings, len(names))  # another run may have made it since
            if opened is None:
                _make(cache, found, comm, sharder, rules)
                opened, again = _open(cache, comm, settings, len(names))
                if opened is None:
                    raise ConfigError(f"{cache.folder}: the cache that was just written cannot be read: {again}")
                note = " (made anew: " + why + ")" if why else " (made now)"
    kept, files = opened
    seconds = max(comm.allgather_object(time.perf_counter() - began))
    nbytes = int(sum(comm.allgather_object(sum(float(each.nbytes.sum()) for each in files.values()))))
    note = f"rows on disk: {nbytes / 1e9:.3g} GB in {settings.folder}{note}, ready after {seconds:.1f} s"
    return _shards(kept, files, found, comm, sharder, settings, note)


def _sized(rules: Rules, settings: OutOfCore, comm: Any, sets: int) -> Rules:
    """``rules`` with the size of blocks that the memory allows on the node with most ranks."""
    most = settings.block_bytes or MOST_BLOCK_BYTES
    ranks = max(comm.allgather_object(comm.node.size))
    memory = parse_size(settings.memory)
    block = min(most, memory // (ranks * _slots(sets)))
    least = settings.block_bytes or LEAST_BLOCK_BYTES
    if block < least:
        needed = -(-least * ranks * _slots(sets) // 1024)
        raise ConfigError(
            f"{called('memory')} {settings.memory}: rows of {sets} sets on {ranks} ranks of a node need {needed:,} KiB"
        )
    return replace(rules, block_bytes=block, piece_bytes=max(1, min(block // 4, MOST_PIECE_BYTES)))


def _slots(sets: int) -> int:
    """Blocks that a rank's share of the memory must hold: buffers of each set, one for copies of rows, some to keep."""
    return BUFFERS * sets + KEPT


def _cache(found: dict[str, Any], comm: Any, sharder: Sharder, settings: OutOfCore, rules: Rules) -> Cache:
    """Where the cache of these files and settings is; collective."""
    facts = None
    with comm.agreed():
        if comm.rank == 0:
            files = sorted(set().union(*(file.files for file in found.values())))
            stats = [(os.path.abspath(path), os.stat(path)) for path in files]
            facts = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    facts = comm.bcast_object(facts)
    read = (rules.features, rules.base, rules.dense, rules.drops, str(rules.dtype))
    split = sharder.fractions, sharder.seed if any(sharder.fractions.values()) else 0
    described = {name: getattr(file, "path", "") for name, file in found.items()}
    how = repr((sharder.columns, read, split, described, [str(file.dtype) for file in _chunked(found)]))
    paths = sorted(path for path, *_ in facts)
    name = hashlib.sha256(repr((paths, how)).encode()).hexdigest()[:16]
    stem = os.path.basename(paths[0]).split(".")[0][:40]
    folder = os.path.join(settings.folder, f"{stem}-{name}", f"rank-{comm.rank}-of-{comm.size}")
    return Cache(folder, {"version": __version__, "files": facts, "how": how})


def _chunked(found: dict[str, Any]) -> Iterator[Any]:
    return (file for file in found.values() if hasattr(file, "dtype"))


@contextlib.contextmanager
def _claimed(folder: str, root: str) -> Iterator[None]:
    """Hold the cache against other runs that would write it."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise unwritable(root, error) from None
    with claimed(folder):
        yield


def _open(
    cache: Cache, comm: Any, settings: OutOfCore, sets: int
) -> tuple[tuple[dict[str, Any], dict[str, CacheFile]] | None, str]:
    """The cache, if it is whole and fits the memory on all ranks, else why not; collective."""
    found, why = None, None
    try:
        found = cache.opened()
        largest = max((int(each.nbytes.max(initial=0)) for each in found[1].values()), default=0)
        share = settings.share(comm.node.size)
        rows = max((int(each.rows.max(initial=0)) for each in found[1].values()), default=0)
        if largest * _slots(sets) > share + 4096 * _slots(sets) and rows > 1:
            found, why = None, "its blocks are too long for the memory"
    except Damaged as error:
        why = str(error)
    reasons = [each for each in comm.allgather_object(why) if each is not None]
    if not reasons:
        return found, ""
    return None, next(filter(None, reasons), "")


def _make(cache: Cache, found: dict[str, Any], comm: Any, sharder: Sharder, rules: Rules) -> None:
    """Write the cache anew; collective."""
    with comm.agreed():
        for name in os.listdir(cache.folder):
            if name == MANIFEST or name.endswith((".rows", ".spool", ".tmp")):
                os.remove(os.path.join(cache.folder, name))
    build = Build(found, comm, cache.folder, rules)
    try:
        parsed = build.read()
        for each in parsed.values():
            check_pair(parsed["train"], each)
        kept: dict[str, Any] = {"identity": cache.identity, "rows": {}, "files": {}}
        for name, source in parsed.items():
            names, plan = sharder.plan(name, source, "local")
            rows = build.write(name, source, plan, names)
            kept["rows"] |= dict(zip(names, rows, strict=True))
            facts = {field: getattr(source, field) for field in KNOWN}
            kept["files"][name] = facts | {"sets": names, "date_orders": getattr(source.file, "date_orders", ())}
        with comm.agreed():
            write_json(os.path.join(cache.folder, MANIFEST), kept)
    finally:
        build.clear()


def _shards(
    kept: dict[str, Any],
    files: dict[str, CacheFile],
    found: dict[str, Any],
    comm: Any,
    sharder: Sharder,
    settings: OutOfCore,
    note: str,
) -> dict[str, ShardedDataset]:
    """This rank's shards of the sets in the cache; collective."""
    share = settings.share(comm.node.size)
    least = {name: BUFFERS * int(each.nbytes.max(initial=0)) for name, each in files.items()}
    copies = max(least.values()) // BUFFERS
    rest = share - copies - sum(least.values())
    shards: dict[str, ShardedDataset] = {}
    for name, facts in kept["files"].items():
        known = {field: _tuples(facts[field]) for field in KNOWN}
        source = Parsed(found[name], Chunk(np.empty((0, 0)), np.empty(0), None, None), **known)
        sets = []
        for each in facts["sets"]:
            more = max(0, rest) if each == "train" else 0
            sets.append(_shard(files[each], least[each] + more, comm, sharder.names[each], source))
        labels = merge(shard.labels for shard in sets)
        fields = sharder.known(source) | {"date_orders": _tuples(facts["date_orders"])}
        for each, shard in zip(facts["sets"], sets, strict=True):
            shard = replace(shard, labels=replace(labels, rows=shard.rows), **fields)
            shards[each] = sharder.labelled(name, shard)
    shards["train"] = replace(shards["train"], notes=(*shards["train"].notes, f"{shards['train'].name}: {note}"))
    return shards


def _tuples(value: Any) -> Any:
    """What JSON has made lists of."""
    return tuple(map(_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _shard(cache: CacheFile, most_bytes: int, comm: Any, name: str, source: Parsed) -> ShardedDataset:
    dataset = Dataset(StoredRows(cache, most_bytes), cache.y, cache.weight, source.scale)
    counts = tuple(comm.allgather_object(dataset.rows))
    labels = merge(comm.allgather_object(summarize(dataset.y, dataset.features)))
    total = sum_over_ranks(dataset.weight, comm)
    return ShardedDataset(dataset, counts, comm.rank, "local", labels, None, 0, "read", name, total)
