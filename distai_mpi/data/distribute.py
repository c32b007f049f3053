"""From the name of a data set to the shards of the ranks."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from ..errors import ConfigError, DataError, DistaiError
from ..perf.machine import memory_left
from .array_file import ArrayFile
from .array_rows import ArrayRows
from .checks import check_weights
from .classes import encode_labels
from .dataset import Fill
from .encoded_values import weigh_words
from .encoding import Encoding
from .formats import Found, find
from .labels import are_truths
from .learn_encoding import is_encoded
from .missing import WAYS, apply_fill, fill_missing
from .out_of_core import OutOfCore
from .parsed import Drops, Parsed, read_chunks
from .partition import Partition, even_range
from .readers.columns import Columns
from .sharded import ShardedDataset
from .sharder import Sharder
from .sources import Source, check_pair
from .spec import Spec, spec_name
from .wording import worded_errors

T = TypeVar("T")

CHUNK_BYTES = 16 << 20  # read and sent at a time
ENDS_BYTES = 64 << 10  # of a file that are compared to tell whether two ranks see the same
MOST_COMPARED = 256  # files of a data set whose ends are compared: every n-th, of all others the lengths
MEMORY_DIVISOR = 4  # the global shuffle is the default while the data takes at most 1/4 of the memory left


class Sets(NamedTuple):
    """What `load_sets` gives: this rank's shard of each set; None where there is no such set."""

    train: ShardedDataset
    test: ShardedDataset | None
    valid: ShardedDataset | None


def load(data: Spec, comm: Any, **options: Any) -> tuple[ShardedDataset, ShardedDataset | None]:
    """The training and the test set (or None) of `load_sets`, which says what ``options`` there are; collective."""
    sets = load_sets(data, comm, **options)
    return sets.train, sets.test


