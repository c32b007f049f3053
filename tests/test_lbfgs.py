"""L-BFGS: its direction against the textbook's recursion, its searches, and optima that do not depend on the ranks."""

import json
import math

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard

from distai_mpi import models, optim
from distai_mpi.errors import ConfigError
from distai_mpi.optim.solvers.decrement import Decrement
from distai_mpi.optim.solvers.history import ShardedHistory
from distai_mpi.optim.solvers.line_search import Point
from distai_mpi.optim.solvers.preconditioner import Diagonal

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)


def two_loops(pairs, grad, diagonal):
    """Nocedal & Wright 2006, algorithm 7.4, from the inverse of ``diagonal`` times a factor."""
    q, alphas = grad.copy(), []
    for s, y in reversed(pairs):
        alphas.append(s @ q / (s @ y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= s @ y / (y @ (y / diagonal))
    q /= diagonal
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += s * (alpha - y @ q / (s @ y))
    return -q


@pytest.mark.parametrize("size", [1, 7, 50_000])
@pytest.mark.parametrize(("memory", "preconditioned"), [(1, False), (3, False), (3, True), (10, False), (10, True)])
def test_directions_are_those_of_the_two_loops(memory, preconditioned, size):
    rng = np.random.default_rng(size)
    scales = rng.random(size) + 0.1
    diagonal = rng.random(size) + 0.01 if preconditioned else np.ones(size)
    metric = Diagonal(diagonal) if preconditioned else None
    history, pairs, grad = ShardedHistory(memory, size, np.float64, metric), [], rng.standard_normal(size)
    direction = np.empty(size)
    for turn in range(2 * memory + 3):
        slope = history.direction(grad, grad @ (grad / diagonal), direction)
        expected = two_loops(pairs, grad, diagonal)
        np.testing.assert_allclose(direction, expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())
        assert slope == pytest.approx(grad @ expected, rel=1e-8)
        t, way = 0.1 + rng.random(), rng.standard_normal(size)
        after = grad + scales * t * way
        totals = history.propose(t, way, after, grad)
        assert totals[0] == pytest.approx(t * (way @ after), rel=1e-9, abs=1e-9 * size)
        if turn % 4 == 3:  # a pair of no use is dropped, and nothing else
            history.propose(t, way, grad, grad)
            assert not history.accept(history.propose(t, way, grad - scales * way, grad), 1e-8)
            history.propose(t, way, after, grad)
        assert history.accept(history.propose(t, way, after, grad), 1e-8)
        pairs = [*pairs, (t * way, after - grad)][-memory:]
        grad = after
    again = ShardedHistory(memory, size, np.float64, metric)
    again.steps[:], again.changes[:] = history.steps, history.changes
    again.slots.update(history.slots)
    again.load(again.products(grad))
    other = np.empty(size)
    again.direction(grad, grad @ grad, other)
    history.direction(grad, grad @ grad, direction)
    np.testing.assert_allclose(other, direction, rtol=1e-9, atol=1e-12 * np.abs(direction).max())
    history.reset()
    history.direction(grad, grad @ grad, direction)
    np.testing.assert_allclose(direction, -grad / diagonal, rtol=1e-15)


def test_the_gap_follows_from_values_that_fall_geometrically():
    values = [3.0 + 2.0 * 0.8**k for k in range(30)]
    for count in (11, 20, 30):
        gap = 0.5 * Decrement.square_by_values(values[:count])
        assert gap == pytest.approx(values[count - 1] - 3.0, rel=1e-9)
    assert Decrement.square_by_values(values[:10]) == 0  # too few tell nothing
    assert Decrement.square_by_values([1.0] * 11) == 0
    assert Decrement.square_by_values([5.0] * 6 + [4.0] * 5) == 2 * 1.0 * 0.99 / (1 - 0.99)  # falls that grow


CURVES = {  # φ, φ', and where a first step is tried
    "parabola": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), 0.1),
    "too long": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), 300.0),
    "far too short": (lambda t: (t - 1000) ** 2, lambda t: 2 * (t - 1000), 1.0),
    "moré and thuente 1": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2, 0.001),
    "wall": (lambda t: math.inf if t > 1 else (t - 0.9) ** 2, lambda t: math.nan if t > 1 else 2 * (t - 0.9), 50.0),
    "waves": (lambda t: -t + math.sin(3 * t), lambda t: -1 + 3 * math.cos(3 * t), 2.5),
    "exponential": (lambda t: math.exp(t) - 5 * t, lambda t: math.exp(t) - 5, 20.0),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("search", [optim.StrongWolfe(), optim.StrongWolfe(1e-3, 0.1), optim.Armijo()], ids=str)
