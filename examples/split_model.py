"""A model of your own split over ranks, least squares by features: mpiexec -n 2 python examples/split_model.py"""

import numpy as np

from distai_mpi import Communicator, Mesh, data, fit, models, optim, world
from distai_mpi.models.split import Piece, cut_units
from distai_mpi.params import Layout


class LeastSquares:
    """½ (x·weight - y)² of each row, here never computed as a whole: `split` gives the parts that are."""

    def __init__(self, features):
        self.features, self.dtype = features, np.dtype(np.float64)
        self.layout = Layout.of([("weight", (features,), True)])  # name, shape, l2 penalty

    def split(self, rank, shares):
        cuts = cut_units(self.features, shares, "the row")
        return Part(self, slice(cuts[rank], cuts[rank + 1]))


class Part:
    """The weights of some features; every rank has the rows."""

    def __init__(self, whole, own):
        self.whole, self.own, self.dtype, self.target_dtype = whole, own, whole.dtype, whole.dtype
        self.layout = Layout.of([("weight", (own.stop - own.start,), True)])
        self.pieces = (Piece(0, (own,)),)  # where it lies in the whole model's weights

    def join(self, sums):
        self.sums = sums

    def init(self, rng):
        return np.zeros(self.layout.size)

    def predict(self, w, x):
        values = self.sums.partial(0, len(x), 1)
        np.dot(x[:, self.own], w[:, None], out=values)
        return self.sums.sum(values)[:, 0].copy()

    def loss_and_grad(self, w, batch, grad):
        error = self.predict(w, batch.x) - batch.y
        grad[:] = error @ batch.x[:, self.own]
        return models.Sums(0.5 * error @ error, len(error))

    def loss(self, w, batch):
        return self.loss_and_grad(w, batch, np.empty(self.layout.size))


with Communicator(world()) as comm, Mesh(comm, data=1, tensor=comm.size) as mesh:
    rng = np.random.default_rng(0)  # alike on all ranks of the one copy of the model
    x = rng.normal(size=(2_000, 300))
    truth = rng.normal(size=300)
    shard = data.from_local(data.Dataset(x, x @ truth), mesh.data_group)

    result = fit(LeastSquares(300), shard, mesh, optimizer=optim.LBFGS(tol=1e-10))

    mine = slice(*cut_units(300, mesh.parts, "the row")[comm.rank : comm.rank + 2])
    furthest = max(comm.allgather_object(abs(result.params - truth[mine]).max()))
    if comm.rank == 0:
        print(f"{result.params.size} of 300 weights on rank 0, furthest from the truth {furthest:.0e}")
