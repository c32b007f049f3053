"""Importing the package stays light, layers import downward only, and modules stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run import limit

PACKAGE = Path(__file__).parent.parent / "distai_mpi"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 450  # lines of a module

# What each part may import of the package, besides itself.  A part is a folder or module of the package; a module
# with a line of its own is held to that line instead of its folder's.
LAYERS: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "settings": {"errors"},
    "options": {"settings"},
    "exit_codes": set(),
    "signals": {"exit_codes"},
    "messages": set(),
    "compiling": {"messages"},
    "jit": {"compiling"},
    "vectors": set(),
    "shared_barrier": {"jit"},
    "trace": set(),
    "files": {"errors"},
    "params": set(),
    "backend": {"errors", "settings"},
    "comm": {
        "params",
        "errors",
        "options",
        "settings",
        "exit_codes",
        "backend",
        "jit",
        "shared_barrier",
        "messages",
        "perf.machine",
        "trace",
    },
    "perf": {"comm", "params", "errors", "jit"},
    "perf.laws": set(),
    "perf.costs": set(),
    "perf.machine": set(),  # stands alone, so that data may ask how much memory is left
    "data": {
        "perf.machine",
        "params",
        "errors",
        "settings",
        "options",
        "backend",
        "jit",
        "vectors",
        "files",
        "version",
    },
    "models": {
        "options",
        "data",
        "params",
        "errors",
        "settings",
        "backend",
        "jit",
        "vectors",
        "shared_barrier",
        "files",
    },
    "optim": {"params", "errors", "settings", "options", "backend", "jit", "vectors"},
    "objective": {"models", "data", "perf", "comm", "params", "errors", "settings", "backend", "trace"},
    "graphs": {"data", "perf", "params", "errors", "jit", "vectors"},
    "predictor": {"models", "data", "errors", "settings"},
    "train": {
        "version",
        "optim",
        "objective",
        "models",
        "data",
        "perf",
        "comm",
        "params",
        "errors",
        "options",
        "settings",
        "messages",
        "backend",
        "files",
        "trace",
        "signals",
    },
    "plan": {
        "train",
        "optim",
        "models",
        "data",
        "perf",
        "comm",
        "params",
        "errors",
        "settings",
        "backend",
    },
    "cli": {
        "",
        "plan",
        "graphs",
        "train",
        "optim",
        "objective",
        "models",
        "data",
        "perf",
        "comm",
        "params",
        "errors",
        "predictor",
        "options",
        "compiling",
        "settings",
        "messages",
        "backend",
        "files",
        "trace",
        "signals",
        "exit_codes",
    },
    "__main__": {"cli"},
    # the lazy names of distai_mpi itself
    "": {"version", "train", "optim", "objective", "predictor", "models", "data", "comm", "graphs"},
}
# Libraries that one part alone may import.
OWNERS = {"mpi4py": {"comm"}, "cupy": {"backend"}, "cupyx": {"backend"}}


def part_of(name: str) -> str:
    """The part that ``name``, dotted and within the package, belongs to; "" if to none."""
    words = name.split(".")
    for length in (2, 1):
        if ".".join(words[:length]) in LAYERS:
            return ".".join(words[:length])
    return ""


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in ``source``, wherever it stands in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = node.module or ""
            if node.level:
                here = ["distai_mpi", *filter(None, module.split("."))]
                here = here[: len(here) - node.level + is_package]
                names = ".".join([*here, *filter(None, [node.module])])
            yield from ((node.lineno, f"{names}.{alias.name}") for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of ``source``, the text of ``module``, that the rules forbid."""
    part, found = part_of(module), []
    allowed = LAYERS[part] | {part}
    for line, name in imports(source, module, is_package):
        library, _, rest = name.partition(".")
        target = part_of(rest)
        if library in OWNERS and part not in OWNERS[library]:
            found.append(f"{module}:{line} imports {library}, which is for {OWNERS[library]} alone")
        if library == "distai_mpi" and not {target, target.split(".")[0]} & allowed:
            found.append(f"{module}:{line} imports {name}, which is not below {part or 'the package'}")
    return found


def module_name(path: Path) -> str:
    """The dotted name of ``path`` within the package."""
    words = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    module = module_name(path)
    assert part_of(module) or module == "", "a new part of the package: give it a line in LAYERS"
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def own_rows(source: str) -> list[int]:
    """The lines of ``source`` that look into ``batch.x``, of whatever kind these rows are."""
    looks = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Subscript | ast.Attribute)]
    return sorted(node.lineno for node in looks if ast.unparse(node.value) == "batch.x")