@worded_errors()
def load_sets(
    data: Spec,
    comm: Any,
    *,
    test: Spec | None = None,
    valid: Spec | float | None = None,
    distribute: str | None = None,
    shuffle: str | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    shards: Partition | None = None,
    dtype: DTypeLike = np.float64,
    sparse_dtype: DTypeLike = np.float64,
    features: int = 0,
    base: int | None = None,
    memory_limit: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    fill: Fill | None = None,
    out_of_core: OutOfCore | None = None,
    encoding: Encoding | None = None,
    **columns: Any,
) -> Sets:
    """Find, check and shard a training, a test and a validation set; collective.

    Args:
        data: ``mnist``, a path, several with commas between them or as a list, a pattern, or a folder; see
            `formats.ACCEPTED`.
        comm: the ranks, a `comm.Communicator`; it must live as long as the data is used.
        test: test data, named likewise; else the test set in ``data``, else rows split off.
        valid: validation data, named likewise, or the fraction of the training rows that is split off for it; None:
            there is none.
        distribute: ``read``: each rank reads its rows; ``scatter``: rank 0 reads and sends them.
            None: read where the format allows slices and all ranks see the file, else scatter.
        shuffle: ``global``: any rank may get any row in each epoch; ``local``: rows are shuffled
            once and stay with their rank.  None: global while the data takes at most
            ``memory_limit``.
        test_fraction: fraction of the rows split off where there is no test set; 0: none is.
            The rows split off depend on the seed alone, not on ranks or the way of shuffling.
        seed: of the order in which rows are scattered.
        shards: the ranks' fractions of the rows and of every global batch; None: the same for all ranks.
        dtype: type in which the features of CSV and libsvm text are held, float32 or float64: each is rounded to
            float64, and then to it.  Other formats keep their own.  float32 takes half the memory; where features are
            standardized, centred or filled afterwards, that sees rounded ones, unlike from other formats.  Values of
            rows that are held sparse take less where that loses nothing, see `sparse_rows.compact`.
        sparse_dtype: to which values of rows that are held sparse are rounded, float32 or float64: that of the model.
        features: least number of features of libsvm rows, as of a model that they are for.
        base: number that libsvm rows give the first feature: `ShardedDataset.base` of what a model was trained on; a
            lower one is refused.  None: 1, or 0 where one of the files uses it.
        memory_limit: bytes that the data may take per node; None: a quarter of the memory left
            on the node that has least.
        chunk_bytes: read and sent at a time.
        fill: replacements of missing values, as of a model; None: by ``missing``, see `fill_missing`.
        out_of_core: keep the rows on disk, each rank those that it has parsed, and read them block by block in every
            pass; None: in memory.
        encoding: what columns of categories and documents become, as of a model; None: as the training rows say.
        columns: which columns of a table are label, weight and features, how it is read, and what is done about
            missing values, of arrays too; see `Columns`.

    Raises:
        DataError, ConfigError: the same on all ranks.
    """
    table = Columns(**columns)
    _check_choices(distribute, shuffle, test_fraction, valid)
    if out_of_core is not None:
        _check_stored(shuffle, shards, fill, table)
    check_kinds({"data": data, "test": test, "valid": valid}, dtype)
    check_kinds({}, sparse_dtype)
    if shards is not None:
        shards.check_ranks(comm.size)
    found = _at_root(comm, lambda: _find_all(data, test, valid, table, dtype))
    fractions = {
        "valid": valid if isinstance(valid, float) else 0.0,
        "test": 0.0 if "test" in found else test_fraction,
    }
    if memory_limit is None:
        memory_limit = min(comm.allgather_object(memory_left())) // MEMORY_DIVISOR
    visible = _who_sees(list(found.values()), comm)
    if distribute == "read" and not all(visible):
        raise ConfigError(
            f"--distribute read: rank {visible.index(False)} does not see the files of {spec_name(data)}, or sees"
            " others of those names; put them where all nodes see them, or use --distribute scatter"
        )
    fits_at = (memory_limit, chunk_bytes, table)
    given = {"train": data, "test": test, "valid": None if isinstance(valid, float) else valid}
    names = {name: spec_name(data if spec is None else spec) for name, spec in given.items()}
    if out_of_core is not None:
        _refuse_encoded(found, encoding)
        sharder = Sharder(comm, names, {}, visible, distribute, fractions, seed, shards, *fits_at)
        sets = _stored(found, sharder, out_of_core, features, base)
        return _alike(Sets(sets["train"], sets.get("test"), sets.get("valid")), table, fill, encoding, comm)
    readers = [0] if distribute == "scatter" else [rank for rank in range(comm.size) if visible[rank]]
    sources = _read_found(found, comm, readers, memory_limit, features, base, table, fill, encoding, sparse_dtype)
    sharder = Sharder(comm, names, sources, visible, distribute, fractions, seed, shards, *fits_at)
    fits = sum(source.nbytes for source in sources.values()) <= memory_limit
    if shuffle == "local" or distribute == "scatter" or (shuffle is None and not fits):
        sets = sharder.shard("local")
    else:
        try:
            sets = sharder.shard("global")
        except MemoryError as error:  # on all ranks
            if shuffle == "global":
                raise ConfigError(f"--shuffle global: {error}; use --shuffle local") from None
            sets = sharder.shard("local")
    return _alike(Sets(sets["train"], sets.get("test"), sets.get("valid")), table, fill, encoding, comm)


def _alike(sets: Sets, table: Columns, fill: Fill | None, encoding: Encoding | None, comm: Any) -> Sets:
    """The sets with the same codes for words and the same replacements of missing values; collective."""
    train = by_position(sets.train, sets.train, table)
    others: list[Any] = [shard and by_position(shard, sets.train, table) for shard in sets[1:]]
    if any(shard is not None and shard.classes is not None for shard in sets):
        train, *others = encode_labels(train, *others, comm=comm)
        words = train.classes is not None and not are_truths(train.classes)
        train = replace(train, labels=replace(train.labels, words=words))
    if fill is not None:
        train, *others = (shard and apply_fill(shard, fill) for shard in (train, *others))
    elif table.missing in WAYS and encoding is None:
        train, *others = fill_missing(train, *others, comm=comm, by=table.missing, indicator=table.indicator)
    if table.tfidf and encoding is None:
        train, *others = weigh_words((train, *others), comm)
    return Sets(train, *others)


