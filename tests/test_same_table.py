"""One table in every format: the same numbers, and the same weights, bit for bit, at each number of ranks."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from commands import run_here
from fits import fit

from distai_mpi import data, models, optim

h5py = pytest.importorskip("h5py", reason="not available: h5py")
arrow = pytest.importorskip("pyarrow", reason="not available: pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="not available: pyarrow")

pytestmark = [pytest.mark.mpi, pytest.mark.ranks(2)]

ROWS, FEATURES = 500, 7
NAMES = tuple(f"f{j}" for j in range(FEATURES))
USER_BLOCK = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"


def make_table() -> tuple[Any, Any]:
    """Features of many kinds, float64, and labels 0 and 1; rows are in the order of their labels.

    A folder by ``label=0`` and ``label=1`` can keep no other order.
    """
    rng = np.random.default_rng(13)
    base = rng.normal(size=(ROWS, FEATURES))
    y = (base @ rng.normal(size=FEATURES) + rng.logistic(size=ROWS) > 0).astype(np.int64)
    scale, offset = [1.0, 86_400.0, 1e-7, 1e6, 1.0, 10.0, 0.3], [0.0, 1.7e9, 0.0, -3e6, 100.0, 0.0, 0.1]
    x = base * scale + offset
    x[:, 5] = np.round(x[:, 5])
    order = np.argsort(y, kind="stable")
    return np.ascontiguousarray(x[order]), y[order]


def text(separator: str) -> bytes:
    """The table with a header and, for every number, the digits that it takes to read it again exactly."""
    x, y = make_table()
    rows = [[*map(repr, row), str(label)] for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    return "".join(separator.join(row) + "\n" for row in [[*NAMES, "label"], *rows]).encode()


def write_npz(folder: Path) -> None:
    x, y = make_table()
    np.savez(folder / "table.npz", x=x, y=y)


def write_npz_packed(folder: Path) -> None:
    x, y = make_table()
    np.savez_compressed(folder / "table.npz", x=np.asfortranarray(x), y=y.astype(np.uint8))


def write_pair(folder: Path) -> None:
    x, y = make_table()
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)


def write_columns(folder: Path) -> None:
    x, y = make_table()
    np.save(folder / "x.npy", np.asfortranarray(x))
    np.save(folder / "y.npy", y.astype(np.float64))


def write_libsvm(folder: Path) -> None:
    x, y = make_table()
    rows = zip(x.tolist(), y.tolist(), strict=True)
    lines = (f"{label} " + " ".join(f"{j}:{value!r}" for j, value in enumerate(row, 1)) for row, label in rows)
    (folder / "table.svm").write_text("\n".join(lines) + "\n")


def write_hdf5(folder: Path, turned: bool = False, **options: Any) -> None:
    x, y = make_table()
    with h5py.File(folder / "table.h5", "w") as file:
        file.create_dataset("x", data=x.T if turned else x, **options)
        file.create_dataset("y", data=y)


def write_netcdf(folder: Path) -> None:
    """As netCDF-4 lays a file out: dimensions are scales, attached to the variables."""
    x, y = make_table()
    with h5py.File(folder / "table.nc", "w", track_order=True) as file:
        file.attrs["_NCProperties"] = np.bytes_(b"version=2,netcdf=4.9.2,hdf5=1.14.3")
        for number, (name, size) in enumerate((("row", ROWS), ("feature", FEATURES))):
            scale = file.create_dataset(name, shape=(size,), dtype=">f4")
            scale.make_scale(f"This is a netCDF dimension but not a netCDF variable.{size:10d}")
            scale.attrs["_Netcdf4Dimid"] = np.int32(number)
        values = file.create_dataset("measured", data=x, chunks=(100, FEATURES), shuffle=True, compression="gzip")
        classes = file.create_dataset("quality", data=y)
        for axis, name in enumerate(("row", "feature")):
            values.dims[axis].attach_scale(file[name])
        classes.dims[0].attach_scale(file["row"])
        values.attrs["_FillValue"] = np.array([9.969209968386869e36])


def write_netcdf_3(folder: Path) -> None:
    """As netCDF's classic format, big-endian."""
    x, y = make_table()
    with scipy.io.netcdf_file(folder / "table.nc", "w") as file:
        file.createDimension("row", ROWS)
        file.createDimension("feature", FEATURES)
        file.createVariable("measured", "d", ("row", "feature"))[:] = x
        file.createVariable("quality", "i", ("row",))[:] = y


def write_matlab(folder: Path, rows_first: bool = True) -> None:
    """As MATLAB's ``save -v7.3`` does: a block of its own at the front, and matrices by columns."""
    x, y = make_table()
    path = folder / "table.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in (("X", x if rows_first else x.T), ("target", y[:, None].astype(np.float64))):
            stored = file.create_dataset(name, data=values.T)
            stored.attrs["MATLAB_class"] = np.bytes_(b"double")
    with open(path, "r+b") as raw:
        raw.write(USER_BLOCK)


