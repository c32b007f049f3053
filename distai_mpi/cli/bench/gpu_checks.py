"""Whether training on a device gives what the CPU's compiled kernels give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROWS, FEATURES, CLASSES, BATCH = 203, 17, 5, 64  # no powers of two: the last batch and the last block are short
# Largest difference over the largest parameter.  Sums run in another order on a GPU and functions have other last
# bits, and a few steps carry that on: some hundred units of rounding.
TOLERANCES = {"float64": 1e-10, "float32": 5e-4}


def make_models() -> dict[str, Any]:
    """A function of the dtype for every kind of model and of layer."""
    from ...models import MLP, Linear, Logistic, Softmax

    return {
        "linear": lambda dtype: Linear(FEATURES, dtype=dtype),
        "logistic": lambda dtype: Logistic(FEATURES, dtype=dtype),
        "softmax": lambda dtype: Softmax(FEATURES, CLASSES, dtype=dtype),
        "mlp relu dropout": lambda dtype: MLP(FEATURES, CLASSES, (13, 9), dropout=0.2, dtype=dtype),
        "mlp tanh": lambda dtype: MLP(FEATURES, CLASSES, (13,), activation="tanh", dropout=0, dtype=dtype),
        "mlp gelu dropout": lambda dtype: MLP(FEATURES, CLASSES, (13,), activation="gelu", dropout=0.2, dtype=dtype),
    }


def make_optimizers() -> dict[str, Any]:
    """Every first-order optimizer with its defaults, and averaging."""
    from ...optim import OPTIMIZERS, LocalSGD, Momentum

    return {name: kind() for name, kind in OPTIMIZERS.items()} | {"average": LocalSGD(Momentum(), sync_every=2)}


def cases(ranks: int) -> Iterator[tuple[str, str, str, str]]:
    """(model, optimizer, exchange, dtype) of each training: all combinations in float64, each model in float32."""
    from ...comm import CHOICES

    exchanges = CHOICES if ranks > 1 else ("native",)
    for model in make_models():
        for optimizer in make_optimizers():
            # averaging exchanges whole vectors, in one way alone
            for exchange in exchanges if optimizer != "average" else ("native",):
                yield model, optimizer, exchange, "float64"
        yield model, "momentum", "native", "float32"


def checks(comm: Any, device: Any) -> list[dict[str, Any]]:
    """One row for each training: ``name, ranks, difference, tolerance, passed``, alike on all ranks; collective."""
    found, references = [], {}
    for model, optimizer, exchange, dtype in cases(comm.size):
        case = (model, optimizer, dtype)
        if case not in references:  # to rounding that of every exchange
            references[case] = train(comm, *case, "native", "cpu")
        difference = largest_difference(train(comm, *case, exchange, device), references[case])
        difference = max(comm.allgather_object(difference))
        how = f", {exchange}, {comm.size} ranks" if comm.size > 1 else ""
        found.append(
            {
                "name": f"{model}, {optimizer}, {dtype}{how}",
                "ranks": comm.size,
                "difference": difference,
                "tolerance": TOLERANCES[dtype],
                "passed": bool(difference <= TOLERANCES[dtype]),
            }
        )
    return found


def train(comm: Any, model: str, optimizer: str, dtype: str, exchange: str, device: Any) -> Any:
    """The parameters, shape (n,), float64, after two epochs on ``device``, and the last loss; collective."""
    import numpy as np

    from ...comm import Exchange
    from ...data import Dataset, whole
    from ...train import fit

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES))
    score = x @ rng.normal(size=(FEATURES, CLASSES)) + rng.normal(size=(ROWS, CLASSES))
    y = {"linear": score[:, 0], "logistic": (score[:, 0] > 0).astype(np.int64)}.get(model, score.argmax(1))
    data = whole(Dataset(x, y, rng.random(ROWS) + 0.5), comm.rank, comm.size)
    made = make_models()[model](np.dtype(dtype))
    options: Any = {"epochs": 2, "global_batch_size": BATCH, "l2": 0.01}
    options |= {"optimizer": make_optimizers()[optimizer], "device": device}
    result: Any = fit(made, data, comm, exchange=Exchange(exchange, factors=False), **options)
    return np.append(result.params.astype(np.float64), float(result.train_loss))


def largest_difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two vectors over the largest element of ``theirs``; infinite where one is no number."""
    import numpy as np

    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return difference if np.isfinite(difference) else float("inf")
