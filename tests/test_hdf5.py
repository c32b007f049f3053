"""HDF5 as people have it: types, links, virtual and external data, filters, words, and variables by name."""

import os
import pickle
import sys

import h5py
import numpy as np
import pytest
from alone import Alone, load_features

from distai_mpi.data import load
from distai_mpi.data.formats import find
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.sources import Source
from distai_mpi.errors import DataError

ROWS = 40
RNG = np.random.default_rng(5)
X, Y, WEIGHT = RNG.normal(size=(ROWS, 3)), np.arange(ROWS) % 2, RNG.random(ROWS)


def save(path="a", **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array


def dataset(path="a", **options):
    return load(path, Alone(), test_fraction=0, **options)[0].dataset


def bad(match, path="a", **options):
    with pytest.raises(DataError, match=match):
        load(path, Alone(), **options)


def rows(path="a", **options):
    file, _ = find(path, None, Columns(**options))
    return file, file.read(0, 1)


def test_integers_of_few_bits_with_an_offset_are_read_through_hdf5(folder):
    """12 bits from bit 4 on: the bytes are 16 times the values."""
    save(y=Y)
    kind = h5py.h5t.STD_I16LE.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    values = RNG.integers(-2048, 2048, (ROWS, 3)).astype("i2")
    with h5py.File("a", "a") as file:
        made = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((ROWS, 3)))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    assert np.array_equal(dataset().x, values)


def test_floats_of_another_make_are_read_through_hdf5(folder):
    """An exponent of 8 bits in 16, as bfloat16 has it."""
    save(y=Y)
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    values = np.array([1.25, 0.5, -2, 3e38], "f4")[np.arange(ROWS * 3) % 4].reshape(ROWS, 3)
    with h5py.File("a", "a") as file:
        made = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((ROWS, 3)))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    x = dataset().x
    assert x[0].tolist() == [1.25, 0.5, -2]
    assert np.allclose(x, values, rtol=1 / 128)


@pytest.mark.parametrize("kind", [">f8", "<f4", ">i2", "<u4", "i1", "?", "f2", ">f2"])
def test_common_types_are_mapped_or_read_alike(folder, kind):
    values = (X * 3).astype(kind)
    save(x=values, y=Y)
    assert isinstance(find("a")[0], Source)
    assert np.array_equal(dataset().x, values)
    assert np.array_equal(dataset(missing="mean").x, values)


@pytest.mark.parametrize("size", [512, 4096])
def test_a_file_behind_a_user_block(folder, size):
    with h5py.File("a", "w", userblock_size=size) as file:
        file["x"], file["y"] = X, Y
    assert isinstance(find("a")[0], Source)
    assert np.array_equal(dataset().x, X)


def test_links(folder):
    save("store", p=X, q=Y)
    with h5py.File("a", "w") as file:
        file["kept/p"], file["kept/q"] = X, Y
        file["x"], file["y"] = h5py.SoftLink("/kept/p"), file["kept/q"]
        file["labels"] = file["y"]  # the same data under two names
        file["kept/up"] = h5py.SoftLink("/")  # a circle
    assert np.array_equal(dataset().x, X)
    with h5py.File("a", "w") as file:
        file["x"], file["y"] = h5py.ExternalLink("store", "p"), h5py.ExternalLink("store", "q")
    assert np.array_equal(dataset().x, X)
    assert any(file.endswith("store") for file in find("a")[0].files)
    os.rename("store", "moved")
    bad("a: x is a link to p in the file store, which cannot be opened")
    with h5py.File("a", "w") as file:
        file["x"], file["y"] = h5py.SoftLink("/gone/p"), Y
        file["other"] = h5py.SoftLink("/gone/too")
        file["data2"] = X
    bad("a: x is a link to /gone/p, and there is no such thing")
    assert np.array_equal(dataset(variable="data2").x, X)


