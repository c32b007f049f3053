"""Text tables as people have them: headers, indices, words, dates, values that are not there, quotes, line ends."""

import gzip
import re
import shlex

import numpy as np
import pytest
from alone import Alone, load_features
from test_text import read
from texts import PARTS, names_of, table, write

from distai_mpi.data import load
from distai_mpi.data.formats import find, find_features
from distai_mpi.data.parsed import read_chunks
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.readers.libsvm_text import LibsvmFile
from distai_mpi.data.readers.text import Unsplittable
from distai_mpi.errors import DataError

pytestmark = pytest.mark.ranks(3)

# --- headers

BODY = "7,5,4,1\n2,2,0,2\n0,0,1,1\n"
DECIMALS = "-0.21,-0.58,0.53\n0.09,1.59,-1.1\n0.36,0.44,-0.36\n"


@pytest.mark.parametrize(
    ("first", "body"),
    [
        ("0,1,2,3", BODY),  # pandas, of columns without names
        ("a,b,c,d", BODY),
        ('"a","b","c","d"', BODY),
        ("2019,2020,2021,label", BODY),
        ("0,1,2,label", BODY),
        ("2021,2022,2023", DECIMALS),
        ("0,1", "0.5,1\n0.25,0\n"),
        ("2020-01,2020-02,x", DECIMALS),
        ("x,y", "0.5,good\n1.5,bad\n"),
        ("when,y", "2020-01-01,1\n2020-01-02,2\n"),
        ("150,4,setosa,virginica", BODY),  # scikit-learn's iris
        ("country,code,1960,1961,1962", "Aruba,ABW,4.82,4.655,4.471\nAndorra,AND,,,\nChad,TCD,6.3,6.31,6.35\n"),
    ],
)
def test_headers_are_recognised(folder, first, body):
    write(f"{first}\n{body}")
    options = Columns(dates="seconds", missing="mean")
    found, _ = find("a", None, options)
    assert found.names == tuple(first.replace('"', "").split(","))
    x, _, _ = read("a", options)
    assert len(x) == body.count("\n")
    if "setosa" in first or "1960" in first:
        assert "--no-header" in found.notes[0]
    if all(name.isdecimal() for name in found.names):
        assert "--no-header" in found.notes[0]
        x, _, _ = read("a", Columns(header=False))
        assert len(x) == body.count("\n") + 1


@pytest.mark.parametrize(
    "text",
    [
        "5.1,3.5,setosa\n4.9,3.0,virginica\n",
        "1,2,3\n4,5,6\n",
        "0,1,0\n0.5,0.25,1\n0.5,0.75,1\n0.1,0.2,1\n",  # an initial state
        "1.0,2.0,3.0\n0.5,0.1,0.2\n",
        ",5,3\n2,3,4\n",
        "1,,3\n4,5,6\n",
        "?,1,2\n1,2,3\n",
        "AB-1,3,1\nAB-2,4,0\n",
        "TRUE,3,1\nFALSE,4,0\n",
        "5,1\n0.5,0\n0.25,1\n0.75,1\n",
    ],
)
def test_rows_are_no_headers(folder, text):
    options = Columns(missing="mean", columns="1" if text.count(",") > text.count("\n") else None)
    write(text)
    found, _ = find("a", None, options)
    assert found.names is None
    assert len(read("a", options)[0]) == text.count("\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0,1,2\n3,4,5\n6,7,8\n", "0, 1, 2"),  # numpy.arange just as well
        ("0,1\n1,1\n1,0\n", "0, 1"),
        ("0\n1\n1\n", "0"),
        ("10,20,35\n0.5,0.25,1.5\n0.5,0.75,1.5\n0.1,0.2,1.5\n", "10, 20, 35"),
        ("150,4,setosa\n5.1,3.5,0\n4.9,3.0,1\n", "'setosa' is no number, and '150' is one"),
    ],
)
def test_where_a_header_cannot_be_told_the_user_is_asked(folder, text, told):
    write(text)
    with pytest.raises(DataError, match=f"{told}.*is unclear; say which it is by --header or --no-header"):
        find_features("a")
    assert find_features("a", Columns(header=True)).names == tuple(text.split("\n")[0].split(","))
    assert find_features("a", Columns(header=False, drop="2" if "setosa" in text else None)).names is None


