"""Pipelines of stages: the same training as one rank's, to rounding, and cuts that are the best of all."""

import itertools
import json

import numpy as np
import pytest
import scipy.sparse
from commands import run_here
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import Mesh, Pipeline, models, optim
from distai_mpi.data import Batch, Dataset, whole
from distai_mpi.errors import ConfigError
from distai_mpi.models.blas import add_t_dot
from distai_mpi.models.pipeline import one_forward_one_backward
from distai_mpi.models.split import COLUMN, ROW, choose_kinds
from distai_mpi.perf.laws import pipeline_latency, pipeline_seconds
from distai_mpi.perf.stage_cuts import StageMemory, all_cuts, choose_cuts, seconds_of, stage_times
from distai_mpi.train import Callback, TrainState, stages
from distai_mpi.train.parts import whole_params

mpi = pytest.mark.mpi
METHODS = {
    "adam": optim.Adam(0.01, clip_norm=0.5),
    "momentum": optim.Momentum(0.1),
    "average": optim.LocalSGD(optim.Momentum(0.1), sync_every=2),
    "lbfgs": optim.LBFGS(max_iter=4, tol=None),
}
CASES = [  # method; copies, stages and parts; loss; whether activations are recomputed
    ("adam", (1, 2, 1), "softmax", True),
    ("lbfgs", (1, 2, 1), "softmax", False),
    ("momentum", (1, 3, 1), "squared", True),
    ("adam", (2, 2, 1), "softmax", False),
    ("average", (2, 2, 1), "softmax", True),
    ("momentum", (1, 2, 2), "squared", False),
    ("adam", (1, 2, 2), "softmax", True),
    ("lbfgs", (1, 4, 1), "softmax", False),
]


@mpi
@pytest.mark.parametrize(
    ("name", "shape", "loss", "recompute"),
    [pytest.param(*case, marks=pytest.mark.ranks(int(np.prod(case[1])))) for case in CASES],
)
def test_a_model_in_stages_trains_as_a_whole_one(comm, name, shape, loss, recompute):
    x, y = make_rows(rows=61, kind="value" if loss == "squared" else "class")
    options = {"optimizer": METHODS[name], "l2": 0.01, "seed": 3}
    if name != "lbfgs":
        options |= {"epochs": 2, "global_batch_size": 16}
    dropout, outputs = 0.0 if name == "lbfgs" else 0.3, 1 if loss == "squared" else 3
    model = models.MLP(6, outputs, (8, 9, 7), dropout=dropout, dtype=np.float64, activation="tanh", loss=loss)
    data, stage, tensor = shape
    with Mesh(comm, data=data, stage=stage, tensor=tensor, pipeline=Pipeline(3, recompute)) as mesh:
        group = mesh.data_group
        shard, test = whole_shard(x, y, group), whole_shard(x[:5], y[:5], group)
        if name == "adam":  # with weights, and of two copies the first has no rows
            shard = local_shard(x, y, group, uneven(61, group.size), 1.0 + np.arange(61) % 3)
        alone = fit(model, shard, group, test=test, valid=test, **options)
        split = fit(model, shard, mesh, test=test, valid=test, **options)
        found = whole_params(model, split.params, mesh)
        held = comm.allgather_object(split.params.size)
    assert sum(held) == data * alone.params.size
    assert split.train_loss == pytest.approx(alone.train_loss, rel=1e-9)
    assert split.test_loss == pytest.approx(alone.test_loss, rel=1e-9)
    assert (split.test_accuracy, split.best_epoch) == (alone.test_accuracy, alone.best_epoch)
    assert split.metrics == pytest.approx(alone.metrics, rel=1e-9)
    told = split.pipeline
    assert (told["stages"], told["micro_batches"], told["recompute"]) == (stage, 3, recompute)
    assert told["latency"] == pytest.approx(stage * max(told["stage_seconds"]))
    assert told["step_seconds"] == pytest.approx((3 + stage - 1) * max(told["stage_seconds"]))
    assert 0 < told["measured_latency"] <= told["measured_step_seconds"]
    if comm.rank == 0:
        np.testing.assert_allclose(found, alone.params, rtol=1e-8, atol=1e-10)


class KeepState(Callback):
    """Keeps the state of a run after its first epoch."""

    state = None

    def on_epoch(self, run, record):
        if run.epoch == 1:
            self.state = TrainState.of(run)


