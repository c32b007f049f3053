"""Errors of the data layer in the words of who calls it."""

import numpy as np
import pytest
from alone import Alone

from distai_mpi import data
from distai_mpi.data.wording import for_programs
from distai_mpi.errors import DistaiError
from distai_mpi.settings import by_flags


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
