"""Rows on disk, in blocks: the same models as from memory, and caches that are damaged, foreign, or do not fit."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from distai_mpi import data, fit, models, optim
from distai_mpi.data import Loader, OutOfCore
from distai_mpi.data.out_of_core import StoredRows, cache_file, load
from distai_mpi.data.out_of_core.settings import parse_size
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.files import Unwritable, claimed

FEATURES, ROWS = 60, 403
SIZES = {"memory": "1MiB", "block_bytes": 1000}  # blocks of a few rows


def write_text(path, seed=0, rows=ROWS, low=1, broken=False):
    """Libsvm text: rows with weights and words, some of them without entries."""
    rng = np.random.default_rng(seed)
    truth, lines = np.random.default_rng(1).normal(size=FEATURES), []
    for row in range(rows):
        columns = np.sort(rng.choice(FEATURES, rng.integers(0, 9), replace=False))
        values = rng.normal(size=columns.size).round(3)
        label = int(truth[columns] @ values + 0.5 * rng.normal() > 0)
        entries = " ".join(f"{c + low}:{v}" for c, v in zip(columns, values, strict=True))
        lines.append(f"{label}:{1 + row % 3} {entries}")
    if broken:
        lines[-5] += " x:1"
    Path(path).write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(shared_path, comm, monkeypatch):
    """A folder with sparse and dense rows, the current one; no rank leaves it before all are done."""
    if comm.rank == 0:
        write_text(shared_path / "rows.svm")
        text = (shared_path / "rows.svm").read_bytes()
        (shared_path / "rows.svm.gz").write_bytes(gzip.compress(text))
        rng = np.random.default_rng(2)
        x = rng.normal(size=(ROWS, 5)).astype(np.float32)
        np.savez(shared_path / "rows.npz", x=x, y=np.where(x[:, 0] > 0.2, "yes", "no"))
        table = "\n".join(",".join(map(str, [*row, "b" if row[1] > 0 else "a"])) for row in x.tolist())
        (shared_path / "rows.csv").write_text(table + "\n")
    comm.barrier()
    monkeypatch.chdir(shared_path)
    yield shared_path
    comm.barrier()


def sets_of(comm, name, disk=True, **options):
    """Training, test and validation rows on disk, or in memory."""
    options = {"valid": 0.1, "shuffle": "local", "seed": 5, "dtype": "float64"} | options
    stored = OutOfCore(cache_dir="cache", dtype="float64", **SIZES) if disk else None
    sets = data.load_sets(name, comm, out_of_core=stored, **options)
    return data.Sets(*data.encode_labels(*sets, comm=comm))


def same_rows(comm, one, other):
    """Compare the rows of two sets on all ranks, in any order."""
    found = []
    for shard in (one, other):
        loader = Loader(
            shard, rank=comm.rank, ranks=comm.size, global_batch_size=7, seed=0, dtype=np.float64,
            target_dtype=np.int64, sparse=True,
        )  # fmt: skip
        passes = [loader.sequential(), (batch for _, step in loader.epoch(3) for batch in step)]
        for batches in passes:
            table, ids = [], []
            for batch in batches:
                x = np.empty(batch.rows.shape)
                batch.rows.fill(x)
                weight = np.ones(len(x)) if batch.weight is None else batch.weight
                table.append(np.column_stack([x, batch.y, weight]))
                ids.append(batch.ids.copy())
            assert len(np.unique(np.concatenate([np.empty(0), *ids]))) == shard.counts[comm.rank]
            parts = comm.allgather_object(np.concatenate([np.empty((0, shard.features + 2)), *table]))
            whole = np.concatenate(parts)
            found.append(whole[np.lexsort(whole.T)])
    for each in found[1:]:
        assert np.array_equal(each, found[0])


@pytest.mark.mpi
@pytest.mark.ranks(1, 2, 3)
def test_models_are_those_of_rows_in_memory(comm, folder):
    for name in ("rows.svm", "rows.csv"):
        memory, disk = sets_of(comm, name, disk=False), sets_of(comm, name)
        for one, other in zip(memory, disk, strict=True):
            same_rows(comm, one, other)
        assert disk.train.dataset.is_sparse == (name == "rows.svm")
        network = models.MLP(disk.train.features, 2, (3,), activation="tanh", dropout=0, dtype="float64")
        nets = [fit(network, sets.train, comm, optimizer=optim.LBFGS(max_iter=4)) for sets in (memory, disk)]
        np.testing.assert_allclose(nets[1].params, nets[0].params, rtol=0, atol=1e-9)
        for way in (("standardize",), ("weigh",)):
            for optimizer in (optim.LBFGS(tol=1e-9), optim.NewtonCG(tol=1e-9)):
                results = []
                for sets in (memory, disk):
                    if "standardize" in way:
                        sets = data.Sets(*data.standardize(*sets, comm=comm))
                    else:
                        sets = sets._replace(train=data.weigh_classes(sets.train, "balanced", comm))
                    model = models.Logistic(sets.train.features, dtype="float64")
                    results.append(fit(model, sets.train, comm, optimizer=optimizer, l2=1e-2, test=sets.test))
                assert results[1].converged
                np.testing.assert_allclose(results[1].params, results[0].params, rtol=0, atol=2e-7)
                assert results[1].test_loss == pytest.approx(results[0].test_loss, abs=1e-7)
    assert results[0].bytes_read is None
    assert results[1].bytes_read > 0


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_rows_that_are_dealt_out(comm, folder):
    """Where one rank alone can read a file, and of rows that others are without."""
    for name in ("rows.svm.gz", "rows.npz"):
        memory, disk = sets_of(comm, name, disk=False), sets_of(comm, name)
        for one, other in zip(memory, disk, strict=True):
            same_rows(comm, one, other)
    scattered = sets_of(comm, "rows.svm", distribute="scatter")
    same_rows(comm, scattered.train, sets_of(comm, "rows.svm", disk=False).train)
    if comm.rank == 0:
        Path("one.svm").write_text("1 1:2.5 4:1\n")
    comm.barrier()
    sets = sets_of(comm, "one.svm", valid=None, test_fraction=0)
    assert sorted(sets.train.counts) == [0, 1]
    assert fit(models.Logistic(4), sets.train, comm, optimizer=optim.SGD(), epochs=1).bytes_read > 0


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_epochs_are_orders_of_blocks_and_rows(comm, folder):
    train = sets_of(comm, "rows.svm").train
    options = {"optimizer": optim.Momentum(lr=0.05), "epochs": 3, "global_batch_size": 16, "seed": 4}
    runs = [fit(models.Logistic(FEATURES), train, comm, **options) for _ in range(2)]
    assert np.array_equal(*(run.params for run in runs))
    assert runs[0].history[-1]["running_loss"] < runs[0].history[0]["running_loss"]
    loader = Loader(
        train, rank=comm.rank, ranks=comm.size, global_batch_size=16, seed=0, dtype=np.float64, target_dtype=np.int64
    )
    orders = [np.concatenate([b.ids.copy() for _, s in loader.epoch(epoch) for b in s]) for epoch in (0, 1)]
    assert not np.array_equal(*orders)
    assert np.abs(np.diff(orders[0])).max() > 100  # blocks far apart follow each other
    late = [b.ids.copy() for _, s in loader.epoch(0, loader.steps - 2) for b in s]
    assert np.array_equal(np.concatenate(late), orders[0][-len(np.concatenate(late)) :])


def files_of(comm):
    """The files of this rank's cache, by name."""
    (folder,) = Path("cache").glob(f"rows-*/rank-{comm.rank}-of-{comm.size}")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_a_cache_is_used_again_or_made_anew(comm, folder, monkeypatch):
    def note():
        return sets_of(comm, "rows.svm").train.notes[-1]

    def spoil(name, change):
        if comm.rank == 1:
            path = files_of(comm)[name]
            raw = bytearray(path.read_bytes())
            change(raw)
            path.write_bytes(raw)

    assert "(made now)" in note()
    assert "made" not in note()
    assert set(files_of(comm)) == {"cache.json", "train.rows", "test.rows", "valid.rows"}
    damages = [
        ("train.rows", lambda raw: raw.__setitem__(99, raw[99] ^ 1), "differs from its checksum"),
        ("test.rows", lambda raw: raw.__delitem__(slice(-40, None)), "no file of rows"),
        ("valid.rows", lambda raw: raw.__setitem__(-70, raw[-70] ^ 1), "is damaged"),
        ("cache.json", lambda raw: raw.__delitem__(slice(30, None)), "is damaged"),
        ("cache.json", lambda raw: raw.__init__(b"[]"), "another version"),
        ("train.rows", lambda raw: raw.clear(), "too short"),
    ]
    for name, change, why in damages:
        spoil(name, change)
        assert why in note()
        assert "made" not in note()
    files_of(comm)["train.rows"].unlink()
    assert "No such file" in note()
    comm.barrier()
    if comm.rank == 0:
        write_text("rows.svm", seed=7)
    comm.barrier()
    assert "the data has changed since" in note()
    monkeypatch.setitem(SIZES, "block_bytes", 4000)
    assert "made" not in note()  # the memory allows blocks of the size that is there
    with claimed(files_of(comm)["train.rows"].parent):  # as another run does that makes it
        assert "made" not in note()
        monkeypatch.setattr(load, "__version__", "9")
        with pytest.raises(ConfigError, match="another run writes to this folder now"):
            note()
        comm.barrier()
    assert "another version" in note()


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_a_full_disk_leaves_nothing_half_written(comm, folder, monkeypatch):
    write, room = cache_file.CacheWriter._write, [8]

    def refuse(writer, block):
        room[0] -= 1
        if comm.rank == 1 and room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, block)

    with monkeypatch.context() as patch:
        patch.setattr(cache_file.CacheWriter, "_write", refuse)
        with pytest.raises(Unwritable, match=r"No space left on device\); make room.*cache_dir") as caught:
            sets_of(comm, "rows.svm")
    assert set(comm.allgather_object(str(caught.value))) == {str(caught.value)}
    comm.barrier()
    assert not [name for name in files_of(comm) if name.endswith((".tmp", ".spool")) or name == "cache.json"]
    assert "(made now)" in sets_of(comm, "rows.svm").train.notes[-1]


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_bad_input_is_one_error_on_all_ranks(comm, folder):
    def refused(kind, match, name="rows.svm", **options):
        with pytest.raises(kind, match=match) as caught:
            sets_of(comm, name, **options)
        assert set(comm.allgather_object(str(caught.value))) == {str(caught.value)}

    if comm.rank == 0:
        write_text("bad.svm", broken=True)
    comm.barrier()
    refused(DataError, r"bad.svm: line 399: 'x:1'", "bad.svm")
    refused(ConfigError, "out_of_core=... does not go with shuffle='global'", shuffle="global")
    refused(ConfigError, "does not go with shards=...", shards=data.Partition((1.0, 2.0)))
    refused(ConfigError, "does not go with missing='mean'", missing="mean")
    refused(DataError, "count from 5", base=5)
    with pytest.raises(ConfigError, match="memory 10KiB: rows of 2 sets on 2 ranks of a node need 1,536 KiB"):
        data.load("rows.svm", comm, out_of_core=OutOfCore(memory="10KiB", cache_dir="cache"))
    comm.barrier()