@mpi
@pytest.mark.ranks(2)
def test_passes_of_few_rows_sparse_rows_and_given_cuts(comm):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 6)) * (rng.random((12, 6)) < 0.2)
    y = rng.integers(0, 3, 12)
    model = models.MLP(6, 3, (5, 4), dtype=np.float64, activation="relu", dropout=0.0)
    w = model.init(np.random.default_rng(1))
    expected = np.empty_like(w)
    with Mesh(comm, stage=2, pipeline=Pipeline(4, cuts=(1,))) as mesh:
        part = stages.pipelined(model, mesh, (1.0,), 4, None)
        own = part.init(np.random.default_rng(1))
        grad = np.full_like(own, np.nan)
        for rows in (12, 3, 1, 0):
            weight = np.linspace(0, 2, rows)
            batch = Batch(x[:rows], y[:rows], weight, np.arange(rows), 7, train=True)
            sums = model.loss_and_grad(w, batch, expected)
            np.testing.assert_allclose(part.loss_and_grad(own, batch, grad), sums, rtol=1e-12)
            whole_grad = whole_params(model, grad, mesh)
            if comm.rank == 0:
                np.testing.assert_allclose(whole_grad, expected, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(part.loss(own, batch), model.loss(w, batch), rtol=1e-12)
            assert part.score(own, batch)[1] == model.score(w, batch)[1]
            np.testing.assert_allclose(part.outputs(own, x[:rows]), model.outputs(w, x[:rows]), rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(part.predict(own, x[:rows]), model.predict(w, x[:rows]))
        shard = whole(Dataset(scipy.sparse.csr_array(x), y), 0, 1)
        keep, options = KeepState(), {"epochs": 2, "global_batch_size": 5, "l2": 0.1}
        sparse = fit(model, shard, mesh, callbacks=[keep], **options)
        alone = fit(model, shard, mesh.data_group, **options)
        continued = fit(model, shard, mesh.data_group, start=keep.state, **options)  # without stages
        np.testing.assert_allclose(continued.params, alone.params, rtol=1e-9, atol=1e-12)
        assert sparse.train_loss == pytest.approx(alone.train_loss, rel=1e-9)
        with Mesh(comm, tensor=2) as parts:
            assert fit(model, shard, parts, **options).train_loss == pytest.approx(alone.train_loss, rel=1e-9)
        assert sparse.pipeline["cuts"] == [1]


def test_the_order_of_passes_keeps_few_micro_batches_in_flight():
    for stages_, micro_batches in itertools.product((1, 2, 4), (1, 2, 3, 7)):
        for stage in range(stages_):
            order = list(one_forward_one_backward(stage, stages_, micro_batches))
            for forward in (True, False):
                assert [number for way, number in order if way == forward] == list(range(micro_batches))
            in_flight = np.cumsum([1 if forward else -1 for forward, _ in order])
            assert (in_flight.max(), in_flight[-1]) == (min(stages_ - stage, micro_batches), 0)


def test_the_slowest_stage_is_as_short_as_under_the_best_of_all_cuts():
    rng = np.random.default_rng(5)
    for layers, number in ((1, 1), (5, 1), (5, 5), (8, 4), (9, 3)):
        for _ in range(20):
            times = stage_times(rng.integers(0, 9, layers), rng.choice([0.5, 1, 3], number))
            limits = rng.choice([4.0, 8.0, 20.0], number)
            memory = StageMemory(np.ones(layers), np.ones(layers), np.ones(layers), limits, 2, bool(rng.integers(2)))
            for within in (None, memory):
                fits = [
                    cuts
                    for cuts in all_cuts(layers, number)
                    if within is None
                    or all(
                        within.need(stage, *bounds) <= limits[stage]
                        for stage, bounds in enumerate(itertools.pairwise((0, *cuts, layers)))
                    )
                ]
                if not fits:
                    with pytest.raises(ConfigError, match="choose (stage|tensor)="):
                        choose_cuts(times, within)
                    continue
                found = choose_cuts(times, within)
                assert found in fits
                best = min((max(seconds_of(times, cuts)), sum(seconds_of(times, cuts))) for cuts in fits)
                assert (max(seconds_of(times, found)), sum(seconds_of(times, found))) == pytest.approx(best)
    memory = StageMemory([10.0, 20.0, 30.0], [1.0, 2.0, 4.0], [9.0, 8.0, 7.0], [1e9] * 3, micro_batches=2)
    assert memory.need(0, 0, 2) == 30 + 2 * 3  # two micro-batches are on their way
    assert memory.need(1, 1, 3) == 50 + 2 * (6 + 8)
    assert memory.need(2, 2, 3) == 30 + 4 + 7
    assert (pipeline_latency(4, 0.5), pipeline_seconds(4, 16, 0.5)) == (2.0, 9.5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: choose_cuts([[1.0, 1.0]] * 3), "stage=3, but the model has 2 layers.*choose stage=2 or less"),
        (lambda: stage_times([1, 1], [1, 0]), "speed of stage 1 must be a number above 0, got 0"),
        (lambda: stage_times([1, -1], [1, 1]), "cost of layer 2"),
        (lambda: stage_times([1], [float("nan")]), "got nan"),
        (
            lambda: choose_cuts([[1.0] * 3] * 2, StageMemory([1e6, 9e9, 1e6], [0] * 3, [0] * 3, [2e9] * 2, 4)),
            "layer 2 of 3 needs 9.0 GB on a rank.*none has more than 2.0 GB left: choose tensor=5",
        ),
        (
            lambda: choose_cuts([[1.0] * 3] * 2, StageMemory([1.0] * 3, [9e9] * 3, [0] * 3, [2e9] * 2, 4)),
            "choose more micro-batches",
        ),
        (
            lambda: choose_cuts([[1.0] * 4] * 2, StageMemory([2e6] * 4, [0] * 4, [0] * 4, [2e6] * 2, 4)),
            "no 2 stages of 4 layers fit into 2.0 MB to 2.0 MB on a rank: choose stage=4",
        ),
        (lambda: Pipeline(micro_batches=0), "micro_batches of Pipeline must be a whole number from 1 up, got 0"),
        (lambda: Pipeline(cuts=(2, 2)), "cuts must be ascending"),
        (lambda: Pipeline(cuts=(0, 1)), "cuts must be ascending"),
        (lambda: Pipeline(cuts=2), "cuts must be ascending numbers of layers from 1 up, got 2"),
    ],
)
def test_what_cannot_be_cut_is_refused(call, told):
    with pytest.raises(ConfigError, match=told):
        call()


