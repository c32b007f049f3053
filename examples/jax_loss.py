"""Train what JAX differentiates, on all ranks: mpiexec -n 2 python examples/jax_loss.py"""

import jax
import jax.numpy as jnp
import numpy as np

from distai_mpi import Communicator, data, fit, models, optim, world


def scores(params, x, key=None):
    hidden = jax.nn.gelu(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
    if key is not None:  # one key a row, the same for any number of ranks
        hidden *= jax.vmap(lambda row: jax.random.bernoulli(row, 0.8, (128,)))(key) / 0.8
    return hidden @ params["out"]["weight"] + params["out"]["bias"]


def loss(params, x, y, key):
    return -jnp.take_along_axis(jax.nn.log_softmax(scores(params, x, key)), y[:, None], axis=1)[:, 0]


def layer(rng, inputs, outputs):
    return {"weight": rng.normal(0, inputs**-0.5, (inputs, outputs)), "bias": np.zeros(outputs)}


with Communicator(world()) as comm:
    train, test = data.load("mnist", comm)
    rng = np.random.default_rng(0)
    params = {"hidden": layer(rng, 784, 128), "out": layer(rng, 128, 10)}

    model = models.from_jax(loss, params, predict=scores)
    result = fit(model, train, comm, test=test, optimizer=optim.Adam(), epochs=2)
    if comm.rank == 0:
        print(f"accuracy {100 * result.test_accuracy:.2f} % at {result.samples_per_second:,.0f} samples/s")