def test_searches_meet_their_conditions(search, name):
    value, slope, first = CURVES[name]
    if slope(0) >= 0:  # these waves begin uphill: turn them round
        value, slope = (lambda t, f=value: -f(t)), (lambda t, g=slope: -g(t))
    seen = []

    def evaluate(t):
        seen.append(t)
        return value(t), slope(t)

    found = search.find(evaluate, Point(0.0, value(0), slope(0)), first, 1e-15)
    assert found.good
    assert found.last
    assert found.evaluations == len(seen)
    t = found.point.t
    assert seen[-1] == t > 0
    assert value(t) <= value(0) + search.decrease * t * slope(0)
    if isinstance(search, optim.StrongWolfe):
        assert abs(slope(t)) <= search.curvature * abs(slope(0))


def test_a_search_ends_at_the_edge_of_what_is_defined():
    def slope(t):
        return (-4.0 * t, -4.0) if t <= 5 else (math.inf, math.nan)

    found = optim.StrongWolfe().find(slope, Point(0.0, 0.0, -4.0), 0.5, 1e-15)
    assert found.point.t == 5.0
    assert not found.good


def test_pairs_whose_products_vanish_are_not_kept():
    history = ShardedHistory(3, 4, np.float32)
    small = np.full(4, 1e-23, np.float32)  # squares are 0 in its dtype, products with the step are not
    assert history.products(small).size == 0
    told = history.propose(1.0, np.ones(4, np.float32), small, np.zeros(4, np.float32))
    assert not history.accept(told, 1e-8)
    assert history.slots["count"] == 0


@pytest.mark.parametrize("search", [optim.StrongWolfe(), optim.Armijo()], ids=lambda one: type(one).__name__)
def test_where_values_are_rounding_slopes_decide(search):
    found = search.find(lambda t: (1 + 1e-17 * (t - 1) ** 2, 2e-17 * (t - 1)), Point(0.0, 1.0, -2e-17), 1.0, 1e-15)
    assert found.good
    assert found.point.t == 1.0


@pytest.mark.parametrize(
    "search", [optim.StrongWolfe(most=6), optim.Armijo(most=6)], ids=lambda one: type(one).__name__
)
def test_searches_end_where_nothing_is_better(search):
    found = search.find(lambda t: (1 + t, -1.0), Point(0.0, 1.0, -1.0), 1.0, 1e-15)  # slopes that lie
    assert not found.good
    assert found.point.t == 0
    assert found.evaluations == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.StrongWolfe(0.5, 0.1),
        lambda: optim.StrongWolfe(most=0),
        lambda: optim.Armijo(1.5),
        lambda: optim.Armijo(most=0),
        lambda: optim.LBFGS(0),
    ],
)
def test_settings_that_cannot_work(make):
    with pytest.raises(ConfigError):
        make()


KINDS = {
    "linear": lambda dtype: models.Linear(6, dtype=dtype),
    "softmax": lambda dtype: models.Softmax(6, 3, dtype=dtype),
    "mlp": lambda dtype: models.MLP(6, 3, (5,), activation="tanh", dtype=dtype),
}


def minimise(comm, shard, kind, dtype=np.float64, **options):
    options = {"epochs": 200, "tol": 1e-9, "l2": 0.01, "seed": 3} | options
    return fit(KINDS[kind](dtype), shard, comm, optimizer=options.pop("optimizer", optim.LBFGS()), **options)


@mpi
@pytest.mark.parametrize("algorithm", ["native", "tree", "hierarchical"])
@pytest.mark.parametrize("kind", KINDS)
def test_optima_are_those_of_one_rank(comm, kind, algorithm):
    x, y = make_rows(rows=90)
    shard = whole_shard(x, y, comm)
    result = minimise(comm, shard, kind, allreduce=algorithm, tol=1e-5 if kind == "mlp" else 1e-9)
    assert result.converged
    assert result.stop_reason == "tolerance"
    part = comm.part([0])
    if part is not None:
        with part:
            alone = minimise(part, whole_shard(x, y, part), kind)
        if kind != "mlp":  # whose optima are many
            np.testing.assert_allclose(result.w, alone.w, rtol=1e-7, atol=1e-8)
    comm.barrier_asleep()
    assert len(set(comm.allgather_object(result.w.tobytes()))) == 1
    assert result.history[-1]["running_loss"] == pytest.approx(result.train_loss, rel=1e-12)


@mpi
def test_uneven_and_empty_shards(comm):
    x, y = make_rows(rows=67)
    one = minimise(comm, whole_shard(x, y, comm), "softmax")
    other = minimise(comm, local_shard(x, y, comm, uneven(67, comm.size)), "softmax")
    np.testing.assert_allclose(other.w, one.w, rtol=1e-7, atol=1e-8)


@mpi
def test_the_optimum_of_scipy(comm):
    scipy = pytest.importorskip("scipy.optimize", reason="not available: SciPy")
    x, y = make_rows(rows=120)
    y = (y > 0).astype(np.int64)
    model = models.Logistic(6, dtype=np.float64)
    result = fit(model, whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(), epochs=100, tol=1e-10, l2=0.01)
    sign = 2 * y - 1.0

    def objective(w):
        margin = x @ w[:6] + w[6]
        residual = -sign / (1 + np.exp(sign * margin)) / len(y)
        penalty = 0.01 * np.append(w[:6], 0)
        value = np.logaddexp(0, -sign * margin).mean() + 0.5 * w @ penalty
        return value, np.append(x.T @ residual, residual.sum()) + penalty

    found = scipy.minimize(objective, np.zeros(7), jac=True, method="BFGS", options={"gtol": 1e-11})
    np.testing.assert_allclose(result.w, found.x, rtol=1e-6, atol=1e-8)
    assert result.train_loss == pytest.approx(found.fun, rel=1e-12)


