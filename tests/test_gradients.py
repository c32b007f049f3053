"""Training by each way that gradients are exchanged is the same training, on nodes of any sizes."""

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models, optim
from distai_mpi.comm import VectorExchange
from distai_mpi.data import Dataset, whole
from distai_mpi.errors import ConfigError
from distai_mpi.models.dense import DenseModel
from distai_mpi.models.protocols import defined_together
from distai_mpi.train.gradient.factors import FactorGradients

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)
SEED, L2 = 5, 0.01


def make_model(kind=models.MLP):
    return kind(6, 3, (8, 5), dropout=0.3, dtype=np.float64)


def train(comm, shard, *, size, optimizer=None, **options):
    return fit(
        make_model(),
        shard,
        comm,
        optimizer=optimizer or optim.Momentum(0.05),
        epochs=2,
        global_batch_size=size,
        l2=L2,
        seed=SEED,
        **options,
    )


@mpi
@pytest.mark.parametrize("algorithm", ["native", "hierarchical", "auto"])
@pytest.mark.parametrize("size", [1, 5, 32])
def test_factors_train_as_gradients_do(nodes, algorithm, size):
    x, y = make_rows(rows=67)
    shard = whole_shard(x, y, nodes)
    by_gradient = train(nodes, shard, size=size, allreduce="native", factors=False)
    by_factors = train(nodes, shard, size=size, allreduce=algorithm, factors=True)
    np.testing.assert_allclose(by_factors.w, by_gradient.w, rtol=1e-10, atol=1e-12)
    assert by_factors.iterations == by_gradient.iterations


@mpi
@pytest.mark.parametrize("factors", [True, False])
def test_uneven_and_empty_shards(nodes, factors):
    x, y = make_rows(rows=67)
    shard = local_shard(x, y, nodes, uneven(67, nodes.size))
    one = train(nodes, shard, size=12, allreduce="native", factors=False)
    other = train(nodes, shard, size=12, allreduce="hierarchical", factors=factors)
    np.testing.assert_allclose(other.w, one.w, rtol=1e-10, atol=1e-12)


@mpi
@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
@pytest.mark.parametrize("clip", [None, 0.05])
def test_every_optimizer(nodes, name, clip):
    x, y = make_rows(rows=40)
    weighted = whole(Dataset(x, y, weight=np.random.default_rng(2).random(40) + 0.5), nodes.rank, nodes.size)
    runs = [
        train(nodes, weighted, size=8, optimizer=optim.OPTIMIZERS[name](lr=0.01), clip_norm=clip, **options)
        for options in ({"allreduce": "tree"}, {"allreduce": "auto"}, {"factors": name != "gd" or None})
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.w, runs[0].w, rtol=1e-9, atol=1e-11)


@mpi
def test_long_slices_are_updated_part_by_part(nodes, monkeypatch):
    """Parts shorter than the slices, also such that cut matrices' rows: the same as in one piece."""
    import distai_mpi.comm.exchange.node as node
    import distai_mpi.train.gradient.factors as gradients

    x, y = make_rows(rows=40)
    options = {"size": 8, "optimizer": optim.AdamW(0.01), "allreduce": "auto"}
    whole_parts = [train(nodes, whole_shard(x, y, nodes), factors=f, **options).w.copy() for f in (False, True)]
    monkeypatch.setattr(node, "PART_BYTES", 128)
    monkeypatch.setattr(gradients, "PART_BYTES", 128)
    for expected, factors in zip(whole_parts, (False, True), strict=True):
        w = train(nodes, whole_shard(x, y, nodes), factors=factors, **options).w
        np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-14)


@mpi
def test_factors_are_taken_where_they_are_shorter(comm):
    """The net has 6·8 + 8·5 + 5·3 weights and 16 biases, and a row's factors (6 + 8) + (8 + 5) + (5 + 3) numbers."""
    x, y = make_rows(rows=67)
    model = make_model()
    assert (model.layout.size, model.factor_size) == (119, 35)
    taken = []
    for size in (3, 4):
        seen = Watcher()
        fit(model, whole_shard(x, y, comm), comm, epochs=1, global_batch_size=size, callbacks=[seen])
        taken.append(seen.factors)
    assert taken == [True, False]


