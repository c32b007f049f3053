"""``distai-mpi plot``: what is read, what is in the panels, and what is refused."""

import json
import math
import os

import numpy as np
import pytest

from distai_mpi.cli import plot
from distai_mpi.cli.main import main
from distai_mpi.comm.launch import Launcher
from distai_mpi.errors import DataError
from distai_mpi.perf import charts

PNG = b"\x89PNG\r\n"
FAST = [{"iterations": 1, "rounds": 4, "seconds": 0.5, "running_loss": 2.0},
        {"iterations": 2, "rounds": 9, "seconds": 0.75, "running_loss": 0.5},
        {"iterations": 3, "rounds": 12, "seconds": 1.0, "running_loss": 0.125}]  # fmt: skip
OLD = [{"iterations": 10 * n, "seconds": n / 4, "running_loss": 1 / n} for n in (1, 2, 3, 4)]


@pytest.fixture
def matplotlib():
    """For tests that draw."""
    return pytest.importorskip("matplotlib", reason="not available: matplotlib")


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    """``draw(*words)``: exit status, output and errors of ``distai-mpi plot words...`` in `tmp_path`; starts no MPI."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: (main(["plot", *words]), *capsys.readouterr())


def text_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(folder, text):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def points(axes):
    """The lines of a panel: (x, y) by name, as they are drawn."""
    return {line.get_label(): tuple(np.asarray(data) for data in line.get_data()) for line in axes.lines}


# --- the panels


def test_each_panel_has_a_line_for_each_run(matplotlib):
    figure = charts.training_figure({"fast": FAST, "old": OLD})
    assert [axes.get_xlabel() for axes in figure.axes] == ["iterations", "rounds", "seconds"]
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}, "2 is 16 times 0.125"
    for axes in figure.axes:
        for name, records in {"fast": FAST, "old": OLD}.items():
            if (axes.get_xlabel(), name) == ("rounds", "old"):
                continue
            x, y = points(axes)[name]
            assert x.tolist() == [record[axes.get_xlabel()] for record in records]
            assert y.tolist() == [record["running_loss"] for record in records]
    by_rounds = figure.axes[1]
    assert list(points(by_rounds)) == ["fast"]
    assert [axes.get_title() for axes in figure.axes] == ["", "no loss by rounds: old", ""]
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["fast", "old"]
    assert all(axes.get_legend() is None for axes in figure.axes)
    assert {axes.lines[0].get_color() for axes in figure.axes} == {"C0"}
    assert {axes.lines[-1].get_color() for axes in (figure.axes[0], figure.axes[2])} == {"C1"}


def test_records_without_rounds_are_left_out_of_that_panel_alone(matplotlib):
    resumed = [OLD[0], *({"rounds": n} | OLD[n] for n in (1, 2))]
    figure = charts.training_figure({"resumed": resumed})
    assert points(figure.axes[0])["resumed"][0].tolist() == [10, 20, 30]
    assert points(figure.axes[1])["resumed"][0].tolist() == [1, 2]
    assert figure.axes[1].get_title() == ""


def test_the_gap_is_to_the_smallest_loss_of_all_runs(matplotlib):
    figure = charts.training_figure({"fast": FAST, "old": OLD}, gap=True)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "training loss − 0.125, the smallest"
    assert points(axes)["fast"][1][:2].tolist() == [1.875, 0.375]
    assert math.isnan(points(axes)["fast"][1][2]), "0 has no place on a log scale"
    assert points(axes)["old"][1].tolist() == [1 - 0.125, 1 / 2 - 0.125, 1 / 3 - 0.125, 1 / 4 - 0.125]
    best = charts.training_figure({"best": FAST[2:], "old": OLD}, gap=True)
    assert best.axes[0].get_title() == "no gap by iterations: best"
    assert [text.get_text() for text in best.legends[0].get_texts()] == ["old"]


@pytest.mark.parametrize(
    ("losses", "scale"), [([2.0, 1.9], "linear"), ([1.0, 0.1], "log"), ([5.0, -0.1], "linear"), ([1.0, 0.0], "linear")]
)
def test_a_log_scale_is_taken_where_it_helps(matplotlib, losses, scale):
    records = [{"iterations": n, "running_loss": loss} for n, loss in enumerate(losses)]
    assert charts.training_figure({"run": records}).axes[0].get_yscale() == scale


def test_names_are_shown_as_they_are_and_many_runs_differ(matplotlib):
    names = ["_hidden", r"$\broken$", *(f"run {n}" for n in range(20))]
    figure = charts.training_figure(dict.fromkeys(names, FAST) | {r"$\old$": OLD})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, r"$\old$"]
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(names) + 1
    assert charts.training_chart(dict.fromkeys(names, FAST) | {r"$\old$": OLD}).startswith(PNG)


# --- the files


def test_a_run_in_progress_is_read_up_to_its_last_whole_line(tmp_path):
    whole = text_of(FAST)
    assert plot.read_run(str(write_run(tmp_path / "a", whole))) == FAST
    assert plot.read_run(str(write_run(tmp_path / "b", whole + '{"iterations": 4, "runn'))) == FAST
    assert plot.read_run(str(write_run(tmp_path / "c", whole.rstrip("\n")))) == FAST, "but for its end it is whole"


def test_what_is_no_finite_number_is_left_out(tmp_path):
    lines = '{"iterations": 3, "running_loss": null, "more": []}\n{"seconds": 1e999, "iterations": 1, "rounds": NaN}\n'
    assert plot.read_run(str(write_run(tmp_path / "a", lines))) == [{"iterations": 3}, {"iterations": 1}]
    assert plot.read_run(str(write_run(tmp_path / "b", '{"rounds": 1' + 400 * "0" + "}"))) == [{}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"iterations": 2, "runn', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        ("[1, 2]", "is not an object of JSON"),
        ('{"running_loss": "low"}', "has no number as running_loss"),
        ('{"rounds": true}', "has no number as rounds"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    start = text_of(FAST[:1]).encode()
    for number, text in ((2, start + line + b"\n" + start), (3, start + b"\n" + line + b"\n")):
        folder = write_run(tmp_path / str(number), text)
        with pytest.raises(DataError) as caught:
            plot.read_run(str(folder))
        assert str(caught.value) == f"{folder}/metrics.jsonl: line {number} {message}"


def test_runs_have_the_names_of_their_folders():
    assert plot.by_name(["x/adam", "x/gd/"]) == {"adam": "x/adam", "gd": "x/gd/"}
    assert plot.by_name(["x/run", "y/run", "z"]) == {"x/run": "x/run", "y/run": "y/run", "z": "z"}
    assert plot.by_name(["x/run", "./x/run", "x/../x/run/"]) == {"run": "x/run"}, "the same folder"
    assert plot.by_name(["."]) == {os.path.basename(os.getcwd()): "."}


# --- the command


def test_the_chart_of_two_runs(matplotlib, draw, tmp_path, monkeypatch):
    write_run(tmp_path / "one", text_of(FAST))
    write_run(tmp_path / "two", text_of(OLD))
    drawn = []
    chart = charts.training_chart
    monkeypatch.setattr(charts, "training_chart", lambda *words: drawn.append(words) or chart(*words))
    assert draw("one", "two") == (0, "2 runs → plot.png\n", "")
    assert draw("two", "--gap", "--out", "gap.png") == (0, "1 run → gap.png\n", "")
    assert draw("one", "--gap", "--out", "gap.png")[2] == ""
    assert drawn == [({"one": FAST, "two": OLD}, False), ({"two": OLD}, True), ({"one": FAST}, True)]
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in ("plot.png", "gap.png"))
    assert sorted(os.listdir(tmp_path)) == ["gap.png", "one", "plot.png", "two"]


def test_runs_of_which_nothing_is_drawn_are_told(matplotlib, draw, tmp_path):
    write_run(tmp_path / "old", text_of(OLD))
    write_run(tmp_path / "best", text_of(FAST[2:]))
    write_run(tmp_path / "lost", '{"iterations": 1, "running_loss": null}\n')
    start = "distai-mpi: warning: nothing is drawn of"
    assert draw("best", "old", "lost") == (0, "3 runs → plot.png\n", f"{start} lost: no finite loss\n")
    status, _, errors = draw("best", "old", "lost", "--gap")
    assert (status, errors) == (0, f"{start} best, lost: no finite loss above the smallest of all runs\n")


def test_runs_that_train_has_written(matplotlib, draw, run_command, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(90, 4)), y=rng.integers(0, 3, 90))
    words = ("train", "--data", "rows.npz", "--model", "softmax", "--l2", 0.01, "-q", "--out")
    sgd, lbfgs = ("sgd", "--epochs", 3), ("lbfgs", "--optimizer", "lbfgs", "--max-iter", 4)
    for line in (sgd, lbfgs):
        done = run_command(2, *words, *line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for folder in ("sgd", "lbfgs"):
        records = plot.read_run(folder)
        assert len(records) >= 3
        assert all({"iterations", "seconds", "running_loss"} <= set(record) for record in records)
    assert draw("sgd", "lbfgs", "--gap") == (0, "2 runs → plot.png\n", "")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


BAD = {
    "no argument": ((), "DIR..."),
    "no folder": (("good", "none"), "none: there is no such folder"),
    "no run": (("empty folder",), "empty folder: there is no metrics.jsonl in it"),
    "a file": (("good/metrics.jsonl",), "good/metrics.jsonl: is no folder"),
    "empty file": (("empty",), "empty/metrics.jsonl: has no whole line"),
    "half a line": (("half",), "half/metrics.jsonl: has no whole line"),
    "broken line": (("good", "broken"), "broken/metrics.jsonl: line 2 is not JSON"),
    "no loss": (("lost",), "nothing to draw: no finite loss in lost"),
    "no gap": (("--gap", "single"), "nothing to draw with --gap"),
    "no PNG": (("good", "--out", "plot.pdf"), "FILE.png"),
    "no place": (("good", "--out", "none/plot.png"), "none/plot.png: cannot be written"),
    "a folder": (("good", "--out", "folder.png"), "folder.png: cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_message_and_no_chart(matplotlib, draw, tmp_path, case):
    good = text_of(FAST)
    write_run(tmp_path / "good", good)
    write_run(tmp_path / "empty", "")
    write_run(tmp_path / "half", good[:20])
    write_run(tmp_path / "broken", good.replace('{"iterations": 2', '{"iterations" 2'))
    write_run(tmp_path / "lost", '{"iterations": 1, "running_loss": null}\n')
    write_run(tmp_path / "single", text_of(FAST[:1]))
    for name in ("empty folder", "folder.png"):
        (tmp_path / name).mkdir()
    words, message = BAD[case]
    status, output, errors = draw(*words)
    assert (status, output) == (2, "")
    assert errors.startswith("distai-mpi: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not list(tmp_path.glob("plot*"))


def test_without_matplotlib_the_error_tells_how_to_get_it(draw, tmp_path, monkeypatch):
    write_run(tmp_path / "run", text_of(FAST))
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    status, _, errors = draw("run")
    assert status == 2
    assert "pip install 'distai-mpi[plot]'" in errors
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_other_ranks_do_nothing(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(plot.launch, "launcher", lambda: Launcher("Open MPI", size=2, rank=1))
    assert draw("none") == (0, "", "")
    assert os.listdir(tmp_path) == []


def test_a_job_draws_once(matplotlib, run_command, tmp_path):
    write_run(tmp_path / "run", text_of(FAST))
    done = run_command(3, "plot", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 run → plot.png\n"), done.stderr
    done = run_command(3, "plot", "none", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("distai-mpi: error:") == 1
