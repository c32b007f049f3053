"""``--l1-path``: models for many l1 penalties, of which the best is the one that is trained on and kept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .build import given

if TYPE_CHECKING:
    from ..comm import Communicator

PATH = "path.npz"


def follow(
    comm: Communicator, settings: dict[str, Any], model: Any, sets: Any
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """What `fit` is told of the path's best model, and the figures of all of them; nothing without a path; collective.

    Rank 0 writes them to DIR/path.npz.
    """
    from ..optim import NewtonCG
    from ..train import l1_path
    from ..train.l1_path import best_of, save_path

    if settings["l1_path"] is None:
        return {}, None
    if settings["model_name"] == "mlp":
        raise ConfigError("--l1-path is for linear models: choose --model logistic, softmax, linear or the like")
    options = given(settings, "l1_min_ratio")
    points = l1_path(
        model,
        sets.train,
        comm,
        n=settings["l1_path"],
        min_ratio=options.get("l1_min_ratio", 1e-3),
        l2=settings["l2"],
        solver=NewtonCG(**given(settings, "max_iter", "tol", "min_decrease")),
        valid=sets.valid,
        test=sets.test,
    )
    best = best_of(points)
    with comm.agreed():
        if comm.rank == 0 and settings["out"]:
            os.makedirs(settings["out"], exist_ok=True)
            save_path(os.path.join(settings["out"], PATH), points)
    if comm.rank == 0 and not settings["quiet"] and not settings["as_json"]:
        for point in points:
            print(told(point) + ("  ← kept" if point is best else ""), flush=True)
    return {"l1": best.l1, "start": best.params}, [point.figures() for point in points]


def told(point: Any) -> str:
    """A model of the path in a line."""
    parts = [f"l1 {point.l1:.3e}", f"objective {point.objective:.6f}", f"{point.nonzeros:,} weights"]
    for name in ("valid", "test"):
        loss, accuracy = getattr(point, f"{name}_loss"), getattr(point, f"{name}_accuracy")
        if accuracy is not None:
            parts.append(f"{name} accuracy {100 * accuracy:.2f} %")
        elif loss is not None:
            parts.append(f"{name} loss {loss:.4g}")
    return "  ".join(parts) + ("" if point.converged else "  (not at the optimum)")
