"""Parquet: types of columns, the index of pandas, parts of partitioned tables, missing values, words and dates."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from alone import Alone, load_features

from distai_mpi.data import load
from distai_mpi.data.formats import find
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.sparse_rows import SparseRows
from distai_mpi.errors import DataError

ROWS = 40
RNG = np.random.default_rng(3)
Y = np.arange(ROWS) % 3


def save(path="a", group=7, metadata=None, **columns):
    table = arrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"pandas": json.dumps(metadata)})
    arrow.parquet.write_table(table, path, row_group_size=group)


def features(path="a", **options):
    return load(path, Alone(), test_fraction=0, **options)[0].dataset.x


def stretch(path="a", **options):
    file, _ = find(path, None, Columns(**options))
    return file, file.read(0, 1)


def bad(match, path="a", **options):
    with pytest.raises(DataError, match=match):
        load(path, Alone(), **options)


def test_the_index_of_pandas_is_neither_label_nor_feature(folder):
    """As pandas stores ``set_index("id")``: the index is the file's last column."""
    a, index = RNG.normal(size=ROWS), np.arange(ROWS) + 100
    meta = {"index_columns": ["id"], "columns": [{"name": n, "field_name": n} for n in ("a", "y", "id")]}
    save(metadata=meta, a=a, y=Y, id=index)
    for options in ({}, {"label": "y"}):
        file, rows = stretch(**options)
        assert file.feature_names == ("a",)
        assert np.array_equal(rows.x, a[:, None])
        assert np.array_equal(rows.y, Y)
        assert any("column id is left out: it is the index" in note for note in file.notes)
    file, _ = stretch(columns="*", label="y")
    assert file.feature_names == ("a", "id")
    assert file.notes == ()
    assert np.array_equal(stretch(label="id")[1].y, index)
    save(metadata=meta | {"index_columns": [{"kind": "range", "start": 0}]}, a=a, y=Y, id=index)
    assert stretch()[0].feature_names == ("a", "y")
    save(a=a, y=Y, __index_level_0__=index)
    file, rows = stretch()
    assert (file.feature_names, file.notes) == (("a",), ())
    assert np.array_equal(rows.y, Y)


def test_a_part_of_a_partitioned_table_has_no_default_label(folder):
    columns = [{"name": n, "field_name": n} for n in ("a", "b", "label")]
    save(metadata={"index_columns": [], "columns": columns}, a=Y / 2, b=Y)
    bad("a: is one part of a table whose column label is not in it.*--label")
    assert features(label="b").shape == (ROWS, 1)
    assert load_features("a").dataset.x.shape == (ROWS, 2)
    (folder / "kind=3").mkdir()
    save("kind=3/part-0", a=Y / 2, b=Y)
    bad("kind=3/part-0: .*kind is a column that is not in the file; name the label with --label", "kind=3/part-0")
    assert features("kind=3/part-0", label="b").shape == (ROWS, 1)


DECIMALS = [Decimal(text) for text in ("0.3", "-12345.67", "0.07", "1.10", "8.35", "0.29", "-0.57", "0")]


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (arrow.decimal128(9, 2), DECIMALS),
        (arrow.decimal128(38, 20), [*DECIMALS[:-1], Decimal("0.12345678901234567891")]),
        (arrow.decimal256(60, 5), DECIMALS),
        (arrow.bool_(), [True, False] * 4),
        (arrow.uint64(), [0, 5, 7, 1 << 53, 3, 4, 8, 9]),
        (arrow.int8(), [0, -5, 7, 1, 3, -128, 8, 9]),
        (arrow.float16(), np.array([0.1, -5, 7, 1, 3, -128, 8, 9], "f2")),
        (arrow.dictionary(arrow.int8(), arrow.float64()), [0.1, 0.2] * 4),
    ],
)
def test_types_of_numbers_give_the_numbers_of_their_text(folder, type_, values):
    column = arrow.array(list(values), type_.value_type).dictionary_encode() if "dict" in str(type_) else None
    save(group=3, a=arrow.array(values, type_) if column is None else column, y=range(8))
    expected = [float(str(value)) if isinstance(value, Decimal) else float(value) for value in values]
    x = features()
    assert x.astype(np.float64)[:, 0].tolist() == expected
    assert x.dtype != np.float16


