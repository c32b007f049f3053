"""Every format, and every way in which a file can be wrong."""

import gzip
import os
import struct
import zipfile

import numpy as np
import pytest
from alone import Alone, load_features

from distai_mpi.data import Dataset, load
from distai_mpi.data.formats import ACCEPTED, find
from distai_mpi.data.readers.columns import Columns
from distai_mpi.errors import DataError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 6)).astype(np.float32), RNG.integers(0, 3, 20)
IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    kind = IDX_CODES[array.dtype.str[1:]]
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def rows_of(array):
    """All rows of an `ArrayFile`, read in chunks; the same as taken, and as mapped where it can be."""
    chunks = [(first, values.copy()) for first, values in array.chunks(7)]
    assert [first for first, _ in chunks] == list(range(0, array.rows, 7))
    whole = np.concatenate([values.copy() for _, values in chunks])
    some = np.array([13, 2, 2, 19, 0])
    out = np.empty((5, array.width), array.dtype)
    array.take(some, out, chunk=2)
    assert np.array_equal(out, whole[some])
    if array.mappable:
        assert np.array_equal(array.map(), whole)
        assert not array.map().flags.writeable
    assert whole.dtype == array.dtype
    assert whole.dtype.isnative
    return whole


def check(source, x, y):
    assert np.array_equal(rows_of(source.x), np.asarray(x).reshape(len(x), -1))
    assert np.array_equal(rows_of(source.y)[:, 0], np.asarray(y).ravel())


def test_bundled_mnist():
    train, test = find("mnist")
    assert (train.rows, test.rows, train.features) == (60000, 10000, 784)
    assert train.scale == test.scale == 1 / 255
    train, _ = load("mnist", Alone())
    assert train.dataset.x.dtype == np.uint8
    assert train.dataset.x.mean() == pytest.approx(33.318, abs=1e-3)
    assert np.bincount(train.dataset.y)[:3].tolist() == [5923, 6742, 5958]
    assert train.labels.classes == 10


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("x_train", "y_train"), ("x", "y")])
def test_npz(folder, save, names):
    save("a.npz", **dict(zip(names, (X, Y), strict=True)))
    train, test = find("a.npz")
    check(train, X, Y)
    assert test is None
    assert train.sliceable == train.mappable == (save is np.savez)
    assert train.scale == 1


def test_npz_with_a_test_set_and_another_file_for_tests(folder):
    np.savez("a.npz", x_train=X, y_train=Y, x_test=X[:4] + 1, y_test=Y[:4])
    np.savez("b.npz", x=X[:5] + 2, y=Y[:5])
    train, test = find("a.npz")
    check(train, X, Y)
    assert np.array_equal(test.x.map(), X[:4] + 1)
    assert np.array_equal(find("a.npz", "b.npz")[1].x.map(), X[:5] + 2)
    assert np.array_equal(find("b.npz", "a.npz")[1].x.map(), X[:4] + 1)


def test_npy_pair(folder):
    np.save("x.npy", X)
    np.save("y.npy", Y[:, None])
    train, test = find("x.npy,y.npy", "x.npy,y.npy")
    check(train, X, Y)
    check(test, X, Y)
    assert train.mappable


@pytest.mark.parametrize("kind", IDX_CODES)
def test_idx(folder, kind):
    images, labels = RNG.integers(0, 100, (20, 3, 2)).astype(kind), Y.astype("u1")
    (folder / "images").write_bytes(idx_bytes(images))
    (folder / "labels").write_bytes(idx_bytes(labels))
    train, _ = find("images,labels")
    check(train, images, labels)
    assert train.sliceable
    assert train.mappable == (kind in ("u1", "i1"))
    assert train.scale == (1 / 255 if kind == "u1" else 1)


@pytest.mark.parametrize("columns", [False, True])
def test_gzip_of_one_array(folder, columns):
    images, labels = RNG.integers(0, 100, (20, 3, 2)).astype("u1"), Y.astype("u1")
    for name, array in (("images", images), ("labels", labels)):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        np.save(f"{name}.npy", np.asfortranarray(array) if columns else array)
        (folder / f"{name}.npy.gz").write_bytes(gzip.compress((folder / f"{name}.npy").read_bytes()))
    for spec in ("images.gz,labels.gz", "images.npy.gz,labels.npy.gz", "images.gz,labels.npy"):
        train, _ = find(spec)
        check(train, images, labels)
        assert not train.sliceable
        assert train.scale == 1 / 255
    assert np.array_equal(load_features("images.gz").dataset.x, images.reshape(20, 6))
    bad("images.gz: holds one array, but labels", "images.gz")