def virtual(name, parts, shape=(ROWS, 3), path="a"):
    """``name`` in the file ``path``, put together from rows of files: ``(first row, file, dataset, its shape)``."""
    layout = h5py.VirtualLayout(shape, "f8")
    for first, file, source, its in parts:
        layout[first : first + its[0]] = h5py.VirtualSource(file, source, its)
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(name, layout, fillvalue=0)


def test_virtual_data(folder):
    save("one", p=X[:15])
    save("two", p=X[15:])
    save(y=Y)
    parts = [(0, "one", "p", (15, 3)), (15, "two", "p", (25, 3))]
    virtual("x", parts)
    assert np.array_equal(dataset().x, X)
    assert {os.path.basename(file) for file in find("a")[0].files} == {"a", "one", "two"}
    save("two", p=X[15:30])
    bad("a: x is put together .* p in two is too small: it has shape .15, 3.")
    save("two", q=X)
    bad("a: x is put together .* p in two is missing: the file has no such data")
    os.remove("two")
    bad("a: x is put together from other data, of which p in two is missing: there is no such file")
    save(y=Y)
    virtual("x", parts[:1])
    bad("a: x is put together from other data, which give 45 of its 120 values")
    save("c")
    virtual("inner", parts, path="c")
    save(y=Y)
    virtual("x", [(0, "c", "inner", (ROWS, 3))])
    bad("a: x is put together .* p in two is missing")


def test_external_storage(folder):
    X.tofile("raw")
    with h5py.File("a", "w") as file:
        file["y"] = Y
        file.create_dataset("x", X.shape, "f8", external=[("raw", 0, h5py.h5f.UNLIMITED)])
    assert np.array_equal(dataset().x, X)
    (folder / "elsewhere").mkdir()
    os.chdir("elsewhere")
    bad("../a: x lies in the file raw, which is not there: .*HDF5_EXTFILE_PREFIX", "../a")
    os.chdir("..")
    X[:-1].tofile("raw")
    bad("a: x lies in the file raw, which has 936 bytes and not 960")
    os.remove("raw")
    bad("a: x lies in the file raw, which is not there")


def test_a_filter_that_is_missing(folder):
    with h5py.File("a", "w") as file:
        file["y"] = Y
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((ROWS, 3))
        settings.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((ROWS, 3)), settings)
    bad(r"a: x is compressed by a filter .*number 32123.*pip install hdf5plugin")


