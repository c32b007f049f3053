"""HDF5 and Parquet, and the same rows in every format on any number of ranks."""

import gzip
import random
import re
from types import SimpleNamespace

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
import scipy.io
from alone import Alone, load_features

from distai_mpi.data import distribute, load
from distai_mpi.data.formats import find
from distai_mpi.data.readers.variables import VariablesFile
from distai_mpi.data.sources import Source
from distai_mpi.errors import DataError

pytestmark = pytest.mark.ranks(3)

ROWS = 41
RNG = np.random.default_rng(0)
X, Y, WEIGHT = RNG.normal(size=(ROWS, 6)), np.arange(ROWS) % 4, RNG.integers(0, 5, ROWS) / 2
X[:, 2] = 0
NAMES = [*"abcdef", "y", "w"]


def bad(match, path="a", **options):
    with pytest.raises(DataError, match=match):
        load(path, Alone(), **options)


def save_hdf5(path, options=None, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name.replace("__", "/"), data=array, **(options or {}))


def save_parquet(path, table=None, group=7, **columns):
    table = arrow.table(table if table is not None else columns)
    arrow.parquet.write_table(table, path, row_group_size=group)


# --- HDF5


@pytest.mark.parametrize(
    "options", [None, {"chunks": True}, {"chunks": (9,), "compression": "gzip"}, {"chunks": (50,), "maxshape": (None,)}]
)
@pytest.mark.parametrize("dtype", ["f4", ">f8", "u1", "i8", "f2", "bool"])
def test_hdf5(folder, options, dtype):
    x = (RNG.random((ROWS, 6)) * 100).astype(dtype)
    if options and options["chunks"] is not True:
        with h5py.File("a", "w") as file:
            shape = {"maxshape": (None, 6)} if "maxshape" in options else {}
            chunks = (options["chunks"][0], 6)
            file.create_dataset("x", data=x, chunks=chunks, compression=options.get("compression"), **shape)
            file.create_dataset("y", data=Y)
    else:
        save_hdf5("a", options, x=x, y=Y)
    source, _ = find("a")
    assert isinstance(source, VariablesFile if options else Source)
    if options is None:
        assert source.mappable == (dtype in ("f4", "u1", "i8"))
    for shuffle in ("global", "local"):
        train, _ = load("a", Alone(), shuffle=shuffle, test_fraction=0)
        rows = slice(None) if train.order is None else train.order.positions(0, ROWS)
        assert np.array_equal(train.dataset.x, x[rows])
        assert np.array_equal(train.dataset.y, Y[rows])
        assert train.dataset.scale == 1
    assert np.array_equal(load_features("a").dataset.x, x)


@pytest.mark.parametrize("options", [None, {"compression": "gzip"}])
@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test", "weight_train"),
        ("train__x", "train__y", "test__x", "test__y", "train__weight"),
        ("X_train", "Y_train", "X_test", "Y_test", "sample_weight_train"),
        ("train_images", "train_labels", "test_images", "test_labels", "train_weights"),
        ("train__features", "train__target", "test__features", "test__target", "weight__train"),
    ],
)
def test_names_in_hdf5(folder, options, names):
    save_hdf5("a", options, **dict(zip(names, (X, Y, X[:5] + 1, Y[:5], WEIGHT), strict=True)))
    train, test = load("a", Alone())
    assert np.array_equal(train.dataset.x, X)
    assert np.array_equal(train.dataset.weight, WEIGHT)
    assert np.array_equal(test.dataset.x, X[:5] + 1)
    assert test.dataset.weight is None
    assert np.array_equal(load_features("a").dataset.x, X[:5] + 1)


def test_images_in_hdf5_are_scaled(folder):
    images = RNG.integers(0, 256, (ROWS, 3, 2)).astype("u1")
    for options in (None, {"compression": "gzip"}):
        save_hdf5("a", options, x=images, y=Y)
        train, _ = load("a", Alone(), test_fraction=0)
        assert train.dataset.scale == 1 / 255
        assert np.array_equal(train.dataset.x, images.reshape(ROWS, 6))


@pytest.mark.parametrize("options", [None, {"compression": "gzip"}])
def test_bad_hdf5(folder, options):
    save_hdf5("a", options, x=X, y=Y[:7])
    bad("a: x has 41 rows, but y has 7")
    save_hdf5("a", options, x=X)
    bad("a: holds x, but no y")
    save_hdf5("a", options, other=X)
    bad("a: no training data")
    with pytest.raises(DataError, match="a: no features"):
        load_features("a")
    save_hdf5("a", options, x=X, data=X, y=Y)
    bad("a: data and x could both be x")
    save_hdf5("a", options, x=X.astype(complex), y=Y)
    bad("a: x holds values of type 'complex128'.* are no real numbers")
    save_hdf5("a", options, x=X.astype("S4"), y=Y)
    bad("a: x holds words, which are no numbers")
    save_hdf5("a", options, x=X, y=np.eye(ROWS))
    bad("a: y has shape .*argmax")
    save_hdf5("a", None, x=X[:0], y=Y[:0])
    bad(r"a: x has shape \(0, 6\)")
    x, weight = X.copy(), WEIGHT.copy()
    x[13, 4], weight[9] = np.nan, -1
    save_hdf5("a", options, x=x, y=Y)
    bad("a: x holds nan in row 13, column 4")
    save_hdf5("a", options, x=X, y=Y, weight=weight)
    bad("a: weight is -1.0 in row 9")


