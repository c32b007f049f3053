#!/usr/bin/env bash
# numpy 2.4.6: np.dtype("float64") == None is true, without a warning, for None converts to the default dtype; of other
# dtypes, float32 or big-endian float64, it is false.  So `None in [dtype, ...]`, list.index(None) and list.count(None)
# find a None where there is only float64: code that gathers the dtypes of several ranks or files, None where there is no
# array, and asks whether one is lacking, goes wrong for float64 alone.  Hashes differ: sets and dicts keep the two apart.
# Way out: any(dtype is None for dtype in dtypes).
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6
seen=$(venv/bin/python -W error - <<'P'
import numpy as np

double, single = np.dtype("float64"), np.dtype("float32")
print(None in [double], None in [single], None in [np.dtype(">f8")], end="; ")
print([single, double].index(None), len({double, None}), any(dtype is None for dtype in [double]))
P
)
echo "$seen"
expected="True False False; 1 2 False"
[ "$seen" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