def test_columns_of_several_types_lose_nothing(folder):
    """The common type holds every value of every column: float64 where float32 would not."""
    whole = np.array([16777217, -16777219, 5], np.int32)
    real = np.array([0.1, 2.5, 3e38], np.float32)
    save(a=whole, b=real, c=np.array([True, False, True]), y=range(3))
    x = features()
    assert x.dtype == np.float64
    assert np.array_equal(x, np.stack([whole, real, [1, 0, 1]], axis=1))
    save(a=whole.astype(np.int64), b=np.array([250, 1, 2], np.uint8), y=range(3))
    assert features().dtype == np.int64
    save(a=np.array([1, 2, 3], "f2"), b=np.array([2049, 1, 2], np.uint16), y=range(3))
    assert features()[:, 1].tolist() == [2049, 1, 2]


def test_integers_that_float64_does_not_hold_are_told(folder):
    save(a=np.array([1, (1 << 53) + 1, 3]), b=[1, 2, 3], y=range(3))
    file, _ = stretch()
    assert [note for note in file.notes if "column a holds integers beyond 2^53" in note]
    assert len(file.notes) == 1


def test_lists_of_a_fixed_length_are_columns(folder):
    values = RNG.normal(size=(ROWS, 3))
    lists = arrow.FixedSizeListArray.from_arrays(values.reshape(-1), 3)
    save(a=Y, v=lists, y=Y)
    file, rows = stretch()
    assert file.feature_names == ("a", "v.0", "v.1", "v.2")
    assert np.array_equal(rows.x, np.column_stack([Y, values]))
    gaps = arrow.array([[1.0, 2.0], None, [3.0, None]], arrow.list_(arrow.float64(), 2))
    save(group=2, v=gaps, y=range(3))
    bad("a: column v is empty .null. in row 1")
    _, rows = stretch(missing="mean")
    assert np.array_equal(rows.x, [[1, 2], [np.nan, np.nan], [3, np.nan]], equal_nan=True)


def test_lists_of_equal_lengths_are_columns(folder):
    values = RNG.normal(size=(ROWS, 3)).astype(np.float32)
    for type_ in (arrow.list_(arrow.float32()), arrow.large_list(arrow.float32())):
        save(a=Y, v=arrow.array(values.tolist(), type_), y=Y)
        file, rows = stretch()
        assert file.feature_names == ("a", "v.0", "v.1", "v.2")
        assert np.array_equal(rows.x, np.column_stack([Y, values]))
    save(group=2, v=arrow.array([[1.0, 2.0], None, None, [3.0, None]]), y=range(4))
    bad("a: column v is empty .null. in row 1")
    _, rows = stretch(missing="mean")
    assert np.array_equal(rows.x, [[1, 2], [np.nan] * 2, [np.nan] * 2, [3, np.nan]], equal_nan=True)
    save(group=2, v=arrow.array([[1.0], [2.0], [3.0], [2.0, 3.0]]), y=range(4))
    bad("a: column v holds 2 numbers in row 3 .counted from 0., and 1 in the first one")
    save(v=arrow.array([[], [2.0]]), y=[0, 1])
    bad("a: column v holds vectors without numbers; leave it out by --drop 'v'")


VECTOR = arrow.struct(
    {
        "type": arrow.int8(),
        "size": arrow.int32(),
        "indices": arrow.list_(arrow.int32()),
        "values": arrow.list_(arrow.float64()),
    }
)


def vectors(*given):
    """As Spark ML stores them: (size, indices, values), or values alone."""
    rows = [
        value if value is None else dict(zip(("type", "size", "indices", "values"), value, strict=True))
        for value in (
            each if each is None else (0, *each) if isinstance(each, tuple) else (1, None, None, each) for each in given
        )
    ]
    return arrow.array(rows, VECTOR)