def test_damaged_gzip(folder):
    images, whole = RNG.integers(0, 256, (2000, 3, 2)).astype("u1"), np.zeros(2000, "u1")
    (folder / "y").write_bytes(idx_bytes(whole))
    data = gzip.compress(idx_bytes(images))
    for damaged in (data[:-3], data[:-9], data[:200], data[:15], data[:6000] + b"\0\0" + data[6002:]):
        (folder / "x.gz").write_bytes(damaged)
        bad("x.gz: .*(damaged|truncated)", "x.gz,y")
    (folder / "x.gz").write_bytes(gzip.compress(idx_bytes(images) + b"more"))
    bad("x.gz: features is followed by bytes", "x.gz,y")
    (folder / "x.gz").write_bytes(gzip.compress(idx_bytes(images)[:-1]))
    bad("x.gz: features is truncated", "x.gz,y")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_weights_in_an_npz(folder, save):
    weight = RNG.random(20).astype(np.float32)
    weight[3] = 0
    save("a.npz", x_train=X, y_train=Y, weight_train=weight, x_test=X, y_test=Y)
    for shuffle in ("global", "local"):
        train, test = load("a.npz", Alone(), shuffle=shuffle)
        rows = slice(None) if train.order is None else train.order.positions(0, 20)
        assert np.array_equal(train.dataset.weight, weight[rows].astype(np.float64))
        assert train.total_weight == pytest.approx(weight.sum(dtype=np.float64), rel=1e-15)
        assert test.dataset.weight is None
    for value in (-1, np.nan, np.inf):
        weight[13] = value
        save("a.npz", x=X, y=Y, weight=weight)
        bad(rf"a.npz: weight is {float(value)} in row 13 \(counted from 0\)")
    save("a.npz", x=X, y=Y, weight=np.zeros(20))
    bad("a.npz: weight is 0 for all rows")
    save("a.npz", x=X, y=Y, weight=np.ones(19))
    bad(r"a.npz: weight has shape \(19,\), but one weight for each of 20 rows")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "x",
    [
        np.asfortranarray(X),
        X.astype(">f4"),
        X.astype("f2"),
        X.astype(np.longdouble),
        X > 0,
        X.reshape(20, 3, 2),
        np.asfortranarray(X.reshape(20, 3, 2)),
        X[:, 0],
        (X * 10).astype(">i8"),
    ],
    ids=["by columns", "big-endian", "half", "long double", "bool", "3-D", "3-D by columns", "1-D", "big-endian int"],
)
def test_uncommon_arrays(folder, save, x):
    save("a.npz", x=x, y=Y)
    source, _ = find("a.npz")
    check(source, x, Y)
    train, _ = load("a.npz", Alone(), test_fraction=0)
    assert np.array_equal(train.dataset.x, np.asarray(x).reshape(20, -1))


def test_images_of_bytes_are_scaled_in_any_format(folder):
    np.savez("a.npz", x=np.zeros((20, 2, 3), np.uint8), y=Y)
    np.savez("b.npz", x=np.zeros((20, 6), np.uint8), y=Y)
    assert find("a.npz")[0].scale == 1 / 255
    assert find("b.npz")[0].scale == 1
    with pytest.raises(DataError, match=r"b\.npz.*\(20, 6\).*\(20, 2, 3\)"):
        find("a.npz", "b.npz")


def bad(match, spec="a.npz", test=None):
    with pytest.raises(DataError, match=match):
        load(spec, Alone(), test=test)


