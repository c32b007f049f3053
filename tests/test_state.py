"""A run's state in memory: it goes on to the same bits, and on fewer ranks to the same numbers."""

import numpy as np
import pytest
from problems import make_rows, whole_shard

from distai_mpi import EarlyStopping, Exchange, fit, models, optim
from distai_mpi.errors import ConfigError
from distai_mpi.train import Callback, TrainState

mpi = pytest.mark.mpi
METHODS = {
    "adam": optim.Adam(0.01, schedule=optim.Cosine(final_factor=0.1), clip_norm=1.0),
    "ftrl": optim.FTRL(0.1, l1=0.2, l2=0.1, schedule=optim.Cosine(final_factor=0.1), clip_norm=1.0),
    "lbfgs": optim.LBFGS(max_iter=6, tol=None),
    "newton-cg": optim.NewtonCG(max_iter=6, tol=None),
}


class Keep(Callback):
    """Keeps the state after two epochs."""

    state = None

    def on_epoch(self, run, record):
        if run.epoch == 2:
            self.state = TrainState.of(run)


@mpi
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_on_the_same_ranks_and_on_one(comm, name):
    x, y = make_rows()
    model, method = models.MLP(6, 3, (5,), dropout=0.2, dtype=np.float64), METHODS[name]
    first_order = name in ("adam", "ftrl")
    if not first_order:
        model = models.Softmax(6, 3, dtype=np.float64)
    shard = whole_shard(x, y, comm)
    options = {"optimizer": method, "l2": 0.01, "seed": 3} | ({"epochs": 6} if first_order else {})
    keep = Keep()
    straight = fit(model, shard, comm, callbacks=[keep, EarlyStopping(shard)], **options)
    assert keep.state.saved.common["epoch"] == 2
    again = fit(model, shard, comm, callbacks=[EarlyStopping(shard)], start=keep.state, **options)
    assert again.iterations == straight.iterations
    assert [record["epoch"] for record in again.history] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(again.params, straight.params)
    part = comm.part([0])
    if part is not None:
        with part:
            alone = whole_shard(x, y, part)
            fewer = fit(model, alone, part, callbacks=[EarlyStopping(alone)], start=keep.state, **options)
        np.testing.assert_allclose(fewer.params, straight.params, rtol=1e-6, atol=1e-8)
    comm.barrier()


@mpi
@pytest.mark.ranks(1, 2)
def test_the_state_of_another_run_is_refused(comm):
    x, y = make_rows()
    shard, keep = whole_shard(x, y, comm), Keep()
    fit(models.Softmax(6, 3), shard, comm, epochs=2, callbacks=[keep])
    with pytest.raises(ConfigError, match="seed 0, not 1"):
        fit(models.Softmax(6, 3), shard, comm, epochs=3, seed=1, start=keep.state)


@mpi
@pytest.mark.ranks(1, 2, 3)
def test_newton_cg_on_slices_goes_on_to_the_same_bits(comm):
    x, y = make_rows()
    shard, model = whole_shard(x, y, comm), models.Softmax(6, 3, dtype=np.float64)
    options = {"optimizer": optim.NewtonCG(max_iter=6, tol=None), "l2": 0.01, "exchange": Exchange("ring")}
    keep = Keep()
    straight = fit(model, shard, comm, callbacks=[keep], **options)
    again = fit(model, shard, comm, start=keep.state, **options)
    assert keep.state.saved.common["epoch"] == 2
    assert [record["relative_gap"] for record in again.history] == [r["relative_gap"] for r in straight.history]
    np.testing.assert_array_equal(again.params, straight.params)
