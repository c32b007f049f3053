#!/usr/bin/env bash
# zstandard 0.25.0: ZstdDecompressor().decompress(data) gives the first frame of `data` and passes over the others without
# a word, where zstandard.open and stream_reader of the same package, and gzip.decompress, bz2.decompress and
# lzma.decompress of Python for their formats, give all of it.  Files of several frames are what `cat a.zst b.zst`, pzstd
# and writers that append make.  Nor does it help that the frame tells its length: that of the first one is right.
# Way out: zstandard.open, stream_reader, or decompress(..., allow_extra_data=False), which raises.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q zstandard==0.25.0
seen=$(venv/bin/python -W error - <<'P'
import bz2
import gzip
import io
import lzma

import zstandard

first, second = b"1,2\n" * 6, b"3,4\n" * 5
packed = b"".join(map(zstandard.ZstdCompressor().compress, (first, second)))
print(len(zstandard.ZstdDecompressor().decompress(packed)), end=" ")
print(len(zstandard.open(io.BytesIO(packed)).read()), end=" ")
print(len(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read()), end=" ")
for module in (gzip, bz2, lzma):
    print(len(module.decompress(b"".join(map(module.compress, (first, second))))), end=" ")
P
)
echo "$seen"
expected="24 44 44 44 44 44"
[ "${seen% }" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
