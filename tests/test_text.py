"""CSV and libsvm text, read in any number of ranges, and every way in which a line can be wrong."""

import gzip
import os
import random
import re

import numpy as np
import pytest
from alone import Alone, load_features

from distai_mpi.data import load
from distai_mpi.data.formats import find, find_features
from distai_mpi.data.parsed import read_chunks
from distai_mpi.data.readers import text as text_module
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.readers.csv_text import CsvFile
from distai_mpi.data.readers.libsvm_text import LibsvmFile
from distai_mpi.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 5)) * 10.0 ** RNG.integers(-9, 9, (40, 5)), RNG.integers(0, 3, 40)
X[RNG.random(X.shape) < 0.3] = 0


def csv_text(delimiter=",", end="\n", x=X, y=Y, header=None):
    lines = [delimiter.join([*map(repr, row), str(label)]) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    return end.join([*([header] if header else []), *lines, ""])


def svm_text(x=X, y=Y, base=1, end="\n"):
    rows = (
        " ".join([str(label), *(f"{j + base}:{value!r}" for j, value in enumerate(row) if value)])
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    )
    return end.join([*rows, ""])


def read(path, columns=None, parts=1, dtype=np.float64):
    """x, y and weight of the file, read in ``parts`` ranges."""
    file, _ = find(path, None, columns, dtype)
    pieces = []
    for part in range(parts):
        piece = file.read(part, parts)
        (parsed,) = read_chunks([Fixed(file, piece)], Alone(), [0], None, X.shape[1]) if piece.rows else (None,)
        if parsed is not None:
            x = np.empty((piece.rows, parsed.features), dtype)
            if parsed.entries is None:
                parsed.columns[0].copy(0, piece.rows, x)
            else:
                parsed.chunk.x.fill(x)
            y = piece.y if piece.label_names is None else np.array([*piece.label_names, ""])[piece.y.astype(int)]
            pieces.append((x, y, piece.weight))
    weight = None if pieces[0][2] is None else np.concatenate([piece[2] for piece in pieces])
    return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces]), weight


class Fixed:
    """A file whose only chunk is the one given."""

    def __init__(self, file, chunk):
        self.file, self.chunk = file, chunk

    def __getattr__(self, name):
        return getattr(self.file, name)

    def read(self, part, parts):
        return self.chunk


def check(path, x=X, y=Y, weight=None, columns=None):
    for parts in (1, 2, 3, 7, 200):
        got = read(path, columns, parts)
        assert np.array_equal(got[0], x), parts
        assert np.array_equal(got[1], y), parts
        assert (got[2] is None) if weight is None else np.array_equal(got[2], weight)


@pytest.fixture(params=[None, 64, 300])
def blocks(request, monkeypatch):
    """Blocks so small that lines reach over them."""
    if request.param:
        monkeypatch.setattr(text_module, "BLOCK_BYTES", request.param)
        monkeypatch.setattr(text_module, "LOOK_BYTES", 7)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " ", "   ", " , ", " \t "])
@pytest.mark.parametrize("header", [None, "a b c d e label", '"a" "b" "c" "d" "e" "label"', "0 1 2 3 4 label"])
def test_csv(folder, blocks, delimiter, header):
    mark = delimiter.strip() if delimiter.strip() else delimiter
    given = header and header.replace(" ", mark)
    (folder / "a.csv").write_text(csv_text(delimiter, header=given))
    check("a.csv")


@pytest.mark.parametrize("write", [csv_text, svm_text])
def test_ends_of_lines_and_of_the_file(folder, blocks, write):
    text = write()
    variants = {
        "crlf": write(end="\r\n"),
        "open": text.rstrip("\n"),
        "open crlf": write(end="\r\n").rstrip("\r\n"),
        "blank": "\n\n  \n" + text.replace("\n", "\n\n \t\n") + "\n\n",
        "comments": "# one, 2\n" + text.replace("\n", "\n# three 4:5\n"),
        "behind": text.replace("\n", " # word\n"),
        "blanks": "  " + text.replace("\n", "  \n  "),
        "mark": "\ufeff" + text,
        "long": "#" + "x" * 5000 + "\n" + text.replace("\n", " " * 3000 + "\n", 3),
    }
    for variant in variants.values():
        (folder / "a").write_bytes(variant.encode())
        check("a")


