"""What a person reads of a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from distai_mpi.cli.train import summary
from distai_mpi.train.progress import Bar, Lines, epoch_line, figure, iteration_line
from distai_mpi.train.run import Result

RECORD = {
    "epoch": 5,
    "iterations": 5,
    "running_loss": 0.324413341,
    "gradient_norm": 8.1e-6,
    "evaluations": 6,
    "products": 0,
    "samples_per_second": 1234.5,
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.25, "0.2500"),
        (-2.30259, "-2.3026"),
        (0.001, "0.0010"),
        (123456.789, "123456.7890"),
        (4.2e-7, "4.2e-07"),
        (2.8000534e299, "2.8e+299"),
        (-1e7, "-1e+07"),
        (np.float32(0.5), "0.5000"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_figures_stay_short(value, text):
    assert figure(value) == text


def test_the_line_of_an_epoch():
    record = {"epoch": 2, "running_loss": 1e300, "test_loss": 3e-9, "test_accuracy": 0.5, "samples_per_second": 1234.5}
    told = "epoch 2/3  loss 1e+300  test loss 3e-09  accuracy 50.00 %  1,234 samples/s"
    assert epoch_line(record, 3) == told
    assert epoch_line(record | {"test_loss": None, "test_accuracy": None}, 3) == (
        "epoch 2/3  loss 1e+300  1,234 samples/s"
    )


def test_the_line_of_an_iteration():
    told = "iteration 5/100  loss 0.32441334  gradient 8.1e-06 of the first  6 evaluations"
    assert iteration_line(RECORD, 100, 1.0) == told
    more = RECORD | {"running_loss": 2.0, "evaluations": 1, "products": 1234, "test_loss": 0.3, "test_accuracy": 0.5}
    told = "iteration 5/9  loss 2.0000000  gradient 4.0e-06 of the first  1 evaluation  1,234 products"
    assert iteration_line(more, 9, 2.025) == f"{told}  accuracy 50.00 %"
    assert iteration_line(more | {"test_accuracy": None}, 9, 2.025).endswith("products  test loss 0.3000")
    lost = RECORD | {"running_loss": float("inf"), "gradient_norm": float("nan")}
    assert iteration_line(lost, 9, 0.0) == "iteration 5/9  loss inf  gradient nan  6 evaluations"


def run_of(searches):
    known = {"searches": searches, "first_norm": 1.0 if searches else None}
    loader = SimpleNamespace(shard=SimpleNamespace(rows=300))
    return SimpleNamespace(**known, epochs=100, epoch=4, rows=1200, loader=loader)


@pytest.mark.parametrize("searches", [True, False])
def test_lines_and_bar_tell_of_iterations_where_a_method_searches(searches, capsys):
    run, told = run_of(searches), iteration_line(RECORD, 100, 1.0) if searches else epoch_line(RECORD, 100)
    Lines().on_epoch(run, RECORD)
    assert capsys.readouterr().out == f"{told}\n"
    bar = Bar()
    bar.on_start(run)
    (task,) = bar._progress.tasks
    begun = (task.total, task.completed, task.description)
    run.epoch = 5
    if searches:
        bar.on_step(run)
    bar.on_epoch(run, RECORD)
    bar.on_close()
    assert "".join(capsys.readouterr().out.split()).startswith("".join(told.split()))
    if searches:
        assert begun == (100, 4, "iteration 5/100")
        assert (task.completed, task.description) == (5, "iteration 6/100  loss 0.32441334")
        assert task.fields["rate"] == "gradient 8.1e-06 of the first"
    else:
        assert begun == (30_000, 0, "epoch 1")


def ended(settings=None, **fields):
    given = {"dtype": "float32", "standardize": False, "out": None} | (settings or {})
    values = {"evaluations": 8, "iterations": 7, "rounds": 31, "converged": False} | fields
    result = Result(np.zeros(1), train_loss=0.324413341, seconds=0.5, samples_per_second=99.0, **values)
    return summary(result, 2, given)


def test_the_last_line_of_a_searching_method():
    told = "train loss 0.32441334  0.50 s on 2 ranks  7 iterations  31 rounds  "
    assert ended(converged=True, stop_reason="tolerance") == f"{told}ended by tolerance"
    assert ended({"out": "run"}, converged=None, stop_reason="signal") == f"{told}ended by signal  → run"
    assert ended(stop_reason="small decrease") == f"{told}not at the optimum: ended by small decrease"
    plain = {"evaluations": None, "converged": None}
    assert ended(**plain) == "train loss 0.3244  0.50 s on 2 ranks  99 samples/s"


@pytest.mark.parametrize("reason", ["no further decrease", "iterations"])
def test_what_to_try_where_float32_kept_a_method_from_its_tolerance(reason):
    told, more = f"not at the optimum: ended by {reason}", "a larger --max-iter, " * (reason == "iterations")
    assert ended(stop_reason=reason).endswith(f"{told} (try {more}--standardize, or --dtype float64)")
    last = "or --dtype float64" if more else "--dtype float64"
    assert ended({"standardize": True}, stop_reason=reason).endswith(f"{told} (try {more}{last})")
    assert ended({"dtype": "float64"}, stop_reason=reason).endswith(told)
    assert ended(stop_reason=reason, without_optimum="separable classes").endswith(told)
    assert ended(stop_reason=reason, converged=True).endswith(f"ended by {reason}")
