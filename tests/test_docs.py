"""README and docs: commands and programs run as they stand there, flags exist, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from commands import on_ranks, run_here

from distai_mpi.cli.main import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 130
# First words of commands that are not run here, and why not.
NOT_RUN = {
    "python3": "README's two commands and the site's MPI: .ci/run runs the former",
    ".venv/bin/pip": "installs",
    "pip": "installs",
    "module": "a cluster's",
    "srun": "Slurm's",
    "sbatch": "Slurm's",
    "ruff": "of the developers",
    "/usr/bin/python3": "SimGrid's: test_simulated.py runs the program",
}
# Programs that are run elsewhere.
SOURCES = {"tests/run.py": "runs all tests", "examples/mnist.py": "test_examples.py"}
OTHERS_FLAGS = {
    "--rate",
    "--train",
    "--network",
    "--algorithms",
    "--bytes",
    "--cfg",
} | set(  # of programs that are not ours
    "--oversubscribe --bind-to --report-bindings --mpi --gpus-per-node --ntasks-per-node --nproc-per-node".split()
)


class Block(NamedTuple):
    """A fenced block: its page, line, language and text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the first line names, as in ``# rows.py``."""
        named = re.match(r"# (\w+\.\w+)$", self.text.partition("\n")[0])
        return named and named[1]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; those that are indented or have no language are no code."""
    pattern = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text()
    return [Block(page, text[: hit.start()].count("\n") + 1, hit[1], hit[2]) for hit in pattern.finditer(text)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of each command of a page's shell blocks, in order."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_launcher(words: list[str]) -> tuple[int, list[str]]:
    """Ranks and program of a command that may start with settings of the environment and a launcher."""
    words = words[next(i for i, word in enumerate(words) if "=" not in word) :]
    return (int(words[2]), words[3:]) if words[0] == "mpiexec" else (1, words)


def ours(words: list[str]) -> list[str] | None:
    """The words after ``distai-mpi``, also behind a launcher or a batch script; None where there are none."""
    for i, word in enumerate(words):
        if word.endswith(".sbatch"):
            assert (ROOT / word).exists()
            return ["train", *words[i + 1 :]]
        if word.rpartition("/")[2] == "distai-mpi":
            return words[i + 1 :]
    return None


def parse(words: list[str]) -> None:
    """Raise a click exception unless the command line exists, with values that its flags take."""
    command: Any = cli
    context = click.Context(cli, info_name="distai-mpi", **cli.context_settings)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, context, name, **command.context_settings)
    values, _, _ = command.make_parser(context).parse_args(args=words)
    for parameter in command.params:
        if parameter.name in values:
            parameter.type_cast_value(context, values[parameter.name])


def flags_of(command: click.Command) -> set[str]:
    """All flags of a command and of those below it."""
    context = click.Context(command, **command.context_settings)  # without them click would keep another --help
    options = command.get_params(context)
    found = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    if isinstance(command, click.Group):
        found |= {f for name in command.list_commands(context) for f in flags_of(command.get_command(context, name))}
    return found


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_every_page_is_named_in_the_readme():
    named = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert named == {page.name for page in PAGES[1:]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    for words in commands(page):
        line = ours(words)
        if line is not None:
            parse(line)
        else:
            assert without_launcher(words)[1][0] in {"python", *NOT_RUN}, words


@pytest.mark.parametrize("line", ["trian", "train --modle mlp", "train --model mpl", "train --epochs 0", "bench stp"])
def test_the_parser_sees_wrong_commands(line):
    with pytest.raises(click.ClickException):
        parse(line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_files_of_the_text_exist(page):
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    known = flags_of(cli) | OTHERS_FLAGS
    assert {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)} <= known
    files = {file for span in spans for file in re.findall(r"(?:tests|examples|slurm|docs)/[\w/.-]*\w", span)}
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_programs_exist(page):
    for block in blocks(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text, f"{page.name}:{block.line}")):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distai_mpi"):
                    module = importlib.import_module(node.module)
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def fill(folder: Path) -> None:
    """The data files that all pages but the tutorial speak of."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    kinds = np.where(x.sum(axis=1) + 0.3 * rng.normal(size=400) > 0, "good", "bad")
    rows = [",".join([*(f"{value:.6f}" for value in row), kind]) for row, kind in zip(x, kinds, strict=True)]
    for name in ("rows.csv", "new.csv"):
        (folder / name).write_text("a,b,c,d,kind\n" + "\n".join(rows) + "\n")
    np.savez(folder / "rows.npz", x=x.astype(np.float32), y=(x @ rng.normal(size=(4, 3))).argmax(axis=1))


def run_program(text: str, folder: Path, ranks: int) -> None:
    """Run a program on so many of this job's ranks; collective."""
    done = on_ranks(lambda: exec(compile(text, "program", "exec"), {"__name__": "__main__"}), folder, ranks)
    assert done == [None] * ranks


def run_block(block: Block, folder: Path, comm: Any) -> None:
    """Run a program or the commands of a block, on ranks of this job; collective."""
    if block.file:
        if comm.rank == 0:
            (folder / block.file).write_text(block.text)
        comm.barrier()
        return
    if block.language == "python" and "distai_mpi" in block.text:  # else another library's, shown beside ours
        needs = re.findall(r"^(?:import|from) (\w+)", block.text, re.MULTILINE)
        if all(find_spec(name) for name in needs):
            run_program(block.text, folder, comm.size)
        return
    for line in block.text.splitlines() if block.language == "sh" else ():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        ranks, (program, *arguments) = without_launcher(words)
        if program == "distai-mpi":
            done = run_here(*arguments, cwd=folder, ranks=ranks)
            assert done.returncode == 0, done
        elif program == "python" and arguments[0] not in SOURCES:
            run_program((folder / arguments[0]).read_text(), folder, ranks)
        else:
            assert program in {"python", *NOT_RUN}, line


@pytest.mark.mpi(min_size=2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_programs_run(page, comm, shared_folder):
    if comm.size != 2:
        return
    folder = shared_folder(None if page.name == "tutorial.md" else fill)
    for block in blocks(page):
        run_block(block, folder, comm)