def test_damaged_hdf5(folder):
    for options in (None, {"compression": "gzip", "chunks": True}):
        save_hdf5("b", options, x=RNG.normal(size=(300, 6)), y=np.zeros(300))
        data = (folder / "b").read_bytes()
        for keep in (0.1, 0.5, 0.9):
            (folder / "a").write_bytes(data[: int(keep * len(data))])
            bad("a: .*(damaged|truncated)")


# --- Parquet


@pytest.mark.parametrize("group", [1, 7, 100])
def test_parquet(folder, group):
    columns = dict(zip(NAMES, [*X.T.astype(np.float32), Y, WEIGHT], strict=True))
    save_parquet("a", columns, group)
    train, _ = load("a", Alone(), label="y", weight="w", test_fraction=0)
    assert np.array_equal(train.dataset.x, X.astype(np.float32))
    assert train.dataset.x.dtype == np.float32
    assert np.array_equal(train.dataset.y, Y)
    assert train.dataset.y.dtype == np.int64
    assert np.array_equal(train.dataset.weight, WEIGHT)
    last, _ = load("a", Alone(), label="6", weight="7", test_fraction=0)
    assert np.array_equal(last.dataset.x, train.dataset.x)
    assert np.array_equal(load_features("a", label="y", weight="w").dataset.x, train.dataset.x)
    mixed = load("a", Alone(), test_fraction=0)[0]
    assert mixed.features == 7
    assert mixed.dataset.x.dtype == np.float64


def test_bad_parquet(folder):
    save_parquet("a", a=["1%", "2%"], y=[1, 2])
    bad("a: column a is of type (large_)?string, which is no number")
    save_parquet("a", a=[1.0, None, 3.0], y=[1, 2, 3], group=1)
    bad(r"a: column a is empty \(null\) in row 1 \(counted from 0\)")
    save_parquet("a", a=[1.0, 2.0, float("inf")], y=[1, 2, 3], group=2)
    bad("a: column a holds inf in row 2")
    save_parquet("a", a=[1.0, 2.0, 3.0], y=[1, 2, 3], w=[1, -2, 3], group=1)
    bad("a: column w is -2 in row 1.*weights are 0 or more", weight="w")
    bad("a: --label z: there is no such column; there are a, y, w", label="z")
    save_parquet("a", a=[1.0])
    bad("a: has 1 column, and none is left for features")
    save_parquet("a", a=np.empty(0), y=np.empty(0))
    bad("a: holds no rows")
    save_parquet("a", a=X[:, 0], y=Y)
    data = (folder / "a").read_bytes()
    for cut in (1, 100, len(data) - 6):
        (folder / "a").write_bytes(data[:-cut])
        bad("a: damaged or unreadable Parquet")


@pytest.mark.parametrize("kind", ["h5", "packed.h5", "parquet", "nc", "mat", "old.mat"])
def test_random_damage_is_an_error_or_makes_other_rows(folder, kind):
    path = write_all(folder)[kind]
    rng = random.Random(0)
    with open(path, "rb") as file:
        whole = file.read()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(8, len(data))] = rng.randrange(256)
        (folder / "a").write_bytes(data)
        try:
            train, _ = load("a", Alone(), test_fraction=0, memory_limit=1 << 30)
            assert np.isfinite(train.dataset.x).all()
        except DataError as error:
            assert "a: " in str(error) or "memory" in str(error)  # noqa: PT017


# --- the same rows on ranks

FORMATS = ("csv", "csv.gz", "svm", "h5", "packed.h5", "parquet", "nc", "mat", "old.mat", "columns.h5")
VECTORS = ("mat", "old.mat")  # to MATLAB one row of six and one column of six are alike
TABLES = ("csv", "csv.gz", "parquet")