def test_vectors_of_spark_are_sparse_rows(folder):
    x = np.where(RNG.random((ROWS, 50)) < 0.1, RNG.normal(size=(ROWS, 50)).astype(np.float32), 0)
    given = [row.tolist() if i % 5 == 0 else (50, np.flatnonzero(row), row[row != 0]) for i, row in enumerate(x)]
    save(label=Y, features=vectors(*given), text=Y)
    bad("a: column features holds vectors, which are all features or none: take them alone by --columns", label="label")
    shard, _ = load("a", Alone(), test_fraction=0, label="label", columns="features")
    rows = shard.dataset.x
    assert isinstance(rows, SparseRows)
    assert np.array_equal(rows.toarray(), x)
    assert (rows.dtype, rows.indices.dtype) == (np.float32, np.uint32)
    assert np.array_equal(shard.dataset.y, Y)
    assert np.array_equal(features(label="label", drop="text", dense=True), x)
    halves = [find("a", None, Columns(label="label", columns="features"))[0].read(part, 3) for part in range(3)]
    assert sum(half.rows for half in halves) == ROWS
    assert np.concatenate([half.x.values for half in halves]).tolist() == x[x != 0].tolist()


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (None, r"is empty \(null\)"),
        ((4, [0], [1.0]), "is not of the size 3"),
        ([1.0, 2.0], "is not of the size 3"),
        ((3, [0, 1], [1.0]), "has not one index for each value"),
        ((3, [1, 3], [1.0, 2.0]), "has the index 3 out of range"),
        ((3, [-1], [1.0]), "has the index -1 out of range"),
        ((3, [2, 1], [1.0, 2.0]), "has the index 1 after one that is as large"),
        ((3, [1, 1], [1.0, 2.0]), "has the index 1 after one that is as large"),
        ((3, [1], [np.nan]), "holds nan at index 1"),
        ([0.0, np.inf, 0.0], "holds inf at index 1"),
    ],
)
def test_vectors_that_are_none_are_refused_by_row(folder, vector, message):
    save(group=2, v=vectors((3, [0], [1.0]), [0.0, 1.0, 2.0], (3, [], []), vector), y=range(4))
    bad(f"a: the vector of column v in row 3 .counted from 0. {message}")


def test_missing_values(folder):
    save(group=2, a=[1, None, 3], b=[0.5, float("nan"), None], c=[True, None, False], y=[1, 2, 3])
    bad("a: column a is empty .null. in row 1.*--missing mean, median or drop")
    bad("a: column b holds nan in row 1.*--missing", drop="a,c")
    file, rows = stretch(missing="median")
    assert file.dtype == rows.x.dtype == np.float64
    expected = [[1, 0.5, 1], [np.nan] * 3, [3, np.nan, 0]]
    assert np.array_equal(rows.x, expected, equal_nan=True)
    save(a=[1.0, float("inf"), float("nan")], y=[1, 2, 3])
    bad("a: column a holds inf in row 1", missing="mean")
    save(a=[1.0, 2.0, 3.0], y=[1, None, 3])
    bad("a: column y is empty .null. in row 1")
    for missing in ("mean", "drop"):
        assert np.array_equal(stretch(missing=missing)[1].y, [1, np.nan, 3], equal_nan=True)
        assert load("a", Alone(), missing=missing, test_fraction=0)[0].rows == 2
    save(a=[1.0, 2.0, 3.0], w=[1, None, 3], y=[1, 2, 3])
    bad("a: column w is empty .null. in row 1", missing="drop", weight="w")


@pytest.mark.parametrize("type_", ["string", "large_string", "dictionary", "binary"])
def test_words(folder, type_):
    words = ["good", "bad", "good", "b\u00e4d", "bad"]
    column = arrow.array(words).dictionary_encode() if type_ == "dictionary" else arrow.array(words, type_)
    save(group=2, a=range(5), name=column, y=range(5))
    assert features()[:, 1:].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]  # bad, bäd, good
    assert features(drop="name").shape == (5, 1)
    _, rows = stretch(label="name")
    assert [rows.label_names[int(i)] for i in rows.y] == words
    file, _ = find("a", None, Columns(label="name"))
    parts = [file.read(part, 2) for part in range(2)]
    assert [part.label_names[int(i)] for part in parts for i in part.y] == words
    assert file.empty().label_names == ()


