"""The rules of conftest.py and run.py, tried on test files of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from run import find_mpiexec, limit

HERE = Path(__file__).parent
HEAD = "import pytest\nfrom mpi4py import MPI\n"
PASSING = "def test_one():\n    pass\n"


def write_suite(folder: Path, source: str) -> None:
    """Make a suite of one test file with the rules of this one."""
    suite = folder / "tests"
    suite.mkdir(parents=True)
    for name in ("conftest.py", "run.py"):
        shutil.copy(HERE / name, suite)
    shutil.copy(HERE.parent / "pyproject.toml", folder)
    (suite / "test_it.py").write_text(HEAD + source)


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python words...`` in ``folder``."""
    env = dict(os.environ) | {"PYTHONPATH": str(HERE.parent), "COLUMNS": "150"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=limit(120), check=False
    )


SKIPS = [
    (PASSING, 0),
    (PASSING + "def test_two():\n    pytest.skip('not available: a GPU')\n", 0),
    (PASSING + "@pytest.mark.skip(reason='opt-in: takes an hour')\ndef test_two():\n    pass\n", 0),
    (PASSING + "def test_two():\n    pytest.skip('it fails today')\n", 1),
    (PASSING + "@pytest.mark.skip\ndef test_two():\n    pass\n", 1),
    ("pytest.importorskip('no_such_module')\n" + PASSING, 1),
    (PASSING + "@pytest.mark.xfail(reason='known')\ndef test_two():\n    assert False\n", 0),
    (PASSING + "@pytest.mark.misspelt\ndef test_two():\n    pass\n", 2),
    ("@pytest.mark.mpi\n" + PASSING, 0),  # another part's test
    ("", 5),
]
# the suites in the folders 0, 1, ..., each in a process that has loaded the package already
FORKS = """
import os, pytest, sys
import distai_mpi.comm.launch
for folder in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        os.chdir(str(folder))
        os.dup2(os.open("out", os.O_WRONLY | os.O_CREAT), 1)
        status = pytest.main(["-q"])
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_skips_need_a_known_reason(tmp_path: Path) -> None:
    for number, (source, _) in enumerate(SKIPS):
        write_suite(tmp_path / str(number), source)
    run = python(tmp_path, "-c", FORKS, str(len(SKIPS)))
    assert run.stdout.split() == [str(status) for _, status in SKIPS], run.stderr
    for number, (source, status) in enumerate(SKIPS):
        assert ("unexpected skips" in (tmp_path / str(number) / "out").read_text()) == (status == 1), source


PARTS = [
    (
        PASSING
        + "@pytest.mark.mpi\ndef test_two():\n    assert MPI.COMM_WORLD.size == 2\n"
        + "@pytest.mark.mpi\n@pytest.mark.parametrize('case', range(9))\ndef test_many(case):\n    pass\n"
        + "@pytest.mark.mpi\n@pytest.mark.ranks(2)\n@pytest.mark.parametrize('case', range(9))\n"
        + "def test_told(case):\n    pass\n",
        0,
        ["serial   ok", "2 ranks  ok: 15 passed, 5 deselected"],  # 1, 5 of 9, 9; the others run on 3 ranks
    ),
    (
        "@pytest.mark.mpi(min_size=3)\ndef test_two():\n    assert False\n"
        "@pytest.mark.mpi\n@pytest.mark.ranks(1, 3)\ndef test_three():\n    assert False\n" + PASSING,
        0,
        ["1 passed, 2 deselected", "2 ranks  ok"],
    ),
    ("def test_one():\n    assert False\n", 1, ["serial   FAILED", "2 ranks  ok"]),
    (
        PASSING
        + "@pytest.mark.mpi\ndef test_two():\n    assert MPI.COMM_WORLD.rank != 1\n    MPI.COMM_WORLD.Barrier()\n",
        1,
        ["serial   ok", "2 ranks  FAILED", "rank 1: tests/test_it.py::test_two failed", "assert 1 != 1"],
    ),
]


@pytest.mark.parametrize(("source", "status", "shown"), PARTS)
def test_all_parts_count(tmp_path: Path, source: str, status: int, shown: list[str]) -> None:
    if find_mpiexec() is None:
        pytest.skip("not available: mpiexec")
    write_suite(tmp_path, source)
    run = python(tmp_path, "tests/run.py", "--ranks", "2", "--jobs", "1")
    assert run.returncode == status, run.stdout
    for text in shown:
        assert text in run.stdout + run.stderr
    assert run.stdout.count("test session starts") == 2  # ranks above 0 are silent
    assert re.search(r"##### part 2 of 2: 2 ranks; \d min \d\d s so far, about \d+ min", run.stdout)
    assert 0 < int(re.search(r"min \d\d s, (\d+) CPU s\n", run.stdout)[1]) < 100


@pytest.mark.parametrize(("source", "status"), [SKIPS[3], (PASSING, 0), ("def test_one():\n    assert False\n", 1)])
def test_several_processes_find_what_one_does(tmp_path: Path, source: str, status: int) -> None:
    write_suite(tmp_path, source)
    run = python(tmp_path, "tests/run.py", "--ranks", "", "--jobs", "2")
    assert (run.returncode, "2/2 workers" in run.stdout) == (status, True), run.stdout


class Case(NamedTuple):
    nodeid: str


def test_cases_are_dealt_over_the_numbers_of_ranks(pytestconfig: pytest.Config) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(HERE / "conftest.py"))
    items = [Case(f"a.py::t[{i}]") for i in range(9)] + [Case("a.py::s[0]")]
    gone = [{item.nodeid for item in conftest.halved(items, size)} for size in conftest.RANKS]
    assert (len(gone[0]), len(gone[1]), len(gone[0] | gone[1])) == (4, 5, 9)  # none on no ranks; few cases run on all


def test_nothing_run_is_a_failure(tmp_path: Path) -> None:
    write_suite(tmp_path, PASSING)
    run = python(tmp_path, "tests/run.py", "--ranks", "", "-k", "misspelt")
    assert (run.returncode, "no test was run" in run.stdout) == (1, True)


def test_limits_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr("run.slowness", lambda: 1.5)
    for load, times in ((0.0, 1.5), (2.0 * cores, 3.0), (100.0 * cores, 12.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert limit(60) == pytest.approx(60 * times)
