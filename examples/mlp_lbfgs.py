"""L-BFGS on an MLP, our own, JAX's or PyTorch's: mpiexec -n 2 python examples/mlp_lbfgs.py [own|jax|torch]"""

import sys

from distai_mpi import Communicator, data, fit, models, optim, world


def own():
    return models.MLP(784, 10, hidden=(32,), activation="tanh", dropout=0)


def by_jax():
    import jax
    import jax.numpy as jnp
    import numpy as np

    def scores(params, x):
        return jnp.tanh(x @ params[0] + params[1]) @ params[2] + params[3]

    def loss(params, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(scores(params, x)), y[:, None], axis=1)[:, 0]

    rng = np.random.default_rng(0)
    params = [rng.normal(0, 784**-0.5, (784, 32)), np.zeros(32), rng.normal(0, 0.1, (32, 10)), np.zeros(10)]
    return models.from_jax(loss, params, predict=scores)


def by_torch():
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))
    return models.from_torch(module, nn.CrossEntropyLoss(reduction="none"))


build = {"own": own, "jax": by_jax, "torch": by_torch}.get((sys.argv[1:] or ["own"])[0]) or sys.exit(__doc__)

with Communicator(world()) as comm:
    train, test = data.load("mnist", comm)
    model = build()

    result = fit(model, train, comm, test=test, optimizer=optim.LBFGS(memory=10, max_iter=20), l2=1e-4)
    if comm.rank == 0:
        print(f"accuracy {100 * result.test_accuracy:.2f} % after {result.iterations} iterations")
        print(f"loss {result.train_loss:.4f} after {result.evaluations} gradients, {result.seconds:.2f} s")