class Watcher:
    """Sees how a run exchanges gradients."""

    def on_start(self, run):
        self.factors = isinstance(run.training.gradients, FactorGradients)

    def __getattr__(self, name):
        return lambda *args: None


@mpi
def test_what_allows_no_factors_is_named(comm, monkeypatch):
    class Own:
        def __init__(self):
            self.inner = make_model()

        def loss_and_grad(self, w, batch, grad):
            return self.inner.loss_and_grad(w, batch, grad)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    x, y = make_rows(rows=67)
    options = {"epochs": 1, "global_batch_size": 2}
    with pytest.raises(ConfigError, match="no factors"):
        fit(Own(), whole_shard(x, y, comm), comm, factors=True, **options)
    fit(Own(), whole_shard(x, y, comm), comm, **options)
    monkeypatch.setattr("distai_mpi.data.loader.BLOCK_BYTES", 0)
    x, y = make_rows(rows=700)
    with pytest.raises(ConfigError, match=f"{-(-600 // comm.size)} rows a step"):
        fit(make_model(), whole_shard(x, y, comm), comm, factors=True, epochs=1, global_batch_size=600)


@mpi
def test_averaging_exchanges_no_factors(comm):
    x, y = make_rows(rows=67)
    with pytest.raises(ConfigError, match="^factors: local SGD"):
        fit(make_model(), whole_shard(x, y, comm), comm, factors=True, optimizer=optim.LocalSGD())


class First:
    """Looks at what has been called when training starts."""

    def __init__(self, calls):
        self.calls, self.seen = calls, set()

    def on_start(self, run):
        self.seen = set(self.calls)

    def __getattr__(self, name):
        return lambda *args: None


@mpi
@pytest.mark.parametrize("kind", ["whole", "factors", "average"])
def test_an_exchange_is_made_before_the_first_step(nodes, monkeypatch, kind):
    """So that none of the time of steps is that of compiling it."""
    calls = []

    def watch(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: calls.append(name) or function(*args))

    watch(VectorExchange, "reduce")
    watch(DenseModel, "grad_of_factors")  # where it is defined, with all that belongs to it
    x, y = make_rows(rows=67)
    optimizer = optim.LocalSGD() if kind == "average" else None
    first = First(calls)
    factors = kind == "factors" or None if kind == "average" else kind == "factors"
    fit(
        make_model(),
        whole_shard(x, y, nodes),
        nodes,
        epochs=1,
        optimizer=optimizer,
        allreduce="native",
        factors=factors,
        callbacks=[first],
    )
    assert first.seen == {"grad_of_factors" if kind == "factors" else "reduce"}


def test_overriding_the_gradient_hides_the_factors():
    class Changed(models.MLP):
        def loss_and_grad(self, w, batch, grad):
            return super().loss_and_grad(w, batch, grad)

    class Renamed(models.MLP):
        pass

    assert defined_together(make_model(), "loss_and_grad", "loss_and_factors")
    assert defined_together(make_model(Renamed), "loss_and_grad", "loss_and_factors")
    assert not defined_together(make_model(Changed), "loss_and_grad", "loss_and_factors")
    assert not defined_together(object(), "loss_and_grad")


@mpi
def test_an_overridden_step_is_taken(comm):
    """Not the parts of the class that it was inherited from."""

    class Twice(optim.SGD):
        def step(self, w, grad, state, out=None, factor=1.0):
            super().step(w, grad, state, out, 2 * factor)

    x, y = make_rows(rows=40)
    once = train(comm, whole_shard(x, y, comm), size=8, optimizer=optim.SGD(0.1))
    twice = train(comm, whole_shard(x, y, comm), size=8, optimizer=Twice(0.05))
    np.testing.assert_allclose(twice.w, once.w, rtol=1e-12, atol=1e-14)
