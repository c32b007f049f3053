"""The command line as its users see it: whole jobs through mpiexec where that matters, else on ranks that are there."""

import fcntl
import json
import os

import numpy as np
import pytest
from commands import run_here
from problems import make_rows

from distai_mpi import models
from distai_mpi.errors import ConfigError
from distai_mpi.files import claimed

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
FIELDS = """schema status stop_reason data model optimizer ranks nodes device dtype allreduce seed global_batch_size
parameters train_loss test_loss test_accuracy metrics epochs iterations seconds samples_per_second rounds bytes_moved
time converged""".split()


def write_files(folder):
    """Small data files, good and bad."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)).astype(np.float32)
    y = (x @ rng.normal(size=(8, 3))).argmax(1)
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "tiny.npz", x=x[:2], y=[0, 1])
    np.savez(folder / "wide.npz", x=np.hstack([x, x]), y=y)
    np.savez(folder / "short.npz", x=x, y=y[:-1])
    np.savez(folder / "signed.npz", x=x, y=np.where(y > 0, 1, -1))
    np.savez(folder / "values.npz", x=x, y=x @ rng.normal(size=8))
    np.savez(folder / "objects.npz", x=np.array([{}, []], dtype=object), y=np.arange(2))
    broken = x.copy()
    broken[123, 4] = np.nan
    np.savez(folder / "nan.npz", x=broken, y=y)
    (folder / "empty.npz").write_bytes(b"")
    (folder / "foreign.npz").write_bytes(bytes(range(200, 256)) * 2)
    (folder / "truncated.npz").write_bytes((folder / "good.npz").read_bytes()[:5000])
    np.save(folder / "x.npy", x)
    (folder / "header.npy").write_bytes((folder / "x.npy").read_bytes().replace(b"'descr'", b"'descr(("))
    np.savez_compressed(folder / "packed.npz", x=x, y=y)
    packed = bytearray((folder / "packed.npz").read_bytes())
    packed[60:200] = b"\xff" * 140
    (folder / "damaged.npz").write_bytes(packed)
    np.save(folder / "y.npy", y)


@pytest.fixture(scope="module")
def rows(shared_folder):
    """The folder of the data files."""
    return shared_folder(write_files)


def train(mpirun, ranks, *flags, **kwargs):
    """A job of its own."""
    return mpirun(ranks, "-m", "distai_mpi", "train", *map(str, flags), **kwargs)


def test_the_flags_name_all_that_is_registered():
    from distai_mpi import optim, options
    from distai_mpi.comm import CHOICES

    assert set(options.MODELS) == set(models.MODELS)
    others = (optim.LocalSGD, optim.LBFGS, optim.NewtonCG, optim.Newton, optim.Auto)
    assert set(options.OPTIMIZERS) == {*optim.OPTIMIZERS, *(kind.name for kind in others)}
    assert set(options.OPTIONS["schedule"].choices) == set(optim.SCHEDULES)
    assert options.ALGORITHMS == CHOICES


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_mnist_trains_without_flags_but_the_epochs(mpirun, tmp_path):
    done = train(mpirun, 2, "--epochs", 1, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    assert "\x1b" not in done.stdout, "plain lines where there is no terminal"
    result = result_of(tmp_path / "run")
    assert set(FIELDS) <= set(result)
    assert result["status"] == "completed"
    assert result["test_accuracy"] > 0.94
    assert (result["parameters"], result["ranks"], result["iterations"]) == (101770, 2, 235)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]


@mpi(min_size=4)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_losses_do_not_depend_on_the_number_of_ranks(rows, shared_path, dtype, tolerance):
    losses = []
    for ranks in (1, 2, 3, 4):
        out = shared_path / str(ranks)
        flags = ("--data", rows / "good.npz", "--dtype", dtype, "--epochs", 4, "--global-batch-size", 32)
        done = run_here("train", *flags, "--lr", 0.05, "--out", out, "-q", ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        result = result_of(out)
        losses.append((result["train_loss"], result["test_loss"]))
    np.testing.assert_allclose(losses, [losses[0]] * 4, rtol=tolerance)


@mpi(min_size=4)
def test_mnist_in_float64_gives_the_same_losses_on_any_number_of_ranks():
    results = []
    for ranks in (1, 2, 3, 4):
        done = run_here("train", "--dtype", "float64", "--hidden", 32, "--epochs", 1, "--json", "-q", ranks=ranks)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose([r[name] for r in results], results[0][name], rtol=1e-10)
    assert {r["test_accuracy"] for r in results} == {results[0]["test_accuracy"]}


@mpi
@pytest.mark.parametrize(
    ("flags", "metric"),
    [
        (("--model", "softmax", "--optimizer", "gd", "--lr", 1, "--max-iter", 200, "--tol", 1e-2), "accuracy"),
        (("--model", "logistic", "--data", "signed.npz", "--shuffle", "local"), "accuracy"),
        (("--model", "linear", "--data", "values.npz", "--lr", 0.05), "loss"),
        (("--hidden", "16,8", "--activation", "tanh", "--no-bias", "--data", "x.npy,y.npy"), "accuracy"),
        (("--optimizer", "adamw", "--lr", 0.01, "--weight-decay", 0.1), "accuracy"),
        (("--optimizer", "nesterov", "--momentum", 0.8), "accuracy"),
        (("--optimizer", "adagrad"), "accuracy"),
        (("--optimizer", "ftrl", "--l1", 0.01, "--lr", 0.5, "--schedule", "cosine", "--clip-norm", 5), "accuracy"),
        (("--optimizer", "average", "--inner-optimizer", "ftrl", "--inner-state", "reset"), "accuracy"),
        (("--optimizer", "sgd", "--batch-size", 8, "--allreduce", "ring", "--distribute", "scatter"), "accuracy"),
    ],
)  # fmt: skip
def test_models_and_flags_go_together(rows, shared_path, flags, metric):
    flags = flags if "--data" in flags else ("--data", "good.npz", *flags)
    if "--max-iter" not in flags:
        flags = (*flags, "--epochs", 20)
    done = run_here("train", *flags, "--l2", 1e-4, "--json", "-q", "--out", shared_path, cwd=rows)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == result_of(shared_path)
    if metric == "accuracy":
        assert result["test_accuracy"] > 0.8
    else:
        assert result["test_accuracy"] is None
        assert result["test_loss"] < 0.05


@mpi
def test_a_trained_model_is_evaluated_and_predicts(comm, rows, shared_path):
    folder = shared_path / "run"
    done = run_here("train", "--data", rows / "good.npz", "--epochs", 20, "--out", folder, ranks=max(1, comm.size - 1))
    assert done.returncode == 0, done.stderr
    with np.load(folder / "model.npz", allow_pickle=False) as file:
        assert file["layer1.weight"].shape == (8, 128)
    done = run_here("evaluate", folder, "--json")
    assert done.returncode == 0, done.stderr
    evaluated = json.loads(done.stdout.splitlines()[-1])
    assert (evaluated["rows"], evaluated["count"]) == ("test", 30), "the rows that training held back"
    assert evaluated["loss"] == pytest.approx(result_of(folder)["test_loss"], rel=1e-5)
    done = run_here("evaluate", folder, "--data", rows / "good.npz", "--json")
    evaluated = json.loads(done.stdout.splitlines()[-1])
    assert evaluated["count"] == 300
    out = shared_path / "labels.npy"
    done = run_here("predict", folder, "--data", rows / "x.npy", "--out", out)
    assert done.returncode == 0, done.stderr
    assert np.mean(np.load(out) == np.load(rows / "y.npy")) == pytest.approx(evaluated["accuracy"])
    if comm.rank == 0:
        model, w, _ = models.load_model(str(folder / "model.npz"))
        models.save_model(str(shared_path / "api.npz"), model, w)
    comm.barrier()
    nameless = run_here("evaluate", shared_path / "api.npz")
    assert nameless.returncode != 0
    assert "give --data" in nameless.stderr
    wide = run_here("evaluate", folder, "--data", rows / "wide.npz")
    assert wide.returncode != 0
    assert "16 features" in wide.stderr


@mpi
@pytest.mark.parametrize("flags", [(), ("--test-fraction", 0, "--shuffle", "local"), ("--distribute", "scatter")])
def test_more_ranks_than_rows(rows, flags):
    done = run_here("train", "--data", "tiny.npz", "--epochs", 2, *flags, cwd=rows)
    assert done.returncode == 0, done.stderr


@mpi
def test_the_batch_size_of_a_rank_makes_the_global_one(comm, rows):
    done = run_here("train", "--data", "good.npz", "--batch-size", 8, "--epochs", 1, "--json", "-v", cwd=rows)
    assert json.loads(done.stdout.splitlines()[-1])["global_batch_size"] == 8 * comm.size
    assert "model mlp: 8 → 128 → 3" in done.stdout


@mpi
def test_bytes_are_scaled_as_in_training_whatever_their_shape(comm, shared_path):
    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 256, (200, 4, 4), dtype=np.uint8), rng.integers(0, 3, 200)
    if comm.rank == 0:
        np.savez(shared_path / "images.npz", x=images, y=y)
        np.savez(shared_path / "rows.npz", x=images.reshape(200, 16), y=y)
    comm.barrier()
    flags = ("--data", "images.npz", "--epochs", 2, "--out", "run")
    assert run_here("train", *flags, cwd=shared_path).returncode == 0
    losses = []
    for name in ("images.npz", "rows.npz"):
        done = run_here("evaluate", "run", "--data", name, "--json", cwd=shared_path, ranks=1)
        losses.append(json.loads(done.stdout.splitlines()[-1])["loss"])
    assert losses[0] == losses[1]


BAD = {
    "missing file": (("--data", "none.npz"), "none.npz"),
    "empty file": (("--data", "empty.npz"), "empty.npz"),
    "truncated file": (("--data", "truncated.npz"), "truncated.npz"),
    "foreign file": (("--data", "foreign.npz"), "foreign.npz"),
    "pickled objects": (("--data", "objects.npz"), "pickle"),
    "not a number": (("--data", "nan.npz"), "row 123"),
    "x and y differ": (("--data", "short.npz"), "299"),
    "test width": (("--data", "good.npz", "--test-data", "wide.npz"), "16"),
    "labels for logistic": (("--data", "good.npz", "--model", "logistic"), "two classes"),
    "labels for mlp": (("--data", "values.npz"), "--model linear"),
    "values for softmax": (("--data", "values.npz", "--model", "softmax"), "whole numbers"),
    "damaged header": (("--data", "header.npy,y.npy"), "header.npy"),
    "damaged archive": (("--data", "damaged.npz"), "damaged.npz"),
    "diverging in the last step": (
        ("--data", "values.npz", "--model", "linear", "--optimizer", "gd", "--max-iter", 1, "--lr", 1e38),
        "--lr",
    ),
    "tolerance": (("--data", "good.npz", "--optimizer", "gd", "--tol", "nan"), "tol"),
    "unknown flag": (("--epoch", 3), "--epochs"),
    "unknown model": (("--model", "forest"), "forest"),
    "unknown optimizer": (("--optimizer", "adamw2"), "adamw2"),
    "unknown algorithm": (("--allreduce", "fast"), "fast"),
    "foreign to the optimizer": (("--weight-decay", 0.1), "adamw"),
    "foreign to momentum": (("--l1", 0.1), "ftrl or lbfgs or newton-cg or auto, not momentum"),
    "foreign to adagrad": (("--optimizer", "adagrad", "--l1", 0), "ftrl or lbfgs or newton-cg or auto, not adagrad"),
    "negative l1": (("--optimizer", "ftrl", "--l1", -1), "--l1"),
    "zeros in means": (
        ("--data", "good.npz", "--optimizer", "average", "--inner-optimizer", "ftrl", "--l1", 0.1),
        "--l1 makes parameters 0 exactly",
    ),
    "zeros in float16": (
        ("--data", "good.npz", "--optimizer", "ftrl", "--l1", 0.1, "--wire", "float16"),
        "--wire float16 rounds",
    ),
    "foreign to the model": (("--model", "softmax", "--hidden", 8), "--hidden"),
    "batch size 0": (("--batch-size", 0), "batch-size"),
    "two batch sizes": (("--batch-size", 8, "--global-batch-size", 8), "exclude"),
    "rate": (("--data", "good.npz", "--lr", "nan"), "lr"),
    "scatter and global": (("--distribute", "scatter", "--shuffle", "global"), "local"),
    "diverging": (("--data", "values.npz", "--model", "linear", "--lr", 1e5), "--lr"),
}


def check_refused(done, case, out):
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "distai-mpi: error:" in line]
    assert len(errors) == 1, done.stderr
    assert BAD[case][1] in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if not case.startswith("diverging"):
        assert not out.exists()
    else:
        assert result_of(out)["status"] == "diverged"


@mpi
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_message_and_leaves_nothing(rows, shared_path, case):
    done = run_here("train", *BAD[case][0], "-q", "--out", shared_path / "run", cwd=rows)
    check_refused(done, case, shared_path / "run")


@pytest.mark.parametrize("case", ["not a number", "unknown algorithm", "diverging"])
def test_a_job_with_bad_input_ends_in_order(mpirun, rows, tmp_path, case):
    done = train(mpirun, 2, *BAD[case][0], "-q", "--out", tmp_path / "run", cwd=rows, timeout=30)
    check_refused(done, case, tmp_path / "run")


@mpi
@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc"), reason="not available: a place closed to root")
def test_an_output_folder_that_cannot_be_written(rows):
    done = run_here("train", "--data", "good.npz", "--out", "/proc/nowhere", cwd=rows)
    assert done.returncode != 0
    assert done.stderr.count("distai-mpi: error:") == 1
    assert "/proc/nowhere" in done.stderr


FAILING = """
import sys
from distai_mpi import Communicator, data, fit, models, world
from distai_mpi.train import Callback

