#!/usr/bin/env bash
# h5py 3.16.0: a virtual dataset whose source file is gone reads as its fill value, 0.0, in full length, without an error
# or a warning; where one of two sources is gone, half of the values are zeros.  Opening, shape, dtype and is_virtual are
# as with the source in place, so that a training set that was copied without its parts trains on zeros.
# Way out: before reading, go through data.virtual_sources() and see that every file_name and dset_name is there.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q h5py==3.16.0 numpy==2.4.6
seen=$(venv/bin/python -W error - <<'P'
import os

import h5py
import numpy as np

for part in ("a", "b"):
    with h5py.File(f"{part}.h5", "w") as file:
        file["x"] = np.array([5.0, 7.0])
layout = h5py.VirtualLayout((4,), "f8")
for number, part in enumerate(("a", "b")):
    layout[2 * number : 2 * number + 2] = h5py.VirtualSource(f"{part}.h5", "x", (2,))
with h5py.File("all.h5", "w") as file:
    file.create_virtual_dataset("x", layout)
for gone in (None, "b.h5", "a.h5"):
    if gone:
        os.remove(gone)
    with h5py.File("all.h5") as file:
        print(file["x"][:].tolist(), end=" ")
P
)
echo "$seen"
expected="[5.0, 7.0, 5.0, 7.0] [5.0, 7.0, 0.0, 0.0] [0.0, 0.0, 0.0, 0.0] "
[ "$seen" = "${expected% }" ] || [ "$seen" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
