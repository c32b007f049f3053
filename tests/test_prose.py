"""Lines of prose before a table, and first lines whose numbers may be names."""

import pytest
from alone import Alone
from texts import table, write

from distai_mpi.data import load, load_features
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
    with pytest.raises(DataError, match=r"whether line 1 \(Country, 1960, ..., 1962, 1963\) .*--header or --no-header"):
        find("a", None, Columns(drop="0"))
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
    with pytest.raises(DataError, match=r"--columns a-? ?.*asks for every column as a feature.*--label"):
        find("a", None, Columns(columns="a,b,c"))
    assert load_features("a", Alone(), columns="b,c").features == 2


def test_libsvm_text_has_no_columns(folder):
    write("1 1:2 2:3\n0 1:5\n")
    for options, flag in (({"columns": "0"}, "--columns 0"), ({"drop": "1"}, "--drop 1")):
        with pytest.raises(ConfigError, match=f"{flag}: a is no table"):
            load("a", Alone(), **options)
        with pytest.raises(ConfigError, match=f"{flag}: a is no table"):
            load_features("a", Alone(), **options)