def test_indices_of_pandas_and_r_are_left_out(folder):
    frames = {
        "pandas": ",a,b,y\n0,1.5,2,0\n1,2.5,3,1\n",
        "numbers": ",0,1,2\n0,1.5,2,0\n1,2.5,3,1\n",
        "r csv": '"","a","b","y"\n"1",1.5,2,0\n"2",2.5,3,1\n',
        "r table": '"a" "b" "y"\n"1" 1.5 2 0\n"2" 2.5 3 1\n',
        "r words": "a\tb\ty\nMazda RX4\t1.5\t2\t0\nDatsun\t2.5\t3\t1\n",
        "again": "Unnamed: 0,a,b,y\n0,1.5,2,0\n1,2.5,3,1\n",
    }
    for text in frames.values():
        assert table(text) == ([[1.5, 2], [2.5, 3]], [0, 1])
        assert re.search("column 0, .* is left out: .*--columns can ask for it", " ".join(find("a")[0].notes))
    assert table(frames["pandas"], Columns(columns="0-2")) == ([[0, 1.5, 2], [1, 2.5, 3]], [0, 1])
    assert not find("a", None, Columns(columns="0-2"))[0].notes
    assert table("Unnamed: 0,a,y\n5,1.5,0\n4,2.5,1\n") == ([[5, 1.5], [4, 2.5]], [0, 1])  # a name as any other


def test_columns_without_names_and_at_the_end(folder):
    assert names_of("a,,y\n1,2,0\n")[0] == ("a", "Unnamed: 1", "y")
    for text in ("a,b,y,\n1,2,0,\n3,4,1,\n", "a,b,y\n1,2,0,\n3,4,1,\n", "1,2,0,\n3,4,1,\n"):
        assert table(text) == ([[1, 2], [3, 4]], [0, 1])
    write("a,b,y,\n1,2,0,\n" + "3,4,1,\n" * 30 + "3,4,1,7\n")
    with pytest.raises(DataError, match=r"line 33, column 3 .*: '7' stands in a column that is empty in the first"):
        read("a")
    with pytest.raises(DataError, match=r"line 1 has 2 fields, such as 'a', and the line below 4: .*--header"):
        table("a,b\n1,2,3,4\n")
    wine = "178,13,class_0,class_1\n" + "1,2,3.5,4,9,0\n5,6,7.5,8,9,1\n"  # as scikit-learn has it
    assert table(wine) == ([[1, 2, 3.5, 4, 9], [5, 6, 7.5, 8, 9]], [0, 1])
    assert "line 1 has 4 fields and the lines below 6: its names are left out" in find("a")[0].notes[0]
    with pytest.raises(DataError, match="line 1"):
        table(wine, Columns(header=False))
    for slip in ("178,13,class_0,5", "178,1.5,class_0,class_1", "a,b,c"):  # a row, perhaps, and names of columns
        with pytest.raises(DataError, match="--header to read over it"):
            table(wine.replace("178,13,class_0,class_1", slip))
    assert table("a,b\n1,2,3,4\n", Columns(header=True)) == ([[1, 2, 3]], [4])
    assert "names are left out" in find("a", None, Columns(header=True))[0].notes[0]


def test_names_in_quotes_and_of_other_kinds(folder, blocks):
    assert names_of('"a,1","b ""x""",y\n1,2,0\n')[0] == ("a,1", 'b "x"', "y")
    assert names_of('"two\nlines",b,y\n1,2,0\n')[0] == ("two\nlines", "b", "y")
    assert names_of("größe,b,y\n1,2,0\n")[0] == ("größe", "b", "y")
    assert names_of("gr\u00f6\u00dfe,b,y\n1,2,0\n".encode("latin-1"))[0] == ("größe", "b", "y")
    assert table("# of a program\na|b|y\n1|2|0\n") == ([[1, 2]], [0])
    write("a,a,y\n1,2,0\n")
    with pytest.raises(DataError, match="several columns have this name"):
        find("a", None, Columns("a"))


def test_a_table_of_one_column(folder):
    write("value\n1.5\n2.5\n")
    assert find_features("a").feature_names == ("value",)
    assert load_features("a").dataset.x.tolist() == [[1.5], [2.5]]
    with pytest.raises(DataError, match="has 1 column, and none is left for features"):
        find("a")