def test_names_that_lead_nowhere(folder):
    (folder / "empty").touch()
    (folder / "text").write_text("some words\n")
    (folder / "gz").write_bytes(gzip.compress(b"some words"))
    np.save("x.npy", X)
    np.savez("a.npz", x=X, y=Y)
    np.savez("c.npz", a=X, b=Y)
    bad("absent: there is no such file(.|\n)*mnist(.|\n)*npz(.|\n)*npy(.|\n)*IDX", "absent")
    bad("absent: there is no such file", "x.npy,absent")
    bad("absent: there is no such file", "a.npz", "absent")
    bad("empty: the file is empty", "empty")
    bad("text: the format is not known", "text")
    bad("text: is neither a .npy nor an IDX file, as the two of a pair X,Y must be", "x.npy,text")
    os.mkfifo("pipe")
    bad("pipe: is no regular file", "pipe")
    bad("pipe: is no regular file", "x.npy,pipe")
    bad("gz: the format of what is compressed in it .gzip. is not known", "gz")
    os.mkdir("bare")
    bad("bare: is a folder without data files", "bare")
    bad("x.npy: holds one array, but labels", "x.npy")
    bad("a.npz: such a file holds features and labels", "a.npz,x.npy")
    bad("c.npz: no training data", "c.npz")
    bad("c.npz: no test data", "a.npz", "c.npz")
    assert "mnist" in ACCEPTED


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_that_do_not_fit(folder, save):
    save("a.npz", x_train=X, y_train=Y[:7])
    bad("a.npz: x_train has 20 rows, but y_train has 7")
    save("a.npz", x_train=X)
    bad("a.npz: holds x_train, but no y_train")
    save("a.npz", x=X, y=np.eye(20))
    bad(r"a.npz: y has shape \(20, 20\).*argmax")
    save("a.npz", x=X[:0], y=Y[:0])
    bad(r"a.npz: x has shape \(0, 6\)")
    save("a.npz", x=X[:, :0], y=Y)
    bad(r"a.npz: x has shape \(20, 0\)")
    save("a.npz", x=np.float32(1), y=Y)
    bad(r"a.npz: x has shape \(\)")
    save("a.npz", x_train=X, y_train=Y, x_test=X[:, :5], y_test=Y)
    bad("a.npz: x_test has 5 features a row, but x_train of a.npz has 6")
    save("a.npz", x_train=X, y_train=Y, x_test=X)
    bad("a.npz: holds x_test, but no y_test")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_types_that_are_no_numbers(folder, save):
    for kind, told in (
        (complex, "values of type .* are no real numbers"),
        ("S4", "holds words"),
        ("U4", "holds words"),
    ):
        save("a.npz", x=X.astype(kind), y=Y)
        bad(f"a.npz: x {told}")
    save("a.npz", x=X, y=Y.astype(object))
    bad("a.npz: y .*pickled.*refused")
    save("a.npz", x=np.zeros(20, [("a", "f4"), ("b", "i4")]), y=Y)
    bad("a.npz: x .*no real numbers")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder, value):
    x, y = X.copy(), Y.astype(np.float64)
    x[13, 4] = value
    np.savez("a.npz", x=x, y=y)
    bad(f"a.npz: x holds {value} in row 13, column 4")
    with pytest.raises(DataError, match=f"x holds {value} in row 13, column 4"):
        load("a.npz", Alone(), shuffle="local")
    y[7] = value
    np.savez("a.npz", x=X, y=y)
    bad(f"a.npz: y holds {value} in row 7")
    np.savez("b.npz", x=X, y=Y)
    bad("a.npz: y holds", "b.npz", "a.npz")


def test_large_values_whose_sum_overflows_are_finite(folder):
    np.savez("a.npz", x=np.full((20, 6), 3e38, np.float32), y=Y)
    assert load("a.npz", Alone())[0].rows == 18


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_npz(folder, save, keep):
    save("a.npz", x=X, y=Y)
    data = (folder / "a.npz").read_bytes()
    (folder / "a.npz").write_bytes(data[: int(keep * len(data))])
    bad("a.npz: damaged or truncated")


@pytest.mark.parametrize("cut", [1, 100, 480, 600])
def test_truncated_npy(folder, cut):
    np.save("x.npy", X)
    np.save("y.npy", Y)
    data = (folder / "x.npy").read_bytes()
    (folder / "x.npy").write_bytes(data[:-cut])
    bad("x.npy: (features is truncated: 608 bytes are needed|damaged .npy header)", "x.npy,y.npy")


def test_truncated_and_foreign_idx(folder):
    data = idx_bytes(np.zeros((20, 3, 2), np.uint8))
    (folder / "y").write_bytes(idx_bytes(Y.astype("u1")))
    (folder / "x").write_bytes(data[:-1])
    bad("x: features is truncated", "x,y")
    (folder / "x").write_bytes(data[:9])
    bad("x: the IDX header is truncated", "x,y")
    (folder / "x").write_bytes(data + b"0")
    bad("x: features is followed by 1 bytes", "x,y")


def test_an_npz_that_promises_more_than_it_holds(folder):
    """The header inside is of a longer array: mapping it would run beyond the end of the file."""
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        np.save("x.npy", X)
        np.save("y.npy", Y)
        (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:300])
        with zipfile.ZipFile("a.npz", "w", compression) as archive:
            archive.write("y.npy")
            archive.write("x.npy")
        bad("a.npz: x is truncated")


def test_compressed_values_that_were_damaged(folder):
    np.savez_compressed("a.npz", x=RNG.normal(size=(2000, 6)), y=np.zeros(2000))
    data = bytearray((folder / "a.npz").read_bytes())
    data[20000] ^= 0xFF
    (folder / "a.npz").write_bytes(data)
    bad("a.npz: x is damaged")


