"""Times a path of l1 penalties of logistic regression beside LIBLINEAR, scikit-learn's saga and Cyanure.

    mpiexec -n 2 python tests/path_against_peers.py FILE.npz [peer ...]

FILE has sparse training rows and labels of two classes; peers are liblinear, saga and cyanure, as far as installed
(default: liblinear).  No bias; 20 penalties from the largest useful one to a thousandth of it; peers run on rank 0, on
one thread, and start at the solution before where they can.  Told are seconds, processor seconds of all ranks, and how
far the objectives are above the least that anybody found, as a fraction of it.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from distai_mpi import Communicator, data, l1_path, models, optim, world

PENALTIES, TOL = 20, 5e-4  # a gap of about TOL² of the objective
Fit = Callable[[float], np.ndarray]


def liblinear(x: Any, y: np.ndarray) -> Fit:
    """LIBLINEAR's newGLMNET, which has no warm start."""
    from sklearn.linear_model import LogisticRegression

    options: Any = {"penalty": "l1", "solver": "liblinear", "tol": 1e-3, "fit_intercept": False, "max_iter": 1000}
    return lambda l1: LogisticRegression(C=1 / (len(y) * l1), **options).fit(x, y).coef_[0]


def saga(x: Any, y: np.ndarray) -> Fit:
    """scikit-learn's SAGA."""
    from sklearn.linear_model import LogisticRegression

    options: Any = {"penalty": "l1", "solver": "saga", "tol": 1e-3, "fit_intercept": False, "max_iter": 1000}
    model = LogisticRegression(warm_start=True, **options)
    return lambda l1: model.set_params(C=1 / (len(y) * l1)).fit(x, y).coef_[0].copy()


def cyanure(x: Any, y: np.ndarray) -> Fit:
    """Cyanure's choice of solver."""
    from cyanure.estimators import Classifier

    options: Any = {"loss": "logistic", "penalty": "l1", "fit_intercept": False, "tol": 1e-5, "max_iter": 500}
    model = Classifier(warm_start=True, verbose=False, n_threads=1, **options)

    def fit(l1: float) -> np.ndarray:
        model.lambda_1 = l1
        return np.array(model.fit(x, y).coef_, float).ravel()

    return fit


PEERS = {"liblinear": liblinear, "saga": saga, "cyanure": cyanure}


def main() -> None:
    """See the module."""
    file, *peers = sys.argv[1:]
    warnings.simplefilter("ignore")
    with Communicator(world()) as comm:
        train = data.load_sets(file, comm).train
        model, solver = models.Logistic(train.features, bias=False), optim.NewtonCG(tol=TOL)
        l1_path(model, train, comm, n=3, min_ratio=0.3, solver=solver)  # compiles
        comm.barrier()
        began, used = time.perf_counter(), time.process_time()
        points = l1_path(model, train, comm, n=PENALTIES, solver=solver)
        seconds, processor = time.perf_counter() - began, float(comm.sum([time.process_time() - used])[0])
        if comm.rank == 0:
            rows = train.dataset.x
            x: Any = sp.csr_array(
                (rows.values.astype(float), rows.indices.astype(np.int32), rows.starts.astype(np.int32)), rows.shape
            )
            compare(x, np.where(train.dataset.y > 0, 1.0, -1.0), points, (seconds, processor), peers or ["liblinear"])
        comm.barrier()


def compare(x: Any, y: np.ndarray, points: list[Any], own: tuple[float, float], peers: list[str]) -> None:
    """Run the ``peers`` and tell of all."""

    def objective(w: np.ndarray, l1: float) -> float:
        return float(np.logaddexp(0, -y * (x @ w)).mean() + l1 * np.abs(w).sum())

    values = {"distai-mpi": [objective(point.params.astype(float), point.l1) for point in points]}
    times = {"distai-mpi": own}
    for name in peers:
        began, used = time.perf_counter(), time.process_time()
        fit = PEERS[name](x, y)
        found = [fit(point.l1) for point in points]
        times[name] = time.perf_counter() - began, time.process_time() - used
        values[name] = [objective(w, point.l1) for w, point in zip(found, points, strict=True)]
    least = np.min(list(values.values()), axis=0)
    for name, (seconds, processor) in times.items():
        above = np.max(np.array(values[name]) / least - 1)
        used = f"{seconds:8.2f} s  {processor:8.2f} processor s"
        print(f"{name:12} {used}  objectives at most {above:.1e} above the least")


if __name__ == "__main__":
    main()
