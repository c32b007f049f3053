"""Small problems for the tests of methods that see all rows in every iteration."""

import numpy as np
from fits import fit
from problems import make_rows

from distai_mpi import models, optim

METHODS = {"lbfgs": optim.LBFGS, "newton-cg": optim.NewtonCG, "newton": optim.Newton}
KINDS = {
    "linear": lambda dtype: models.Linear(6, dtype=dtype),
    "logistic": lambda dtype: models.Logistic(6, dtype=dtype),
    "softmax": lambda dtype: models.Softmax(6, 3, dtype=dtype),
}


def rows_for(kind, rows=300):
    x, y = make_rows(rows=rows)
    return x, (y > 0).astype(np.int64) if kind == "logistic" else y


def minimise(comm, shard, kind, method, dtype=np.float64, **options):
    options = {"epochs": 200, "tol": 1e-10, "l2": 0.01, "seed": 3} | options
    return fit(KINDS[kind](dtype), shard, comm, optimizer=method, **options)