@pytest.mark.parametrize("part", ["models", "objective.py", "train"])
def test_rows_are_looked_into_by_their_own_methods_alone(part: str) -> None:
    for path in [PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py")):
        assert own_rows(path.read_text()) == [], path
    assert own_rows("z = batch.x[:5] @ w\nn = batch.x.shape\nbatch.rows.dot(w)\nf(batch.x)") == [1, 2]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of more than one module that import each other in a circle, by Tarjan 1972, "Depth-first search"."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        path.append(module)
        for below in graph[module]:
            if below not in number:
                visit(below)
                low[module] = min(low[module], low[below])
            elif below in path:
                low[module] = min(low[module], number[below])
        if low[module] == number[module]:
            first = path.index(module)
            if len(path) - first > 1:
                found.append(sorted(path[first:]))
            del path[first:]

    for module in graph:
        if module not in number:
            visit(module)
    return found


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that the file ``path`` imports, wherever the import stands, for types alone too."""
    found = set()
    for _, name in imports(path.read_text(), module_name(path), path.name == "__init__.py"):
        library, _, rest = name.partition(".")
        while library == "distai_mpi" and rest and rest not in modules:
            rest = rest.rpartition(".")[0]  # a name within a module
        found |= {rest} if library == "distai_mpi" and rest in modules else set()
    return found - {module_name(path)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module_name(path) for path in MODULES}
    graph = {module_name(path): imported(path, names) for path in MODULES}
    assert circles(graph) == []


def test_the_search_for_circles_finds_them() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e", "f"}, "e": {"d"}, "f": set(), "g": {"a"}}
    assert sorted(circles(graph)) == [["b", "c"], ["d", "e"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


FORBIDDEN = [
    ("models.mlp", "from ..comm import Communicator"),
    ("models.mlp", "from .. import comm"),
    ("models.kernels.cpu", "from ...comm import wire"),
    ("data.loader", "import distai_mpi.comm.wire"),
    ("data.loader", "def f():\n    from mpi4py import MPI"),
    ("data.loader", "from ..models import mlp"),
    ("optim.momentum", "from ..objective import Objective"),
    ("optim.momentum", "from ..models import Model"),
    ("comm.wire", "from ..perf import costs"),
    ("comm.wire", "import cupy"),
    ("params.layout", "from ..errors import ConfigError"),
    ("perf.laws", "from . import costs"),
    ("perf.costs", "from ..params import Ownership"),
    ("perf.machine", "from mpi4py import MPI"),
    ("perf.machine", "from ..comm import launch"),
    ("data.loader", "from ..perf import costs"),
    ("train.loop", "from ..cli import main"),
    ("train.loop", "from .. import fit"),
]
ALLOWED = [
    ("models.mlp", "from ..data import Batch\nfrom . import losses\nimport numpy"),
    ("comm.wire", "from mpi4py import MPI\nfrom ..params import Ownership\nfrom . import failure"),
    ("params.layout", "from .ownership import Ownership"),
    ("perf.calibrate", "from . import laws\nfrom ..comm import launch"),
    ("data.loader", "from ..perf.machine import memory_left"),
    ("backend", "import cupy"),
    ("cli.main", "from .. import __version__\nfrom ..comm import launch"),
    ("train.loop", "from ..objective import Objective\nfrom .report import write"),
]


@pytest.mark.parametrize(("module", "source"), FORBIDDEN)
def test_the_checker_sees_violations(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_the_checker_allows_what_is_right(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_of_a_package_are_its_own() -> None:
    assert violations("from .wire import Wire", "comm", is_package=True) == []
    assert len(violations("from ..models import Model", "comm", is_package=True)) == 1


HEAVY = ["mpi4py.MPI", "numba", "cupy", "rich", "jax", "torch"]


@pytest.mark.parametrize(
    "statement",
    ["import distai_mpi", "from distai_mpi import Communicator, Objective, models, optim, data, fit"],
)
def test_import_is_light(statement: str) -> None:
    program = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_the_import_check_sees_heavy_modules() -> None:
    program = f"import sys\nimport numba\nprint([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert run.stdout.strip() == "['numba']"
