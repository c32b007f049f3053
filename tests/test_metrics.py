"""Metrics over ranks against their definitions, row by row; and early stopping by them."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models, optim
from distai_mpi.errors import ConfigError
from distai_mpi.options import METRICS
from distai_mpi.train import Callback, evaluate
from distai_mpi.train.checks import check_metric
from distai_mpi.train.early_stopping import BestParameters, EarlyStopping
from distai_mpi.train.evaluation import make_loader
from distai_mpi.train.metrics import SAMPLES, SAMPLES_A_RANK, _by_score, _shown, auc, errors

mpi = pytest.mark.mpi


def pairs(score, positive, weight):
    """The AUC by its definition: over all pairs of a positive and a negative row."""
    a, b = score[positive], score[~positive]
    won = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    both = weight[positive][:, None] * weight[~positive]
    return (both * won).sum() / both.sum()


def mine(comm, *columns):
    counts = uneven(len(columns[0]), comm.size)
    start = sum(counts[: comm.rank])
    return [column[start : start + counts[comm.rank]] for column in columns]


@mpi
@pytest.mark.parametrize("distinct", [2, 5, 10**6])
@pytest.mark.parametrize("rows", [7, 60, 701])
def test_auc_is_that_of_all_pairs(comm, rows, distinct):
    rng = np.random.default_rng(rows)
    score = rng.integers(-distinct, distinct, rows) / 7.0
    positive = rng.random(rows) < 0.3 + 0.2 * (score > 0)
    positive[:2] = True, False
    weight = rng.integers(0, 4, rows).astype(float)
    weight[:2] = 1
    assert auc(*mine(comm, score, positive, weight), comm) == pytest.approx(pairs(score, positive, weight), rel=1e-13)


@mpi
def test_auc_of_sorted_shards_and_of_one_class(comm):
    score = np.arange(40.0)
    positive = score >= 20
    assert auc(*mine(comm, score, positive, np.ones(40)), comm) == 1.0
    assert auc(*mine(comm, -score, positive, np.ones(40)), comm) == 0.0
    assert auc(*mine(comm, np.zeros(40), positive, np.ones(40)), comm) == 0.5
    assert auc(*mine(comm, score, positive | True, np.ones(40)), comm) is None
    assert auc(*mine(comm, np.where(score == 3, np.nan, score), positive, np.ones(40)), comm) is None
    assert auc(np.empty(0), np.empty(0, bool), np.empty(0), comm) is None


@mpi
@pytest.mark.parametrize("held", ["ranges", "turns", "one"])
def test_scores_are_shared_out_by_their_order(comm, held):
    rows = 20_000
    score = np.sort(np.random.default_rng(3).normal(size=rows))
    own = {
        "ranges": mine(comm, score)[0],
        "turns": np.ascontiguousarray(score[comm.rank :: comm.size]),
        "one": score if comm.rank == 0 else score[:0],
    }[held]
    received = _by_score((own, own + 1, own + 2), comm)
    lengths = comm.allgather_object(received[0].size)
    parts = [np.concatenate(comm.allgather_object(part)) for part in received]
    if held == "turns":  # the only ones that come from several ranks to one
        assert np.array_equal(np.sort(parts[0]), score)
    else:
        assert np.array_equal(parts[0], score)
    assert all(np.array_equal(part, parts[0] + i) for i, part in enumerate(parts))
    assert max(lengths) - min(lengths) <= 0.01 * rows


@pytest.mark.parametrize("ranks", [1, 2, 7, 256, 3000])
def test_few_scores_are_shown_however_many_ranks(ranks):
    score = np.arange(100_000.0)
    most = max(SAMPLES, SAMPLES_A_RANK * ranks)
    shown = _shown(score, ranks * score.size, ranks)
    assert most <= shown.size * ranks < most + ranks
    assert np.ptp(np.diff(shown)) <= 1, "evenly spread"
    assert abs(np.median(shown) - np.median(score)) <= score.size / shown.size
    assert np.array_equal(_shown(score[:5], 5, ranks), score[:5])
    assert _shown(score[:5], 1e9, ranks).size == 1
    assert _shown(score[:0], 0, ranks).size == 0


@mpi
def test_errors_of_values(comm):
    rng = np.random.default_rng(1)
    y = 1e6 + rng.normal(size=200)
    predicted, weight = y + 0.3 * rng.normal(size=200), rng.random(200)
    found = errors(*mine(comm, predicted, y, weight), comm)
    mean = np.average(y, weights=weight)
    assert found["mae"] == pytest.approx(np.average(np.abs(y - predicted), weights=weight), rel=1e-12)
    assert found["rmse"] == pytest.approx(np.average((y - predicted) ** 2, weights=weight) ** 0.5, rel=1e-12)
    expected = 1 - (weight * (y - predicted) ** 2).sum() / (weight * (y - mean) ** 2).sum()
    assert found["r2"] == pytest.approx(expected, rel=1e-9)
    assert errors(*mine(comm, predicted, np.ones(200), weight), comm)["r2"] is None
    assert errors(np.empty(0), np.empty(0), np.empty(0), comm) == {"mae": None, "rmse": None, "r2": None}


@mpi
@pytest.mark.parametrize(
    ("kind", "model", "names"),
    [
        ("value", models.Linear, {"mae", "rmse", "r2"}),
        ("binary", models.Logistic, {"accuracy", "log_loss", "auc"}),
        ("binary", lambda features: models.Softmax(features, 2), {"accuracy", "log_loss", "auc"}),
        ("class", lambda features: models.Softmax(features, 3), {"accuracy", "log_loss"}),
    ],
)
def test_every_metric_that_has_a_meaning(comm, kind, model, names):
    x, y = make_rows(kind=kind)
    shard, model = whole_shard(x, y, comm), model(6)
    w = np.random.default_rng(0).normal(size=model.layout.size).astype(model.dtype)
    found = evaluate(model, w, make_loader(model, shard, comm), comm, every_metric=True)
    assert set(found.metrics) == names <= set(METRICS)
    assert all(value is not None for value in found.metrics.values())
    if "log_loss" in names:
        assert found.metrics["log_loss"] == found.loss
    if "auc" in names:
        outputs = model.outputs(w, x.astype(model.dtype))
        score = np.float64(outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0])
        assert found.metrics["auc"] == pytest.approx(pairs(score, y > 0, np.ones(len(y))), rel=1e-6)


@mpi
@pytest.mark.parametrize(
    ("kind", "model", "names"),
    [
        ("value", models.Linear, ["loss", "mae", "rmse", "r2"]),
        ("class", models.Linear, ["loss", "mae", "rmse", "r2"]),
        ("binary", models.Logistic, ["loss", "accuracy", "log_loss", "auc"]),
        ("binary", lambda features: models.Softmax(features, 2), ["loss", "accuracy", "log_loss", "auc"]),
        ("class", lambda features: models.Softmax(features, 3), ["loss", "accuracy", "log_loss"]),
    ],
)
def test_metrics_without_a_meaning_are_known_before_training(comm, kind, model, names):
    """What is let through gets a value, and nothing else does."""
    x, y = make_rows(kind=kind)
    shard, model = whole_shard(x, y, comm), model(6)
    found = evaluate(
        model, model.init(np.random.default_rng(0)), make_loader(model, shard, comm), comm, every_metric=True
    )
    assert {"loss", *found.metrics} == set(names)
    for metric in METRICS:
        if metric in names:
            check_metric(model, shard, metric)
        else:
            with pytest.raises(ConfigError, match=rf"metric {metric} has no meaning .* choose {' or '.join(names)}"):
                check_metric(model, shard, metric)


@mpi
def test_rows_that_are_all_alike_define_fewer_metrics(comm):
    x, _ = make_rows()
    shard = whole_shard(x, np.ones(len(x), np.int64), comm)
    with pytest.raises(ConfigError, match="labels from 1 to 1: choose loss or accuracy or log_loss"):
        check_metric(models.Logistic(6), shard, "auc")
    with pytest.raises(ConfigError, match="values from 1 to 1: choose loss or mae or rmse"):
        check_metric(models.Linear(6), shard, "r2")


def test_early_stopping_keeps_the_best_and_counts():
    rows = SimpleNamespace(rows=4)
    w = np.zeros(3)
    stopping = BestParameters(EarlyStopping(rows, "auc", 2), w)
    stops = []
    for epoch, value in enumerate([0.6, 0.8, 0.8, 0.7], start=1):
        stopping.look(epoch, value, w + epoch)
        stops.append(stopping.exhausted)
    assert stops == [False, False, False, True]
    assert (stopping.best_epoch, stopping.best.tolist()) == (2, [2.0] * 3)
    patient = BestParameters(EarlyStopping(rows, "loss", None), w)
    patient.look(1, 0.5, w)
    patient.look(2, 0.6, w)
    assert not patient.exhausted
    lost = BestParameters(EarlyStopping(rows, "loss", 3), w)
    for epoch, value in enumerate([float("nan"), 0.5, float("nan"), 0.4], start=1):
        lost.look(epoch, value, w + epoch)
    assert (lost.best_epoch, lost.best.tolist()) == (4, [4.0] * 3)
    with pytest.raises(ConfigError, match="auc"):
        stopping.look(5, None, w)


@mpi
@pytest.mark.parametrize("algorithm", ["native", "tree"])
def test_training_ends_with_the_best_parameters(comm, algorithm):
    """With so large a rate the loss on the validation rows rises after a while."""
    x, y = make_rows(rows=60, kind="binary")
    xv, yv = make_rows(rows=40, kind="binary", seed=1)
    valid = local_shard(xv, yv, comm, uneven(40, comm.size))
    model = models.Logistic(6, dtype=np.float64)
    result = fit(
        model,
        whole_shard(x, y, comm),
        comm,
        valid=valid,
        test=valid,
        patience=3,
        optimizer=optim.SGD(2.0),
        global_batch_size=8,
        epochs=50,
        allreduce=algorithm,
    )
    losses = [record["valid_loss"] for record in result.history]
    assert (result.status, result.stop_reason) == ("completed", "no improvement")
    assert result.epochs == len(losses) == result.best_epoch + 3
    assert result.best_epoch == 1 + int(np.argmin(losses))
    again = evaluate(model, result.w, make_loader(model, valid, comm), comm)
    assert again.loss == result.test_loss == pytest.approx(min(losses), rel=1e-12)


@mpi
def test_the_best_parameters_wait_for_who_reads_the_last(comm):
    """The ranks of a node have the parameters once: a callback of one must not see another write to them."""

    class Reader(Callback):
        torn = False

        def on_epoch(self, run, record):
            if run.comm.rank == 0:
                before = run.w.copy()
                time.sleep(0.05)
                self.torn |= not np.array_equal(run.w, before)

    x, y = make_rows(rows=60, kind="binary")
    shard, reader = whole_shard(x, y, comm), Reader()
    result = fit(
        models.Logistic(6, dtype=np.float64),
        shard,
        comm,
        valid=shard,
        patience=2,
        optimizer=optim.SGD(50.0),
        global_batch_size=8,
        epochs=20,
        allreduce="shared",
        callbacks=[reader],
    )
    assert result.best_epoch < result.epochs
    assert not reader.torn


@mpi
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"metric": "speed", "valid": "x"}, "auc"),
        ({"patience": 0, "valid": "x"}, "patience"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"metric": "r2", "valid": "x"}, "r2"),
    ],
)
def test_values_that_cannot_work(comm, options, word):
    x, y = make_rows(kind="binary")
    shard = whole_shard(x, y, comm)
    if "valid" in options:
        options = options | {"valid": shard}
    with pytest.raises(ConfigError, match=word):
        fit(models.Logistic(6), shard, comm, **options)