def test_dates(folder):
    days = [date(2000, 2, 29), date(1969, 12, 31), date(2024, 1, 1)]
    times = [datetime(2000, 2, 29, 23, 59, 58, 250000), datetime(1969, 12, 31), datetime(2024, 1, 1, 5, 6, 7)]
    save(d=days, t=arrow.array(times, arrow.timestamp("ns")), y=[0, 1, 2])
    refused = "a: column d is of type date32.* and column t is of type timestamp.*--dates seconds.*--drop 'd,t'"
    bad(refused, dates="refuse")
    assert "a: columns d, t: dates become year, month" in stretch()[0].notes[0]
    assert np.array_equal(stretch()[1].x, stretch(dates="calendar")[1].x)
    epoch = date(1970, 1, 1)
    file, rows = stretch(dates="seconds")
    assert file.feature_names == ("d", "t")
    assert rows.x[:, 0].tolist() == [(day - epoch).days * 86400 for day in days]
    assert rows.x[:, 1].tolist() == [time.replace(tzinfo=UTC).timestamp() for time in times]
    file, rows = stretch(dates="calendar")
    parts = ["year", "month", "day", "weekday", "hour", "minute", "second"]
    assert file.feature_names == tuple(f"{name}.{part}" for name in "dt" for part in parts)
    assert file.roles.names == ("d", "t")
    expected = [
        [d.year, d.month, d.day, d.weekday(), 0, 0, 0, t.year, t.month, t.day, t.weekday(), t.hour, t.minute, t.second]
        for d, t in zip(days, times, strict=True)
    ]
    assert rows.x.tolist() == expected
    assert features(drop="t", dates="calendar").shape == (3, 7)
    bad("a: column t is of type timestamp.*no label", label="t", drop="d")
    assert stretch(label="t", dates="seconds")[1].y.tolist() == [t.replace(tzinfo=UTC).timestamp() for t in times]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_are_the_same_from_every_unit(folder, unit):
    zone = timezone(timedelta(hours=2))
    times = [datetime(2031, 7, 8, 1, 2, 3, tzinfo=zone), None, datetime(1950, 1, 1, tzinfo=zone)]
    save(t=arrow.array(times, arrow.timestamp(unit, "+02:00")), y=[0, 1, 2])
    bad("a: column t is empty .null. in row 1", dates="seconds")
    _, rows = stretch(dates="seconds", missing="mean")
    assert np.array_equal(rows.x[:, 0], [times[0].timestamp(), np.nan, times[2].timestamp()], equal_nan=True)
    _, rows = stretch(dates="calendar", missing="mean")
    assert rows.x[0].tolist() == [2031, 7, 7, 0, 23, 2, 3]  # in UTC
    assert np.isnan(rows.x[1]).all()


def test_what_cannot_be_read_is_named(folder):
    save(a=arrow.array([{"b": 1}] * 3), c=arrow.array([timedelta(1)] * 3), y=range(3))
    bad("a: column a is of type struct.* and column c is of type duration.*: leave it out by --drop 'a,c'")
    save(a=range(3), c=arrow.array([timedelta(1)] * 3), y=range(3))
    bad("a: column c is of type duration.*no label; name another column with --label", label="c")
    bad("a: column c is of type duration.*name another with --weight", weight="c")
    (folder / "a").write_bytes(b"PARE" + bytes(40))
    bad("a: is encrypted")


def test_groups_without_rows(folder):
    schema = arrow.schema([("a", arrow.float64()), ("w", arrow.string()), ("y", arrow.int64())])
    with arrow.parquet.ParquetWriter("a", schema) as writer:
        for rows in (2, 0, 3, 0):
            columns = [np.arange(rows) / 2, ["u", "v", "u"][:rows], np.arange(rows)]
            writer.write_table(arrow.table(columns, schema=schema))
    assert features(drop="w")[:, 0].tolist() == [0, 0.5, 0, 0.5, 1]
    _, rows = stretch(label="w")
    assert [rows.label_names[int(i)] for i in rows.y] == ["u", "v", "u", "v", "u"]