def test_forms_of_numbers(folder):
    (folder / "a.csv").write_text('"1",+2,-3.,.5\n1e-3,"-1E+2",0007,-0\n')
    x, y, _ = read("a.csv")
    assert x.tolist() == [[1, 2, -3], [0.001, -100, 7]]
    assert y.tolist() == [0.5, 0]
    (folder / "a.svm").write_text("+1 1:+2 3:-.5e1\n-1 qid:7 2:1e-3 #c 9:9\n+1\n")
    x, y, _ = read("a.svm")
    assert x.tolist() == [[2, 0, -5, 0, 0], [0, 0.001, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert y.tolist() == [1, -1, 1]


def test_float32_is_rounded_as_numpy_does_it(folder):
    for write in (csv_text, svm_text):
        (folder / "a").write_text(write())
        x, _, _ = read("a", dtype=np.float32)
        assert np.array_equal(x, X.astype(np.float32))


def test_numbers_that_python_must_settle(folder, blocks):
    x = np.full((3000, 2), 5e-324)
    x[7, 1] = 3e-310
    y = np.zeros(3000)
    y[5] = 5e-324
    weight = np.ones(3000)
    weight[9] = 1e-320
    lines = [
        f"{row[0]!r},{row[1]!r},{label!r},{w!r}"
        for row, label, w in zip(x.tolist(), y.tolist(), weight.tolist(), strict=True)
    ]
    (folder / "a.csv").write_text("\n".join(lines))
    for got, expected in zip(read("a.csv", Columns("2", "3")), (x, y, weight), strict=True):
        assert np.array_equal(got, expected)
    lines = [
        f"{label!r}:{w!r} 1:{row[0]!r} 2:{row[1]!r}"
        for row, label, w in zip(x.tolist(), y.tolist(), weight.tolist(), strict=True)
    ]
    (folder / "a.svm").write_text("\n".join(lines))
    got = read("a.svm")
    assert np.array_equal(got[0][:, :2], x)
    assert np.array_equal(got[1], y)
    assert np.array_equal(got[2], weight)


def test_columns_by_name_and_number(folder):
    weight = np.arange(1, 41)
    table = np.column_stack([Y, X, weight])
    lines = [",".join(map(repr, row)) for row in table.tolist()]
    (folder / "a.csv").write_text("\n".join(["y,a,b,c,d,e,w", *lines]))
    (folder / "b.csv").write_text("\n".join(lines))
    check("a.csv", weight=weight, columns=Columns("y", "w"))
    check("a.csv", weight=weight, columns=Columns("0", "6"))
    check("b.csv", weight=weight, columns=Columns("0", "6"))
    x, y, _ = read("a.csv", Columns(weight="w"))
    assert np.array_equal(x, table[:, :5])
    assert np.array_equal(y, X[:, 4])
    assert find_features("a.csv").features == 7
    assert find_features("a.csv", Columns("y", "w")).feature_names == tuple("abcde")
    shard = load_features("a.csv", label="y", weight="6")
    assert np.array_equal(shard.dataset.x, X)
    for columns, match in [
        (Columns("z"), "--label z: there is no such column; there are y, a, b"),
        (Columns("7"), "--label 7: there is no such column"),
        (Columns("y", "x"), "--weight x: there is no such column"),
        (Columns("a", "1"), "cannot be both"),
    ]:
        with pytest.raises(DataError, match=match):
            find("a.csv", None, columns)
    with pytest.raises(DataError, match="--label y: there is no such column; there are columns 0 to 6"):
        find("b.csv", None, Columns("y"))


def test_labels_that_are_left_out_may_be_words(folder):
    (folder / "a.csv").write_text('1,cat,2\n3,"dog, old",4\n5,,6\n')
    shard = load_features("a.csv", label="1")
    assert shard.dataset.x.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_columns_are_refused_where_there_are_none(folder):
    np.savez("a.npz", x=X, y=Y)
    np.save("x.npy", X)
    (folder / "a.svm").write_text(svm_text())
    train, _ = load("a.npz", Alone(), label="3", test_fraction=0)  # of the matrix x
    assert np.array_equal(train.dataset.y, X[:, 3])
    assert np.array_equal(train.dataset.x, np.delete(X, 3, axis=1))
    for path in ("a.svm", "x.npy,x.npy"):
        with pytest.raises(ConfigError, match="--label 3: .*no table"):
            load(path, Alone(), label="3")
    assert load("a.svm", Alone(), label="3", optional=True)[0].rows == 36
    with pytest.raises(ConfigError, match="--weight 3: .*no table"):
        load_features("x.npy", weight="3")


def test_libsvm(folder, blocks):
    (folder / "a.svm").write_text(svm_text())
    check("a.svm")
    (folder / "b.svm").write_text(svm_text(base=0))
    assert np.array_equal(load("b.svm", Alone(), test_fraction=0)[0].dataset.x, X)
    weighted = re.sub(r"^(\S+)", r"\1:2.5", svm_text(), flags=re.M).replace(":2.5", "", 1)
    (folder / "c.svm").write_text(weighted)
    train, _ = load("c.svm", Alone(), test_fraction=0)
    assert train.dataset.weight.tolist() == [1.0, *[2.5] * 39]
    assert train.total_weight == 1 + 39 * 2.5


def test_features_of_libsvm_files_that_belong_together(folder):
    (folder / "train").write_text("1 1:1 4:2\n0 2:3\n")
    (folder / "test").write_text("0 6:1\n")
    (folder / "zero").write_text("1 0:5\n")
    train, test = load("train", Alone(), test="test")
    assert train.dataset.x.toarray().tolist() == [[1, 0, 0, 2, 0, 0], [0, 3, 0, 0, 0, 0]]
    assert test.dataset.x.toarray().tolist() == [[0, 0, 0, 0, 0, 1]]
    train, test = load("train", Alone(), test="zero")  # of which more than a quarter is not 0
    assert train.dataset.x.tolist() == [[0, 1, 0, 0, 2], [0, 0, 3, 0, 0]]
    assert test.dataset.x.tolist() == [[5, 0, 0, 0, 0]]
    assert load_features("train", features=9).features == 9
    assert load_features("train", features=2).features == 4
    np.savez("a.npz", x=np.ones((3, 7)), y=np.ones(3))
    assert load("a.npz", Alone(), test="train")[1].features == 7
    np.savez("b.npz", x=np.ones((3, 3)), y=np.ones(3))
    with pytest.raises(DataError, match="train: has 4 features a row, but x of b.npz has 3"):
        load("b.npz", Alone(), test="train")


def test_sparse_rows_that_do_not_fit(folder):
    (folder / "a.svm").write_text("1 1:1 2000000000:1\n0 3:1\n")
    with pytest.raises(DataError, match=r"a.svm: 2 rows × 2,000,000,000 features are 29.80 GiB.*the limit is 1.00 GiB"):
        load("a.svm", Alone(), memory_limit=1 << 30, dense=True)
    assert load("a.svm", Alone(), memory_limit=1 << 30, test_fraction=0)[0].dataset.x.entries == 3


@pytest.mark.parametrize("write", [csv_text, svm_text])
def test_gzip(folder, blocks, write):
    (folder / "a.gz").write_bytes(gzip.compress(write().encode()))
    assert find("a.gz")[0].sequential
    x, y, _ = read("a.gz")
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)
    data = (folder / "a.gz").read_bytes()
    (folder / "a.gz").write_bytes(data[:-20])
    with pytest.raises(DataError, match="a.gz.*damaged or truncated"):
        load("a.gz", Alone())


def test_what_text_is_taken_for(folder):
    def kind(text):
        (folder / "a").write_text(text)
        found, _ = find("a")
        return type(found), getattr(found, "columns", None), getattr(found, "names", None)

    assert kind("1 2:3\n") == (LibsvmFile, None, None)
    assert kind("1\n1\n-1 2:3\n")[0] is LibsvmFile
    assert kind("-1.5:2 qid:3 2:3\n")[0] is LibsvmFile
    assert kind("1 2 3\n") == (CsvFile, 3, None)
    assert kind("1;2;3\n") == (CsvFile, 3, None)
    assert kind("a,b\n1,2\n") == (CsvFile, 2, ("a", "b"))
    assert kind('"a,1";b\n1;2\n') == (CsvFile, 2, ("a,1", "b"))
    assert kind(",b,c\n1,2,3\n") == (CsvFile, 3, ("", "b", "c"))


BAD_CSV = [
    ("1,2,3\n1,,3\n", "line 2, column 1 .*empty"),
    ("1,2,3\n1,2,\n", "line 2, column 2 .*empty"),
    ("1,2,3\n,2,3\n", "line 2, column 0 .*empty"),
    ("1,2,3\n1,x,3\n", "line 2, column 1 .*'x' is no finite number"),
    ("a,b,c\n1,2,3\n\n#\n1,x y,3\n", r"line 5, column b \(number 1, counted from 0\): 'x y' is no"),
    ("1,2,3\n1,2 3,3\n", "line 2, column 1 .*'2 3' is no"),
    ("1,2,3\n1,nan,3\n", "line 2, column 1 .*'nan' stands for a value that is not there; .*--missing mean"),
    ("1,2,3\n1,2,-inf\n", "line 2, column 2 .*'-inf' is no finite"),
    ("a,b,y\n1,3%,2\n1,4%,2\n", r"column b: words are no features \('3%' in line 2\): .*--drop 'b'"),
    ("1,2,3\n1,2,NaN\n", "line 2, column 2 .*'NaN' stands for .*--missing drop"),
    ("1,2,3\n1,2,inf\n", "line 2, column 2 .*'inf' is no finite number"),
    ("1,2,1.#IND\n", "line 1, column 2 .*'1.#IND' stands for"),
    ("1,2%,3\n1,2,3\n", "column 1: words are no features .*'2%'|line 1, column 1 .*'2%'"),
    *(
        (f"1,5,3\n1,{bad},3\n", "line 2, column 1 .*is no finite number")
        for bad in ("3%", "0x1A", "1_000", "$5", "1 000")
    ),
    ("1,2,3\n1,cat,3\n", "line 2, column 1 .*every field must be a number; mend or remove the line"),
    (",b,c\n7,x,3\n7,1,3\n", r"line 2, column b \(number 1, counted from 0\): 'x'"),
    ("1,2,3\n1,1e999,3\n", "line 2, column 1 .*'1e999' is beyond"),
    ('1,2,3\n1,"2,3\n', "line 2, column 1 .*no finite"),
    ("1,2,3\n1,2\n", "line 2 has 2 fields, not the first line's 3"),
    ("1 2 3\n1 2\n", "line 2 has 2 fields, not the first line's 3"),
    ("1,2,3\n1,2,3,4\n", "line 2 has more than the 3 fields"),
    ("1 2 3\n1 2 3 4\n", "line 2 has more than the 3 fields"),
    ("1,2,3\n1,2,3,\n", "line 2 has more than"),
    ("1;2,500;3\n", "whether the comma .* parts thousands is unclear"),
    ("1;2,5;3\n1;2.5;3\n", "line 1, column 1 .*'2,5' is no"),
    ("1,2,x,4\n1,2,3,4\n", "line 1, column 2 .*'x' is no"),
    ("1\n2\n", "none is left for features"),
    ("a,b\n", "holds one line of words, as of a header, and no rows"),
    ("word\n", "format is not known"),
    ("word\nother word\n", "format is not known"),
    ("# nothing\n\n", "holds no rows"),
    ("1,2\n3,\0\n", "format is not known"),
    ("1,5\u00e9,2\n", "column 1: words are no features"),
]
BAD_SVM = [
    ("1 1:2\nx 1:2\n", "line 2: 'x' is no finite number"),
    ("1 1:2\n1,2 1:2\n", "line 2: '1,2' is no finite number"),
    ("1 1:2\n1 x:2\n", "line 2: 'x:2' does not begin with an index"),
    ("1 1:2\n1 -1:2\n", "line 2: '-1:2' does not begin with an index"),
    ("1 1:2\n1 1:2 3\n", "line 2: there is no colon behind the index of '3'"),
    ("1 1:2\n1 1.5:2\n", "line 2: there is no colon"),
    ("1 1:2\n\n1 2:1 1:2\n", "line 3: the index of '1:2' is not greater"),
    ("1 1:2\n1 2:1 2:2\n", "line 2: the index of '2:2' is not greater"),
    ("1 1:2\n1 1:x\n", "line 2: 'x' is no finite"),
    ("1 1:2\n1 1:\n", "line 2: '' is no finite"),
    ("1 1:2\n1 1:nan\n", "line 2: 'nan' is no finite"),
    ("1 1:2\n1 1:2x\n", "line 2: '2x' is no finite"),
    ("1 1:2\n1 1:1e999\n", "line 2: '1e999' is beyond"),
    ("1 1:2\n1:-2 1:2\n", "line 2: '-2' is a weight below 0"),
    ("1 1:2\n1:x 1:2\n", "line 2: 'x' is no finite"),
    ("1 1:2\n1 9999999999:2\n", "line 2: the index of '9999999999:2' is greater"),
    ("1:0 1:2\n1:0 1:2\n", "weights of all rows are 0"),
]


@pytest.mark.parametrize(("text", "match"), BAD_CSV + BAD_SVM)
def test_faults_are_named_by_line(folder, blocks, text, match):
    (folder / "a").write_bytes(text.encode())
    with pytest.raises(DataError, match=f"a: .*{match}"):
        load("a", Alone())
    (folder / "b.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DataError, match="b.gz: "):
        load("b.gz", Alone())


def test_weights_of_a_table_are_checked(folder):
    (folder / "a.csv").write_text("x,y,w\n1,2,3\n1,2,-1\n")
    with pytest.raises(DataError, match=r"a.csv: line 3, column w \(number 2, .*: '-1' is a weight below 0"):
        load("a.csv", Alone(), weight="w")
    (folder / "a.csv").write_text("x,y,w\n1,2,0\n1,2,0\n")
    with pytest.raises(DataError, match="weights of all rows are 0"):
        load("a.csv", Alone(), weight="w")


def test_values_beyond_float32(folder):
    for text, line in (("1,2\n1e300,3\n", "line 2, column 0"), ("1 1:2\n1 1:1e300\n", "line 2")):
        (folder / "a").write_text(text)
        with pytest.raises(DataError, match=f"{line}.*'1e300' is beyond the range of float32"):
            load("a", Alone(), dtype=np.float32)


def test_tables_with_other_names(folder):
    (folder / "a.csv").write_text("a,b,y\n1,2,3\n")
    (folder / "b.csv").write_text("y,b,c,a\n6,5,9,4\n")
    _, test = load("a.csv", Alone(), test="b.csv")
    assert (test.dataset.x.tolist(), test.dataset.y.tolist()) == ([[4, 5]], [6])
    (folder / "b.csv").write_text("b,c,y\n1,2,3\n")
    with pytest.raises(DataError, match=r"b.csv: the model takes a, which is not among the columns b, c"):
        load("a.csv", Alone(), test="b.csv")
    (folder / "b.csv").write_text("1,2,3,4\n")
    with pytest.raises(DataError, match=r"b.csv: has 3 features a row, but a.csv has 2"):
        load("a.csv", Alone(), test="b.csv")


@pytest.mark.parametrize("write", [csv_text, svm_text])
def test_random_damage_is_an_error_or_makes_other_rows(folder, write):
    """Never anything else, and the same for any number of ranges."""
    rng, whole = random.Random(1), write().encode()

    def outcome(parts):
        try:
            x, y, _ = read("a", parts=parts)
        except DataError as error:
            return outcome(1) if isinstance(error, text_module.Unsplittable) and parts > 1 else str(error)
        assert np.isfinite(x).all()
        return x.tobytes(), [str(label).removesuffix(".0") for label in y.tolist()]

    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            offset = rng.randrange(len(data))
            if rng.random() < 0.3:
                del data[offset : offset + rng.randrange(1, 40)]
            else:
                data[offset : offset + rng.randrange(2)] = rng.choice(
                    [b"\n", b",", b":", b"e", b"-", b'"', b"\xff", b"#", b" ", b"9"]
                )
        (folder / "a").write_bytes(data)
        one = outcome(1)
        if isinstance(one, str):
            assert re.search("line [0-9]+|format|holds|column", one)
        if "rows ×" not in str(one):
            assert outcome(5) == one


def test_a9a():
    """Against scikit-learn's count of what is in it."""
    folder = os.environ.get("DISTAI_DATASETS")
    if not folder or not os.path.exists(f"{folder}/a9a"):
        pytest.skip("not available: a9a in the folder that DISTAI_DATASETS names")
    train, test = load(f"{folder}/a9a", Alone(), test=f"{folder}/a9a.t")
    assert (train.rows, test.rows, train.features, test.features) == (32561, 16281, 123, 123)
    assert train.labels.plus_minus
    assert int(train.dataset.x.sum()) == 451592
    assert int((train.dataset.y > 0).sum()) == 7841


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("x\n1\n2\n", {}, "a: has 1 column, and none is left for features: column x is the label; name another column"),
        ("1\n2\n", {}, "a: has 1 column, and none is left for features: column 0 is the label"),
        ("x\n1\n2\n", {"columns": "x"}, "--columns 'x' asks for every column as a feature, .*name it with --label"),
        ("x\n1\n2\n", {"label": "x"}, "column x is the label; "),
        ("x,y\n1,2\n2,1\n", {"columns": "y", "label": "y"}, "column y is the label, --columns asks for y alone"),
        ("x,y\n1,2\n2,1\n", {"label": "x", "weight": "y"}, "column x is the label, column y is the weight"),
        ("x,y\n1,2\n2,1\n", {"drop": "x"}, "column y is the label, --drop 'x' leaves columns out"),
    ],
)
def test_tables_without_a_column_for_features(folder, text, options, match):
    (folder / "a").write_text(text)
    with pytest.raises(DataError, match=match):
        load("a", Alone(), **options)


def test_a_table_of_one_column_has_features_or_labels(folder):
    (folder / "a").write_text("x\n1\n2\n")
    assert load_features("a").dataset.x.tolist() == [[1], [2]]
    assert load_features("a", columns="x").dataset.x.tolist() == [[1], [2]]
    with pytest.raises(DataError, match="column x is the label; leave --label out where the data has no labels"):
        load_features("a", label="x")


@pytest.mark.parametrize("progress", [lambda used: 0.0, lambda used: used / 100, lambda used: min(1.0, used / 5)])
def test_arrays_grow_from_any_guess_of_their_length(progress):
    array, values, used = text_module.Growing((2,), np.int32), np.arange(200).reshape(100, 2), 0
    for count in (1, 0, 40, 3, 56):
        room = array.room(count + 5, progress(used))
        assert room.shape == (count + 5, 2)
        assert room.flags.c_contiguous
        room[:] = -1
        room[:count] = values[used : used + count]
        array.keep(count)
        used += count
    np.testing.assert_array_equal(array.filled, values)
