"""Dates in text with names of months, without a day, and with day and month in either order."""

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from alone import Alone, load_features
from commands import run_here
from test_text import read
from texts import names_of, table, write

from distai_mpi.data import load_sets
from distai_mpi.data.formats import find
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.readers.kinds import day_first, kind_of
from distai_mpi.errors import DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(3)
SECONDS = Columns(dates="seconds")


def seconds(year, month, day, *clock):
    return (datetime(year, month, day, *clock, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)


FORMS = [  # of strftime, with and without a day
    ("%Y-%m", False),
    ("%Y/%m", False),
    ("%Y-%b", False),
    ("%b %Y", False),
    ("%B-%Y", False),
    ("%b %d %Y", True),
    ("%b-%d-%Y", True),
    ('"%B %d, %Y"', True),
    ("%b. %d %Y", True),
    ("%d %b %Y", True),
    ("%d-%B-%Y", True),
    ("%d. %B %Y", True),
    ("%Y-%b-%d", True),
    ("%Y %B %d", True),
    ("%m/%d/%Y", True),
    ("%m-%d-%Y", True),
    ("%d/%m/%Y", True),
    ("%d.%m.%Y", True),
]


@pytest.mark.parametrize(("form", "with_day"), FORMS)
def test_forms_of_dates(folder, blocks, form, with_day):
    days = [date(1949, 1, 31) + timedelta(days=29 * i) for i in range(60)]
    for change in (str, str.upper, str.lower):
        text = "when,y\n" + "".join(f"{change(day.strftime(form))},{i}\n" for i, day in enumerate(days))
        x, y = table(text, SECONDS)
        assert [row[0] for row in x] == [seconds(day.year, day.month, day.day if with_day else 1) for day in days]
        assert y == list(range(60))
    short = "when,y\n" + "".join(f"{day.strftime(form).replace('-0', '-')},1\n" for day in days)
    assert table(short, SECONDS)[0] == x
    parts = table(text, Columns(dates="calendar"))[0]
    assert [row[:3] for row in parts] == [[day.year, day.month, day.day if with_day else 1] for day in days]
    assert table(text) == table(text, Columns(dates="calendar"))
    assert "a: column when: dates become year, month" in find("a")[0].notes[0]
    with pytest.raises(DataError, match=r"column when: dates .*--dates seconds or --dates calendar"):
        find("a", None, Columns(dates="refuse"))


def test_a_time_of_day_behind(folder):
    text = "when,y\nJan 2 2000 03:04,1\n2-Jan-2000 03:04:05.5,1\n1/13/2000 23:00,1\n"
    times = [(2, 3, 4), (2, 3, 4, 5, 500_000), (13, 23, 0)]
    assert table(text, SECONDS)[0] == [[seconds(2000, 1, *time)] for time in times]
    assert names_of(text, Columns(dates="calendar"))[1][4:] == ("when.hour", "when.minute", "when.second")


@pytest.mark.parametrize(
    "bad",
    [
        "1949-13",
        "Feb 29 2001",
        "Jan 32 2000",
        "Janu 1 2000",
        "Jan 2000 10:00",
        "Jan 1 200",
        "1 2000 Jan",
        "Jan--1-2000",
    ],
)
def test_what_is_no_date(folder, bad):
    write("when,y\n" + "Jan 1 2000,0\n" * 30 + f"{bad},0\n")
    with pytest.raises(DataError, match=f"line 32, column when .*'{re.escape(bad)}' is no date"):
        read("a", SECONDS)


def test_kinds_of_dates():
    for field in ("1949-01", "1977-Jan", "Jan-1-1995", "Jan 1 2000", "05/20/1987", "20.5.1987", "5-6-1987"):
        assert kind_of(field) == "date", field
    for field in ("May", "Jan 20", "05/20/87", "13/13/1987", "5/6-1987", "2001-13", "1987.05.20", "Mayor 1 2000"):
        assert kind_of(field) == "word", field
    assert day_first(["1/2/2000", "", "13/1/2000", "1/13/2000"]) == (True, "1/2/2000")
    assert day_first(["1/2/2000", "NA"]) == (None, "1/2/2000")
    assert day_first(["2000-01-02"]) == (None, "")


def test_seasons_are_no_months(folder):
    write("season,y\n2001-02,1\n2002-03,2\n2003-04,3\n")
    with pytest.raises(DataError, match="column season: words are no features .*--categorical"):
        find("a", None, SECONDS)
    assert find("a", None, replace(SECONDS, categorical="season"))[0].encoded == (("season", "category"),)
    assert table("month,y\n2001-02,1\n2002-03,2\n2003-05,3\n", SECONDS)[0][2] == [seconds(2003, 5, 1)]


# --- the order of day and month

DOUBTFUL = "".join(f"{1 + i % 12}/{1 + i % 7}/2000,{i}\n" for i in range(40))


def numbers(day_is_first, text=DOUBTFUL):
    found = []
    for line in text.split():
        first, second, year = map(int, line.split(",")[0].split("/"))
        found.append(seconds(year, second, first) if day_is_first else seconds(year, first, second))
    return found


def features(path="a", **options):
    return load_features(path, dates="seconds", drop="y", **options).dataset.x[:, 0].tolist()


@pytest.mark.parametrize("tells", ["2/13/2000,1\n", "13/2/2000,1\n"])
@pytest.mark.parametrize("before", [False, True])
def test_the_values_of_the_column_tell_the_order(folder, blocks, tells, before):
    body = tells + DOUBTFUL if before else DOUBTFUL + tells
    write("when,y\n" + body)
    assert features() == numbers(tells.startswith("13"), body)


def test_where_nothing_tells_the_order(folder):
    write("when,y\n" + DOUBTFUL)
    told = r"a: column when: whether '1/1/2000' is month/day/year or day/month/year .*--month-first .*--drop 'when'"
    with pytest.raises(DataError, match=told):
        features()
    assert features(day_first=False) == numbers(False)
    assert features(day_first=True) == numbers(True)
    assert features(date_orders=(("when", True),)) == numbers(True)
    write("when,z,y\n" + DOUBTFUL.replace(",", ",1,"))  # a column that is left out is not asked for
    assert load_features("a", dates="seconds", drop="y,when").features == 1


def test_a_value_that_contradicts_is_refused(folder):
    for first, then, form in (
        ("2/13/2000", "13/2/2000", "month/day/year"),
        ("13/2/2000", "2/13/2000", "day/month/year"),
    ):
        write(f"when,y\n{first},1\n" + DOUBTFUL + f"{then},1\n")
        with pytest.raises(DataError, match=f"line 43, column when .*'{then}' is no date, {form}"):
            features()
    write("when,y\n" + DOUBTFUL + "13/2/2000,1\n2/13/2000,1\n")  # both behind the first lines
    with pytest.raises(DataError, match="line 42, column when .*'13/2/2000' is no date, month/day/year"):
        features()
    write("when,y\n13/2/2000,1\n")
    with pytest.raises(DataError, match="'13/2/2000' is no date, month/day/year.*--day-first"):
        features(day_first=False)


def test_files_that_are_read_together_have_one_order(folder):
    write("when,y\n" + DOUBTFUL, "train.csv")
    write("when,y\n1/2/2000,1\n13/2/2000,1\n", "test.csv")
    sets = load_sets("train.csv", Alone(), test="test.csv", dates="seconds")
    assert sets.train.dataset.x[:, 0].tolist() == numbers(True)
    assert sets.train.date_orders == (("when", True),)
    write("when,y\n1/2/2000,1\n2/13/2000,1\n", "b.csv")
    assert features(["train.csv", "b.csv"]) == [*numbers(False), seconds(2000, 1, 2), seconds(2000, 2, 13)]
    with pytest.raises(DataError, match=r"b.csv: line 3, column when .*'2/13/2000' is no date, day/month/year"):
        features(["test.csv", "b.csv"])


@mpi
def test_all_ranks_agree_on_the_order(comm, shared_path):
    for tells in ("2/13/2000,1\n", "13/2/2000,1\n"):
        bodies = [DOUBTFUL * 20 + tells, tells + DOUBTFUL * 20, DOUBTFUL * 10 + tells + DOUBTFUL * 10]
        for body in bodies:
            comm.barrier()
            if comm.rank == 0:
                (shared_path / "a.csv").write_text("when,y\n" + DOUBTFUL + body)
            comm.barrier()
            shard = load_sets(shared_path / "a.csv", comm, dates="seconds", test_fraction=0, shuffle="global").train
            assert shard.dataset.x[:, 0].tolist() == numbers(tells.startswith("13"), DOUBTFUL + body)
            assert shard.date_orders == (("when", tells.startswith("13")),)
    comm.barrier()
    if comm.rank == 0:
        (shared_path / "b.csv").write_text("when,y\n" + DOUBTFUL * 20)
        (shared_path / "c.csv").write_text("when,y\n" + DOUBTFUL * 10 + "13/2/2000,1\n2/13/2000,1\n" + DOUBTFUL * 10)
    comm.barrier()
    with pytest.raises(DataError, match="whether '1/1/2000' is month/day/year or day/month/year"):
        load_sets(shared_path / "b.csv", comm, dates="seconds")
    with pytest.raises(DataError, match="line 402, column when .*'13/2/2000' is no date, month/day/year"):
        load_sets(shared_path / "c.csv", comm, dates="seconds")


@mpi
def test_the_order_belongs_to_the_model(comm, shared_path):
    if comm.rank == 0:
        (shared_path / "train.csv").write_text("when,y\n" + DOUBTFUL + "13/2/2000,1\n")
        (shared_path / "new.csv").write_text("when\n1/2/2000\n3/2/2000\n")
        (shared_path / "iso.csv").write_text("when\n2000-02-01\n2000-02-03\n")
        (shared_path / "other.csv").write_text("when\n1/2/2000\n2/13/2000\n")
    comm.barrier()
    options = ("--model", "linear", "--dates", "seconds", "--epochs", "1", "--test-fraction", "0", "--standardize")
    result = run_here("train", "--data", "train.csv", *options, "--out", "run", cwd=shared_path)
    assert result.returncode == 0, result.stderr
    for name in ("new", "iso"):
        result = run_here("predict", "run", "--data", f"{name}.csv", "--out", f"{name}.npy", cwd=shared_path)
        assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(shared_path / "new.npy"), np.load(shared_path / "iso.npy"))
    result = run_here("predict", "run", "--data", "other.csv", "--out", "no.npy", cwd=shared_path)
    assert result.returncode != 0
    assert "'2/13/2000' is no date, day/month/year" in result.stderr


