"""A model of your own, Poisson regression on rows that the ranks hold: mpiexec -n 2 python examples/own_model.py"""

import numpy as np

from distai_mpi import Communicator, data, fit, models, optim, world
from distai_mpi.params import Layout


class Poisson:
    """Counts y with mean exp(x·weight + bias): loss exp(z) - y z of each row, its negative log-likelihood."""

    def __init__(self, features):
        self.layout = Layout.of([("weight", (features,), True), ("bias", (1,), False)])  # name, shape, l2 penalty
        self.dtype = self.target_dtype = np.dtype(np.float64)

    def init(self, rng):
        return np.zeros(self.layout.size)

    def loss_and_grad(self, w, batch, grad):
        slope = self._rows(w, batch, lambda z: np.exp(z) - batch.y)
        grad[:-1], grad[-1] = slope @ batch.x, slope.sum()  # a sum over the rows, never a mean
        return self.loss(w, batch)

    def loss(self, w, batch):
        weight = self._rows(w, batch, np.ones_like)
        return models.Sums(self._rows(w, batch, lambda z: np.exp(z) - batch.y * z).sum(), weight.sum())

    def predict(self, w, x):
        return np.exp(x @ w[:-1] + w[-1])

    @staticmethod
    def _rows(w, batch, function):
        values = function(batch.x @ w[:-1] + w[-1])
        return values if batch.weight is None else batch.weight * values


with Communicator(world()) as comm:
    rng = np.random.default_rng(comm.rank)  # each rank has rows of its own
    x = rng.normal(size=(10_000, 3))
    y = rng.poisson(np.exp(x @ [0.5, -0.3, 0.2] + 1.0))
    shard = data.from_local(data.Dataset(x, y), comm)

    model = Poisson(3)
    result = fit(model, shard, comm, optimizer=optim.GradientDescent(lr=0.2, tol=1e-8), epochs=500)

    counted, predicted = comm.sum([y.sum(), model.predict(result.params, x).sum()]) / shard.rows
    if comm.rank == 0:
        print(f"weights {result.params.round(2)} after {result.iterations} steps")
        print(f"mean count {counted:.6f}, predicted {predicted:.6f}")
