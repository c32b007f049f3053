"""Lines and fields with a # in them: comments, colours, and words."""

import pytest
from alone import Alone
from texts import names_of, table, write

from distai_mpi.data import load
from distai_mpi.data.readers.columns import Columns
from distai_mpi.errors import DataError

COLOURS = ["#ff0000", "blue", "#0F0", "#00ff0080", "red", "#1234"]
CLASSES = {"label": "kind"}


def rows(mark=",", colours=COLOURS, times=8):
    return "".join(mark.join([colour, str(i), str(i % 3)]) + "\n" for i, colour in enumerate(colours * times))


ALONE = ["#ff0000", "#00FF00", "#0000ff"]


@pytest.mark.parametrize("mark", [",", ";", "\t", " "])
@pytest.mark.parametrize("colours", [COLOURS, ALONE, ["a"] * 30 + ["#abc"]], ids=["mixed", "alone", "late"])
def test_colours_in_the_first_column_are_words(folder, blocks, mark, colours):
    text = mark.join(["kind", "a", "b"]) + "\n" + rows(mark, colours)
    if mark == " " and colours is ALONE:  # a column, or comments: refused
        write(text)
        with pytest.raises(DataError, match="format is not known"):
            load("a", Alone(), **CLASSES)
        return
    count = len(colours) * 8
    assert table(text, Columns(**CLASSES))[1] == colours * 8
    x, y = table(text, Columns(drop="kind"))
    assert x == [[i] for i in range(count)]
    assert y == [i % 3 for i in range(count)]


@pytest.mark.parametrize("doubtful", ["#red,1,2", "#17,1,2", "#12345,1,2", '#red,"x,y",2', '#"red,1,2'])
@pytest.mark.parametrize("first", [0, 1, 40])
@pytest.mark.parametrize("header", ["kind,a,b\n", ""])
def test_what_may_be_a_row_or_a_comment_is_refused_by_line(folder, blocks, doubtful, first, header):
    lines = rows().splitlines()
    lines.insert(first, doubtful)
    write(header + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"line {first + 1 + bool(header)}: whether '#.*put the field in quotes"):
        load("a", Alone(), drop="0")


@pytest.mark.parametrize(
    "comment",
    ["# red,1,2", "#red", "#", "#red,1", "#red,1,2,3", "# ff0000,1,2", "#ff0000 is red, and others"],
)
def test_comments_beside_words(folder, blocks, comment):
    lines = rows().splitlines()
    for at in (45, 20, 3, 0):
        lines.insert(at, comment)
    assert table("\n".join(lines) + "\n", Columns(drop="0"))[0] == [[i] for i in range(48)]


def test_comments_beside_numbers(folder, blocks):
    text = "a,b,c\n" + "".join(f"{i},{2 * i},{i % 3}\n#{i},7,7\n#ffffff,1,2\n" for i in range(30))
    assert table(text)[0] == [[i, 2 * i] for i in range(30)]
    assert table(text, Columns(drop="a"))[0] == [[2 * i] for i in range(30)]


def test_a_comment_that_names_the_columns_is_no_row(folder):
    """As of BED files."""
    text = "#chrom\tstart\tend\n" + "".join(f"chr{i % 2}\t{i}\t{2 * i}\n" for i in range(40))
    assert table(text, Columns(drop="0"))[0] == [[i] for i in range(40)]
    assert names_of(text, Columns(drop="0")) == (None, None)


def test_words_keep_their_hash(folder, blocks):
    words = ["Team #1", "Team #2", "C #", "x#3", "7 # seven"]
    text = "a,team\n" + "".join(f"{i},{word}\n" for i, word in enumerate(words * 5))
    assert table(text)[1] == ["Team #1", "Team #2", "C #", "x#3", "7"] * 5
