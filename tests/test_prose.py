"""Lines of prose before a table, and first lines whose numbers may be names."""

import gzip

import numpy as np
import pytest
from alone import Alone, load_features
from texts import names_of, table, write

from distai_mpi.data import load
from distai_mpi.data.formats import find
from distai_mpi.data.readers.columns import Columns
from distai_mpi.errors import ConfigError, DataError

ROWS = "".join(f"{i},{2 * i},{i % 3}\n" for i in range(30))
X, Y = [[i, 2 * i] for i in range(30)], [i % 3 for i in range(30)]
PROSE = "Series:   LNS14\n\nSeasonally adjusted\nAge:  16 years and over\n\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["a,b,y\n", "a,b,y,\n", ""])  # a mark at the end of the header alone too
def test_prose_is_left_out_with_a_note(folder, end, mark, header):
    text = PROSE + (header + ROWS).replace(",", mark)
    assert table(text.replace("\n", end)) == (X, Y)
    found, _ = find("a", None, None)
    assert found.notes == ("a: the first 3 lines are left out: they have no fields as those below",)
    assert found.names == (("a", "b", "y") if header else None)


def test_lines_of_faults_are_those_of_the_file(folder):
    write(PROSE + "a,b,y\n" + ROWS + "1,x,2\n")
    with pytest.raises(DataError, match=r"line 37, column b .*'x' is no finite number"):
        load("a", Alone())


@pytest.mark.parametrize(
    "text",
    [
        "1\n2\n" + ROWS,  # short rows
        "1 2\n" + ROWS,
        "words, more\nothers\n" + ROWS,  # a field that may belong to a row
        "Title\nwords\n" + "1,2,3\n" * 9,  # too few rows to tell
        "x\n" + "".join(f"{i},{i / 2}\n" for i in range(30)),  # R's header, without a name for the index
        "x\n" + "1,5\n" * 30,  # decimal commas
    ],
)
def test_what_may_be_rows_is_not_left_out(folder, text):
    write(text)
    with pytest.raises(DataError):
        load("a", Alone())


def test_a_table_with_blanks_keeps_its_header(folder):
    assert table("a b\n" + "1 2\n" * 30) == ([[1]] * 30, [2] * 30)
    with pytest.raises(DataError):  # decimal commas between blanks
        table("a b\n" + "1,5 2,5\n" * 30)


def test_years_beside_words_may_be_names(folder):
    body = "Aruba,4.82,4.65,4.47,1.5\nAngola,,7.1,7.2,7.3\nChad,1.5,2.5,3.5,4.5\n"
    write("Country,1960,1961,1962,1963\n" + body)
    found, _ = find("a", None, Columns(drop="Country"))
    assert found.names == ("Country", "1960", "1961", "1962", "1963")
    assert "--no-header" in found.notes[0]
    found, _ = find("a", None, Columns(drop="Country", header=True, missing="drop"))
    assert found.names == ("Country", "1960", "1961", "1962", "1963")
    write("Aruba,3,4,5\nAngola,1,2,3\n")  # whole numbers below them too: rows
    assert find("a", None, Columns(drop="0"))[0].names is None


def test_columns_that_are_asked_for_are_not_the_default_label(folder):
    write("a,b,c\n1,2,3\n4,5,7\n")
    for asked, label, x in (("b,c", "a", [[2, 3], [5, 7]]), ("c", "b", [[3], [7]]), ("a", "c", [[1], [4]])):
        found, _ = find("a", None, Columns(columns=asked))
        assert found.roles.label_name == label
        assert found.read(0, 1).x.tolist() == x
    assert find("a", None, Columns(columns="a,b,c", label="b"))[0].roles.names == ("a", "c")
    with pytest.raises(DataError, match=r"--columns '.*' asks for every column as a feature.*--label"):
        find("a", None, Columns(columns="a,b,c"))
    assert load_features("a", columns="b,c").features == 2


def test_libsvm_text_has_no_columns(folder):
    write("1 1:2 2:3\n0 1:5\n")
    for options, flag in (({"columns": "0"}, "--columns 0"), ({"drop": "1"}, "--drop 1")):
        with pytest.raises(ConfigError, match=f"{flag}: a is no table"):
            load("a", Alone(), **options)
        with pytest.raises(ConfigError, match=f"{flag}: a is no table"):
            load_features("a", **options)


REPORT = (
    'Name:,"A"\nWords:,"over\ntwo lines"\n=====\n ,a,b,y,\n\n"A, b",1.5,2,3,\n"C",4,5.25,6,\n===\nNotes\n1 - of a\n'
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_say_where_the_table_is(folder, blocks, end):
    text = REPORT.replace("\n", end)
    assert table(text, Columns(lines="5-8")) == ([[1.5, 2], [4, 5.25]], [3, 6])
    found, _ = find("a", None, Columns(lines="5-8"))
    assert "a: only lines 5-8 are read" in found.notes
    assert found.feature_names == ("a", "b")
    assert table(text, Columns(lines="7-8", columns="1,2", label="3"))[0] == [[1.5, 2], [4, 5.25]]
    with pytest.raises(DataError, match=r"a: line 9 has 1 fields, .*--lines which lines are the table"):
        load("a", Alone(), lines="5-", label="y", drop="4")
    with pytest.raises(DataError, match=r"there is no line 12: the last one is number 11"):
        load("a", Alone(), lines="5-12")


@pytest.mark.parametrize("tail", ["", "\n"])
@pytest.mark.parametrize("pack", [False, True])
def test_lines_to_the_end_and_of_packed_files(folder, blocks, tail, pack):
    text = "a,b\n1,2\n3,4\n5,6" + tail
    write(gzip.compress(text.encode()) if pack else text)
    for lines, x in {"1-": [1, 3, 5], "1-4": [1, 3, 5], "1-3": [1, 3], "3-4": [3, 5], "4-4": [5]}.items():
        train, _ = load("a", Alone(), lines=lines, test_fraction=0, header=lines.startswith("1"))
        assert train.dataset.x.tolist() == [[value] for value in x]


def test_lines_of_libsvm(folder, blocks):
    write("junk\n1 1:5\n0 2:6\n1 1:7\nend\n")
    train, _ = load("a", Alone(), lines="2-4", test_fraction=0)
    assert train.dataset.x.tolist() == [[5, 0], [0, 6], [7, 0]]


@pytest.mark.parametrize("lines", ["0-3", "5-4", "3", "a-b", "-5", ""])
def test_bad_lines(folder, lines):
    write(REPORT)
    with pytest.raises(ConfigError, match="--lines .*: give FIRST-LAST"):
        load("a", Alone(), lines=lines)


def test_lines_are_those_of_text(folder):
    np.savez("a.npz", x=np.ones((3, 2)), y=np.ones(3))
    np.save("x.npy", np.ones((3, 2)))
    np.save("y.npy", np.ones(3))
    for data in ("a.npz", "x.npy,y.npy"):
        with pytest.raises(ConfigError, match="is no text"):
            load(data, Alone(), lines="1-2")


def test_an_index_beside_words_alone(folder):
    text = ",kind\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(30))
    assert names_of(text, Columns(columns="0", label="kind"))[0] == ("", "kind")