# --- ends of lines, encodings, formats


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("delimiter", [",", " "])
def test_carriage_returns_alone_end_lines(folder, blocks, monkeypatch, delimiter, late):
    """``late``: behind what is looked at."""
    rows = [[i * 0.5, -i, i % 2] for i in range(1, 60)]
    lines = [delimiter.join(map(str, row)) for row in rows]
    begin = "\n".join(lines[:30]) + "\n" if late else "\r".join(lines[:30]) + "\r"
    expected = ([row[:2] for row in rows], [row[2] for row in rows])
    if late:
        from distai_mpi.data.readers import lines as lines_module

        monkeypatch.setattr(lines_module, "WINDOW", 100)
    for rest in (
        "\r".join(lines[30:]),
        "\r".join(lines[30:]) + "\r",
        "\r\n".join(lines[30:]),
        "\r\n".join([*lines[30:45], "\r".join(lines[45:])]),
    ):
        assert table(begin + rest) == expected
    write(begin + "\r".join([*lines[30:], delimiter.join(["1", "x", "0"])]))
    for parts in PARTS:
        with pytest.raises(DataError, match="line 60, column 1 .*'x'"):
            read("a", None, parts)


def test_libsvm_with_carriage_returns_alone(folder, blocks):
    rows = [f"{i % 2} 1:{i} 3:{-i}" for i in range(1, 40)]
    write("\r".join(rows))
    for parts in PARTS:
        x, y, _ = read("a", None, parts)
        assert x[:, [0, 2]].tolist() == [[i, -i] for i in range(1, 40)]
        assert y.tolist() == [i % 2 for i in range(1, 40)]
    write("\n".join(rows[:20]) + "\n" + "\r".join(rows[20:]))
    assert len(read("a", None, 2)[1]) == 39


@pytest.mark.parametrize("name", ["UTF-16", "UTF-32"])
def test_wide_characters_are_refused_by_name(folder, name):
    for order in ("-le", "-be"):
        write("\ufeffa,b\n1,2\n".encode(name + order))
        with pytest.raises(DataError, match=f"is text in {name}; write it in UTF-8: iconv -f {name} -t UTF-8 a > NEW"):
            find("a")


def test_libffm_is_refused_by_name(folder):
    write("0 0:1:-1.0 1:2:0.0\n1 0:1:-0.9 1:2:0.7\n")
    with pytest.raises(DataError, match=r"libffm text \(field:index:value\)"):
        find("a")


def test_libsvm_whose_first_rows_are_empty(folder):
    empty = "0\n1 \n" * 30
    write(empty + "1 2:5\n")
    assert isinstance(find("a")[0], LibsvmFile)
    x, y, _ = read("a")
    assert x[-1, 1] == 5
    assert len(y) == 61
    write(empty * 100 + "1 2:5\n")  # a look does not tell
    assert isinstance(find("a", None, Columns(format="libsvm"))[0], LibsvmFile)
    assert len(read("a", Columns(format="libsvm"))[1]) == 6001
    write("7 12:30\n8 12:45\n")  # a number and a time
    assert isinstance(find("a")[0], LibsvmFile)
    with pytest.raises(DataError, match="column 1: words are no features .'12:30'"):
        find("a", None, Columns(format="csv", label="0"))


def test_the_first_index_of_a_model_holds(folder):
    write("1 0:5 1:7\n")
    (parsed,) = read_chunks([find("a")[0]], Alone(), [0], None, 2, None)
    assert parsed.base == 0
    with pytest.raises(DataError, match="a: has a feature with the index 0, but .* indices count from 1"):
        load_features("a", features=2, base=1)
    write("1 1:7\n")
    assert load_features("a", features=2, base=0).dataset.x.tolist() == [[0, 7]]
    assert load("a", Alone(), test_fraction=0)[0].base == 1
    np.savez("a.npz", x=np.ones((3, 2)), y=np.ones(3))
    assert load("a.npz", Alone(), test_fraction=0)[0].base is None


# --- quotes and words