def by_position(shard: ShardedDataset, train: ShardedDataset, table: Columns) -> ShardedDataset:
    """``shard`` with a note where its features are taken by position, though the training rows had names."""
    if shard.column_names is not None or (train.column_names is None and table.required is None):
        return shard
    note = f"{shard.name}: its columns have no names, so that they are taken in the order of training"
    return replace(shard, notes=(*shard.notes, note))


def _find_all(
    data: Spec,
    test: Spec | None,
    valid: Spec | float | None,
    columns: Columns,
    dtype: DTypeLike,
) -> dict[str, Found]:
    """The sets that are in files of their own, by name."""
    train, held_out = find(data, test, columns, dtype)
    found = {"train": train}
    if held_out is not None:
        found["test"] = held_out
    if valid is not None and not isinstance(valid, float):
        found["valid"], _ = find(valid, None, columns.following(train), dtype)
    return found


def _read_found(
    found: dict[str, Found],
    comm: Any,
    readers: Sequence[int],
    memory_limit: int,
    features: int,
    base: int | None,
    table: Columns,
    fill: Fill | None,
    encoding: Encoding | None,
    sparse_dtype: DTypeLike,
) -> dict[str, Source | Parsed]:
    """The sources of rows: files of which each rank parses a chunk are read here; collective.

    Arrays from which rows are dropped are read as well.
    """
    encoded = encoding is not None or any(map(is_encoded, found.values()))
    dense = table.dense or fill is not None or table.indicator  # values are filled in dense rows, but encoded ones
    dense = dense or (table.missing in WAYS and not encoded)
    drops: Drops = "rows" if table.missing == "drop" else "nothing"
    if table.missing in WAYS and not table.unlabelled:
        drops = "labels"
    if drops != "nothing":
        found = {
            name: ArrayRows(file.arrays, True) if isinstance(file, Source) else file for name, file in found.items()
        }
    ready: dict[str, Source | Parsed] = {name: file for name, file in found.items() if isinstance(file, Source)}
    files = {name: file for name, file in found.items() if not isinstance(file, Source)}
    known = [file.features for file in found.values() if file.features is not None]
    least = max([features, *known])
    parsed = read_chunks(
        list(files.values()), comm, readers, memory_limit, least, base, drops, dense, table, encoding, sparse_dtype
    )
    ready |= dict(zip(files, parsed, strict=True))
    sources = {name: ready[name] for name in found}
    for source in sources.values():
        if isinstance(source, Source) and source.weight is not None:
            _check_weight(source.weight, comm, readers)
        check_pair(sources["train"], source)
    return sources


def _stored(
    found: dict[str, Found], sharder: Sharder, out_of_core: OutOfCore, features: int, base: int | None
) -> dict[str, ShardedDataset]:
    """The sets by name, their rows on disk; collective."""
    from .out_of_core.build import Rules
    from .out_of_core.load import stored_sets

    table, reads = sharder.columns, sharder.distribute != "scatter" and all(sharder.visible)
    dtype = np.dtype(out_of_core.dtype)
    rules = Rules(features, base, table.dense, table.missing == "drop", dtype, reads, CHUNK_BYTES, CHUNK_BYTES)
    return stored_sets(found, sharder.comm, sharder, out_of_core, rules)


def _check_stored(shuffle: str | None, shards: Partition | None, fill: Fill | None, table: Columns) -> None:
    """Refuse what rows on disk cannot be or have."""
    refused = [
        (shuffle == "global", "--shuffle global: rows stay with the rank on whose disk they are: leave it out"),
        (shards is not None, "--shards: every rank keeps the rows that it has parsed: leave it out"),
        (
            fill is not None or table.missing in WAYS,
            "--missing mean and median: values are filled in rows in memory: take --missing drop, or fill them before",
        ),
    ]
    for is_so, why in refused:
        if is_so:
            raise ConfigError(f"--out-of-core does not go with {why}")


def _refuse_encoded(found: dict[str, Found], encoding: Encoding | None) -> None:
    """Refuse columns of words, whose levels are learned from all rows at once, of rows on disk."""
    files: list[Any] = [file for file in found.values() if is_encoded(file)]
    words = [f"{min(file.files)}: column {file.encoded[0][0]}" for file in files]
    if words or encoding is not None:
        what = f" ({words[0]})" if words else ""
        raise ConfigError(
            f"--out-of-core does not go with categories and text{what}: leave that out, or such columns by --drop"
        )


