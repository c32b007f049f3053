"""Training what JAX and PyTorch differentiate: on ranks the same as on one, and as our own models."""

import functools

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard
from twins import LIBRARIES, twin

from distai_mpi import Communicator, models, optim
from distai_mpi.comm import ALGORITHMS
from distai_mpi.data import Dataset
from distai_mpi.data.sharded import whole
from distai_mpi.errors import ConfigError, DataError
from distai_mpi.train.checks import check_metric

mpi = pytest.mark.mpi
libraries = pytest.mark.parametrize("library", LIBRARIES)
HALVES = {"global_batch_size": 102}  # two steps of nearly one length: JAX's dropout takes long to compile
SETTINGS = {"epochs": 2, "global_batch_size": 64, "l2": 0.01, "seed": 7}  # 203 rows: the last step is short


def own_model(dtype=np.float64):
    return models.MLP(6, 3, (8,), activation="tanh", dropout=0, dtype=dtype)


@functools.cache  # what JAX has compiled serves all tests
def the_twin(library, dropout=0.0, dtype=np.float64):
    return twin(library, own_model(dtype), dropout)


@pytest.fixture(scope="module")
def alone():
    """A communicator of this rank alone."""
    from mpi4py import MPI

    with Communicator(MPI.COMM_SELF) as communicator:
        yield communicator


@mpi
@libraries
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_training_is_that_of_our_own_model(comm, monkeypatch, library, algorithm, weighted):
    x, y = make_rows()
    weight = np.random.default_rng(1).random(len(y)) if weighted else None
    shard, own = whole(Dataset(x, y, weight=weight), comm.rank, comm.size), own_model()
    model, into = the_twin(library)
    settings = SETTINGS | {"optimizer": optim.Momentum(0.2), "allreduce": algorithm, "test": shard}
    start = own.init(np.random.default_rng(0))  # as the twin
    monkeypatch.setattr(own, "init", lambda rng: start)
    expected, result = fit(own, shard, comm, **settings), fit(model, shard, comm, **settings)
    np.testing.assert_allclose(result.w, into(expected.w), rtol=1e-9, atol=1e-10)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-10)
    assert (result.test_loss, result.test_accuracy) == pytest.approx((expected.test_loss, expected.test_accuracy))


@mpi
@libraries
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_training_on_ranks_is_training_on_one(comm, alone, library, name):
    x, y = make_rows()
    # PyTorch's own dropout depends on the number of ranks; one optimizer is enough to compile JAX's for
    dropout = 0.3 if (library, name) == ("jax", "momentum") else 0.0
    settings = SETTINGS | HALVES if dropout else SETTINGS
    results = [
        fit(
            the_twin(library, dropout).model,
            whole_shard(x, y, group),
            group,
            optimizer=optim.OPTIMIZERS[name](0.05),
            **settings,
        )
        for group in (comm, alone)
    ]
    np.testing.assert_allclose(results[0].w, results[1].w, rtol=1e-8, atol=1e-9)


@mpi
@libraries
def test_dropout_can_be_repeated_and_shards_may_be_empty(comm, library):
    x, y = make_rows()
    shard = local_shard(x, y, comm, uneven(len(y), comm.size))
    runs = [fit(the_twin(library, 0.3, np.float32).model, shard, comm, **(SETTINGS | HALVES)) for _ in range(2)]
    assert (runs[0].w == runs[1].w).all()
    assert runs[0].status == "completed"
    weights = comm.allgather_object(runs[0].w)
    assert all((w == weights[0]).all() for w in weights)


@mpi
@libraries
@pytest.mark.parametrize("algorithm", ["native", "tree"])
def test_training_starts_from_rank_0_where_ranks_were_built_differently(comm, monkeypatch, library, algorithm):
    x, y = make_rows()
    model, shard = the_twin(library).model, whole_shard(x, y, comm)
    same = fit(model, shard, comm, allreduce=algorithm, **SETTINGS).w
    start = model.init(None)
    monkeypatch.setattr(model, "init", lambda rng: start + comm.rank)
    np.testing.assert_array_equal(fit(model, shard, comm, allreduce=algorithm, **SETTINGS).w, same)


@mpi
@libraries
def test_what_cannot_work_is_refused_on_all_ranks(comm, library):
    x, y = make_rows()
    shard = whole_shard(x, y, comm)
    narrow = twin(library, models.Softmax(5, 3)).model
    with pytest.raises(DataError, match="data, training rows: the loss cannot take rows of 6 features"):
        fit(narrow, shard, comm)
    if library == "jax":
        summed = models.from_jax(lambda w, x, y: (x @ w).sum(), np.ones(6))
    else:
        import torch

        summed = models.from_torch(torch.nn.Linear(6, 3), torch.nn.CrossEntropyLoss())
    with pytest.raises(ConfigError, match="loss of each row"):
        fit(summed, shard, comm)


@mpi
@libraries
@pytest.mark.parametrize("kind", ["binary", "value"])
def test_accuracy_is_none_where_a_model_cannot_tell(comm, library, kind):
    x, y = make_rows(kind=kind)
    if library == "jax":
        model = models.from_jax(lambda w, x, y: (x @ w - y) ** 2, np.zeros(6))
    else:
        import torch

        model = models.from_torch(torch.nn.Linear(6, 1), lambda outputs, y: (outputs[:, 0] - y) ** 2)
    shard = whole_shard(x, y, comm)
    result = fit(model, shard, comm, test=shard, optimizer=optim.SGD(0.05), epochs=2)
    with pytest.raises(ConfigError, match="metric accuracy has no meaning"):
        check_metric(model, shard, "accuracy")
    for metric in ("loss", *result.metrics):
        check_metric(model, shard, metric)
    assert result.test_accuracy is None
    assert set(result.metrics) == ({"mae", "rmse", "r2"} if (library, kind) == ("torch", "value") else set())
    assert result.test_loss == pytest.approx(result.train_loss, rel=1e-5)


@libraries
def test_ranks_share_the_cores(mpirun, library):
    """Two ranks without any setting of the user's."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    program = (
        "import os, sys; sys.path.insert(0, 'tests')\n"
        "from distai_mpi import Communicator, fit, models, world\n"
        "from distai_mpi.perf.machine import physical_cores\n"
        "from problems import make_rows, whole_shard\n"
        "from twins import twin\n"
        "with Communicator(world()) as comm:\n"
        f"    model = twin({library!r}, models.Softmax(6, 3)).model\n"
        "    told = []\n"
        "    limit, model.limit_threads = model.limit_threads, lambda n: (told.append(n), limit(n))\n"
        "    fit(model, whole_shard(*make_rows(), comm), comm, epochs=1)\n"
        "    if 'torch' in sys.modules:\n"
        "        assert told == [sys.modules['torch'].get_num_threads()]\n"
        "    assert len(told) == 1 and (told == [1] or 2 * told[0] <= physical_cores())\n"
        "    print('shared', flush=True)\n"
    )
    done = mpirun(2, "-c", program, env=dict.fromkeys(names), timeout=100)
    assert (done.returncode, done.stdout.count("shared")) == (0, 2), done.stderr
