"""Compressed files of several streams, which ranks read in parallel: the rows are those of the plain text."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest

try:
    from compression import zstd
except ImportError:
    from backports import zstd

from distai_mpi.data import load
from distai_mpi.data.formats import find
from distai_mpi.data.readers import compressed, members
from distai_mpi.data.readers.columns import Columns
from distai_mpi.errors import DataError

ROWS = 600
TEXT = b"".join(b"%d 1:%d.5 %d:2\n" % (i % 2, i, 3 + i % 5) for i in range(ROWS))
CUTS = (0, 900, 901, 3000, 3000, 6000, len(TEXT))
PIECES = [TEXT[start:stop] for start, stop in pairwise(CUTS)]
END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # an empty block, as bgzip ends files


def block(data, more=b""):
    """A block of BGZF: SAM specification, section 4.1; ``more`` stands before its field in the header."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    extra = more + struct.pack("<2sHH", b"BC", 2, 12 + len(more) + 6 + len(body) + 8 - 1)
    head = b"\x1f\x8b\x08\x04" + bytes(6) + struct.pack("<H", len(extra)) + extra
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def seekable(pieces):
    """Frames that do not tell their size, and a table of them behind."""
    frames = []
    for piece in pieces:
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
        frames.append(packer.compress(piece[:7]) + packer.compress(piece[7:]) + packer.flush())
    table = b"".join(struct.pack("<II", len(f), len(p)) for f, p in zip(frames, pieces, strict=True))
    footer = struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return b"".join(frames) + struct.pack("<II", 0x184D2A5E, len(table) + 9) + table + footer


SKIPPABLE = struct.pack("<2I", 0x184D2A50, 5) + b"12345"
FILES = {
    "bgzf": b"".join(map(block, PIECES)) + END,
    "bgzf with fields": b"".join(block(piece, b"XX\x01\0\7") for piece in PIECES),
    "zstd": SKIPPABLE.join(map(zstd.compress, PIECES)),
    "zstd checked": b"".join(
        zstd.compress(p, options={zstd.CompressionParameter.checksum_flag: 1}) for p in (*PIECES, bytes(0))
    ),
    "zstd seekable": seekable(PIECES),
}
OTHERS = {
    "gzip": gzip.compress(TEXT),
    "gzip of many": b"".join(map(gzip.compress, PIECES)),
    "zstd of one": zstd.compress(TEXT),
    "zstd without sizes": seekable(PIECES)[: -(9 + 8 * len(PIECES) + 8)],
}


@pytest.fixture
def small(folder, monkeypatch):
    monkeypatch.setattr(members, "APART", 1000)
    monkeypatch.setattr(members.find_members, "__defaults__", (1000,))
    return folder


def opened(path="a"):
    found, _ = find(path, None, Columns(), np.float64)
    return found


def rows(file, parts):
    chunks = [file.read(part, parts) for part in range(parts)]
    ends = [np.diff(chunk.x.ends, prepend=0) for chunk in chunks]
    values = [np.concatenate([getattr(chunk.x, name) for chunk in chunks]) for name in ("indices", "values")]
    return np.concatenate([chunk.y for chunk in chunks]), np.concatenate(ends), *values


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
@pytest.mark.parametrize("library", ["installed", "standard"])
def test_parts_are_the_whole(small, monkeypatch, name, library):
    if library == "standard":
        monkeypatch.setattr(compressed, "_gzip_file", lambda: gzip.GzipFile)
    (small / "plain").write_bytes(TEXT)
    (small / "a").write_bytes((FILES | OTHERS)[name])
    file, wanted = opened(), rows(opened("plain"), 1)
    assert file.sequential == (name in OTHERS)
    for parts in (1,) if file.sequential else (1, 2, 3, 7):
        assert all(map(np.array_equal, rows(file, parts), wanted))
    if not file.sequential:
        assert file.size == len(TEXT)
        with file.open() as text:
            for position in (5000, 899, 900, 3001, len(TEXT), 17):
                text.seek(position)
                assert text.read(50) == TEXT[position : position + 50]


@pytest.mark.parametrize("name", [name for name in FILES if name != "zstd"])  # which has no checksums
def test_damage_is_an_error_or_the_same_rows(small, name):
    (small / "plain").write_bytes(TEXT)
    wanted, rng = rows(opened("plain"), 1), random.Random(1)
    for _ in range(60):
        data = bytearray(FILES[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (small / "a").write_bytes(data)
        try:
            file = opened()
            found = rows(file, 1 if file.sequential else 3)
        except DataError as error:
            assert "a: " in str(error)  # noqa: PT017
        else:
            assert all(map(np.array_equal, found, wanted))


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_ranks_read_parts(comm, shared_folder, monkeypatch):
    monkeypatch.setattr(members.find_members, "__defaults__", (1000,))
    folder = shared_folder(lambda path: [(path / n).write_bytes(d) for n, d in (("p", TEXT), *FILES.items())])
    plain = load(folder / "p", comm, test_fraction=0, shuffle="local")[0].dataset
    for name in ("bgzf", "zstd seekable"):
        found = load(folder / name, comm, test_fraction=0, shuffle="local")[0].dataset
        assert np.array_equal(found.y, plain.y)
        assert np.array_equal(found.x, plain.x)