@mpi
def test_at_the_limit_it_says_so_and_single_precision_ends_too(comm):
    x, y = make_rows(rows=90)
    shard = whole_shard(x, y, comm)
    short = minimise(comm, shard, "softmax", epochs=3)
    assert (short.stop_reason, short.converged, short.iterations) == ("iterations", False, 3)
    single = minimise(comm, shard, "softmax", np.float32, tol=1e-30)
    assert single.stop_reason in ("no further decrease", "iterations")
    best = minimise(comm, shard, "softmax")
    assert single.train_loss == pytest.approx(best.train_loss, rel=1e-6)


@mpi
def test_three_rounds_an_evaluation(comm):
    """The slices are published, the gradient is reduced, one small sum tells the rest: and nothing besides."""
    x, y = make_rows(rows=90)
    result = minimise(comm, whole_shard(x, y, comm), "softmax", epochs=20, tol=1e-30, allreduce="ring")
    if comm.size == 1:
        assert result.rounds == 0
    else:
        assert (result.rounds - 2) % 3 == 0  # the first point has no slices to publish
        assert 2 + 3 * 20 <= result.rounds <= 2 + 3 * 25


@mpi
@pytest.mark.parametrize(
    "options",
    [{"factors": True}, {"early": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_nothing_for_a_search_is_refused(comm, options):
    x, y = make_rows(rows=30)
    with pytest.raises(ConfigError, match="leave it out"):
        minimise(comm, whole_shard(x, y, comm), "softmax", **options)


@mpi
def test_a_run_goes_on_where_it_was_saved(comm, tmp_path):
    from distai_mpi.train import Checkpoint

    x, y = make_rows(rows=90)
    shard, folder = whole_shard(x, y, comm), comm.bcast_object(str(tmp_path / "saved"))
    whole = minimise(comm, shard, "softmax", epochs=14, tol=1e-30)
    for epochs, resume in ((6, False), (14, True)):
        made = minimise(comm, shard, "softmax", epochs=epochs, tol=1e-30, checkpoint=Checkpoint(folder, 1, resume))
    assert made.iterations == 14
    np.testing.assert_allclose(made.w, whole.w, rtol=1e-6, atol=1e-9)
    other = optim.LBFGS(4)  # whose history has other slots
    with pytest.raises(ConfigError, match="give memory 10"):
        minimise(comm, shard, "softmax", optimizer=other, checkpoint=Checkpoint(folder, 1, True))


def test_the_command_goes_on_and_can_be_repeated(run_command, tmp_path):
    x, y = make_rows(rows=2000)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    words = ["train", "--data", str(tmp_path / "rows.npz"), "--model", "softmax", "--l2", "1e-4"]
    words += ["--optimizer", "lbfgs", "--sample", "0"]
    for most, more in ((3, []), (6, ["--resume"])):
        run = run_command(2, *words, "--max-iter", str(most), "--out", str(tmp_path / "a"), *more)
        assert run.returncode == 0, run.stderr
    again = run_command(2, "train", "--config", str(tmp_path / "a/settings.toml"), "--out", str(tmp_path / "b"))
    assert again.returncode == 0, again.stderr
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert (one["iterations"], one["stop_reason"], one["converged"]) == (6, "iterations", False)
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    wrong = run_command(2, *words, "--lr", "0.1")
    assert wrong.returncode == 2
    assert wrong.stderr.count("--lr belongs to") == 1


@mpi
@pytest.mark.ranks(2)
@pytest.mark.parametrize("loss", ["logistic", "huber"])
def test_slices_are_preconditioned_by_the_diagonal(comm, loss):
    """By mean squares where the loss curves alike for all targets (logistic), else by a pass over the rows (huber)."""
    x, y = make_rows(rows=400, features=40)
    x, y = x * np.logspace(0, -2.5, 40), (y == 0).astype(int)
    model = models.Logistic if loss == "logistic" else lambda *a, **k: models.Linear(*a, loss=loss, **k)
    found = {}
    for allreduce, method in (("ring", optim.LBFGS()), ("native", optim.Newton())):
        found[allreduce] = fit(
            model(40, dtype="float64"), whole_shard(x, y, comm), comm, optimizer=method, l2=1e-6, tol=1e-4,
            allreduce=allreduce,
        )  # fmt: skip
    sliced, best = found["ring"], found["native"].train_loss
    assert sliced.converged
    assert sliced.evaluations <= 30  # 1,000 without the diagonal
    assert 0 <= sliced.train_loss / best - 1 < 1e-7
    assert 0.1 < sliced.relative_gap / (sliced.train_loss / best - 1) < 10