def write_matlab_5(folder: Path) -> None:
    """As MATLAB's ``save`` does unless it is told otherwise."""
    x, y = make_table()
    scipy.io.savemat(folder / "table.mat", {"X": x, "target": y[:, None].astype(np.float64)}, do_compression=True)


def frame(label: bool = True) -> Any:
    """The table of Arrow."""
    x, y = make_table()
    columns = {name: np.ascontiguousarray(x[:, j]) for j, name in enumerate(NAMES)}
    return arrow.table(columns | ({"label": y} if label else {}))


def write_parquet(folder: Path) -> None:
    """As ``DataFrame.to_parquet`` does: several groups of rows, and what pandas adds of its index."""
    index = {"kind": "range", "name": None, "start": 0, "stop": ROWS, "step": 1}
    words = json.dumps({"index_columns": [index], "column_indexes": [], "columns": [], "pandas_version": "2.3.0"})
    table = frame().replace_schema_metadata({"pandas": words})
    parquet.write_table(table, folder / "table.parquet", row_group_size=130)


def write_spark(folder: Path) -> None:
    """As ``DataFrame.write.parquet`` of Spark does: part files, a mark that all is there, and hidden checksums."""
    table, target = frame(), folder / "table"
    target.mkdir()
    for part, (start, stop) in enumerate(((0, 170), (170, 171), (171, ROWS))):
        name = f"part-{part:05d}-3f0c2a5e-9d7b-4c1e-8a55-0d6b1c2f7e11-c000.snappy.parquet"
        parquet.write_table(table.slice(start, stop - start), target / name, compression="snappy")
        (target / f".{name}.crc").write_bytes(b"crc\x00")
    (target / "_SUCCESS").touch()
    (target / "._SUCCESS.crc").write_bytes(b"crc\x00")


def write_partitions(folder: Path) -> None:
    """As ``partitionBy("label")``: the label stands in the path alone."""
    table, (_, y) = frame(label=False), make_table()
    for label in (0, 1):
        target = folder / "table" / f"label={label}"
        target.mkdir(parents=True)
        rows = np.flatnonzero(y == label)
        for part, piece in enumerate(np.array_split(rows, 2)):
            parquet.write_table(table.take(piece), target / f"part-{part:05d}.parquet")
    (folder / "table" / "_SUCCESS").touch()


@dataclass(frozen=True)
class Form:
    """One way of storing the table.

    Attributes:
        write: puts it into a folder.
        name: of the file or files in the folder, as `data.load_sets` takes them.
        options: of `data.load_sets`.
    """

    write: Callable[[Path], Any]
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def packed(name: str, pack: Callable[[bytes], bytes], separator: str = ",") -> Form:
    """A CSV file, compressed."""
    return Form(lambda folder: (folder / name).write_bytes(pack(text(separator))), name)


FORMS = {
    "npz": Form(write_npz, "table.npz"),
    "npz, compressed": Form(write_npz_packed, "table.npz"),
    "npy pair": Form(write_pair, "x.npy,y.npy"),
    "npy pair by columns": Form(write_columns, "x.npy,y.npy"),
    "csv": packed("table.csv", bytes),
    "csv with semicolons": packed("table.csv", bytes, ";"),
    "csv.gz": packed("table.csv.gz", gzip.compress),
    "csv.xz": packed("table.csv.xz", lzma.compress),
    "libsvm": Form(write_libsvm, "table.svm"),
    "hdf5 contiguous": Form(write_hdf5, "table.h5"),
    "hdf5 in chunks": Form(lambda folder: write_hdf5(folder, chunks=(64, 3), compression="gzip"), "table.h5"),
    "hdf5 by columns": Form(lambda folder: write_hdf5(folder, turned=True), "table.h5", {"transpose": True}),
    "netCDF-4": Form(write_netcdf, "table.nc", {"variable": "measured", "label": "quality"}),
    "netCDF-3": Form(write_netcdf_3, "table.nc", {"variable": "measured", "label": "quality"}),
    "MATLAB 7.3": Form(write_matlab, "table.mat", {"variable": "X", "label": "target"}),
    "MATLAB 7.3 by columns": Form(
        lambda folder: write_matlab(folder, rows_first=False),
        "table.mat",
        {"variable": "X", "label": "target", "transpose": True},
    ),
    "MATLAB 5": Form(write_matlab_5, "table.mat", {"variable": "X", "label": "target"}),
    "parquet of pandas": Form(write_parquet, "table.parquet"),
    "parquet of Spark": Form(write_spark, "table"),
    "parquet in partitions": Form(write_partitions, "table", {"label": "label"}),
}