@pytest.mark.parametrize("of", ["dataset", "source"])
def test_every_process_that_reads_loads_the_filters(folder, monkeypatch, of):
    """One rank finds the file, others read it too; here a rank is a process that has not loaded hdf5plugin."""
    with h5py.File("a", "w") as file:
        file["y"] = Y
        file.create_dataset("x" if of == "dataset" else "packed", data=X, compression="gzip")
    if of == "source":
        virtual("x", [(0, "a", "packed", (ROWS, 3))])
    (folder / "hdf5plugin.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: "hdf5plugin" in sys.modules)
    file = pickle.dumps(find("a", None, Columns())[0])
    del sys.modules["hdf5plugin"]
    chunk = pickle.loads(file).read(0, 1)
    assert "hdf5plugin" in sys.modules
    assert np.array_equal(chunk.x, X)


def test_anndata(folder):
    with h5py.File("a", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file["X"], file["obs/y"] = X, Y
        file["var/_index"] = ["g1", "g2", "g3"]
        file["obs/kind/codes"], file["obs/kind/categories"] = Y.astype("i1"), ["B", "T"]
        file["obs/kind"].attrs["encoding-type"] = "categorical"
    bad("a: holds X, but no y; name the labels with --label: there are X .40 x 3, float64., obs/kind")
    file, found = rows(label="y")
    assert file.feature_names == ("g1", "g2", "g3")
    assert np.array_equal(found.x, X)
    _, found = rows(label="obs/kind", drop="g2")
    assert np.array_equal(found.x, X[:, [0, 2]])
    assert [found.label_names[int(i)] for i in found.y] == ["BT"[i] for i in Y]
    with h5py.File("a", "a") as file:
        file["obs/kind/codes"][3] = -1
    bad("a: obs/kind.* is missing .no category. in row 3", label="kind")
    assert np.isnan(rows(label="kind", missing="drop")[1].y[3])


def test_words_and_categories(folder):
    words = [("good", "b\u00e4d")[i] for i in Y]
    for stored in (np.array(words, object), np.array([word.encode() for word in words])):
        save(x=X, y=stored)
        _, found = rows()
        assert [found.label_names[int(i)] for i in found.y] == words
        save(x=stored, y=Y)
        bad("a: x holds words, which are no numbers")
    with h5py.File("a", "w") as file:
        file["x"] = X
        kind = h5py.enum_dtype({"red": 7, "blue": 2}, "u1")
        file.create_dataset("y", data=np.where(Y, 7, 2), dtype=kind)
    _, found = rows()
    assert [found.label_names[int(i)] for i in found.y] == [("blue", "red")[i] for i in Y]


def test_what_is_no_numbers_is_named(folder):
    save(x=np.zeros(ROWS, [("u", "f4"), ("v", "i4")]), y=Y)
    bad("a: x holds records with the fields u, v")
    with h5py.File("a", "w") as file:
        file["y"] = Y
        file.create_dataset("x", (ROWS,), h5py.vlen_dtype("f4"))
    bad("a: x holds rows of unequal lengths")
    with h5py.File("a", "w") as file:
        file["y"], file["x"] = Y, h5py.Empty("f4")
    bad("a: x is empty")
    with h5py.File("a", "w") as file:
        file.create_group("x").attrs["pandas_type"] = "frame"
    bad("a: x is a table as pandas' to_hdf writes it", variable="x", label="0")


def test_columns_by_number_and_variables_by_name(folder):
    save(x=X, y=Y, group__weight=WEIGHT, a=X[:, 0], b=X[:, 1].astype("f4"), c2=Y, words=np.array(["u"] * ROWS, "S1"))
    assert np.array_equal(dataset(drop="1").x, X[:, [0, 2]])
    assert np.array_equal(dataset(columns="1-2").x, X[:, 1:])
    assert np.array_equal(dataset(weight="group/weight").weight, WEIGHT)
    assert np.array_equal(dataset(weight="weight").weight, WEIGHT)
    found = dataset(label="2", variable="x")
    assert np.array_equal(found.x, X[:, :2])
    assert np.array_equal(found.y, X[:, 2])
    file, got = rows(variable="b,a,c*", label="y")
    assert file.feature_names == ("b", "a", "c2")
    assert np.array_equal(got.x, np.stack([X[:, 1].astype("f4"), X[:, 0], Y], axis=1))
    assert got.x.dtype == np.float64
    assert rows(variable="a,b,words", label="y", drop="words")[0].feature_names == ("a", "b")
    bad("a: words holds words", variable="a,words", label="y")
    bad("a: --features z: there is no such variable; there are a .40, float64., b", variable="z")
    bad("a: --label z: there is no such variable", label="z")
    bad("a: --weight z: there is no such variable", weight="z")
    save(x=X.T, y=Y)
    assert np.array_equal(dataset(transpose=True).x, X)
    assert np.array_equal(load_features("a", transpose=True, columns="0").dataset.x, X[:, :1])
    save(a=X[:, 0], b=X[:7, 0], y=Y)
    bad("a: b has 7 rows, but a has 40", variable="a,b")
    save(temperature=X)
    bad("a: no training data .*--features and --label: there are temperature .40 x 3, float64.")


def test_missing_values(folder):
    x = X.copy()
    x[3, 1] = np.nan
    save(x=x, y=Y)
    bad("a: x holds nan in row 3, column 1 .*--missing mean, median or drop")
    assert np.array_equal(rows(missing="median")[1].x, x, equal_nan=True)
    assert np.array_equal(dataset(drop="1").x, x[:, [0, 2]])
    x[5, 2] = np.inf
    save(x=x, y=Y)
    with pytest.raises(DataError, match="a: x holds inf in row 5, column 2"):
        rows(missing="median", columns="1,2")
