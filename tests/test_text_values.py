"""Fields of text tables: values that are not there, dates, and how numbers are written."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from test_text import read
from texts import names_of, table, write

from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.readers.kinds import has_decimal_commas, kind_of
from distai_mpi.errors import DataError

# --- values that are not there

NOTHING = [
    "",
    "NA",
    "NaN",
    "nan",
    "N/A",
    "n/a",
    "null",
    "NULL",
    "None",
    "#N/A",
    "#NA",
    "?",
    "-",
    "<NA>",
    '""',
    '"NA"',
    "1.#IND",
    " ",
    " NA ",
    "-nan",
    "-1.#QNAN",
]


@pytest.mark.parametrize("nothing", NOTHING)
def test_values_that_are_not_there(folder, blocks, nothing):
    text = f"a,b,y\n1,{nothing},3\n{nothing},5,6\n7,8,9\n4,{nothing} # why,1\n"
    write(text.replace(" # why", ""))
    with pytest.raises(DataError, match=r"a: line 2, column b \(number 1, .*--missing mean, median or drop"):
        read("a")
    x, y = table(text.replace(" # why", ""), Columns(missing="mean"))
    assert np.array_equal(x, [[1, np.nan], [np.nan, 5], [7, 8], [4, np.nan]], equal_nan=True)
    assert y == [3, 6, 9, 1]
    if nothing == "-":  # which may be a word where one belongs
        write("a,y\n1,2\n1,-\n")
        assert read("a")[1].tolist() == ["2", "-"]
        return
    labels = f"a,b,y\n1,2,3\n1,2,{nothing}\n"
    write(labels)
    with pytest.raises(DataError, match=r"line 3, column y .*--missing drop"):
        read("a")
    for missing in ("drop", "mean"):
        x, y = table(labels, Columns(missing=missing))
        assert y[0] == 3
        assert np.isnan(y[1])
    write(f"a,b,w\n1,2,3\n1,2,{nothing}\n")
    with pytest.raises(DataError, match=r"line 3, column w "):
        read("a", Columns(weight="w", label="b", missing="drop"))


def test_values_that_are_not_there_between_blanks_and_in_words(folder):
    x, _ = table("a b y\nNA 2 1\n3 ? 0\n", Columns(missing="median"))
    assert np.array_equal(x, [[np.nan, 2], [3, np.nan]], equal_nan=True)
    write("a,y\n1,good\n2,\n3,-\n")
    with pytest.raises(DataError, match="line 3, column y .*--missing drop"):
        read("a")
    assert table("a,y\n1,good\n2,?\n3,-\n", Columns(missing="drop")) == ([[1], [2], [3]], ["good", "", "-"])
    write("a,y\n" + ",1\n" * 25 + "True,0\n")  # what a column is may come late
    assert table(open("a").read(), Columns(missing="mean"))[0][-1] == [1]
    for infinite in ("inf", "-Infinity", "1e999"):
        write(f"a,y\n1,2\n{infinite},2\n")
        with pytest.raises(DataError, match="line 3, column a "):
            read("a", Columns(missing="mean"))


# --- dates

MOMENTS = ["2020-02-29", "1969-12-31", "0001-01-01", "9999-12-31", "2000-03-01", "1900-02-28", "2024-12-30"]


def seconds(text):
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)


def test_dates_as_seconds(folder, blocks):
    text = "".join(f"{day},{i}\n" for i, day in enumerate(MOMENTS))
    x, _ = table("when,y\n" + text, Columns(dates="seconds"))
    assert [row[0] for row in x] == [seconds(day) for day in MOMENTS]
    times = [
        "2020-01-02T03:04:05",
        "2020-01-02 03:04:05.25",
        "2020-01-02 03:04",
        "2020-01-02T03:04:05Z",
        "2020-01-02 03:04:05+05:30",
        "2020-01-02T23:59:59-08:00",
        '"2020-01-02 00:00:00.000001"',
        "2020-01-02",
    ]
    x, _ = table("when,y\n" + "".join(f"{time},1\n" for time in times), Columns(dates="seconds"))
    assert [row[0] for row in x] == [seconds(time.strip('"')) for time in times]
    assert table("when,y\n2020/1/2,1\n2020/01/02 03:04,1\n", Columns(dates="seconds"))[0] == [
        [seconds("2020-01-02")],
        [seconds("2020-01-02T03:04")],
    ]
    x, _ = table("when,y\n2020-01-02,1\n,1\n", Columns(dates="seconds", missing="mean"))
    assert np.isnan(x[1][0])
    assert table("x,when\n1,2020-01-02\n", Columns(dates="seconds"))[1] == [seconds("2020-01-02")]
    assert table("x,when\n1,2020-01-02\n")[1] == ["2020-01-02"]


def test_dates_as_parts_of_the_calendar(folder, blocks):
    options = Columns(dates="calendar")
    text = "a,when,y\n" + "".join(f"{i},{day},0\n" for i, day in enumerate(MOMENTS))
    x, _ = table(text, options)
    days = [datetime.fromisoformat(day) for day in MOMENTS]
    assert x == [[i, day.year, day.month, day.day, day.weekday(), 0, 0, 0] for i, day in enumerate(days)]
    parts = ("year", "month", "day", "weekday", "hour", "minute", "second")
    assert names_of(text, options)[1] == ("a", *(f"when.{part}" for part in parts))
    text = "when,a,y\n2020-01-02 03:04:05.5,1,0\n2021-12-31 23:59:59-01:00,2,1\n2020-01-05,3,1\n"
    assert table(text, options)[0] == [
        [2020, 1, 2, 3, 3, 4, 5, 1],
        [2022, 1, 1, 5, 0, 59, 59, 2],
        [2020, 1, 5, 6, 0, 0, 0, 3],
    ]
    assert names_of(text, options)[1][4:] == ("when.hour", "when.minute", "when.second", "a")
    assert table(text, Columns(dates="calendar", drop="when")) == ([[1], [2], [3]], [0, 1, 1])
    assert table(text, Columns(dates="calendar", required=("a", "when")))[0][0] == [1, 2020, 1, 2, 3, 3, 4, 5]
    write("when,y\n" + "2020-01-02,0\n" * 30 + "2020-01-02 01:00,0\n")
    assert read("a", options)[0][29:].tolist() == [[2020, 1, 2, 3, 0, 0, 0], [2020, 1, 2, 3, 1, 0, 0]]


@pytest.mark.parametrize(
    "bad",
    [
        "2021-02-29",
        "2020-13-01",
        "2020-01-32",
        "1/2/2020",
        "2020-01-01 24:00",
        "2020-01-01 10:60",
        "2020-01-01 10:00:60",
        "2020-01-01 10:00+25:00",
        "2020-01/01",
        "0000-01-01",
        "2020-01-01x",
        "20200101",
        "2020-01-01 10:00:",
    ],
)
def test_what_is_no_date(folder, bad):
    write("when,y\n" + "2020-01-02,0\n" * 30 + f"{bad},0\n")
    for dates in ("seconds", "calendar"):
        with pytest.raises(DataError, match=f"line 32, column when .*'{re.escape(bad)}' is no date"):
            read("a", Columns(dates=dates))


def test_kinds_of_fields():
    assert kind_of("2020-01-02T03:04:05Z") == "datetime"
    assert kind_of("2020/1/2") == "date"
    assert kind_of("2020-1/2") == "word"
    assert kind_of("1_000") == "word"
    assert kind_of("+.5e-3") == "number"
    assert kind_of("1e") == "word"


# --- numbers


def test_decimal_commas(folder, blocks):
    for mark in (";", "\t"):
        text = "a;b;what;y\n1,5;-,25e1;a,b;0\n2;3,125;c;1\n3;4;d;2,5\n".replace(";", mark)
        assert table(text, Columns(drop="what")) == ([[1.5, -2.5], [2, 3.125], [3, 4]], [0, 1, 2.5])
    assert table("a;y\n1,5;so,so\n2,5;no\n")[1] == ["so,so", "no"]
    write("a;y\n1,5;1\n1.250;1\n")
    with pytest.raises(DataError, match="line 2, column a .*'1,5'"):  # the marks do not agree
        read("a")
    write("a;y\n1,5;1\n" + "2,5;1\n" * 30 + "1.250;1\n")
    with pytest.raises(DataError, match="line 33, column a "):
        read("a")
    write('a,y\n"1,5",1\n"2,5",1\n')
    with pytest.raises(DataError, match="column a: words are no features"):
        read("a")
    assert has_decimal_commas(["1,500", "2,750"]) is None
    assert has_decimal_commas(["1,500", "0,750"]) is True
    assert has_decimal_commas(["1,500", "2.5"]) is False


def test_forms_of_numbers(folder):
    assert table("a,b,c,d,y\n1e5,+1, 1 ,.5,5.\n-0,007,1E-2,2e+3,1\n")[0] == [[1e5, 1, 1, 0.5], [0, 7, 0.01, 2000]]


def test_lines_that_lack_fields_do_not_pass_for_ones_that_lack_values(folder):
    write("a,b,c,y\n1,2,3,4\n1,2,\n")
    with pytest.raises(DataError, match="line 3 has 2 fields|line 3 has 3 fields"):
        read("a", Columns(missing="mean"))