class Fail(Callback):
    def on_step(self, run):
        if run.comm.rank == 1 and run.iterations == 3:
            raise RuntimeError("the dog ate it")

with Communicator(world()) as comm:
    train, _ = data.load(sys.argv[1], comm)
    fit(models.MLP(train.features, 3), train, comm, epochs=10**6, callbacks=[Fail()])
"""


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback(mpirun, rows, tmp_path):
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    done = mpirun(2, str(program), str(rows / "good.npz"), timeout=30)
    assert done.returncode != 0
    assert "rank 1 of 2" in done.stderr
    assert "the dog ate it" in done.stderr
    assert "rank 0 of 2" not in done.stderr


@mpi
def test_labels_of_minus_and_plus_one_are_predicted_as_such(comm, shared_path):
    x, y = make_rows(kind="binary")
    if comm.rank == 0:
        np.savez(shared_path / "signs.npz", x=x, y=2 * y - 1)
    comm.barrier()
    flags = ("--data", "signs.npz", "--model", "logistic", "--epochs", 20, "--out", "run", "-q")
    assert run_here("train", *flags, cwd=shared_path).returncode == 0
    words = ("predict", "run", "--data", "signs.npz", "--out", "labels.npy")
    assert run_here(*words, cwd=shared_path).returncode == 0
    assert (np.load(shared_path / "labels.npy") == 2 * y - 1).mean() > 0.8


def test_two_runs_do_not_share_a_folder(run_command, rows, tmp_path):
    flags = ("--data", "good.npz", "--epochs", 1, "--out", tmp_path / "run")
    with claimed(str(tmp_path / "run")):
        done = run_command(2, "train", *flags, cwd=rows)
        assert done.returncode == 2
        assert done.stderr.count("another run writes to this folder") == 1
    assert run_here("train", *flags, "-q", cwd=rows).returncode == 0
    assert ".lock" not in os.listdir(tmp_path / "run")


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path, monkeypatch):
    """The last holder may go between the moments at which the next one opens the file and locks it."""
    folder, before = str(tmp_path / "run"), claimed(str(tmp_path / "run"))
    before.__enter__()
    lock, leaves = fcntl.flock, [before]

    def flock(file, how):
        if leaves:
            leaves.pop().__exit__(None, None, None)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(folder):
        assert not leaves
        with pytest.raises(ConfigError, match="another run writes"), claimed(folder):
            pass


def test_sizes_are_told_in_a_unit_that_fits() -> None:
    from distai_mpi.cli.train import _size

    assert [_size(count) for count in (0, 1023, 99_999, 10**8, 3 << 30, 1 << 43)] == [
        "0 bytes", "1,023 bytes", "97.7 KiB", "95.4 MiB", "3.0 GiB", "8,192.0 GiB",
    ]  # fmt: skip