def test_dataset_takes_arrays_as_they_are():
    data = Dataset(X, Y)
    assert np.shares_memory(data.x, X)
    assert not data.x.flags.writeable
    assert X.flags.writeable
    assert (data.rows, data.features) == (20, 6)
    with pytest.raises(DataError, match=r"\(20, 6\).*\(19,\)"):
        Dataset(X, Y[:19])
    with pytest.raises(DataError, match="y: .*no real numbers"):
        Dataset(X, Y.astype(complex))


# --- columns, words and dates of arrays


def rows(spec, **options):
    file, _ = find(spec, None, Columns(**options))
    return file, file.read(0, 1)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_columns_of_arrays_by_number(folder, save):
    save("a.npz", x=X, y=Y, other=X[:, ::-1], w=np.arange(len(Y)))
    assert np.array_equal(rows("a.npz", drop="1")[1].x, X[:, [0, *range(2, X.shape[1])]])
    found = rows("a.npz", variable="other", columns="0-2", label="y", weight="w")[1]
    assert np.array_equal(found.x, X[:, ::-1][:, :3])
    assert np.array_equal(found.weight, np.arange(len(Y)))
    found = load("a.npz", Alone(), test_fraction=0, label="1", variable="x")[0].dataset
    assert np.array_equal(found.y, X[:, 1])
    save("a.npz", x=np.ascontiguousarray(X.T), y=Y)
    assert np.array_equal(load("a.npz", Alone(), test_fraction=0, transpose=True)[0].dataset.x, X)
    bad_options = {"label": "z"}
    with pytest.raises(DataError, match="a.npz: --label z: there is no such variable; there are x, y"):
        load("a.npz", Alone(), **bad_options)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["U", "S"])
def test_words_as_labels_of_arrays(folder, save, kind):
    words = np.array(["good", "bad", "fine"])[Y % 3]
    save("a.npz", x=X, y=words.astype(kind))
    found = rows("a.npz")[1]
    assert [found.label_names[int(i)] for i in found.y] == words.tolist()
    np.save("x.npy", X)
    np.save("y.npy", words.astype(kind))
    found = rows("x.npy,y.npy", columns="2")[1]
    assert np.array_equal(found.x, X[:, 2:3])
    assert [found.label_names[int(i)] for i in found.y] == words.tolist()


def test_an_array_alone_as_a_table(folder):
    np.save("a.npy", X)
    found = rows("a.npy", label="0")[1]
    assert np.array_equal(found.x, X[:, 1:])
    assert np.array_equal(found.y, X[:, 0])
    table = np.zeros(len(Y), [("u", ">f4"), ("v", "i4", 2), ("name", "U3"), ("kind", "i1")])
    table["u"], table["v"], table["kind"], table["name"] = X[:, 0], Y[:, None] + [0, 7], Y, "abc"
    np.save("a.npy", table)
    bad("a.npy: name holds words, which are no numbers", "a.npy")
    file, found = rows("a.npy", drop="name")
    assert file.feature_names == ("u", "v.0", "v.1")
    assert np.array_equal(found.x, np.column_stack([X[:, 0].astype("f4"), Y, Y + 7]))
    assert np.array_equal(found.y, Y)
    assert rows("a.npy", label="u", columns="v*")[0].feature_names == ("v.0", "v.1")


def test_dates_in_arrays(folder):
    days = np.datetime64("2000-02-28") + np.arange(len(Y))
    np.savez("a.npz", x=days, y=Y)
    with pytest.raises(DataError, match="a.npz: x holds dates, which are no numbers: .*--dates seconds or --dates cal"):
        rows("a.npz", dates="refuse")
    assert "column x: dates become year, month" in rows("a.npz")[0].notes[0]
    assert np.array_equal(rows("a.npz")[1].x, rows("a.npz", dates="calendar")[1].x)
    assert np.array_equal(rows("a.npz", dates="seconds")[1].x[:, 0], days.astype("M8[s]").astype(float))
    assert rows("a.npz", dates="calendar")[1].x[1].tolist() == [2000, 2, 29, 1, 0, 0, 0]
    days[3] = np.datetime64("NaT")
    np.savez("a.npz", x=days, y=Y)
    with pytest.raises(DataError, match="a.npz: x holds nan in row 3, column 0 .*--missing"):
        rows("a.npz", dates="calendar")
    assert np.isnan(rows("a.npz", dates="calendar", missing="mean")[1].x[3]).all()
