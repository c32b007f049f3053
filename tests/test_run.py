"""The rules of conftest.py and run.py, tried on test files of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run import find_mpiexec

HERE = Path(__file__).parent
HEAD = "import pytest\nfrom mpi4py import MPI\n"
PASSING = "def test_one():\n    pass\n"


def run_tests(folder: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a test file made of ``source`` by ``python words...`` in ``folder``, under the rules of this suite."""
    suite = folder / "tests"
    suite.mkdir()
    for name in ("conftest.py", "run.py"):
        shutil.copy(HERE / name, suite)
    shutil.copy(HERE.parent / "pyproject.toml", folder)
    (suite / "test_it.py").write_text(HEAD + source)
    env = dict(os.environ) | {"PYTHONPATH": str(HERE.parent), "COLUMNS": "150"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("source", "status"),
    [
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
    ],
)
def test_skips_need_a_known_reason(tmp_path: Path, source: str, status: int) -> None:
    run = run_tests(tmp_path, source, "-m", "pytest", "-q")
    assert run.returncode == status, run.stdout
    assert ("unexpected skips" in run.stdout) == (status == 1)


PARTS = [
    (
        PASSING + "@pytest.mark.mpi\ndef test_two():\n    assert MPI.COMM_WORLD.size == 2\n",
        0,
        ["serial   ok", "2 ranks  ok"],
    ),
    ("@pytest.mark.mpi(min_size=3)\ndef test_two():\n    pass\n" + PASSING, 0, ["1 skipped"]),
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
    run = run_tests(tmp_path, source, "tests/run.py", "--ranks", "2")
    assert run.returncode == status, run.stdout
    for text in shown:
        assert text in run.stdout + run.stderr
    assert run.stdout.count("test session starts") == 2  # ranks above 0 are silent


def test_nothing_run_is_a_failure(tmp_path: Path) -> None:
    run = run_tests(tmp_path, PASSING, "tests/run.py", "--ranks", "", "-k", "misspelt")
    assert (run.returncode, "no test was run" in run.stdout) == (1, True)