def test_columns_that_are_left_out_may_hold_anything(folder, blocks):
    words = ["plain", '"a, b"', '"say ""no"", twice"', '""', "", "#ff0000", '"x"', "C# or # not", "'tis", "1.5", "é"]
    rows = [f"{i},{words[i % len(words)]},{i / 4},{i % 2}" for i in range(40)]
    got = table("\n".join(["n,what,x,y", *rows]), Columns(drop="what"))
    assert got == ([[i, i / 4] for i in range(40)], [i % 2 for i in range(40)])
    got = table(
        "\n".join(["n,x,y,what", *(f"{i},{i / 4},{i % 2},{words[i % len(words)]}" for i in range(40))]),
        Columns("y", drop="what"),
    )
    assert got == ([[i, i / 4] for i in range(40)], [i % 2 for i in range(40)])


def splittable(file, part, parts):
    """Whether a range can be read as one."""
    try:
        file.read(part, parts)
    except Unsplittable:
        return False
    return True


def quoted(first):
    """Lines ended by @, of which some, from row ``first`` on, hold line ends in quotes."""
    notes = [f'"1,2@3,""4"",5@@{i},a,7,8"' if i >= first and i % 3 == 0 else "plain" for i in range(60)]
    return "id,note,x,y@" + "".join(f"{i},{note},{i / 2},{i % 2}@" for i, note in enumerate(notes))


QUOTED = quoted(35)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("first", [0, 35])
def test_quotes_may_hold_line_ends(folder, blocks, first, end):
    """Whether they are among the lines that are looked at or behind them."""
    text = quoted(first).replace("@", end)
    expected = ([[i, i / 2] for i in range(60)], [i % 2 for i in range(60)])
    write(text)
    write(gzip.compress(text.encode()), "b.gz")
    for name in ("a", "b.gz"):
        x, y, _ = read(name, Columns(drop="note"))
        assert (x.tolist(), y.tolist()) == expected
    found, _ = find("a", None, Columns(drop="note"))
    for parts in PARTS[1:]:  # the first range that cannot be read as one tells it, and those before it are right
        before = []
        failed = next(part for part in range(parts) if not splittable(found, part, parts))
        for part in range(failed):
            before += found.read(part, parts).x.tolist()
        with pytest.raises(Unsplittable, match=f"line {text[: text.index(chr(34))].count(end) + 1}, column note"):
            found.read(failed, parts)
        assert before == expected[0][: len(before)]
    write(text + '60,"open,1,1' + end)
    with pytest.raises(DataError, match=r"column note \(number 1, .*: the quote that begins here is not closed"):
        load("a", Alone(), drop="note")


@pytest.mark.mpi
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quotes_with_line_ends_on_ranks(comm, tmp_path, end):
    path = comm.bcast_object(str(tmp_path / "a.csv"))
    if comm.rank == 0:
        write(QUOTED.replace("@", end), path)
    comm.barrier()
    train, _ = load(path, comm, drop="note", test_fraction=0, shuffle="global")
    assert sorted(train.dataset.x.tolist()) == [[i, i / 2] for i in range(60)]


@pytest.fixture
def comm():
    from mpi4py import MPI

    from distai_mpi.comm import Communicator

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


def test_words_that_may_be_numbers_and_dates_are_refused_together(folder):
    write("id,city,x,when,y\n1%,5 kg,1,2020-01-02,0\n2%,7 kg,2,2020-01-03,1\n")
    with pytest.raises(DataError) as caught:
        find("a", None, Columns(dates="refuse"))
    assert "columns id, city: words are no features ('1%' in line 2): leave them out by --drop 'id,city'," in str(
        caught.value
    )
    assert "column when: dates ('2020-01-02' in line 2)" in str(caught.value)
    assert "--dates seconds or --dates calendar" in str(caught.value)
    assert table(open("a").read(), Columns(drop="id,city,when")) == ([[1], [2]], [0, 1])
    write("x,y\n" + "1,0\n" * 30 + "Paris,0\n")
    with pytest.raises(DataError, match=r"line 32, column x .*'Paris' is no finite number; .*--drop 'x'"):
        read("a")


@pytest.mark.parametrize("first", [0, 35])
def test_labels_may_be_words(folder, blocks, first):
    """Also where words come late: then the numbers before are words too, on any number of ranks."""
    labels = [str(i % 3) if i < first else ("good", '"so, so"', "2.0")[i % 3] for i in range(60)]
    text = "x,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    write(text)
    expected = [{"2.0": "2", '"so, so"': "so, so"}.get(label, label) for label in labels]
    found, _ = find("a")
    for parts in PARTS:
        got = []
        for part in range(parts):
            piece = found.read(part, parts)
            if piece.label_names is None:
                got += [str(int(value)) for value in piece.y]
            else:
                got += [piece.label_names[int(index)] for index in piece.y]
        assert got == expected
    assert found.read(0, 1).x[:, 0].tolist() == list(range(60))
    assert found.empty().label_names == (() if first == 0 else None)


