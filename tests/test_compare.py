"""Programs compared in turn: their rates, their environment, and what happens when one fails."""

import json
import os
import select
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from distai_mpi.errors import DistaiError
from distai_mpi.perf import compare, machine

PRINT = "import json, os; print('RESULT ' + json.dumps({'samples_per_s': 5, 'env': dict(os.environ)}))"


def python(source):
    return [sys.executable, "-c", source]


def test_rates_are_found_in_the_last_object_that_has_one():
    output = 'RESULT {"samples_per_second": 1}\nRESULT {"samples_per_s": 2.5, "x": 1}\n{"other": 3}\n{broken\n'
    assert compare.find_number(output) == (2.5, {"samples_per_s": 2.5, "x": 1})
    assert compare.find_number("no object") is None
    told = compare.find_number('RESULT {"s": 0.5, "relgap": 1e-8}', compare.SECONDS_NAMES)
    assert told == (0.5, {"s": 0.5, "relgap": 1e-8})


def test_contenders_run_in_turn_and_are_compared_pair_by_pair(tmp_path):
    log = tmp_path / "log"
    source = f"open({str(log)!r}, 'a').write({{0!r}}); n = open({str(log)!r}).read().count({{0!r}})"
    source += "\nprint('{{\"samples_per_second\": %d}}' % ({1} * n))"
    contenders = [compare.Contender(name, python(source.format(name, rate))) for name, rate in (("a", 6), ("b", 2))]
    compare.run_in_turn(contenders, 3, timeout=60)
    assert log.read_text() == "ababab"
    assert contenders[0].rates == [6, 12, 18]
    assert contenders[0].median == 12
    assert contenders[0].ratio(contenders[1]) == 3


def test_programs_get_the_users_environment_not_our_threads(monkeypatch):
    for name in machine.USER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "_set_here", set())
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    machine.set_blas_threads(1)
    assert "OPENBLAS_NUM_THREADS" not in os.environ, "the user has chosen"
    monkeypatch.delenv("MKL_NUM_THREADS")
    machine.set_blas_threads(1)
    assert os.environ["OPENBLAS_NUM_THREADS"] == str(machine.blas_threads(1))
    _, result = compare.run(python(PRINT), timeout=60)
    assert not {*machine.BLAS_VARIABLES, "OMPI_COMM_WORLD_RANK"} & set(result["env"])
    for name in machine._set_here:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("exit 3", "status 3"),
        ("echo nothing", "samples_per_second"),
        (["/nowhere/program"], "cannot be started"),
    ],
)
def test_a_program_that_fails_is_named(command, word):
    with pytest.raises(DistaiError, match=word):
        compare.run(command, timeout=60)


def test_a_program_that_takes_too_long_ends_with_its_children(tmp_path):
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    started = time.monotonic()
    with pytest.raises(DistaiError, match="not done after"):
        compare.run(f"exec 3> {tmp_path}/held; echo open >&3; sleep 20 > /dev/null 2>&1 & wait", timeout=1)
    assert time.monotonic() - started < 15, "it was waited for"
    assert os.read(reader, 5) == b"open\n"
    poll = select.poll()
    poll.register(reader, 0)  # hung up once nobody holds the other end
    assert poll.poll(5000) == [(reader, select.POLLHUP)]
    os.close(reader)


def test_the_peak_is_a_rate_of_this_machine():
    assert 1e8 < compare.sgemm_peak(1, repeats=1) < 1e13


def test_bench_train_prints_the_ratio(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(200, 5)), y=rng.integers(0, 2, 200))
    command = [sys.executable, "-m", "distai_mpi", "bench", "train", "--ranks", "1", "--repeats", "1"]
    command += ["--against", f'{sys.executable} -c "print(\'{{\\"samples_per_s\\": 10}}\')"', "--json", "report.json"]
    command += ["--launcher", "env N={ranks}", "--", "--data", "rows.npz", "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    rate = rows[0]["samples_per_second"]
    assert rows[1]["ours_to_this"] == pytest.approx(rate / 10)
    assert "sgemm peak" in done.stdout


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    from distai_mpi import jit

    real = jit.numba.njit

    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(jit, "numba", SimpleNamespace(njit=refusing))
    assert jit.kernel()(lambda x: x + 1)(2) == 3
