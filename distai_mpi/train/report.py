"""Files of a run: metrics.jsonl, result.json and model.npz."""

from __future__ import annotations

import json
import os
from typing import Any

from ..files import Unwritable, check_writable, write_json, write_patiently, write_whole
from ..messages import tell
from ..models import save_model
from ..models.split import whole_of
from ..settings import called, worded
from .callbacks import Callback
from .checkpoint.files import whole
from .gradient.factors import FactorGradients
from .parts import collect
from .provenance import provenance, utc
from .run import Result, Run

SCHEMA = 1  # of result.json; grows when a field changes its meaning
METRICS, RESULT, MODEL, SETTINGS = "metrics.jsonl", "result.json", "model.npz", "settings.toml"
PATIENCE_SECONDS, PAUSE_SECONDS = 60.0, 2.0  # for which a full disk is waited for at the end, and between two tries


class ResultFiles(Callback):
    """Writes a run's files on rank 0 into ``folder``, replacing those of an earlier run.

    Args:
        folder: made if it is missing.
        settings: the fields of result.json that the run itself does not know: ``data`` and ``model``.
        extra: plain JSON values kept in model.npz.
        again: text for settings.toml, by which the run can be repeated; None: there is none.
        spare: a folder that takes the files in the end where ``folder`` does not: it may be full; None: there is none.
        checkpoints: the folder of the run's checkpoints, named where the model is lost.
    """

    def __init__(
        self,
        folder: str,
        settings: dict[str, Any],
        extra: dict[str, Any],
        again: str | None = None,
        spare: str | None = None,
        checkpoints: str | None = None,
    ) -> None:
        self.folder, self.settings, self.extra, self.again = folder, settings, extra, again
        self.spare, self.checkpoints = spare, checkpoints
        self._unwritten = ""  # lines of metrics.jsonl that the disk did not take
        self._written = 0  # bytes of it that the disk has

    def check(self) -> None:
        """Make the folder, and the spare one, and see that files can be written there; local.

        Raises:
            ConfigError: they cannot.
        """
        for name, folder in ((called("folder", "--out"), self.folder), (called("spare"), self.spare)):
            if folder is not None:
                _make(folder, name)
                for name in (METRICS, RESULT, MODEL, SETTINGS):
                    check_writable(os.path.join(folder, name))

    def on_start(self, run: Run) -> None:
        """Clear what an earlier run left, so that the files in the folder belong together.

        What has been trained before, where a run goes on from a checkpoint, stays in metrics.jsonl.
        """
        note_origin(run)
        with run.comm.agreed():
            if run.comm.rank == 0:
                self.check()
                for name in (RESULT, MODEL):
                    if os.path.exists(self._path(name)):
                        os.remove(self._path(name))
                lines = "".join(json.dumps(finite(record)) + "\n" for record in run.history)
                write_whole(self._path(METRICS), lambda file: file.write(lines.encode()))
                self._written = len(lines.encode())
                self._write_settings(self.folder)

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, now or, where that cannot be written, with the next one that can."""
        if run.comm.rank > 0:
            return
        unwritten_before, self._unwritten = bool(self._unwritten), self._unwritten + json.dumps(finite(record)) + "\n"
        try:
            lines = self._unwritten.encode()
            _append(self._path(METRICS), lines)
            self._unwritten, self._written = "", self._written + len(lines)
        except OSError as error:
            if not unwritten_before:
                tell(f"{self._path(METRICS)}: cannot be written ({error.strerror}); training goes on", warning=True)

    def on_end(self, run: Run, result: Result) -> None:
        """Write the model of a completed run, and result.json last; into the spare folder if all else fails."""
        params = result.w
        if run.objective.mesh is not None and result.status == "completed":
            params = collect(run.objective.model, params, run.objective.mesh, self.folder)
        with run.comm.agreed():
            if run.comm.rank == 0:
                try:
                    self._write_last(self.folder, run, result, params, PATIENCE_SECONDS)
                except Unwritable as error:
                    self._write_elsewhere(run, result, params, error)

    def _write_elsewhere(self, run: Run, result: Result, params: Any, error: Unwritable) -> None:
        """Write into the spare folder what ``error`` keeps from the other one.

        Raises:
            ConfigError: there is none, or it takes nothing either; says where the last checkpoint is.
        """
        if self.spare is not None:
            try:
                self._write_last(self.spare, run, result, params, 0.0)
                tell(f"{error}; the results are in {self.spare}", warning=True)
                return
            except Unwritable as another:
                error = Unwritable(f"{error}; {another}")
        last = whole(self.checkpoints)[:1] if self.checkpoints is not None else []
        resume = f"{worded('resume=True', '--resume')} goes on from it"
        way_out = f"the last checkpoint is {last[0]}: {resume}" if last else "there is no checkpoint"
        raise Unwritable(f"the results are lost: {error}; {way_out}") from None

    def _write_last(self, folder: str, run: Run, result: Result, params: Any, seconds: float) -> None:
        """Write the files of the end, ``params`` in model.npz, into ``folder``, trying for so many seconds; local."""
        fields = result_fields(run, result, self.settings)

        def write() -> None:
            _make(folder, folder)
            self._write_history(folder, run)
            if result.status == "completed":
                save_model(os.path.join(folder, MODEL), whole_of(run.objective.model), params, self.extra)
            write_json(os.path.join(folder, RESULT), fields)

        # the others wait, and must know that this rank works
        write_patiently(write, seconds, PAUSE_SECONDS, lambda why: tell(why, warning=True), run.comm.going_on)

    def _write_history(self, folder: str, run: Run) -> None:
        """Write what of metrics.jsonl and settings.toml ``folder`` lacks: all, where it was removed meanwhile."""
        metrics, spare = os.path.join(folder, METRICS), folder != self.folder
        if spare or self._unwritten or _size(metrics) != self._written:
            lines = "".join(json.dumps(finite(record)) + "\n" for record in run.history).encode()
            write_whole(metrics, lambda file: file.write(lines))
            if not spare:
                self._unwritten, self._written = "", len(lines)
        if spare or not os.path.exists(os.path.join(folder, SETTINGS)):
            self._write_settings(folder)

    def _write_settings(self, folder: str) -> None:
        if self.again is not None:
            text = self.again.encode()
            write_whole(os.path.join(folder, SETTINGS), lambda file: file.write(text))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _make(folder: str, what: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        name = what if what == folder else f"{what} {folder}"
        raise Unwritable(f"{name}: cannot be made ({error.strerror}); name a folder of your own") from None


def _size(path: str) -> int:
    """Bytes of a file; -1: it is not there."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _append(path: str, text: bytes) -> None:
    """Add ``text`` to a file: all of it or, where the disk has no room, nothing.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "ab", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        try:
            left = memoryview(text)
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.ftruncate(file.fileno(), length)
            raise


def note_origin(run: Run) -> None:
    """Keep with ``run`` where and with what it was made, once for all who tell of it; collective."""
    if not run.origin:
        run.origin = provenance(run.comm)


def result_fields(run: Run, result: Result, settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of result.json, None where one has no meaning; ``settings`` names the data and the model.

    ``flops_per_second`` counts the matrix products of training alone, on all ranks together; it is None of full-batch
    solvers, whose iterations are not alike.
    """
    comm, objective, model = run.comm, run.objective, whole_of(run.objective.model)
    mesh = objective.mesh
    run.origin.setdefault("ended", utc())
    flops = getattr(model, "flops_per_row", None)
    rate, partition, names = result.samples_per_second, run.loader.shard.partition, run.loader.shard.feature_names
    collinear: list[Any] | None = result.collinear
    if collinear and names:
        collinear = [names[feature] for feature in collinear]
    fields = {
        "schema": SCHEMA,
        "status": result.status,
        "stop_reason": result.stop_reason,
        **settings,
        "optimizer": run.optimizer.name,
        "ranks": comm.size,
        "nodes": len(comm.leaders),
        "mesh": None if mesh is None else mesh.shape._asdict(),
        "pipeline": result.pipeline,
        "device": run.loader.device.name,
        "dtype": model.dtype.name,
        "allreduce": objective.exchange.name,
        "wire": objective.exchange.dtype or "float32",
        "early": getattr(getattr(run.training, "gradients", None), "overlaps", False),
        "factors": isinstance(getattr(run.training, "gradients", None), FactorGradients),
        "seed": run.loader.seed,
        "global_batch_size": run.loader.global_batch_size,
        "shards": list(partition.weights) if partition else None,
        "lr": run.optimizer.lr,
        "l2": objective.l2,
        "l1": objective.l1 or getattr(run.optimizer, "l1", 0.0),
        "parameters": model.layout.size,
        "train_loss": result.train_loss,
        "test_loss": result.test_loss,
        "test_accuracy": result.test_accuracy,
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "iterations": result.iterations,
        "seconds": result.seconds,
        "samples_per_second": rate,
        "flops_per_second": rate * flops if rate and flops and not run.searches else None,
        "without_optimum": result.without_optimum,
        "evaluations": result.evaluations,
        "products": result.products,
        "gradient_norm": result.gradient_norm,
        "relative_gap": result.relative_gap,
        "collinear": collinear,
        "rounds": result.rounds,
        "calls": result.calls,
        "bytes_moved": result.bytes_moved,
        "peak_memory": result.peak_memory,
        "bytes_read": result.bytes_read,
        "rebalanced": result.rebalanced,
        "time": result.time,
        "converged": result.converged,
        **run.origin,
    }
    return finite(fields)


class ResultLine(Callback):
    """Prints the fields of result.json as one line on rank 0, for programs that read them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_start(self, run: Run) -> None:
        """Note where and with what training begins."""
        note_origin(run)

    def on_end(self, run: Run, result: Result) -> None:
        """Print the line."""
        if run.comm.rank == 0:
            print(json.dumps(result_fields(run, result, self.settings)), flush=True)


def finite(value: Any) -> Any:
    """``value`` with numbers that JSON cannot hold (nan, inf) replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and value - value != 0:
        return None
    return value
