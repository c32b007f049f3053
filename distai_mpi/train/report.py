"""What a run leaves in its output folder: metrics.jsonl, result.json and model.npz."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import ConfigError
from ..files import check_writable, write_whole
from ..models import save_model
from .callbacks import Callback
from .gradients import FactorGradients
from .run import Result, Run

SCHEMA = 1  # of result.json; grows when a field changes its meaning
METRICS, RESULT, MODEL, SETTINGS = "metrics.jsonl", "result.json", "model.npz", "settings.toml"


class ResultFiles(Callback):
    """Writes a run's files on rank 0 into ``folder``, replacing those of an earlier run.

    Args:
        folder: made if it is missing.
        settings: the fields of result.json that the run itself does not know: ``data`` and ``model``.
        extra: plain JSON values kept in model.npz.
        again: text for settings.toml, by which the run can be repeated; None: there is none.
    """

    def __init__(self, folder: str, settings: dict[str, Any], extra: dict[str, Any], again: str | None = None) -> None:
        self.folder, self.settings, self.extra, self.again = folder, settings, extra, again

    def check(self) -> None:
        """Make the folder and see that files can be written there; local.

        Raises:
            ConfigError: they cannot.
        """
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out {self.folder}: cannot be made ({error.strerror}); name a folder of your own"
            ) from None
        for name in (METRICS, RESULT, MODEL, SETTINGS):
            check_writable(self._path(name))

    def on_start(self, run: Run) -> None:
        """Clear what an earlier run left, so that the files in the folder belong together.

        What has been trained before, where a run goes on from a checkpoint, stays in metrics.jsonl.
        """
        with run.comm.agreed():
            if run.comm.rank == 0:
                self.check()
                for name in (RESULT, MODEL):
                    if os.path.exists(self._path(name)):
                        os.remove(self._path(name))
                lines = "".join(json.dumps(finite(record)) + "\n" for record in run.history)
                write_whole(self._path(METRICS), lambda file: file.write(lines.encode()))
                if self.again is not None:
                    text = self.again.encode()
                    write_whole(self._path(SETTINGS), lambda file: file.write(text))

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with run.comm.agreed():
            if run.comm.rank == 0:
                try:
                    with open(self._path(METRICS), "a") as file:
                        file.write(json.dumps(finite(record)) + "\n")
                except OSError as error:
                    raise ConfigError(f"{self._path(METRICS)}: cannot be written ({error.strerror})") from None

    def on_end(self, run: Run, result: Result) -> None:
        """Write the model of a completed run, and result.json last."""
        model = run.objective.model
        with run.comm.agreed():
            if run.comm.rank == 0:
                if result.status == "completed":
                    save_model(self._path(MODEL), model, result.w, self.extra)
                text = json.dumps(result_fields(run, result, self.settings), indent=2) + "\n"
                write_whole(self._path(RESULT), lambda file: file.write(text.encode()))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def result_fields(run: Run, result: Result, settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of result.json, None where one has no meaning; ``settings`` names the data and the model.

    ``flops_per_second`` counts the matrix products of training alone, on all ranks together; it is None of methods
    that search, whose iterations are not alike.
    """
    comm, objective, model = run.comm, run.objective, run.objective.model
    flops = getattr(model, "flops_per_row", None)
    rate, partition = result.samples_per_second, run.loader.share.partition
    fields = {
        "schema": SCHEMA,
        "status": result.status,
        "stop_reason": result.stop_reason,
        **settings,
        "optimizer": run.optimizer.name,
        "ranks": comm.size,
        "nodes": len(comm.leaders),
        "device": run.loader.device.name,
        "dtype": model.dtype.name,
        "allreduce": objective.algorithm,
        "wire": "float32" if objective.half is None else "float16",
        "early": getattr(getattr(run.training, "gradients", None), "early", False),
        "factors": isinstance(getattr(run.training, "gradients", None), FactorGradients),
        "seed": run.loader.seed,
        "global_batch_size": run.loader.global_batch_size,
        "shards": list(partition.weights) if partition else None,
        "lr": run.optimizer.lr,
        "l2": objective.l2,
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
        "flops_per_second": rate * flops if rate and flops and not run.training.searches else None,
        "without_optimum": result.without_optimum,
        "evaluations": result.evaluations,
        "products": result.products,
        "gradient_norm": result.gradient_norm,
        "rounds": result.rounds,
        "calls": result.calls,
        "bytes_moved": result.bytes_moved,
        "time": result.time,
        "converged": result.converged,
    }
    return finite(fields)


class ResultLine(Callback):
    """Prints the fields of result.json as one line on rank 0, for programs that read them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

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
