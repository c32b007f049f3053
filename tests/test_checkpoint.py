"""A run that is saved and goes on is the run that was never stopped, whatever stopped it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run_here
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard
from run import limit, mpi_environment, mpiexec_command

from distai_mpi import models, optim
from distai_mpi.cli.main import main
from distai_mpi.data import standardize
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.train import Callback, Checkpoint
from distai_mpi.train.checkpoint import files, stored_settings

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)
SIZE = 32  # of a global batch: 7 steps an epoch
OPTIMIZERS = {name: kind(lr=0.05) for name, kind in optim.OPTIMIZERS.items()} | {
    "ftrl with l1": optim.FTRL(lr=0.05, l1=0.1, l2=0.1)
}
AVERAGE = optim.LocalSGD(optim.Momentum(0.05), sync_every=3, outer_momentum=0.5)


@pytest.fixture
def folder(comm):
    """An empty folder of checkpoints that all ranks see."""
    path = comm.bcast_object(tempfile.mkdtemp(prefix="checkpoints") if comm.rank == 0 else None)
    yield os.path.join(path, "checkpoints")
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _every_step(monkeypatch):
    """Ranks talk of signals and clocks at every other step, though steps take microseconds here."""
    monkeypatch.setattr("distai_mpi.train.checkpoint.saver.CHECK_SECONDS", 0.0)


class Said(list):
    """What a run has said, on rank 0."""

    def __call__(self, message, warning):
        self.append(message)


def at(folder, every=None, resume=False, **kwargs):
    return Checkpoint(folder, every, resume, **{"tell": Said(), **kwargs})


class Interrupt(Callback):
    """Sends this process a signal after so many steps, on one rank."""

    def __init__(self, comm, step, number=signal.SIGUSR1):
        self.step, self.number, self.mine = step, number, comm.rank == comm.size - 1

    def on_step(self, run):
        if self.mine and run.iterations == self.step:
            os.kill(os.getpid(), self.number)


def train(comm, checkpoint=None, *, epochs=6, optimizer=None, shard=None, model=None, callbacks=(), **kwargs):
    if shard is None:
        shard = whole_shard(*make_rows(), comm)
    return fit(
        model or models.MLP(6, 3, (8,), dropout=0.3, dtype=np.float64),
        shard,
        comm,
        optimizer=optimizer or optim.Momentum(0.05),
        checkpoint=checkpoint,
        callbacks=callbacks,
        **{"epochs": epochs, "global_batch_size": SIZE, "seed": 7, "l2": 0.01, "allreduce": "ring"} | kwargs,
    )


def same(result, straight):
    """Bit by bit the same training."""
    np.testing.assert_array_equal(result.w, straight.w)
    assert (result.status, result.stop_reason) == (straight.status, straight.stop_reason)
    assert (result.epochs, result.iterations) == (straight.epochs, straight.iterations)
    assert result.train_loss == straight.train_loss
    losses = [[record["running_loss"] for record in each.history] for each in (result, straight)]
    assert losses[0] == losses[1]
    assert result.samples_per_second > 0


@mpi
@pytest.mark.parametrize("algorithm", ["ring", "tree"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_epochs_and_three_more_are_six(comm, folder, name, algorithm):
    kwargs = {"optimizer": OPTIMIZERS[name], "allreduce": algorithm}
    straight = train(comm, **kwargs)
    train(comm, at(folder, 2), epochs=3, **kwargs)
    resumed = train(comm, at(folder, 2, resume=True), **kwargs)
    same(resumed, straight)
    assert (resumed.rounds, resumed.bytes_moved) == (straight.rounds, straight.bytes_moved)
    assert [os.path.basename(step) for step in files.whole(folder)] == [
        files.step_folder("", resumed.iterations * epochs // 6) for epochs in (6, 4)
    ]


@mpi
def test_the_remainder_of_float16_messages_is_kept(nodes, folder):
    """Bit by bit, in the middle of an epoch too; a run that goes on with float32 messages leaves it."""
    kwargs = {"model": models.MLP(6, 3, (300,)), "optimizer": optim.Adam(0.01), "allreduce": "hierarchical"}
    straight = train(nodes, wire="float16", **kwargs)
    train(nodes, at(folder), wire="float16", callbacks=[Interrupt(nodes, 9)], **kwargs)
    if nodes.rank == 0:
        shutil.copytree(folder, f"{folder}-2")
    nodes.barrier()
    same(train(nodes, at(folder, resume=True), wire="float16", **kwargs), straight)
    exact = train(nodes, at(f"{folder}-2", resume=True), **kwargs)
    assert exact.status == "completed"
    assert len(nodes.leaders) == 1 or (exact.w != straight.w).any()


@mpi
@pytest.mark.parametrize("step", [1, 9, 20])
@pytest.mark.parametrize("name", ["sgd", "adamw", "ftrl with l1", "average"])
def test_a_signal_in_the_middle_of_an_epoch_changes_nothing(comm, folder, name, step):
    kwargs = {"optimizer": {**OPTIMIZERS, "average": AVERAGE}[name]}
    straight = train(comm, **kwargs)
    before = signal.getsignal(signal.SIGUSR1)
    stopped = train(comm, at(folder), callbacks=[Interrupt(comm, step)], **kwargs)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert (stopped.status, stopped.stop_reason) == ("interrupted", "signal")
    assert step <= stopped.iterations < straight.iterations
    assert len(stopped.history) == stopped.epochs
    same(train(comm, at(folder, resume=True), **kwargs), straight)


@mpi
def test_sigterm_and_periods_of_time(comm, folder):
    straight = train(comm, epochs=40)
    stopped = train(comm, at(folder, "0.001s"), epochs=40, callbacks=[Interrupt(comm, 150, signal.SIGTERM)])
    assert stopped.status == "interrupted"
    steps = [int(Path(step).name[5:]) for step in files.whole(folder)]
    assert steps[0] == stopped.iterations
    assert len(steps) == 2, "one by the clock besides"
    same(train(comm, at(folder, "10min", resume=True), epochs=40), straight)


@mpi
def test_one_row_steps_that_a_model_fuses(comm, folder):
    kwargs = {"optimizer": optim.SGD(0.02), "global_batch_size": 1, "epochs": 3}
    straight = train(comm, **kwargs)
    stopped = train(comm, at(folder), callbacks=[Interrupt(comm, 203)], **kwargs)
    assert stopped.status == "interrupted"
    same(train(comm, at(folder, resume=True), **kwargs), straight)


@mpi
def test_early_stopping_goes_on_with_its_memory(comm, folder):
    valid = whole_shard(*make_rows(rows=60, seed=0), comm)
    kwargs = {"valid": valid, "patience": 4, "optimizer": optim.Momentum(0.3)}
    straight = train(comm, epochs=60, **kwargs)
    train(comm, at(folder, 1), epochs=5, **kwargs)
    resumed = train(comm, at(folder, 1, resume=True), epochs=60, **kwargs)
    same(resumed, straight)
    assert resumed.stop_reason == "no improvement"
    assert resumed.best_epoch == straight.best_epoch
    again = train(comm, at(folder, 1, resume=True), epochs=60, **kwargs)
    same(again, straight)


@mpi
def test_a_tolerance_that_was_met_stays_met(comm, folder):
    kwargs = {"optimizer": optim.GradientDescent(0.5), "tol": 0.5, "epochs": 300}
    straight = train(comm, **kwargs)
    assert straight.stop_reason == "tolerance"
    train(comm, at(folder, 2), **kwargs | {"epochs": 2})
    same(train(comm, at(folder, 2, resume=True), **kwargs), straight)
    again = train(comm, at(folder, 2, resume=True), **kwargs)
    same(again, straight)
    assert again.converged


@mpi
@pytest.mark.parametrize("optimizer", [optim.Momentum(0.05), AVERAGE])
def test_local_rows_go_on_where_they_are(comm, folder, optimizer):
    x, y = make_rows()
    shard = local_shard(x, y, comm, uneven(len(y), comm.size))
    straight = train(comm, shard=shard, optimizer=optimizer)
    train(comm, at(folder, 3), epochs=3, shard=shard, optimizer=optimizer)
    same(train(comm, at(folder, 3, resume=True), shard=shard, optimizer=optimizer), straight)


@mpi
def test_a_second_run_begins_anew_only_where_the_first_was_completed(comm, folder):
    said = Said()
    first = train(comm, at(folder, 1, resume=True, tell=said), epochs=2)
    assert comm.rank or "no checkpoint in" in said[0]
    second = train(comm, at(folder, 1), epochs=2)
    np.testing.assert_array_equal(first.w, second.w)
    train(comm, at(folder, 1), callbacks=[Interrupt(comm, 10)])
    with pytest.raises(ConfigError, match="resume=True goes on"):
        train(comm, at(folder, 1))
    said = Said()
    train(comm, at(folder, 1, resume=True, tell=said), optimizer=optim.Momentum(0.01))
    assert comm.rank or "lr=0.01" in said[0]


@mpi
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 8}, "seed 7, not 8"),
        ({"global_batch_size": 16}, "global_batch_size 32"),
        ({"optimizer": optim.SGD(0.05)}, "optimizer momentum"),
        ({"l2": 0.1}, "l2 0.01"),
        ({"model": models.MLP(6, 3, (9,), dropout=0.3, dtype=np.float64)}, "model"),
        ({"model": models.MLP(6, 3, (8,), dropout=0.1, dtype=np.float64)}, "dropout"),
        ({"model": models.MLP(6, 3, (8,), dropout=0.3, dtype=np.float32)}, "float64, here float32"),
        ({"rows": make_rows(seed=1)}, "other data"),
        ({"rows": make_rows(rows=204)}, "rows 203, here 204"),
        ({"optimizer": AVERAGE}, "optimizer"),
        ({"standardize": True}, "standardized False, here True"),
    ],
)
def test_checkpoints_of_another_run_are_refused(comm, folder, change, word):
    train(comm, at(folder, 1), epochs=2)
    change = dict(change)
    shard = whole_shard(*change.pop("rows", make_rows()), comm)
    if change.pop("standardize", False):
        (shard,) = standardize(shard, comm=comm)
    with pytest.raises(ConfigError, match=word):
        train(comm, at(folder, 1, resume=True), epochs=3, shard=shard, **change)
    assert len(files.whole(folder)) == 2


@mpi
@pytest.mark.parametrize(
    ("other", "word"),
    [
        (replace(AVERAGE, inner=optim.SGD(0.05)), "inner momentum"),
        (replace(AVERAGE, outer_momentum=0.0), "outer_momentum as it was"),
    ],
)
def test_averaging_goes_on_with_the_same_methods_alone(comm, folder, other, word):
    train(comm, at(folder, 1), epochs=2, optimizer=AVERAGE)
    with pytest.raises(ConfigError, match=word):
        train(comm, at(folder, 1, resume=True), epochs=3, optimizer=other)
    with pytest.raises(ConfigError, match="optimizer average"):
        train(comm, at(folder, 1, resume=True), epochs=3)
    changed = replace(AVERAGE, outer_momentum=0.4, outer_lr=0.9, sync_every=2)
    assert train(comm, at(folder, 1, resume=True), epochs=3, optimizer=changed).status == "completed"


@mpi
def test_a_damaged_checkpoint_is_passed_over_and_two_are_an_error(comm, folder):
    straight = train(comm)
    train(comm, at(folder, 1), epochs=4)
    newest, older = files.whole(folder)
    comm.barrier()
    if comm.rank == 0:
        os.truncate(os.path.join(newest, "rank-00000.bin"), 100)
    comm.barrier()
    said = Said()
    same(train(comm, at(folder, 1, resume=True, tell=said)), straight)
    assert comm.rank or ("rank-00000.bin" in said[0] and older in said[1])
    comm.barrier()
    if comm.rank == 0:
        for step in files.whole(folder):
            os.remove(os.path.join(step, f"rank-{comm.size - 1:05d}.bin"))
    comm.barrier()
    with pytest.raises(DataError, match=r"(?s)rank-.*remove"):
        train(comm, at(folder, 1, resume=True), epochs=9)


class FullDisk:
    """Once there is a checkpoint, a function of the operating system fails on the files of others, on one rank."""

    def __init__(self, monkeypatch, comm, name, folder):
        self.real, self.folder = getattr(os, name), folder
        if comm.rank == comm.size - 1:
            monkeypatch.setattr(os, name, self)

    def __call__(self, what, *args, **kwargs):
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        first = files.whole(self.folder)
        if "step-" in path and first and first[-1] not in path:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return self.real(what, *args, **kwargs)


@mpi
@pytest.mark.parametrize("name", ["write", "fsync", "open", "makedirs"])
def test_training_goes_on_where_a_disk_is_full(comm, folder, monkeypatch, name):
    straight = train(comm)
    said = Said()
    with monkeypatch.context() as patch:
        FullDisk(patch, comm, name, folder)
        same(train(comm, at(folder, 1, tell=said)), straight)
    whole = files.whole(folder)
    assert len(whole) == 1
    assert int(whole[0][-9:]) < straight.iterations, "the last one was not written"
    if name != "open":  # without which nothing can be removed either
        assert [step for _, step in files.found(folder)] == whole, "nothing is left of those that failed"
    assert comm.rank or all("No space left" in message for message in said)
    assert comm.rank or said
    same(train(comm, at(folder, 1, resume=True)), straight)


@mpi
def test_a_manifest_that_cannot_be_written(comm, folder, monkeypatch):
    said = Said()
    with monkeypatch.context() as patch:
        real = os.replace

        def full(source, target):
            if target.endswith("manifest.json"):
                raise OSError(errno.ENOSPC, "No space left on device", target)
            return real(source, target)

        patch.setattr(os, "replace", full)
        result = train(comm, at(folder, 1, tell=said), epochs=2)
    assert result.status == "completed"
    comm.barrier()
    assert files.found(folder) == []
    assert comm.rank or "No space left" in said[-1]


@mpi
def test_a_run_that_diverges_leaves_no_checkpoint_of_that(comm, folder):
    x, y = make_rows(kind="value")
    kwargs = {"shard": whole_shard(x, y, comm), "model": models.Linear(6), "optimizer": optim.SGD(1e4), "epochs": 20}
    result = train(comm, at(folder, "0.001s"), **kwargs)
    assert result.status == "diverged"
    for step in files.whole(folder):
        w = np.empty(7, np.float32)
        files.Stored(step).read([files.Part.range("steps/w", w, 0, 7)])
        assert np.isfinite(w).all()


@mpi
def test_the_batch_size_that_a_run_began_with_is_found(comm, folder):
    assert stored_settings(folder, comm) is None
    train(comm, at(folder, 1), epochs=1)
    rows = {"global_batch_size": SIZE, "rows_of_ranks": None, "shards": None}
    named = {"allreduce": "ring", "optimizer": "momentum"}
    assert stored_settings(folder, comm) == {"ranks": comm.size, **named, **rows}


@mpi
def test_sums_travel_apart_from_other_messages(comm):
    rounds = comm.rounds
    pending = comm.pending([comm.rank, 1])
    assert comm.sum([1])[0] == comm.size
    np.testing.assert_array_equal(pending.wait(), [sum(range(comm.size)), comm.size])
    assert pending.test()
    pending = comm.pending([2.0])
    deadline = time.monotonic() + 30
    while not pending.test():
        assert time.monotonic() < deadline
    np.testing.assert_array_equal(pending.wait(), [2.0 * comm.size])
    assert comm.rounds == rounds + (comm.size > 1)


@pytest.mark.parametrize("every", ["0", "-1", "ten", "5 parsecs", "0min", "", "1.5"])
def test_periods_that_cannot_be(every, tmp_path):
    with pytest.raises(ConfigError, match="10min"):
        Checkpoint(str(tmp_path), every)


def test_periods():
    periods = [Checkpoint("x", every) for every in (2, "3", "30s", "10min", "1.5h", None)]
    assert [p.epochs for p in periods] == [2, 3, None, None, None, None]
    assert [p.seconds for p in periods] == [None, None, 30, 600, 5400, None]
    with pytest.raises(ConfigError, match="keep of Checkpoint"):
        Checkpoint("x", 1, keep=0)


# --- whole jobs

FLAGS = ("--data", "rows.npz", "--dtype", "float64", "--global-batch-size", "30", "--optimizer", "adam", "--lr", "0.01")


def write_rows(folder):
    """A file of 300 rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8))
    np.savez(folder / "rows.npz", x=x, y=(x @ rng.normal(size=(8, 3))).argmax(1))


