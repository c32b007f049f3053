"""Variables by name in netCDF and MATLAB files, whose numbers are packed, missing, dates, or stored by columns."""

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from alone import Alone, load_features

from distai_mpi.data import load
from distai_mpi.data.formats import find
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.sources import Source
from distai_mpi.errors import DataError

ROWS = 40
RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(ROWS, 3)), np.arange(ROWS) % 2
WORDS = [("good", "bad")[i] for i in Y]
KINDS = ["netcdf-4", "classic", "classic-64"]


def bad(match, path="a", **options):
    with pytest.raises(DataError, match=match):
        load(path, Alone(), **options)


def rows(path="a", **options):
    file, _ = find(path, None, Columns(**options))
    return file, file.read(0, 1)


def save_netcdf(kind, scales=(), **variables):
    """Variables, each an array or a pair of it and its attributes, as netCDF stores them."""
    plain = {n: v if isinstance(v, tuple) else (v, {}) for n, v in variables.items()}
    if kind == "netcdf-4":
        with h5py.File("a", "w", track_order=True) as file:
            file.attrs["_NCProperties"] = np.bytes_("version=2,netcdf=4.9")
            for name, (values, attributes) in plain.items():
                data = file.create_dataset(name, data=values)
                if name in scales:
                    data.make_scale(name)
                for key, value in attributes.items():
                    data.attrs[key] = np.bytes_(value) if isinstance(value, str) else np.atleast_1d(value)
        return
    with scipy.io.netcdf_file("a", "w", version=1 + (kind == "classic-64")) as file:
        for name, (values, attributes) in plain.items():
            axes = tuple(name if name in scales else f"{name}_{axis}" for axis in range(values.ndim))
            for axis, length in zip(axes, values.shape, strict=True):
                file.createDimension(axis, length)
            made = file.createVariable(name, values.dtype, axes)
            made[:] = values
            for key, value in attributes.items():
                setattr(made, key, value)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_numbers(folder, kind):
    """Unpacked as the attributes' type has it: float64 for float64, float32 for float32 and 16 bits."""
    stored = RNG.integers(-3000, 3000, (ROWS, 3)).astype("i2")
    save_netcdf(
        kind, x=(stored, {"scale_factor": np.float64(0.001), "add_offset": np.float64(273.15)}), y=Y.astype("i4")
    )
    _, found = rows()
    assert np.array_equal(found.x, stored * 0.001 + 273.15)
    narrow = {"scale_factor": np.float32(0.01), "add_offset": np.float32(20)}
    save_netcdf(kind, x=(stored, narrow), y=Y.astype("i4"))
    file, found = rows()
    assert file.dtype == found.x.dtype == np.float32
    assert np.array_equal(found.x, stored * np.float32(0.01) + np.float32(20))
    save_netcdf(kind, x=(stored.astype("i1"), {"_Unsigned": "true"}), y=Y.astype("i4"))
    assert np.array_equal(rows()[1].x, stored.astype("i1").view("u1"))
    if kind == "netcdf-4":
        save_netcdf(kind, x=(stored, {"scale_factor": "much"}), y=Y)
        bad("a: x has the attribute scale_factor = .*which is no number")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("attributes", "missing", "told"),
    [
        ({"_FillValue": np.int16(-9)}, [-9], "_FillValue -9"),
        ({"missing_value": np.int16(7), "_FillValue": np.int16(-9)}, [7, -9], "_FillValue -9, missing_value 7"),
        ({"valid_range": np.array([0, 30], "i2")}, [-9, -32767, 31], "valid_range 0, 30"),
        ({"valid_max": np.int16(30)}, [31, -32767], "valid_max 30"),
        ({}, [-32767], "netCDF's fill value -32767"),
    ],
)
def test_values_that_are_missing(folder, kind, attributes, missing, told):
    values = np.resize(np.array([3, 7, -9, 31, -32767, 30, 0], "i2"), ROWS)
    save_netcdf(kind, x=(values, attributes), y=Y.astype("i4"))
    first = int(np.flatnonzero(np.isin(values, missing))[0])
    bad(f"a: x is missing .*{told}.* in row {first}, column 0 .counted from 0.*--missing mean, median or drop")
    file, found = rows(missing="mean")
    assert file.dtype == found.x.dtype == np.float64
    assert np.array_equal(found.x[:, 0], np.where(np.isin(values, missing), np.nan, values), equal_nan=True)
    assert np.array_equal(rows(variable="y", label="x", missing="drop")[1].y, found.x[:, 0], equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_variables_by_name(folder, kind):
    columns = {"t2m": X[:, 0], "rh_1": X[:, 1], "rh_2": X[:, 2].astype("f4"), "rain": Y.astype("i4")}
    save_netcdf(kind, ("x", "y"), x=np.arange(ROWS) / 2, y=np.arange(3) / 2, grid=X, **columns)
    bad("a: no training data .*--features and --label: there are .*grid .40 x 3")  # x and y number the axes
    file, found = rows(variable="t2m,rh*", label="rain")
    assert file.feature_names == ("t2m", "rh_1", "rh_2")
    assert np.array_equal(found.x, np.stack([X[:, 0], X[:, 1], X[:, 2].astype("f4")], axis=1))
    assert np.array_equal(found.y, Y)
    assert rows(variable="*", drop="grid*,r*", label="rain")[0].feature_names == ("t2m",)
    assert rows(variable="x,t2m", label="rain")[0].feature_names == ("x", "t2m")
    found, _ = load("a", Alone(), variable="grid", label="rain", test_fraction=0)
    assert np.array_equal(found.dataset.x, X)
    assert np.array_equal(load_features("a", variable="grid", columns="1").dataset.x, X[:, 1:2])
    save_netcdf(kind, grid=np.ascontiguousarray(X.T), rain=Y.astype("i4"))
    assert np.array_equal(rows(variable="grid", label="rain", transpose=True, columns="0-2")[1].x, X)


@pytest.mark.parametrize("kind", KINDS)
def test_dates(folder, kind):
    hours = np.arange(ROWS) * 1.5
    save_netcdf(kind, t=(hours, {"units": "hours since 2000-02-28 12:00:00"}), y=Y.astype("i4"))
    file, found = rows(variable="t", label="y")
    assert np.array_equal(found.x[:, 0], hours)
    assert any("t counts hours since 2000-02-28 12:00:00" in note for note in file.notes)
    file, found = rows(variable="t", label="y", dates="seconds")
    assert np.array_equal(found.x[:, 0], 951739200 + hours * 3600)
    file, found = rows(variable="t", label="y", dates="calendar")
    assert file.feature_names == tuple(f"t.{p}" for p in ("year month day weekday hour minute second".split()))
    assert found.x[25].tolist() == [2000, 3, 1, 2, 1, 30, 0]
    save_netcdf(kind, t=(hours, {"units": "days since 2000-01-01", "calendar": "360_day"}), y=Y.astype("i4"))
    bad("a: t counts 'days since 2000-01-01' in the calendar 360_day", variable="t", label="y", dates="seconds")
    save_netcdf(kind, t=(hours, {"units": "months since 2000-01-01"}), y=Y.astype("i4"))
    bad("a: t counts 'months since", variable="t", label="y", dates="seconds")


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_characters(folder, kind):
    letters = np.array([list(word.ljust(5)) for word in WORDS], "S1")
    save_netcdf(kind, x=X, sort=letters)
    _, found = rows(label="sort")
    assert [found.label_names[int(i)] for i in found.y] == WORDS


def test_damaged_classic_files(folder):
    save_netcdf("classic", x=X, y=Y.astype("i4"))
    data = (folder / "a").read_bytes()
    for keep in (6, 40, len(data) // 2):
        (folder / "a").write_bytes(data[:keep])
        bad("a: damaged or unreadable netCDF file")
    (folder / "a").write_bytes(b"CDF\x05" + data[4:])
    bad("a: .*CDF-5.* is not read.* nccopy -k nc4 a NEW.nc")


def save_matlab(kind, **variables):
    """As MATLAB's save does, before version 7.3 and since: there HDF5 sees the axes in the reverse order."""
    if kind == "earlier":
        scipy.io.savemat("a", variables, appendmat=False)
        return
    with h5py.File("a", "w", userblock_size=512) as file:
        for name, values in variables.items():
            if values.dtype == object:
                references = []
                for i, word in enumerate(values.ravel()):
                    item = file.create_dataset(f"#refs#/{name}{i}", data=np.array([[ord(c)] for c in word], "u2"))
                    item.attrs["MATLAB_class"] = np.bytes_("char")
                    references.append(item.ref)
                kind_ = h5py.ref_dtype
                data = file.create_dataset(name, data=np.array(references, kind_).reshape(values.shape[::-1]))
                data.attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                logical = values.dtype == bool
                data = file.create_dataset(name, data=values.astype("u1" if logical else values.dtype).T)
                data.attrs["MATLAB_class"] = np.bytes_("logical" if logical else "double")
    with open("a", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("kind", ["7.3", "earlier"])
def test_matlab(folder, kind):
    cells = np.array(WORDS, object).reshape(-1, 1)
    images = RNG.integers(0, 256, (ROWS, 4, 2)).astype("u1")
    save_matlab(
        kind, X=X, y=Y[:, None].astype(float), along=Y[None] == 1, T=np.ascontiguousarray(X.T), words=cells, img=images
    )
    file, _ = find("a")
    assert isinstance(file, Source) == (kind == "7.3")  # stored by columns in one piece
    for label in (None, "along", "y"):
        found = load("a", Alone(), test_fraction=0, label=label)[0].dataset
        assert np.array_equal(found.x, X)
        assert np.array_equal(found.y, Y)
    assert np.array_equal(rows(missing="mean")[1].x, X)
    assert np.array_equal(rows(variable="X", label="y", drop="1")[1].x, X[:, [0, 2]])
    found = load("a", Alone(), test_fraction=0, variable="T", label="y", transpose=True)[0].dataset
    assert np.array_equal(found.x, X)
    found = load("a", Alone(), test_fraction=0, variable="img", label="y")[0].dataset
    assert found.scale == 1 / 255
    assert np.array_equal(found.x, images.reshape(ROWS, 8))
    _, found = rows(variable="X", label="words")
    assert [found.label_names[int(i)] for i in found.y] == WORDS
    bad("a: words holds words", variable="words", label="y")
    bad("a: --features Z: there is no such variable; there are .*X .40 x 3", variable="Z", label="y")


def test_what_matlab_has_beside_numbers(folder):
    scipy.io.savemat("a", {"x": scipy.sparse.eye(ROWS).tocsc(), "s": {"b": 1.0}, "y": Y}, appendmat=False)
    bad("a: x is a sparse matrix, .*: store full.x.", label="y")
    bad("a: s is of MATLAB's class struct", variable="s", label="y")
    scipy.io.savemat("a", {"x": X, "y": Y}, appendmat=False)
    data = (folder / "a").read_bytes()
    (folder / "a").write_bytes(data[:600])
    bad("a: damaged or unreadable MATLAB file")
    save_matlab("7.3", y=Y[:, None].astype(float), x=np.zeros((2, 1)))
    with h5py.File("a", "a") as file:
        file["x"].attrs["MATLAB_empty"] = np.uint8(1)
        for name in ("data", "ir", "jc"):
            file[f"sp/{name}"] = Y
    bad("a: x is empty")
    bad("a: sp holds a sparse matrix .* without the attribute MATLAB_sparse", variable="sp", label="y")
