"""Formats that are not read, recognised by their first bytes, and what to do about each."""

from __future__ import annotations

import re

from ..errors import DataError

LOOK_BYTES = 512  # of a file that are needed
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
AS_PARQUET = "store the table as Parquet or CSV"

SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf'\x1c", "a 7z archive", "unpack it"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it (unlz4), or compress by gzip, xz or Zstandard"),
    (b"\xff\x06\0\0sNaPpY", "compressed by snappy", "unpack it, or compress by gzip, xz or Zstandard"),
    (b"ORC", "an ORC file", AS_PARQUET),
    (b"Obj\x01", "an Avro file", AS_PARQUET),
    (b"ARROW1", "an Arrow or Feather file", AS_PARQUET),
    (b"FEA1", "a Feather file", AS_PARQUET),
    (b"\xff\xff\xff\xff", "an Arrow stream", AS_PARQUET),
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook", "save the table as CSV"),
    (b"<stata_dta>", "a Stata file", AS_PARQUET),
    (b"$FL2", "an SPSS file", AS_PARQUET),
    (b"\0\0\0\0\0\0\0\0\0\0\0\0\xc2\xea\x81\x60", "a SAS file", AS_PARQUET),
    (b"RDX2\n", "a file of R", "write the table by write.csv"),
    (b"RDX3\n", "a file of R", "write the table by write.csv"),
    (b"X\n\0\0\0", "a file of R", "write the table by write.csv"),
)
PATTERNS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle", "store arrays by numpy.savez: a pickle may run code when it is read"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*(\{\s*[\"}]|\[\s*[\[{\"])"), "JSON", "store the table as CSV or Parquet"),
    (
        re.compile(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)"),
        "HTML or XML",
        "look at it: a failed download?",
    ),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS and not the file itself", "fetch it: git lfs pull"),
    (re.compile(rb"(?i)(\xef\xbb\xbf)?\s*(%.*\r?\n\s*)*@relation\s"), "an ARFF file", "store the table as CSV"),
)


def refuse(path: str, start: bytes) -> None:
    """Raise a DataError if ``start``, the first bytes of (what is compressed in) ``path``, is of a known format.

    Known, that is, but not read here.
    """
    if start[257:262] == b"ustar":
        raise _error(path, "a tar archive", "unpack it, and name the files that are meant")
    for signature, name, advice in SIGNATURES:
        if start.startswith(signature) and not is_text(start):
            raise _error(path, name, advice)
    for pattern, name, advice in PATTERNS:
        if pattern.match(start):
            raise _error(path, name, advice)


def is_text(start: bytes) -> bool:
    """Whether there is no control character in ``start``: letters of a signature may also begin a header of CSV."""
    return not CONTROL.search(start)


def _error(path: str, name: str, advice: str) -> DataError:
    return DataError(f"{path}: is {name}, which is not read here; {advice}")