def path_of(form: Form, folder: Path) -> str:
    """What ``form`` wrote into ``folder``, as `data.load_sets` and --data take it."""
    return ",".join(str(folder / name) for name in form.name.split(","))


def load(form: Form, folder: Path, comm: Any, dtype: str, **how: Any) -> Any:
    """The table in ``folder``, no rows held back; of text the features are held in ``dtype``."""
    path = path_of(form, folder)
    return data.load_sets(path, comm, test_fraction=0, dtype=dtype, **form.options, **how).train


def trained(shard: Any, comm: Any, dtype: str, standardized: bool) -> tuple[bytes, ...]:
    """The bits of the weights by a full-batch method and, of features of like size, by momentum."""
    if standardized:
        (shard,) = data.standardize(shard, comm=comm)
    model = models.build("logistic", shard.labels, dtype=np.dtype(dtype))
    runs = [fit(model, shard, comm, optimizer=optim.LBFGS(), epochs=6, l2=1e-3, tol=1e-9)]
    if standardized:
        runs.append(fit(model, shard, comm, optimizer=optim.Momentum(0.1), epochs=2, global_batch_size=64))
    return tuple(np.asarray(run.w).tobytes() for run in runs)


FLAGS = {"variable": "--features", "label": "--label", "transpose": "--transpose"}
KINDS = [(dtype, standardized) for dtype in ("float32", "float64") for standardized in (False, True)]


@pytest.fixture(scope="module")
def expected(comm):
    """The bits of the table that was never in a file."""
    shard = data.whole(data.Dataset(*make_table()), comm.rank, comm.size)
    found = {kind: trained(shard, comm, *kind) for kind in KINDS}
    for weights in found.values():
        assert all(np.isfinite(np.frombuffer(each, np.float32)).all() for each in weights if len(each) == 32)
    assert len({weights[0] for weights in found.values()}) == len(KINDS)
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_weights_do_not_depend_on_the_format(comm, shared_folder, expected, form):
    folder = shared_folder(form.write)
    for dtype, standardized in KINDS:
        shard = load(form, folder, comm, "float64" if standardized else dtype)
        assert (shard.rows, shard.features) == (ROWS, FEATURES)
        assert trained(shard, comm, dtype, standardized) == expected[dtype, standardized], (dtype, standardized)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_numbers_and_their_order_are_those_of_the_table(comm, shared_folder, form):
    x, y = make_table()
    shard = load(form, shared_folder(form.write), comm, "float64")
    first = shard.starts[comm.rank]
    mine = slice(first, first + shard.counts[comm.rank])
    held = shard.dataset if shard.shuffle == "local" else shard.dataset.part(mine.start, mine.stop)
    np.testing.assert_array_equal(held.x, x[mine])
    np.testing.assert_array_equal(held.y, y[mine])


@pytest.fixture(scope="module", params=[{"distribute": "scatter"}, {"shuffle": "local"}], ids=["scattered", "shuffled"])
def moved(request, comm, shared_folder):
    """A way in which rows come to other ranks, and the bits of the weights of an .npz file that came by it."""
    form = FORMS["npz"]
    shard = load(form, shared_folder(form.write), comm, "float64", **request.param)
    return request.param, trained(shard, comm, "float32", True)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_nor_do_they_where_rows_move(comm, shared_folder, moved, form):
    how, weights = moved
    shard = load(form, shared_folder(form.write), comm, "float64", **how)
    assert trained(shard, comm, "float32", True) == weights


@pytest.fixture(scope="module")
def by_command(comm, shared_folder):
    """A function of a form: the bits of the weights of `distai-mpi train --dtype float32`, and with --standardize."""

    def train(form: Form) -> list[bytes]:
        folder, found = shared_folder(form.write), []
        flags = ["--data", path_of(form, folder), "--test-fraction", 0, "--model", "logistic", "--optimizer", "lbfgs"]
        for name, value in form.options.items():
            flags += [FLAGS[name]] if value is True else [FLAGS[name], value]
        for more in ([], ["--standardize"]):
            words = [
                "train",
                *flags,
                "--max-iter",
                4,
                "--l2",
                1e-3,
                "--quiet",
                "--out",
                folder / f"run{len(more)}",
                *more,
            ]
            done = run_here(*words)
            assert done.returncode == 0, done.stderr
            _, w, _ = models.load_model(str(folder / f"run{len(more)}" / "model.npz"))
            found.append(np.asarray(w).tobytes())
        return found

    return train


@pytest.fixture(scope="module")
def of_npz(by_command):
    """The bits of the weights by the command, of the table as an .npz file."""
    return by_command(FORMS["npz"])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_command_gives_the_same_weights(by_command, of_npz, form):
    assert by_command(form) == of_npz