def _check_weight(weight: ArrayFile, comm: Any, readers: Sequence[int]) -> None:
    """Raise a DataError on all ranks unless ``weight`` can weigh rows; each of ``readers`` checks a range."""
    readers = readers if weight.sliceable else readers[:1]
    total = 0.0
    with comm.agreed():
        if comm.rank in readers:
            start, stop = even_range(weight.rows, len(readers), list(readers).index(comm.rank))
            values = np.empty((stop - start, 1), weight.dtype)
            weight.take(np.arange(start, stop), values, CHUNK_BYTES // 8)
            check_weights(weight, values[:, 0], start)
            total = float(values.sum(dtype=np.float64))
    if sum(comm.allgather_object(total)) == 0:
        raise weight.error("is 0 for all rows")


def _check_choices(
    distribute: str | None, shuffle: str | None, test_fraction: float, valid: Spec | float | None
) -> None:
    if distribute not in (None, "read", "scatter"):
        raise ConfigError(f"--distribute {distribute}: choose read or scatter")
    if shuffle not in (None, "global", "local"):
        raise ConfigError(f"--shuffle {shuffle}: choose global or local")
    if distribute == "scatter" and shuffle == "global":
        raise ConfigError(
            "--distribute scatter leaves every rank its own rows, which --shuffle global cannot reach;"
            " use --shuffle local, or leave --distribute out"
        )
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"the test fraction must be at least 0 and less than 1, not {test_fraction}")
    if isinstance(valid, float) and not 0 < valid < 1:
        raise ConfigError(f"the fraction of validation rows must lie between 0 and 1, not {valid:g}")


def check_kinds(specs: dict[str, Any], dtype: DTypeLike) -> None:
    """Raise a ConfigError at what is no name of data, or no type: on rank 0 alone it would go unseen."""
    for argument, spec in specs.items():
        if isinstance(spec, str | os.PathLike) or (argument != "data" and spec is None):
            continue
        if isinstance(spec, list | tuple) and spec and all(isinstance(name, str | os.PathLike) for name in spec):
            continue
        if not (argument == "valid" and isinstance(spec, float)):
            raise ConfigError(f"{argument} must be a path, several with commas between them, or a list, not {spec!r}")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ConfigError(f"the dtype of features must be float32 or float64, not {np.dtype(dtype)}")


def _at_root(comm: Any, work: Callable[[], T]) -> T:
    """What ``work`` returns on rank 0, or the foreseeable error it raises there, on all ranks."""
    outcome: Any = None
    if comm.rank == 0:
        try:
            outcome = work()
        except DistaiError as error:
            outcome = error
        except (OSError, MemoryError) as error:
            outcome = DataError(str(error) or "not enough memory")
    outcome = comm.bcast_object(outcome)
    if isinstance(outcome, DistaiError):
        raise outcome
    return outcome


def _who_sees(sources: Sequence[Found], comm: Any) -> list[bool]:
    """For each rank, whether it sees the files that rank 0 sees."""
    return _see_alike(sorted(set().union(*(source.files for source in sources))), comm)


def _see_alike(files: Sequence[str], comm: Any) -> list[bool]:
    """For each rank, whether ``files`` are there the same as on rank 0: their lengths, and `_fingerprint` of some.

    One small message a rank, however many files there are.
    """
    step = max(1, len(files) // MOST_COMPARED)
    prints = [_fingerprint(file, ENDS_BYTES if i % step == 0 else 0) for i, file in enumerate(files)]
    seen = comm.allgather_object(hashlib.sha256(repr(prints).encode()).digest())
    return [digest == seen[0] for digest in seen]


def _fingerprint(path: str, ends: int = ENDS_BYTES) -> tuple[int, int] | None:
    """Length of a file, and a checksum of its two ``ends`` (of an .npz: where the checksums of its arrays stand)."""
    try:
        size = os.path.getsize(path)
        if not ends:
            return size, 0
        with open(path, "rb") as file:
            head = file.read(ends)
            file.seek(max(0, size - ends))
            return size, zlib.crc32(file.read(ends), zlib.crc32(head))
    except OSError:
        return None
