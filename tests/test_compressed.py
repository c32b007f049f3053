"""Compressed files of every kind, whole, damaged and strange; formats that are not read."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import sqlite3
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest
from alone import Alone, load_features

from distai_mpi.data import load
from distai_mpi.data.formats import find
from distai_mpi.data.readers import compressed
from distai_mpi.data.readers.compressed import UNPACK, unpacked
from distai_mpi.errors import DataError

try:
    from compression import zstd
except ImportError:
    from backports import zstd

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(50, 4)), RNG.integers(0, 3, 50)
CSV = "".join(",".join(map(repr, row)) + f",{y}\n" for row, y in zip(X.tolist(), Y.tolist(), strict=True)).encode()
SVM = "".join(
    f"{y} " + " ".join(f"{j}:{v!r}" for j, v in enumerate(row, 1)) + "\n"
    for row, y in zip(X.tolist(), Y.tolist(), strict=True)
).encode()


def zipped(data, name="rows.csv", method=zipfile.ZIP_DEFLATED, **others):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("folder/", b"")
        for other, content in others.items():
            archive.writestr(other, content)
        archive.writestr(name, data)
    return out.getvalue()


PACK = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
    "zip": zipped,
}
STREAMS = [kind for kind in PACK if kind != "zip"]


def write(data, name="a"):
    Path(name).write_bytes(data)
    return name


def check(spec="a", x=X, y=Y):
    train, _ = load(spec, Alone(), test_fraction=0)
    assert np.array_equal(train.dataset.x, x)
    assert np.array_equal(train.dataset.y, y)


def bad(match, spec="a"):
    with pytest.raises(DataError, match=match):
        load(spec, Alone())


def test_all_kinds_are_tested():
    assert PACK.keys() == UNPACK.keys()


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("text", [CSV, SVM])
def test_text(folder, kind, text):
    write(PACK[kind](text))
    check()
    assert np.array_equal(load_features("a", **({"label": "4"} if text is CSV else {})).dataset.x, X)
    found, _ = find("a")
    assert found.sequential


@pytest.mark.parametrize("kind", PACK)
def test_arrays(folder, kind):
    pixels = RNG.integers(0, 256, (50, 3, 2)).astype(np.uint8)
    write(PACK[kind](struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()), "x")
    write(PACK[kind](struct.pack(">4BI", 0, 0, 9, 1, 50) + Y.astype(np.int8).tobytes()), "y")
    check("x,y", pixels.reshape(50, 6))
    if kind == "zip":
        return  # with arrays of NumPy in it, it is an .npz
    for name, array in (("x", X), ("y", Y)):
        out = io.BytesIO()
        np.save(out, array)
        write(PACK[kind](out.getvalue()), name)
    check("x,y")


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_one_after_another(folder, kind):
    """As pigz, bgzip, pbzip2, xz -T and pzstd write them, and as `cat` joins files."""
    pack = PACK[kind]
    for cuts in ((0, 100), (0, 1, 2, 700), (0, 0, 5, 5, 900), range(0, len(CSV), 61)):
        pieces = [CSV[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(CSV)], strict=True)]
        write(b"".join(map(pack, pieces)))
        check()
    write(pack(CSV) + pack(b""))
    check()


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_reads_of_any_size(folder, monkeypatch, kind, size):
    monkeypatch.setattr(compressed, "READ_BYTES", size)
    pieces = (CSV[:500], CSV[500:501], CSV[501:])
    write(b"".join(map(PACK[kind], pieces)) + (b"\0" * 8 if kind == "xz" else b""))
    with unpacked("a") as file:
        assert file.read() == CSV
        assert file.seek(700) == 700
        assert file.read(5) == CSV[700:705]
        assert file.seek(3) == 3
        assert file.read(4) == CSV[3:7]
        file.seek(len(CSV) + 5)
        assert file.read(1) == b""


def test_what_may_stand_between_streams(folder):
    write(lzma.compress(CSV[:900]) + b"\0" * 12 + lzma.compress(CSV[900:]) + b"\0" * 4)
    check()
    skippable = struct.pack("<2I", 0x184D2A50, 5) + b"12345"
    write(skippable + zstd.compress(CSV[:900]) + skippable + zstd.compress(CSV[900:]) + skippable)
    check()
    write(gzip.compress(CSV) + b"\0" * 100)
    check()


@pytest.mark.parametrize("kind", STREAMS)
def test_what_must_not_follow(folder, kind):
    packed = PACK[kind](CSV)
    for tail in (b"x", b"garbage at the end\n", packed[:1], packed[:5], packed[:-1], b"\x01" + packed[1:]):
        write(packed + tail)
        bad("a: is damaged or truncated, or followed by what does not belong there")


@pytest.mark.parametrize("kind", PACK)
def test_truncated(folder, kind):
    packed = PACK[kind](CSV)
    for keep in (12, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        write(packed[:keep])
        bad("a: (is )?(damaged|the format)")


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
def test_random_damage_is_an_error_or_the_same_rows(folder, kind, method):
    if kind != "zip" and method != zipfile.ZIP_DEFLATED:
        return
    packed = zipped(CSV, method=method) if kind == "zip" else PACK[kind](CSV)
    rng = random.Random(1)
    for _ in range(150):
        data = bytearray(packed)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        write(data)
        try:
            check()
        except DataError as error:
            assert "a: " in str(error)  # noqa: PT017


# --- zip archives


def test_zip_of_one_file(folder):
    clutter = {"__MACOSX/._rows.csv": b"x", "folder/.DS_Store": b"\0"}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        write(zipped(CSV, "folder/rows.csv", method, **clutter))
        check()


def test_zip_of_other_things(folder):
    write(zipped(CSV, "b.csv", **{"a.csv": CSV, "c.txt": b""}))
    bad(r"a: is a zip archive of 3 files \(a.csv, c.txt, b.csv\); unpack it")
    write(zipped(CSV, **{f"{i}.csv": CSV for i in range(20)}))
    bad(r"a: is a zip archive of 21 files \(0.csv, .*4.csv, \.\.\.\)")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w"):
        pass
    write(out.getvalue())
    bad("a: is a zip archive without a file in it")
    write(zipped(b"<xml/>", "xl/workbook.xml", **{"[Content_Types].xml": b"<xml/>"}))
    bad("a: is a spreadsheet or another document of an office program; save the table as CSV")
    write(zipped(b"\x80\x02", "model/data.pkl", **{"model/version": b"3"}))
    bad("a: is a file of PyTorch")
    data = bytearray(zipped(CSV))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        where = data.rindex(mark)
        data[where + at] |= 1
    write(data)
    bad("a: is encrypted; unpack it with its password first")
    data = bytearray(zipped(CSV))
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.rindex(mark) + at] = 9  # Deflate64, of Windows
    write(data)
    bad("a: cannot be unpacked here .*unpack it: unzip a")


def test_names_do_not_tell(folder):
    for kind, name in zip(PACK, ("a.txt", "b.gz", "c.zip", "d.npz", "e.parquet"), strict=True):
        write(PACK[kind](CSV), name)
        check(name)
    for name in ("plain.gz", "plain.zip", "plain.xz"):
        check(write(CSV, name))


def test_letters_of_signatures_in_headers(folder):
    names = ["PK", "PAR1", "ORC", "FEA1", "ARROW1", "BZh9", "RDX3", "PARENT", "OBJ", "$FL2", "GIF8"]
    for i in range(len(names)):
        order = [*names[i:], *names[:i]]
        write((",".join(order) + "\n" + ",".join(map(str, range(len(names)))) + "\n").encode())
        check("a", [list(range(10))], [10])


@pytest.mark.parametrize("kind", PACK)
def test_what_can_only_be_read_unpacked(folder, kind):
    arrow.parquet.write_table(arrow.table({"a": X[:, 0], "y": Y}), "t.parquet")
    inner = Path("t.parquet").read_bytes()
    for data in (inner, b"\x89HDF\r\n\x1a\n" + bytes(600), gzip.compress(CSV), lzma.compress(CSV)):
        write(PACK[kind](data))
        bad(rf"a: what is compressed in it can only be read from a file of its own: unpack it .{UNPACK[kind]} a")
    write(PACK[kind](b"some words\n"))
    bad(rf"a: the format of what is compressed in it .{kind}. is not known")


def test_without_a_package_for_zstandard(folder, monkeypatch):
    write(PACK["Zstandard"](CSV))
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    bad(r"a: is compressed by Zstandard, which needs the package backports.zstd: pip install 'distai-mpi\[zstd\]'")


# --- formats that are not read


def test_formats_that_are_known_and_not_read(folder):
    table = arrow.table({"a": X[:, 0], "y": Y})
    arrow.orc.write_table(table, "orc")
    arrow.feather.write_feather(table, "feather")
    with arrow.ipc.new_stream("stream", table.schema) as out:
        out.write_table(table)
    with sqlite3.connect("sqlite") as base:
        base.execute("create table t (a, b)")
    for protocol in (2, 3, 4, 5):
        Path(f"pickle{protocol}").write_bytes(pickle.dumps(X, protocol))
    write(CSV, "rows.csv")
    for mode, name in (("w", "tar"), ("w:gz", "tar.gz"), ("w:xz", "tar.xz")):
        with tarfile.open(name, mode) as archive:
            archive.add("rows.csv")
    for name, match in {
        "orc": "an ORC file",
        "feather": "an Arrow or Feather file",
        "stream": "an Arrow stream",
        "sqlite": "an SQLite database",
        "pickle2": "a pickle",
        "pickle3": "a pickle",
        "pickle4": "a pickle",
        "pickle5": "a pickle",
        "tar": "a tar archive",
        "tar.gz": "a tar archive",
        "tar.xz": "a tar archive",
    }.items():
        bad(f"{name}: is {match}, which is not read here; ", name)


@pytest.mark.parametrize(
    ("start", "match"),
    [
        (b'{"a": 1, "y": 0}\n{"a": 2, "y": 1}\n', "JSON"),
        (b'\xef\xbb\xbf [{"a": 1}]', "JSON"),
        (b"[[1, 2], [3, 4]]", "JSON"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        (b"% a comment\n@RELATION iris\n", "an ARFF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0", "a rar archive"),
        (b"\x04\x22\x4d\x18\x64\x40", "compressed by lz4"),
        (b"Obj\x01\x04\x16", "an Avro file"),
        (b"FEA1\0\0\0\0", "a Feather file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook"),
        (b"RDX3\nX\n\0\0\0\3", "a file of R"),
        (b"X\n\0\0\0\3\0\4", "a file of R"),
        (b"<stata_dta><header><release>118</release><K>\3\0", "a Stata file"),
    ],
)
def test_signatures_of_other_formats(folder, start, match):
    write(start)
    bad(f"a: is {match}.*, which is not read here; ")
    write(gzip.compress(start))
    bad(f"a: is {match}.*, which is not read here; ")


# --- on ranks


@pytest.mark.mpi
@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("way", [{"shuffle": "global"}, {"shuffle": "local"}])
def test_compressed_text_on_ranks(comm, shared_folder, kind, way):
    folder = shared_folder(lambda path: ((path / "p").write_bytes(PACK[kind](CSV)), (path / "c").write_bytes(CSV)))
    shards = [load(folder / name, comm, test_fraction=0, **way)[0] for name in "pc"]
    assert shards[0].counts == shards[1].counts
    assert np.array_equal(shards[0].dataset.x, shards[1].dataset.x)
    assert np.array_equal(shards[0].dataset.y, shards[1].dataset.y)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", PACK)
def test_damage_is_told_by_all_ranks(comm, shared_folder, kind):
    packed = PACK[kind](CSV)
    half = len(packed) // 2
    # beyond the first bytes that are looked at
    packed = packed[:half] + bytes([packed[half] ^ 64]) + packed[half + 1 :]
    folder = shared_folder(lambda path: (path / "p").write_bytes(packed))
    with pytest.raises(DataError, match="p: is damaged") as caught:
        load(folder / "p", comm)
    assert set(comm.allgather_object(str(caught.value))) == {str(caught.value)}