def test_labels_mean_the_same_whichever_range_they_are_in(folder):
    """Of a column that holds words somewhere, and of one that holds numbers alone."""
    for word in ("3 # why", "3.0", '"3"', " 3 "):
        for other in ("4", "good"):
            write(f"x,y\n1,{word}\n2,{other}\n")
            labels = read("a")[1].tolist()
            assert labels == ([3, 4] if other == "4" else ["3", "good"])
    assert table("x;y\n1,5;2,5\n1,5;good\n1,5;2,50\n")[1] == ["2.5", "good", "2.5"]
    for word, told in (("inf", "is no finite number"), ("-Infinity", "is no finite number"), ("1e999", "is beyond")):
        for other in ("4", "good"):
            write(f"x,y\n1,{other}\n2,{word}\n")
            with pytest.raises(DataError, match=f"line 3, column y .*'{word}' {told}"):
                read("a")
    assert table("x,y\n1,1_000\n2,12%\n3,0x1\n")[1] == ["1_000", "12%", "0x1"]


def test_the_way_out_names_columns_so_that_it_works(folder):
    text = 'a,"b, c",a,d\'s,y\n1%,2%,3%,4%,1\n' + "1,2,3,4,5\n"
    write(
        text.replace("1,2,3,4,5\n", "5%,6%,7%,8%,5\n")
        .replace("y\n", "z,y\n")
        .replace("4%,1", "4%,1,1")
        .replace("8%,5", "8%,5,5")
    )
    with pytest.raises(DataError) as caught:
        find("a")
    words = shlex.split(re.search("--drop .*?(?=, or write)", str(caught.value))[0])
    assert words == ["--drop", '0,"b, c",2,d\'s']
    assert find("a", None, Columns(drop=words[1]))[0].feature_names == ("z",)


def test_true_and_false(folder):
    text = "a,b,c,y\nTrue,true,FALSE,yes\nFalse,false,TRUE,no\n"
    assert table(text) == ([[1, 1, 0], [0, 0, 1]], ["yes", "no"])
    assert table("a,y\nTrue,True\nFalse,False\n") == ([[1], [0]], ["True", "False"])
    assert np.isnan(table("a,y\nTrue,1\n,0\n", Columns(missing="mean"))[0][1][0])
    write("a,y\n" + "True,1\n" * 30 + "2,0\n")
    with pytest.raises(DataError, match=r"line 32, column a .*'2' is neither true nor false"):
        read("a")
    write("a,y\n" + "0,1\n" * 30 + "True,0\n")
    with pytest.raises(DataError, match=r"line 32, column a .*'True' is no finite number"):
        read("a")
    for word in ("T", "yes", "tRUE"):
        write(f"a,b,y\n{word},1,1\n{word},2,0\n")
        assert find("a")[0].encodes == {0: ("a", "guess")}


def test_libsvm_rows_that_may_lack_labels_are_refused(folder):
    bare = "".join(f"1:{i} 3:2\n" for i in range(30))
    write(bare)
    for read_one in (lambda **options: load("a", Alone(), **options), lambda **options: load_features("a")):
        with pytest.raises(DataError, match="label:weight, or with the first index:value .*--format libsvm"):
            read_one()
    assert load("a", Alone(), format="libsvm", test_fraction=0)[0].dataset.weight.tolist() == list(range(30))
    write(bare + "1:0.5 1:2 3:4\n")  # far behind: not looked at
    with pytest.raises(DataError, match="is unclear"):
        load("a", Alone())
    for proof in ("1:0.5 1:2\n", "-1:2 1:5\n", "0.5:1 3:1\n", "1 3:2\n", "0:1\n"):  # a label it must be
        write(proof + bare)
        assert load("a", Alone(), test_fraction=0)[0].rows == 31


def test_libsvm_with_several_labels_is_refused_by_name(folder):
    write("".join(f"{i % 3},4 1:{i} 3:2\n" for i in range(30)))
    with pytest.raises(DataError, match="several labels a row"):
        load("a", Alone())