@pytest.mark.parametrize("past", [False, True])
def test_blocks_are_the_same_past_the_page_cache(tmp_path, past, monkeypatch):
    """Wherever they begin and end, the last one near the end of the file; a file that was cut is refused."""
    x = np.random.default_rng(0).normal(size=(5000, 7))
    writer = cache_file.CacheWriter(str(tmp_path / "a"), cache_file.Kind(False, 7, x.dtype), 60_000)
    writer.add(x)
    writer.finish(np.zeros(0), None)
    cache = cache_file.open_cache(str(tmp_path / "a"))
    rows = StoredRows(cache, 1)
    reader = rows.prefetcher.reader
    monkeypatch.setattr(reader, "_is_cached", lambda number: not past)
    for _ in range(2):
        assert np.array_equal(np.concatenate([block.copy() for _, block in rows.blocks()]), x)
    assert reader.past == 0 if not past else reader.past in (0, 2 * len(cache.rows))  # 0: the disk cannot do so
    assert rows.prefetcher.bytes_read == 2 * rows.nbytes
    os.truncate(tmp_path / "a", int(cache.offsets[-1]) + 100)
    with pytest.raises(DataError, match="has become shorter while it was read"):
        list(rows.blocks())


def test_sizes():
    assert [parse_size(text) for text in ("1GiB", "1.5k", "200 MB", 7)] == [2**30, 1536, 200 * 2**20, 7]
    for text in ("", "x", "0", "-1GiB", "1e9", True, 0):
        with pytest.raises(ConfigError, match="memory must be a size such as 500MiB or 2GiB"):
            OutOfCore(memory=text)