def write_all(folder, x=X, y=Y, weight=WEIGHT):
    """Paths of the same rows in all formats, by kind."""
    paths = {kind: f"{folder}/rows.{kind}" for kind in ("npz", *FORMATS)}
    np.savez(paths["npz"], x=x, y=y, weight=weight)
    rows = list(zip(x.tolist(), y.tolist(), weight.tolist(), strict=True))
    table = "\n".join([",".join(NAMES), *(",".join(map(repr, [*row, label, w])) for row, label, w in rows)])
    with open(paths["csv"], "w") as file:
        file.write(table)
    with gzip.open(paths["csv.gz"], "wt") as file:
        file.write(table)
    with open(paths["svm"], "w") as file:
        for row, label, w in rows:
            print(f"{label}:{w}", *(f"{j}:{v!r}" for j, v in enumerate(row, 1) if v), file=file)
    save_hdf5(paths["h5"], x=x, y=y, weight=weight)
    save_hdf5(paths["packed.h5"], {"compression": "gzip", "chunks": True}, x=x, y=y, weight=weight)
    save_parquet(paths["parquet"], dict(zip(NAMES, [*x.T, y, weight], strict=True)))
    with scipy.io.netcdf_file(paths["nc"], "w") as file:
        for name, length in (("row", len(x)), ("column", x.shape[1])):
            file.createDimension(name, length)
        for name, values in (("x", x), ("y", y.astype("i4")), ("weight", weight)):
            file.createVariable(name, values.dtype, ("row", "column")[: values.ndim])[:] = values
    with h5py.File(paths["mat"], "w", userblock_size=512) as file:
        for name, values in (("x", x), ("y", y[:, None]), ("weight", weight[None])):
            file[name] = values.T
    with open(paths["mat"], "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    scipy.io.savemat(paths["old.mat"], {"x": x, "y": y, "weight": weight}, appendmat=False)
    save_hdf5(paths["columns.h5"], **dict(zip(NAMES, [*x.T, y, weight], strict=True)))
    return paths


@pytest.fixture
def comm():
    from mpi4py import MPI

    from distai_mpi.comm import Communicator

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


@pytest.fixture
def files(comm, tmp_path):
    path = comm.bcast_object(str(tmp_path))
    paths = write_all(path) if comm.rank == 0 else None
    return SimpleNamespace(folder=path, **{"paths": comm.bcast_object(paths)})


def columns_of(kind):
    named = {"label": "y", "weight": "w"}
    if kind == "columns.h5":
        return named | {"variable": "[a-f]"}
    return named if kind in TABLES else {}


def check_same(shards, others):
    for shard, other in zip(shards, others, strict=True):
        assert np.array_equal(shard.dataset.x, other.dataset.x)
        assert np.array_equal(shard.dataset.y, other.dataset.y)
        assert np.array_equal(shard.dataset.weight, other.dataset.weight)
        assert (shard.counts, shard.first, shard.shuffle) == (other.counts, other.first, other.shuffle)
        assert shard.total_weight == pytest.approx(other.total_weight, rel=1e-15)
        assert shard.labels == other.labels
        positions = np.arange(shard.rows)
        if shard.order is not None:
            assert np.array_equal(shard.order.apply(positions), other.order.apply(positions))


WAYS = [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}]


@pytest.mark.mpi
@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_shares_of_an_npz(comm, files, kind, way, chunk_bytes):
    expected = load(files.paths["npz"], comm, **way)
    got = load(files.paths[kind], comm, chunk_bytes=chunk_bytes, **way, **columns_of(kind))
    check_same(got, expected)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", FORMATS)
def test_copies_where_nodes_cannot_share(comm, files, monkeypatch, kind):
    expected = load(files.paths["npz"], comm, shuffle="global")

    def refuse(shape, dtype, touch=True):
        raise MemoryError("no room")

    monkeypatch.setattr(comm, "node_array", refuse)
    got = load(files.paths[kind], comm, shuffle="global", chunk_bytes=100, **columns_of(kind))
    check_same(got, expected)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["csv", "svm", "parquet"])
def test_files_that_some_ranks_alone_see(comm, files, monkeypatch, kind):
    monkeypatch.setattr(distribute, "_who_sees", lambda sources, comm: [rank % 2 == 0 for rank in range(comm.size)])
    for way in WAYS[:2]:
        expected = load(files.paths["npz"], comm, **way)
        check_same(load(files.paths[kind], comm, **way, **columns_of(kind)), expected)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in VECTORS])
def test_few_rows_on_many_ranks(comm, files, kind):
    for rows in (1, 2, 3):
        paths = {}
        if comm.rank == 0:
            # a label below the first index could be an index itself
            paths = write_all(files.folder, X[:rows], Y[:rows] + 1, WEIGHT[:rows] + 1)
        paths = comm.bcast_object(paths)
        for way in WAYS[:2]:
            expected = load(paths["npz"], comm, test_fraction=0, **way)
            check_same(load(paths[kind], comm, test_fraction=0, **way, **columns_of(kind))[:1], expected[:1])
        x = load_features(paths[kind], **columns_of(kind)).dataset.x
        assert np.array_equal(x, load_features(paths["npz"]).dataset.x)
        comm.barrier()  # rank 0 writes the files anew


@pytest.mark.mpi
def test_faults_are_told_alike_by_all_ranks(comm, files):
    """The earliest line in the file is named, whichever rank has it."""
    lines = [f"{i} 1:{i}\n" for i in range(400)]
    for at in (3, 200, 396):
        lines[at] = f"{at} 1:x{at}\n"
    for marks, first in (((3, 200, 396), 3), ((200, 396), 200), ((396,), 396)):
        if comm.rank == 0:
            with open(f"{files.folder}/bad.svm", "w") as file:
                file.writelines(line if i in marks or "x" not in line else "1 1:1\n" for i, line in enumerate(lines))
        comm.barrier()
        with pytest.raises(DataError) as caught:
            load(f"{files.folder}/bad.svm", comm)
        assert set(comm.allgather_object(str(caught.value))) == {str(caught.value)}
        assert re.search(f"bad.svm: line {first + 1}: 'x{first}'", str(caught.value))
        comm.barrier()
