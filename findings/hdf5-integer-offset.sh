#!/usr/bin/env bash
# h5py 3.16.0: dtype and get_offset() of a contiguous dataset do not say that its bytes can be mapped.  HDF5 integers may
# lie anywhere within their bytes (here 12 bits from bit 4 on, as cameras and converters deliver them); h5py tells dtype
# uint16 all the same and reads [1, 2, 3, 4], while numpy.memmap with that dtype at that offset reads [16, 32, 48, 64].
# Reduced-precision floats are alike.  No error, no attribute to look at.
# Way out: map only where data.id.get_type() == h5py.h5t.py_create(data.dtype, logical=True), else read through HDF5.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q h5py==3.16.0 numpy==2.4.6
seen=$(venv/bin/python - <<'P'
import h5py
import numpy as np

stored = h5py.h5t.STD_U16LE.copy()
stored.set_precision(12)
stored.set_offset(4)
with h5py.File("rows.h5", "w") as file:
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(file.id, b"x", stored, space).write(space, space, np.array([1, 2, 3, 4], "<u2"))
with h5py.File("rows.h5") as file:
    data = file["x"]
    mapped = np.memmap("rows.h5", data.dtype, "r", data.id.get_offset(), data.shape)
    same = data.id.get_type() == h5py.h5t.py_create(data.dtype, logical=True)
    print(data.dtype, data[:].tolist(), mapped.tolist(), same)
P
)
echo "$seen"
expected="uint16 [1, 2, 3, 4] [16, 32, 48, 64] False"
[ "$seen" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
