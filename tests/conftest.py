"""Rules of this test-suite: ranks above 0 speak only of failures, and no test is skipped by surprise."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from run import find_mpiexec, limit, mpi_environment, mpiexec_command

from distai_mpi.comm import Communicator
from distai_mpi.comm.launch import launcher
from distai_mpi.settings import by_flags

os.environ.update(mpi_environment())  # as under run.py: commands in this process would set their own for one rank

# A skip is fine for these reasons alone: something this machine does not have, a test too long to be run unasked,
# and pytest-mpi's min_size.  Any other skip is a test that silently stopped testing.
EXPECTED_SKIP = re.compile(r"(Skipped: )?(opt-in: |not available: |Test requires \d+ MPI processes)")
RANK = launcher().rank

# Numbers of ranks at which an ``mpi`` test runs unless it says others by ``ranks(...)``: even and odd, so that shards
# are unequal.  One rank has nobody to talk to, four bring groups of two and two: tests of these say so.  A test of at
# least MANY_CASES cases runs half of them on each number, unless ``--every-case`` asks for all of them on both.
RANKS = (2, 3)
MANY_CASES = 2
MOST_RANKS = 4  # that tests name; on more ranks those run that do on this number


class Watch:
    """Collects unexpected skips, and reports failures of ranks whose terminal output is hidden."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.surprises: list[str] = []
        self.deselected = 0

    def _see(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not EXPECTED_SKIP.match(reason):
                self.surprises.append(f"{report.nodeid}: {reason}")
        if report.failed and RANK > 0:
            text = f"\n----- rank {RANK}: {report.nodeid} failed\n{report.longreprtext}\n"
            os.write(2, text.encode())  # at once and in one piece: the job may be aborted any moment

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._see(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._see(report)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected += len(items)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.deselected:
            session.exitstatus = pytest.ExitCode.OK  # a file may hold tests of one part only
        if self.surprises and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.surprises:
            terminalreporter.section("unexpected skips (failures)")
            for line in self.surprises:
                terminalreporter.write_line(line)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare every rank the import of files that hold no test for it."""
    if not config.getoption("--with-mpi") or not re.fullmatch(r"test_.*\.py", collection_path.name):
        return None
    if re.search(r"mark\.mpi\b|^from test_", collection_path.read_text(), re.MULTILINE):
        return None
    config.pluginmanager.get_plugin("distai-watch").deselected += 1
    return True


def rank_counts(item: pytest.Item) -> tuple[int, ...]:
    """The numbers of ranks at which the ``mpi`` test ``item`` is to run."""
    told = item.get_closest_marker("ranks")
    if told is not None:
        return told.args
    least = item.get_closest_marker("mpi").kwargs.get("min_size", 1)  # type: ignore[union-attr]
    return tuple(n for n in RANKS if n >= least) or (least,)


def halved(items: Iterable[pytest.Item], size: int) -> set[pytest.Item]:
    """The cases of ``items``, which run on ``RANKS``, that are left to the other number of ranks than ``size``."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    gone: set[pytest.Item] = set()
    for cases in tests.values():
        if len(cases) >= MANY_CASES:  # shuffled, lest a parameter of two values had one number of ranks for each
            cases.sort(key=lambda item: (zlib.crc32(item.nodeid.encode()), item.nodeid))
            gone.update(item for i, item in enumerate(cases) if RANKS[i % len(RANKS)] != size)
    return gone


@pytest.hookimpl(tryfirst=True)  # before pytest-mpi turns them into skips
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked ``mpi`` to ``python tests/run.py``, and there to the numbers of ranks that teach most."""
    mpi = [item for item in items if item.get_closest_marker("mpi")]
    if config.getoption("--with-mpi"):
        size = min(launcher().size, MOST_RANKS)
        gone = {item for item in mpi if size not in rank_counts(item)}
        if size in RANKS and not config.getoption("--every-case"):
            gone |= halved([item for item in mpi if rank_counts(item) == RANKS], size)
    else:
        gone = set(mpi)
    if gone:
        config.hook.pytest_deselected(items=[item for item in items if item in gone])
        items[:] = [item for item in items if item not in gone]


def pytest_addoption(parser: pytest.Parser) -> None:
    told = f"run every case of every mpi test on {' and '.join(map(str, RANKS))} ranks, not half of them on each"
    parser.addoption("--every-case", action="store_true", help=told)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"ranks(n, ...): run on so many ranks; other mpi tests on {RANKS}")
    config.pluginmanager.register(Watch(config), "distai-watch")
    if RANK > 0:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter._tw._file = io.StringIO()


@pytest.fixture(scope="module")
def comm() -> Iterator[Communicator]:
    """A communicator of all ranks of this test run, freed at the end of the module."""
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as communicator:
        yield communicator


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, which is the current one; errors name flags, as those of the command do."""
    monkeypatch.chdir(tmp_path)
    with by_flags():
        yield tmp_path


@pytest.fixture(params=[None, 64])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of text so small that lines reach over them."""
    from distai_mpi.data.readers import text

    if request.param:
        monkeypatch.setattr(text, "BLOCK_BYTES", request.param)
        monkeypatch.setattr(text, "LOOK_BYTES", 7)


def ways_to_declare_nodes(ranks: int) -> list[tuple[int, ...]]:
    """Ranks of nodes: all on one, one rank each, and unequal ones."""
    ways: set[tuple[int, ...]] = {(ranks,), (1,) * ranks}
    if ranks > 1:
        ways |= {(ranks - 1, 1), (1, ranks - 1), (ranks // 2, ranks - ranks // 2)}
    return sorted(ways)


@pytest.fixture(
    scope="module", params=ways_to_declare_nodes(launcher().size), ids=lambda sizes: "+".join(map(str, sizes))
)
def node_sizes(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Ranks of each node that this test run's ranks are declared to be on, one way after another."""
    return request.param


@pytest.fixture(scope="module")
def nodes(node_sizes: tuple[int, ...]) -> Iterator[Communicator]:
    """As ``comm``, on declared nodes."""
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD, nodes=node_sizes) as communicator:
        yield communicator


@pytest.fixture(scope="module")
def shared_folder(comm: Communicator, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``shared_folder(fill)``: a new folder that all ranks see, where one of them has called ``fill(folder)``."""

    def make(fill: Callable[[Path], object] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("shared")
        if fill is not None and comm.rank == 0:
            fill(folder)
        return comm.bcast_object(folder)  # to those who wait for rank 0

    return make


@pytest.fixture
def shared_path(shared_folder: Callable[..., Path]) -> Path:
    """What ``tmp_path`` is to one process: an empty folder that all ranks see."""
    return shared_folder()


@pytest.fixture(scope="session")
def mpirun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``mpirun(ranks, *words, env={}, timeout=60)``: ``python words...`` on so many ranks, as a job of its own.

    The job has the environment of the tests, changed by ``env``; None there removes a variable.  ``timeout`` is
    in seconds of a quiet machine; see `run.limit`.
    """
    if find_mpiexec() is None:
        pytest.skip("not available: mpiexec")

    def run(
        ranks: int,
        *words: str,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 60.0,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        changed = mpi_environment() | dict(env or {})
        return subprocess.run(
            [*mpiexec_command(ranks), sys.executable, *words],
            env={name: value for name, value in changed.items() if value is not None},
            cwd=cwd,
            timeout=limit(timeout),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def run_command() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """``run_command(ranks, *words, env={}, timeout=60, cwd=".")``: ``distai-mpi words...`` on so many ranks.

    As by ``mpirun``, but all in one job for each number of ranks: see `commands.CommandJob`.
    """
    from commands import CommandJob

    if find_mpiexec() is None:
        pytest.skip("not available: mpiexec")
    jobs: dict[int, CommandJob] = {}

    def run(
        ranks: int,
        *words: object,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 60.0,
        cwd: str | Path = ".",
    ) -> subprocess.CompletedProcess[str]:
        if ranks not in jobs or not jobs[ranks].alive:
            jobs[ranks] = CommandJob(ranks)
        return jobs[ranks].run([str(word) for word in words], Path(cwd).resolve(), env or {}, limit(timeout))

    yield run
    for job in jobs.values():
        job.end()
