"""Columns of words, categories and documents: what they become, on any ranks and beside scikit-learn."""

import csv
import json

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone, load_features
from commands import run_here

import distai_mpi
from distai_mpi.data import load_sets
from distai_mpi.data.encoding import restored
from distai_mpi.data.readers import levels as levels_module
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.readers.levels import levels_of_values
from distai_mpi.errors import ConfigError, DataError

RNG = np.random.default_rng(3)
ROWS = 120
CITIES = ["Paris", "Rome", "Œßel", 'Saint "X"', "10", "9"]
WORDS = ["good", "Bad", "naïve", "x", "film_1", "a", "The", "ÉTÉ", "plot", "end"]
CITY = [CITIES[i] for i in RNG.integers(len(CITIES), size=ROWS)]
ZONE = RNG.integers(4, size=ROWS)
SIZE = [None if i % 7 == 0 else float(v) for i, v in enumerate(RNG.integers(0, 5, size=ROWS))]
TEXT = [" ".join(RNG.choice(WORDS, 9)) + ", it's #1!" for _ in range(ROWS)]
Y = RNG.integers(2, size=ROWS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(rows=slice(None), **other):
    columns = {"city": [None if i % 11 == 0 else city for i, city in enumerate(CITY)], "zone": ZONE, "size": SIZE}
    columns |= {"flag": [bool(i % 3) for i in range(ROWS)], "text": TEXT, "y": Y} | other
    return {name: list(values)[rows] for name, values in columns.items() if values is not None}


def write_csv(path, columns):
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(["" if v is None else v for v in row] for row in zip(*columns.values(), strict=True))


def write_parquet(path, columns, dictionary=False):
    made = arrow.table(columns)
    if dictionary:
        made = made.set_column(0, "city", made["city"].dictionary_encode())
    arrow.parquet.write_table(made, path, row_group_size=37)


def loaded(path="a", comm=None, **options):
    return load_sets(path, comm or Alone(), **{"test_fraction": 0.0} | options).train


def dense(shard):
    x = shard.dataset.x[shard.own_rows()]
    return x.toarray() if shard.dataset.is_sparse else x


def one_hot(values, levels):
    return np.array([[value == level for level in levels] for value in values], float)


EXPECTED = ["9", "10", "Paris", "Rome", 'Saint "X"', "Œßel", None]  # numbers by value, words, and what is missing


def test_categories_are_the_same_from_every_format(folder):
    write_csv("a", table(text=None))
    write_parquet("b", table(text=None))
    write_parquet("c", table(text=None), dictionary=True)
    options = {"categorical": "zone,flag", "missing": "mean"}
    first = loaded("a", **options)
    names = [f"city={'(missing)' if level is None else level}" for level in EXPECTED]
    names += [*(f"zone={i}" for i in range(4)), "size", "flag=False", "flag=True"]
    assert list(first.feature_names) == names
    parts = [one_hot(table()["city"], EXPECTED), one_hot(ZONE, range(4)), np.zeros((ROWS, 1))]
    parts += [one_hot(table()["flag"], [False, True])]
    x = np.hstack(parts)
    known = [value for value in SIZE if value is not None]
    x[:, 11] = [np.mean(known) if value is None else value for value in SIZE]
    np.testing.assert_array_equal(np.where(np.isnan(dense(first)), first.dataset.fill.values, dense(first)), x)
    assert "city (7), zone (4), flag (2)" in first.notes[-1]
    for other in ("b", "c"):
        again = loaded(other, **options)
        assert again.feature_names == first.feature_names
        np.testing.assert_array_equal(dense(again), dense(first))
    assert "flag" in loaded("b", missing="mean").feature_names  # truth values are 0 and 1 unless they are asked for


def test_names_are_left_out_and_too_many_levels_are_hashed(folder):
    names = [f"user {i // (1 + (i < 8))}" for i in range(ROWS)]  # nearly every row has its own
    write_csv("a", table(text=None, city=names, size=None))
    left = loaded("a")
    assert left.column_names == ("zone", "flag")
    assert "column city is left out: it holds another word in nearly every row" in left.notes[-1]
    x = dense(loaded("a", categorical="city", hash_bits=5))
    from sklearn.feature_extraction import FeatureHasher  # here: ranks of MPI parts need not load it

    hasher = FeatureHasher(32, input_type="string")
    np.testing.assert_array_equal(x[:, :32], hasher.transform([[name] for name in names]).toarray())
    wide = loaded("a", categorical="city")
    assert wide.features == len(set(names)) + 2
    write_csv("a", table(text=None, city=["1,5", "2,5"] * (ROWS // 2), size=None))
    with pytest.raises(DataError, match="column city: words are no features .*categories by categorical"):
        loaded("a")


def test_crosses_are_pairs_of_levels(folder):
    write_csv("a", table(text=None, size=None))
    shard = loaded("a", categorical="zone", cross="city:zone")
    pairs = [f"city:zone={city or ''}:{zone}" for city, zone in zip(table()["city"], ZONE, strict=True)]
    names = shard.feature_names[12:]
    assert set(names) == set(pairs)
    np.testing.assert_array_equal(dense(shard)[:, 12:], one_hot(pairs, names))
    for cross, told in (("city:flag", "flag is no column|is no column of categories"), ("city", "two columns or more")):
        with pytest.raises((DataError, ConfigError), match=told):
            loaded("a", cross=cross)


def test_missing_numbers_of_sparse_rows_are_those_of_dense_ones(folder):
    write_csv("a", table(text=None, city=[f"c{i % 60}" for i in range(ROWS)]))
    for by in ("mean", "median"):
        sets = [load_sets("a", Alone(), missing=by, dense=held, test_fraction=0.2) for held in (False, True)]
        assert [shard.train.dataset.is_sparse for shard in sets] == [True, False]
        for sparse, other in zip(sets[0][:2], sets[1][:2], strict=True):
            filled = np.where(np.isnan(dense(other)), other.dataset.fill.values, dense(other))
            np.testing.assert_array_equal(dense(sparse), filled)


@pytest.mark.parametrize("ngrams", ["1", "1,2", "2,3"])
def test_words_are_those_of_scikit_learn(folder, ngrams):
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    texts = [*TEXT[:-2], "", None]
    write_csv("a", table(city=None, size=None, text=texts))
    low, high = int(ngrams[0]), int(ngrams[-1])
    plain = HashingVectorizer(n_features=1 << 10, ngram_range=(low, high))
    shard = loaded("a", text="text", ngrams=ngrams, hash_bits=10, dense=True)
    np.testing.assert_allclose(dense(shard)[:, 2:], plain.transform([t or "" for t in texts]).toarray(), atol=1e-15)
    sets = load_sets("a", Alone(), text="text", ngrams=ngrams, hash_bits=10, tfidf=True, test_fraction=0.25)
    rows = [sets[i].dataset.x[sets[i].own_rows()].toarray()[:, 2:] for i in range(2)]
    order = np.concatenate([held.order.positions(held.first, held.first + held.rows) for held in sets[:2]])
    counts = HashingVectorizer(n_features=1 << 10, ngram_range=(low, high), norm=None)
    counts = counts.transform([texts[i] or "" for i in order])
    weighed = TfidfTransformer().fit(counts[: len(rows[0])]).transform(counts)
    np.testing.assert_allclose(np.vstack(rows), weighed.toarray(), atol=1e-14)


def test_levels_of_arrays_are_those_of_files():
    for values in (CITY, np.array(CITY), np.array([*CITY[:5], None, "a\nb"], object), [1, 2.0, True], []):
        levels, numbers = levels_of_values(values)
        words = [*levels.words(), None]
        said = [None if value is None else str(value) for value in np.asarray(values).tolist()]
        assert [words[i] for i in numbers] == [{"1.0": "1", "2.0": "2"}.get(word, word) for word in said]


def test_levels_of_strings_of_any_length(monkeypatch):
    monkeypatch.setattr(levels_module, "BLOCK", 7)
    monkeypatch.setattr(levels_module, "BLOCK_BYTES", 16)
    words = ["", "a", "ü" * 3, "x" * 50, "x" * 49 + "y", "b\nc", "seven77", "eight888", "eight889", "\N{GRINNING FACE}"]
    picks = np.random.default_rng(0).integers(len(words), size=(60, 2))
    column = np.array(words, object)[picks][:, 1]  # not contiguous
    levels, numbers = levels_of_values(column)
    named = [*levels.words(), ""]
    assert [named[number] for number in numbers] == column.tolist()
    assert len(set(levels.words())) == len(levels)


def test_values_of_other_types_are_called_as_in_files():
    import pandas

    codes = [2**63 + 1, 2**63 + 2, 2**53 + 1]  # which float64 does not tell apart
    for values, words in (
        (np.array(["a", pandas.NA, None, b"\xc3\xbc", np.float32(0.1)], object), ["a", None, None, "ü", "0.1"]),
        (np.array([0.1, np.nan], np.float32), ["0.1", None]),
        (np.array([b"a", b"b "]), ["a", "b"]),
        (np.array(["2020-01-01T10:00", "NaT"], "M8[s]"), ["2020-01-01 10:00:00", None]),
        (np.array(codes, np.uint64), list(map(str, codes))),
        (np.array(["+9007199254740993", "0009007199254740993"]), ["9007199254740993"] * 2),
    ):
        levels, numbers = levels_of_values(values)
        assert [None if number < 0 else levels.words()[number] for number in numbers] == words


def test_a_model_keeps_what_it_needs_for_other_rows(folder):
    """Also those of unseen and missing levels, of columns in another order, and in memory."""
    write_csv("a.csv", table())
    train = [
        "train",
        "--data",
        "a.csv",
        "--model",
        "logistic",
        "--optimizer",
        "lbfgs",
        "--l2",
        "0.01",
        "--text",
        "text",
    ]
    flags = ["--tfidf", "--hash-bits", "9", "--cross", "city:zone", "--categorical", "zone", "--missing", "mean"]
    done = run_here(*train, *flags, "--out", "run", "-q")
    assert done.returncode == 0, done.stderr
    rows = table(slice(0, 9), y=None)
    rows["city"][1], rows["zone"][2], rows["size"][3], rows["text"][4] = "Atlantis", None, None, "unheard-of words"
    write_csv("new.csv", {name: rows[name] for name in reversed(rows)})
    done = run_here("predict", "run", "new.csv", "--proba", "--out", "p.npy")
    assert done.returncode == 0, done.stderr
    model = distai_mpi.load("run")
    found = np.load("p.npy")
    numbers = rows | {"size": [np.nan if value is None else value for value in rows["size"]]}
    np.testing.assert_array_equal(model.predict_proba(numbers), found)
    assert np.isfinite(found).all()
    encoding = restored(model.kept)
    assert json.dumps(encoding.described()["encoding"]) == json.dumps(model.kept["encoding"])
    x = load_features("new.csv", **options_of(model), dtype=np.float64).dataset.x.toarray()
    lacking = next(i for i, column in enumerate(encoding.columns) if column.name == "city")
    first, last = encoding.firsts[lacking : lacking + 2]
    assert x[:, first:last].sum(axis=1).tolist() == [1, 0, *[1] * 7]
    assert "accuracy" in run_here("evaluate", "run").stdout
    with pytest.raises(DataError, match="column 'size' holds .*the model takes numbers"):
        model.predict(rows | {"size": ["small"] * 9})


def options_of(model):
    from distai_mpi.predictor import as_trained

    options = as_trained(model.kept | {"label": None}, {}, model.model)
    options.pop("dtype")
    return options


def test_documents_a_line(folder):
    from sklearn.feature_extraction.text import HashingVectorizer

    lines = [f'{"spam" if y else "ham"}\t{text}\t"\n' for text, y in zip(TEXT, Y, strict=True)]
    (folder / "a").write_text("".join(lines) + "\n")
    train = loaded("a", format="text", hash_bits=8)
    wanted = HashingVectorizer(n_features=256).transform(TEXT).toarray()
    np.testing.assert_allclose(dense(train), wanted, atol=1e-15)
    assert train.classes == ("ham", "spam")
    (folder / "b").write_text("".join(text + "\n" for text in TEXT))
    bare = load_features("b", format="text", encoding=train.encoding, encoded=train.encoded)
    np.testing.assert_array_equal(bare.dataset.x.toarray() if bare.dataset.is_sparse else bare.dataset.x, dense(train))
    for text, told in (
        ("1\ta b\nno label\n", "line 2: has no tab"),
        ("1\ta\n" * 200 + "x\tb\n", "line 201: the label"),
    ):
        (folder / "c").write_text(text)
        with pytest.raises(DataError, match=told):
            loaded("c", format="text")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"categorical": "nowhere"},
            "categorical='nowhere': there is no such column",
        ),
        ({"categorical": "y"}, "the column is none of the features"),
        ({"categorical": "city", "text": "city"}, "cannot be both"),
        ({"ngrams": "2,1", "text": "text"}, "ngrams=.* give the number of words"),
        ({"tfidf": True}, "weighs words of documents"),
        ({"tfidf": True, "text": "text", "dense": True}, "leave dense=... out"),
        ({"hash_bits": 40}, "hash_bits must be from 1 to 30"),
    ],
)
def test_what_cannot_be_is_refused(folder, options, told):
    write_csv("a", table())
    with pytest.raises((DataError, ConfigError), match=told):
        loaded("a", missing="mean", **options)


