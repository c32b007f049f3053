"""Errors and notes in the words of who calls the library: parameters in a program, flags in the command."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from alone import Alone

import distai_mpi
from distai_mpi import backend, data, models
from distai_mpi.data.wording import for_programs
from distai_mpi.errors import ConfigError, DistaiError
from distai_mpi.predictor import Predictor
from distai_mpi.settings import by_flags

PACKAGE = Path(distai_mpi.__file__).parent
# texts for the command alone, or on flags of other programs
OF_FLAGS = {
    "options.py",
    "comm/allocation.py",
    "comm/exchange/choice.py",
    "comm/launch.py",
    "models/storage.py",
    "perf/compare.py",
}


@pytest.mark.parametrize(
    ("flags", "parameters"),
    [
        ("say which it is by --header or --no-header", "say which it is by header=True or header=False"),
        ("leave columns out (--drop), or take --missing mean", "leave columns out (drop=...), or take missing='mean'"),
        ("use --shuffle local, or leave --distribute out", "use shuffle='local', or leave distribute=... out"),
        ("--lines 5-4: give FIRST-LAST", "lines='5-4': give FIRST-LAST"),
        ("left out by --drop 'x,y', as --test-fraction", "left out by drop='x,y', as test_fraction=..."),
        ("name the features with --features", "name the features with variable=..."),
        ("take --model linear, or ", "take models.Linear, or "),
        ("a--b: 1 -- 2", "a--b: 1 -- 2"),
    ],
)
def test_flags_become_parameters(flags, parameters):
    assert for_programs(flags) == parameters


@pytest.mark.parametrize(
    ("options", "program", "command"),
    [
        ({"lines": "5-4"}, "lines='5-4': give", "--lines 5-4: give"),
        ({"label": "z"}, "label='z'", "--label z"),
        ({"shuffle": "all"}, "shuffle='all': choose", "--shuffle all: choose"),
        ({"distribute": "scatter", "shuffle": "global"}, "use shuffle='local', or", "use --shuffle local, or"),
    ],
)
def test_errors_name_what_the_caller_gave(tmp_path, options, program, command):
    path = tmp_path / "rows.csv"
    np.savetxt(path, np.eye(3), delimiter=",", header="x,y,t", comments="")
    with pytest.raises(DistaiError, match=program) as raised:
        data.load(str(path), Alone(), **options)
    assert "--" not in str(raised.value)
    with by_flags(), pytest.raises(DistaiError, match=command):
        data.load(str(path), Alone(), **options)


def test_weights_of_ranks():
    with pytest.raises(DistaiError, match="^shards 0: give"):
        data.Partition((0.0,))
    with by_flags(), pytest.raises(DistaiError, match="^--shards 0: give"):
        data.Partition((0.0,))


def test_no_text_outside_of_the_command_names_a_flag():
    """Errors of the library name parameters, by `called` and `worded`; the data layer's are translated."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).as_posix()
        if not part.startswith(("cli/", "data/")) and part not in OF_FLAGS:
            tree = ast.parse(path.read_text())
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
            by_caller = [call for call in calls if call.func.id in ("called", "worded")]
            fine = {id(node) for call in by_caller for node in ast.walk(call)}
            fine |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
            texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            found += [
                f"{part}:{text.lineno}: {text.value}"
                for text in texts
                if id(text) not in fine and re.search(r"(?<![\w-])--[a-z]", text.value)
            ]
    assert not found, "\n".join(found)


def test_columns_of_which_lines_are_wrong():
    with pytest.raises(ConfigError, match="^lines='5-4': give"):
        data.Columns(lines="5-4")
    with by_flags(), pytest.raises(ConfigError, match="^--lines 5-4: give"):
        data.Columns(lines="5-4")


def test_answers_that_a_model_cannot_give():
    predictor = Predictor(models.Linear(2), np.zeros(3, np.float32))
    with pytest.raises(ConfigError, match="^predict_proba: .* use decision_function$"):
        predictor.predict_proba(np.zeros((1, 2)))
    with by_flags(), pytest.raises(ConfigError, match="^--proba: .* use --decision$"):
        predictor.predict_proba(np.zeros((1, 2)))


def test_a_device_that_is_missing(monkeypatch):
    def none():
        raise ConfigError("no GPU is seen")

    monkeypatch.setattr(backend, "count_gpus", none)
    with pytest.raises(ConfigError, match="^device gpu: no GPU is seen; else use device cpu$"):
        backend.choose("gpu")
    with by_flags(), pytest.raises(ConfigError, match="^--device gpu: .* use --device cpu$"):
        backend.choose("gpu")


def test_notes_name_what_the_caller_gives(tmp_path):
    path = tmp_path / "years.csv"
    path.write_text("2021,2022,2023\n" + "0.5,1.5,0.25\n" * 4)
    notes = data.load(str(path), Alone())[0].notes
    assert "header=False" in notes[0]
    assert "--" not in notes[0]
    with by_flags():
        assert "--no-header" in data.load(str(path), Alone())[0].notes[0]


def test_blocks_of_rows_that_a_predictor_cannot_read(tmp_path):
    model = models.Linear(2)
    predictor = Predictor(model, np.zeros(model.layout.size, model.dtype))
    path = tmp_path / "new.csv"
    path.write_text("a,b\n1,x\n2,3\n")
    with pytest.raises(DistaiError) as raised:
        list(predictor.blocks(str(path)))
    assert "--" not in str(raised.value)
