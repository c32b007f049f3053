"""How many of 400 features a model needs, by a path of l1 penalties: mpiexec -n 2 python examples/penalty_path.py"""

import numpy as np

from distai_mpi import Communicator, data, l1_path, models, world
from distai_mpi.data import Dataset

with Communicator(world()) as comm:
    truth = np.zeros(400)
    truth[:8] = [2, -2, 1.5, -1.5, 1, -1, 0.5, -0.5]  # the other features tell nothing

    def rows_of(seed: int, count: int) -> Dataset:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(count, 400)).astype(np.float32)
        return Dataset(x, (x @ truth + rng.logistic(size=count) > 0).astype(np.int64))

    train = data.from_local(rows_of(comm.rank, 1200 // comm.size), comm)  # each rank has rows of its own
    valid = data.from_local(rows_of(100 + comm.rank, 600 // comm.size), comm)

    points = l1_path(models.Logistic(400), train, comm, n=8, min_ratio=0.02, valid=valid)
    best = min(points, key=lambda point: point.valid_loss)
    if comm.rank == 0:
        for point in points:
            print(f"l1 {point.l1:.4f}  {point.nonzeros:3} weights  validation loss {point.valid_loss:.4f}")
        print(
            f"best: {best.nonzeros} weights, of them {np.count_nonzero(best.params[:8])} of the 8 that tell something"
        )
