"""Clipping and parameter averaging, against the same written out for one process."""

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models, optim
from distai_mpi.comm import Communicator
from distai_mpi.data import Batch, Permutation
from distai_mpi.data.partition import even_range
from distai_mpi.data.streams import stream_key
from distai_mpi.errors import ConfigError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)
EPOCHS, SIZE, SEED, L2 = 2, 32, 5, 0.01


def make_model():
    return models.MLP(6, 3, (8,), dropout=0.3, dtype=np.float64)


def mean_gradient(model, w, batch):
    grad = np.empty_like(w)
    model.loss_and_grad(w, batch, grad)
    grad /= len(batch.y)
    for low, high in model.layout.decay_ranges(0, w.size):
        grad[low:high] += L2 * w[low:high]
    return grad


def clipped(grad, most):
    return grad if most is None else grad * min(1.0, most / np.linalg.norm(grad))


@mpi
@pytest.mark.parametrize("algorithm", ["native", "tree", "auto"])
@pytest.mark.parametrize("most", [0.05, 0.6, 1e9])
def test_clipping_is_by_the_norm_of_the_whole_gradient(comm, algorithm, most):
    x, y = make_rows()
    options = {"epochs": EPOCHS, "global_batch_size": SIZE, "l2": L2, "seed": SEED, "allreduce": algorithm}
    result = fit(make_model(), whole_shard(x, y, comm), comm, optimizer=optim.SGD(0.3), clip_norm=most, **options)
    model = make_model()
    w = model.init(np.random.default_rng(SEED))
    for epoch in range(EPOCHS):
        order = Permutation(len(y), SEED, "shuffle", epoch).positions(0, len(y))
        for first in range(0, len(y), SIZE):
            ids = order[first : first + SIZE]
            batch = Batch(x[ids], y[ids], None, ids, first, True, stream_key(SEED, "epoch", epoch))
            w = w - 0.3 * clipped(mean_gradient(model, w, batch), most)
    np.testing.assert_allclose(result.w, w, rtol=1e-10, atol=1e-11)


def averaged(x, y, counts, method, clip=None):
    """Parameter averaging of ranks that hold ``counts`` rows, in turn in one process."""
    model = make_model()
    w = model.init(np.random.default_rng(SEED))
    ranks, rows = len(counts), sum(counts)
    firsts = np.cumsum([0, *counts])
    local = [w.copy() for _ in counts]
    ranges = model.layout.decay_ranges(0, w.size)
    states = [method.inner.init(v, ranges) for v in local]
    velocity, since = np.zeros_like(w), np.zeros(ranks)
    steps = min(-(-rows // SIZE), max(counts))
    for epoch in range(EPOCHS):
        for step in range(steps):
            for r in range(ranks):
                low, high = even_range(counts[r], steps, step)
                if low == high:
                    continue
                order = Permutation(counts[r], SEED, "shuffle", epoch, r).positions(0, counts[r])
                ids = firsts[r] + order[low:high]
                key = stream_key(SEED, "epoch", epoch)
                batch = Batch(x[ids], y[ids], None, ids, int(firsts[r]) + low, True, key)
                grad = clipped(mean_gradient(model, local[r], batch), clip)
                method.inner.step(local[r], grad, states[r])
                since[r] += high - low
            if (step + 1) % method.sync_every == 0 or step == steps - 1:
                outer = w - sum(n * v for n, v in zip(since, local, strict=True)) / since.sum()
                velocity = method.outer_momentum * velocity + outer
                w = w - method.outer_lr * (outer + method.outer_momentum * velocity)
                local, since = [w.copy() for _ in counts], np.zeros(ranks)
                if not method.keep_state:
                    states = [method.inner.init(v, ranges) for v in local]
    return w


METHODS = [
    optim.LocalSGD(optim.SGD(0.2), sync_every=1),
    optim.LocalSGD(optim.SGD(0.2), sync_every=3),
    optim.LocalSGD(optim.Momentum(0.05), sync_every=4, keep_state=False),
    optim.LocalSGD(optim.AdamW(0.01), sync_every=2),
    optim.LocalSGD(optim.SGD(0.1), sync_every=3, outer_lr=0.7, outer_momentum=0.9),
]


@mpi
@pytest.mark.parametrize("algorithm", ["native", "recursive_doubling", "auto"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.inner.name}-{m.sync_every}-{m.outer_momentum}")
def test_averaging_is_what_its_formula_says_on_uneven_and_empty_shards(comm, algorithm, method):
    x, y = make_rows()
    counts = uneven(len(y), comm.size)
    result = fit(
        make_model(),
        local_shard(x, y, comm, counts),
        comm,
        optimizer=method,
        epochs=EPOCHS,
        global_batch_size=SIZE,
        l2=L2,
        seed=SEED,
        clip_norm=0.8,
        allreduce=algorithm,
    )
    np.testing.assert_allclose(result.w, averaged(x, y, counts, method, 0.8), rtol=1e-10, atol=1e-11)
    assert result.train_loss is not None


@mpi
def test_averaging_on_one_rank_is_its_inner_optimizer():
    from mpi4py import MPI

    x, y = make_rows()
    plain, method = optim.Momentum(0.05), optim.LocalSGD(optim.Momentum(0.05), sync_every=2)
    with Communicator(MPI.COMM_SELF) as alone:
        shard = local_shard(x, y, alone, [len(y)])
        ends = [
            fit(make_model(), shard, alone, optimizer=o, epochs=2, global_batch_size=SIZE).w for o in (plain, method)
        ]
    np.testing.assert_allclose(*ends, rtol=1e-11, atol=1e-12)


@mpi
def test_averaging_exchanges_nothing_between_averages(comm):
    x, y = make_rows()
    rounds = []
    for every in (1, 7):
        method = optim.LocalSGD(optim.SGD(0.1), sync_every=every)
        shard = local_shard(x, y, comm, uneven(len(y), comm.size))
        options = {"epochs": 1, "global_batch_size": SIZE, "allreduce": "native"}
        result = fit(make_model(), shard, comm, optimizer=method, **options)
        rounds.append(result.rounds)
    averages = 7 - 1  # steps of the epoch, and one average
    assert rounds[0] - rounds[1] == (3 * averages if comm.size > 1 else 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.LocalSGD(optim.GradientDescent()),
        lambda: optim.LocalSGD(sync_every=0),
        lambda: optim.LocalSGD(outer_lr=0.0),
        lambda: optim.LocalSGD(outer_momentum=1.5),
    ],
)
def test_values_that_cannot_work(make):
    with pytest.raises(ConfigError):
        make()