@pytest.fixture(scope="module")
def rows(shared_folder):
    """The folder of the file."""
    return shared_folder(write_rows)


def left(folder):
    """The result, the lines of metrics.jsonl and the weights of a run."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with np.load(folder / "model.npz") as file:
        weights = np.concatenate([file[name].ravel() for name in sorted(file.files) if name != "config"])
    return result, lines, weights


@mpi(min_size=4)
def test_a_job_goes_on_on_other_numbers_of_ranks(rows, shared_path):
    straight = shared_path / "straight"
    done = run_here("train", *FLAGS, "--epochs", 6, "--out", straight, cwd=rows, ranks=2)
    assert done.returncode == 0, done.stderr
    for first, *then in ((3, 1), (2, 4, 1)):
        out = shared_path / f"{first}{then}"
        flags = ("--out", out, "--checkpoint-every", 1, "--resume", "-q")
        epochs = 2
        for ranks in (first, *then):
            done = run_here("train", *FLAGS, *flags, "--epochs", epochs, cwd=rows, ranks=ranks)
            assert done.returncode == 0, done.stderr
            assert done.stdout == ""
            epochs += 4 // len(then)
        result, lines, weights = left(out)
        np.testing.assert_allclose(weights, left(straight)[2], rtol=1e-11, atol=1e-12)
        assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
        losses = [[line["running_loss"] for line in each] for each in (lines, left(straight)[1])]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)
        assert result["train_loss"] == pytest.approx(left(straight)[0]["train_loss"], rel=1e-12)


def start(ranks, *flags, cwd):
    """A job in the background."""
    words = [*mpiexec_command(ranks), sys.executable, "-m", "distai_mpi", "train", *FLAGS, *map(str, flags)]
    return subprocess.Popen(
        words, cwd=cwd, env=mpi_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path, lines=1, seconds=60):
    deadline = time.monotonic() + seconds
    while not (path.exists() and len(path.read_text().splitlines()) >= lines):
        assert time.monotonic() < deadline, f"{path} has not come"
        time.sleep(0.02)


ENDLESS = ("--epochs", 10**6, "--allreduce", "ring")


def reached(out):
    """The epoch of the newest checkpoint."""
    return files.Stored(files.whole(str(out / "checkpoints"))[0]).body["common"]["epoch"]


def goes_on_as_if_never_stopped(run_command, rows, out, straight, *before):
    """Two more epochs are those of a run that was not stopped; how the lines ``before``, in the same job, ended."""
    words = ("train", *FLAGS, "--allreduce", "ring", "--epochs", reached(out) + 2, "--out")
    lines = (*before, (*words, out, "--resume"), (*words, straight))
    *ends, resumed, whole = (run_command(2, *line, cwd=rows) for line in lines)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from" in resumed.stderr
    assert whole.returncode == 0, whole.stderr
    np.testing.assert_array_equal(left(out)[2], left(straight)[2])
    assert [line["running_loss"] for line in left(out)[1]] == [line["running_loss"] for line in left(straight)[1]]
    return ends


def test_usr1_to_mpiexec_ends_the_job_in_order_and_it_goes_on_to_the_same_end(run_command, rows, tmp_path):
    out = tmp_path / "run"
    with start(2, *ENDLESS, "--out", out, cwd=rows) as job:
        wait_for(out / "metrics.jsonl")
        job.send_signal(signal.SIGUSR1)
        _, errors = job.communicate(timeout=limit(60))
    assert job.returncode == 75, errors
    assert errors.count("stopped by a signal after epoch") == 1
    assert "saved in" in errors
    result = json.loads((out / "result.json").read_text())
    assert (result["status"], result["stop_reason"]) == ("interrupted", "signal")
    assert not (out / "model.npz").exists()
    anew = ("train", *FLAGS, *ENDLESS, "--out", out)
    (again,) = goes_on_as_if_never_stopped(run_command, rows, out, tmp_path / "straight", anew)
    assert again.returncode == 2
    assert "--resume goes on" in again.stderr
    flags = ("--allreduce", "ring", "--epochs", reached(out), "--out", out, "--resume")
    done = run_here("train", *FLAGS, *flags, cwd=rows)
    assert done.returncode == 0, done.stderr
    assert "the run is complete" in done.stderr
    np.testing.assert_array_equal(left(out)[2], left(tmp_path / "straight")[2])


def test_a_killed_job_goes_on_from_its_last_checkpoint(run_command, rows, tmp_path):
    out = tmp_path / "run"
    with start(2, *ENDLESS, "--out", out, "--checkpoint-every", 1, cwd=rows) as job:
        wait_for(out / "metrics.jsonl", lines=4)
        deadline = time.monotonic() + 60
        while not files.whole(str(out / "checkpoints")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.terminate()
        job.communicate(timeout=limit(60))
    assert job.returncode != 0
    goes_on_as_if_never_stopped(run_command, rows, out, tmp_path / "straight")


LIMITED = """
import resource, sys
from distai_mpi.cli.main import main
from distai_mpi.data import standardize
from distai_mpi.train import report
report.PATIENCE_SECONDS = 0.5
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # a manifest or a line of metrics fits, a shard does not
sys.exit(main(sys.argv[1:]))
"""


def test_a_real_limit_of_the_system(mpirun, rows, tmp_path):
    program = tmp_path / "limited.py"
    program.write_text(LIMITED)
    flags = (
        "train",
        *FLAGS,
        "--hidden",
        "512",
        "--epochs",
        "3",
        "--checkpoint-every",
        "1",
        "--out",
        str(tmp_path / "x"),
    )
    done = mpirun(2, str(program), *flags, "-q", cwd=rows)
    assert "rank-0000" in done.stderr
    assert "File too large" in done.stderr
    assert "older ones stay" in done.stderr
    assert files.found(str(tmp_path / "x" / "checkpoints")) == []
    assert len((tmp_path / "x" / "metrics.jsonl").read_text().splitlines()) == 3, "training went on to its end"


@mpi(min_size=3)
def test_rows_per_rank_stay_the_global_batch_that_the_run_began_with(rows, shared_path):
    flags = ("--data", "rows.npz", "--batch-size", 10, "--out", shared_path, "--checkpoint-every", 1, "--resume")
    assert run_here("train", *flags, "--epochs", 1, cwd=rows, ranks=3).returncode == 0
    done = run_here("train", *flags, "--epochs", 2, cwd=rows, ranks=2)
    assert done.returncode == 0, done.stderr
    assert json.loads((shared_path / "result.json").read_text())["global_batch_size"] == 30


@pytest.mark.parametrize("flags", [("--resume",), ("--checkpoint-every", "1")])
def test_flags_that_need_a_folder(flags, capsys):
    assert main(["train", *flags]) == 2
    assert f"{flags[0]} needs --out" in capsys.readouterr().err


@mpi
@pytest.mark.parametrize(("every", "out", "word"), [("often", "x", "10min"), ("1", "/proc/x", "/proc/x")])
def test_flags_that_cannot_work(rows, every, out, word):
    done = run_here("train", *FLAGS, "--checkpoint-every", every, "--out", out, cwd=rows)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "distai-mpi: error:" in line]
    assert len(errors) == 1, done.stderr
    assert word in errors[0]


@mpi(min_size=2)
def test_rows_of_ranks_need_their_ranks(comm, rows, shared_path):
    words = ("train", "--data", "rows.npz", "--optimizer", "average", "--out", shared_path)
    fewer = comm.size - 1
    done = run_here(*words, "--epochs", 1, "--checkpoint-every", 1, cwd=rows, ranks=fewer)
    assert done.returncode == 0, done.stderr
    done = run_here(*words, "--epochs", 2, "--resume", cwd=rows)
    assert done.returncode == 2
    assert f"written by {fewer} ranks" in done.stderr


@mpi
def test_rows_that_went_by_speed_stay_where_they_are(rows, shared_path):
    flags = ("--data", "rows.npz", "--optimizer", "average", "--shards", "speed", "--checkpoint-every", 1)
    shards = []
    for epochs in (1, 2):
        done = run_here("train", *flags, "--out", shared_path, "--resume", "--epochs", epochs, cwd=rows)
        assert done.returncode == 0, done.stderr
        assert ("speed: " in done.stdout) == (epochs == 1), "measured once"
        shards.append(json.loads((shared_path / "result.json").read_text())["shards"])
    assert shards[0] == shards[1]


def test_the_benchmark_measures_and_cleans_up(tmp_path, capsys):
    file = tmp_path / "bench.json"
    words = ["--parameters", "1e5", "--repeats", "1", "--dir", str(tmp_path), "--json", str(file)]
    assert main(["bench", "checkpoint", *words]) == 0
    report = json.loads(file.read_text())
    assert report["bytes"] >= 3 * 4 * 10**5
    assert min(report[name] for name in ("disk", "checkpoint", "copy_seconds", "stopped_seconds")) > 0
    assert os.listdir(tmp_path) == ["bench.json"]
    assert "GB/s" in capsys.readouterr().out
    assert main(["bench", "checkpoint", "--parameters", "1e15", "--dir", str(tmp_path)]) == 2
    assert "--parameters" in capsys.readouterr().err