@mpi
def test_a_table_of_words_dates_and_gaps_trains_by_itself(comm, shared_path):
    """Dates become parts of the calendar, rows without a label are left out, a column without values counts for 0."""
    if comm.rank == 0:
        lines = [f"{i % 7},2020-{1 + i % 12:02d}-{1 + i % 28:02d},,{'xyz'[i % 3]},{i % 2 * 3 + 1}" for i in range(60)]
        lines[3] = lines[3][:-1]
        (shared_path / "train.csv").write_text("\n".join(["a,when,gap,city,y", *lines, ""]))
        (shared_path / "new.csv").write_text("a,when,gap,city\n1,2021-01-02,,x\n1,2021-01-02,77,x\n,,,z\n")
        (shared_path / "bad.csv").write_text("a,when,gap,city\n1,5,,x\n")
    comm.barrier()
    flags = ("--label", "y", "--missing", "mean", "--model", "linear", "--optimizer", "lbfgs", "--max-iter", "3")
    result = run_here("train", "--data", "train.csv", *flags, "--out", "run", cwd=shared_path)
    assert result.returncode == 0, result.stderr
    if comm.rank == 0:
        for told in ("when: dates become", "1 of 60 rows left out, which lack a label", "gap missing in all training"):
            assert told in result.stderr
    result = run_here("evaluate", "run", "--json", cwd=shared_path)  # the same rows are held back
    assert result.returncode == 0, result.stderr
    if comm.rank == 0:
        kept = json.loads((shared_path / "run" / "result.json").read_text())["test_loss"]
        assert json.loads(result.stdout)["loss"] == pytest.approx(kept, rel=1e-6)
    result = run_here("predict", "run", "--data", "new.csv", "--out", "new.npy", cwd=shared_path)
    assert result.returncode == 0, result.stderr
    predicted = np.load(shared_path / "new.npy")
    assert predicted[0] == predicted[1]
    assert np.isfinite(predicted[2])
    result = run_here("predict", "run", "--data", "bad.csv", "--out", "no.npy", cwd=shared_path)
    assert result.returncode != 0
    assert "bad.csv: its columns make 4 values a row, and those of training 10: a column is" in result.stderr