def test_parts_of_a_stage_exchange_the_fewest_numbers():
    assert choose_kinds((512, 512), False, given=True) == [ROW]  # a loss of whole outputs
    assert choose_kinds((512, 512), False, given=True, passed_on=True) in ([COLUMN], [ROW])  # 3 u either way
    assert choose_kinds((784, 512, 512), False, passed_on=True) == [COLUMN, ROW]
    assert choose_kinds((64, 4096), False, given=True, passed_on=True) == [COLUMN]
    assert choose_kinds((4096, 64), False, given=True, passed_on=True) == [ROW]


@mpi
@pytest.mark.ranks(2)
def test_stages_that_cannot_be_had_are_refused_on_all_ranks(comm, monkeypatch):
    x, y = make_rows(rows=20)
    shard = whole(Dataset(x, y), 0, 1)
    for model, pipeline, told in (
        (models.Softmax(6, 3), None, "Softmax cannot be cut into stages"),
        (models.MLP(6, 3, (8,)), Pipeline(cuts=(2,)), "cuts 2: 2 stages of 2 layers need 1 number from 1 to 1"),
        (models.MLP(6, 3, (8, 8)), Pipeline(cuts=(1, 2)), "2 stages of 3 layers need 1 number from 1 to 2"),
    ):
        with Mesh(comm, stage=2, pipeline=pipeline) as mesh, pytest.raises(ConfigError, match=told):
            fit(model, shard, mesh)
    with pytest.raises(ConfigError, match="meshes differ: rank 0 has .*=4.*, rank 1 has .*micro_batches=5"):
        Mesh(comm, stage=2, pipeline=Pipeline(4 + comm.rank))
    with pytest.raises(ConfigError, match="layer 2 of 3 has 1 unit, too few for 2 parts"):
        models.MLP(6, 3, (8, 1)).stage(1, 2, 0, (1.0, 1.0))
    with Mesh(comm, stage=2) as mesh:
        monkeypatch.setattr(stages, "memory_left", lambda: 12_000)  # of both ranks
        with pytest.raises(ConfigError, match="layer 2 of 3 needs .* on a rank.*choose tensor=3"):
            fit(models.MLP(6, 3, (8, 64)), shard, mesh)


def test_products_are_added_where_the_sum_lies():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x, v = rng.normal(size=(7, 5)).astype(dtype), rng.normal(size=(7, 3)).astype(dtype)
        flat = np.ones(20, dtype)
        add_t_dot(x, v, flat[2:17].reshape(5, 3))
        np.testing.assert_allclose(flat[2:17].reshape(5, 3), 1 + x.T @ v, rtol=1e-5)
        assert (flat[:2] == 1).all()
        assert (flat[17:] == 1).all()


def test_bench_pipeline_compares_with_all_cuts(tmp_path):
    words = ["bench", "pipeline", "--stages", 2, "--layers", 3, "--micro-batches", 2, "--delay", 0.1, "--repeats", 1]
    done = run_here(*words, "--json", "report.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(tuple(one["cuts"]) for one in report["tried"]) == [(1,), (2,)]
    assert report["planted_cuts"] == [2]  # 1 + 3 and 3 × 2
    assert report["chosen_to_best"] == pytest.approx(report["chosen_seconds"] / report["best_seconds"])
    assert report["chosen_to_best"] >= 1
    told = report["chosen"]["pipeline"]
    assert told["latency"] == pytest.approx(2 * max(told["stage_seconds"]))
    assert "n · d" in done.stdout
    assert "stages need a layer each" in run_here("bench", "pipeline", "--layers", 3).stderr