def test_other_files_have_no_categories(folder):
    np.savez("a.npz", x=np.ones((3, 2)), y=np.ones(3))
    (folder / "b").write_text("1 1:2\n0 2:2\n")
    for path, told in (("a.npz", "a.npz is neither CSV nor Parquet"), ("b", "b is no table")):
        with pytest.raises(ConfigError, match=f"categorical='x'.*{told}|categorical=... x: {told}"):
            loaded(path, categorical="x")


def test_a_column_that_training_took_for_numbers_stays_one(folder):
    write_csv("a", table(text=None, city=None, size=None))
    write_csv("b", table(text=None, city=None, size=None, zone=["red"] * ROWS))
    with pytest.raises(DataError, match="column zone: words are no features"):
        load_sets("a", Alone(), test="b")
    assert Columns().following(None) == Columns(unlabelled=True)


@pytest.mark.mpi
@pytest.mark.ranks(1, 2, 3, 4)
@pytest.mark.parametrize("shuffle", ["global", "local"])
def test_ranks_make_the_same_features(comm, shared_path, shuffle):
    """Of one file, and of two in formats that are read by ranges; levels on one rank alone, and shards without rows."""
    if comm.rank == 0:
        write_csv(shared_path / "a.csv", table(slice(0, 7)))
        write_csv(shared_path / "b.csv", table(slice(7, None)))
        write_csv(shared_path / "c.csv", table())
    comm.barrier()
    kept = {"text": "text", "tfidf": True, "hash_bits": 6, "categorical": "zone", "cross": "city:zone"}
    options = kept | {"missing": "mean", "test_fraction": 0.2}
    alone = load_sets(str(shared_path / "c.csv"), Alone(), **options)
    for path in ("c.csv", "[ab].csv"):
        sets = load_sets(str(shared_path / path), comm, shuffle=shuffle, **options)
        for ours, theirs in zip(sets[:2], alone[:2], strict=True):
            assert ours.feature_names == theirs.feature_names
            assert ours.encoding.columns == theirs.encoding.columns
            parts = comm.allgather_object(dense(ours))
            mine, whole = (np.array(sorted(x.tolist())) for x in (np.vstack(parts), dense(theirs)))
            np.testing.assert_allclose(mine, whole, rtol=1e-13, atol=1e-15)
    bad = dict(options, cross="city:size")
    with pytest.raises(DataError, match="size"):
        load_sets(str(shared_path / "c.csv"), comm, **bad)
