"""What is called the optimum is one: whatever the units and the origin of features and targets, on any ranks."""

import json

import numpy as np
import pytest
from commands import run_here
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard
from second_order import METHODS

from distai_mpi import models, optim
from distai_mpi.data import Dataset, centre_far, standardize, whole
from distai_mpi.errors import DataError
from distai_mpi.optim.solvers.preconditioner import Diagonal, Factored, RankFactored
from distai_mpi.optim.solvers.state import State
from distai_mpi.train import Checkpoint
from distai_mpi.train.full_batch.units import Units

mpi = pytest.mark.mpi
ALL = METHODS | {"auto": optim.Auto}
ROWS = 4000


def least_squares(x, y):
    """Slopes, their standard errors, and the least mean loss; columns are centred and scaled in float64."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    z = np.column_stack([(x - mean) / deviation, np.ones(len(y))])
    found, *_ = np.linalg.lstsq(z, y - y.mean(), rcond=None)
    loss = 0.5 * np.mean((y - y.mean() - z @ found) ** 2)
    errors = np.sqrt(np.diag(np.linalg.inv(z.T @ z)) * 2 * loss)
    return found[:-1] / deviation, errors[:-1] / deviation, loss


def logistic(x, y, l2=0.0, weight=None):
    """Parameters and objective at the optimum, by Newton's method on centred and scaled columns in float64."""
    x = x.astype(np.float64)
    fraction = np.full(len(y), 1 / len(y)) if weight is None else weight / weight.sum()
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    z = np.column_stack([(x - mean) / deviation, np.ones(len(y))])
    penalty, w = np.append(l2 / deviation**2, 0.0), np.zeros(z.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ w))
        grad = z.T @ (fraction * (p - y)) + penalty * w
        w = w - np.linalg.solve((z.T * (fraction * p * (1 - p))) @ z + np.diag(penalty), grad)
    value = fraction @ np.logaddexp(0, np.where(y > 0, -1, 1) * (z @ w)) + 0.5 * penalty @ w**2
    slopes = w[:-1] / deviation
    return np.append(slopes, w[-1] - mean @ slopes), value


def objective(x, y, w, l2=0.0):
    margin = x.astype(np.float64) @ w[:-1].astype(np.float64) + float(w[-1])
    return np.logaddexp(0, np.where(y > 0, -1, 1) * margin).mean() + 0.5 * l2 * float(w[:-1] @ w[:-1])


def off_centre(seed=19):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 3))
    return x, x @ [4, -3, 2] + 2 * rng.normal(size=ROWS)


def classes(scale=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0), seed=30, rows=ROWS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    y = (x @ [1, -2, 1] + rng.logistic(size=rows) > 0).astype(np.int64)
    return (x + offset) * scale, y


@mpi
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sample", [None, 0])
@pytest.mark.parametrize(("shift", "origin"), [(0.0, -311_030.0), ([300, 10, -1e4], 293.0)])
def test_least_squares_off_centre(comm, name, sample, dtype, shift, origin):
    x, y = off_centre()
    x, y = x + shift, y + origin
    w, errors, loss = least_squares(x, y)
    method = ALL[name](sample=sample)
    result = fit(models.Linear(3, dtype=dtype), whole_shard(x, y, comm), comm, optimizer=method, epochs=50, tol=1e-5)
    assert (np.abs(result.w[:3] - w) / errors).max() < 0.05
    assert result.relative_gap is not None
    if dtype == np.float64:
        assert result.converged
        assert result.train_loss == pytest.approx(loss, rel=1e-8)
        assert result.relative_gap < 1e-9
    else:  # the intercept in float32 may be off by more than chance: then it is said
        middle = float(result.w[3]) + x.mean(axis=0) @ result.w[:3].astype(np.float64)
        intercept = abs(middle - y.mean()) / (2 / np.sqrt(ROWS))
        assert intercept < 0.2 or not result.converged


@mpi
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("large", [1e-12, 1e9, 1e12])
def test_one_large_column(comm, name, dtype, large):
    x, y = classes((1, 1, large), (0, 0, 5))
    x = x.astype(np.float32)
    _, best = logistic(x, y)
    result = fit(models.Logistic(3, dtype=dtype), whole_shard(x, y, comm), comm, optimizer=ALL[name](), tol=1e-5)
    assert result.converged
    assert objective(x, y, result.w) == pytest.approx(best, rel=1e-9 if dtype == np.float64 else 1e-6)


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring"])
@pytest.mark.parametrize("name", ["lbfgs", "newton-cg"])
def test_units_change_nothing(comm, name, allreduce):
    """The same rows in other units, and from another origin, have the same optimum; with a penalty it is theirs."""
    scale, offset = np.array([1e6, 1e-5, 64.0]), np.array([0.0, 50.0, -30.0])
    x, y = classes(rows=900)
    far = (x + offset) * scale
    options = {"optimizer": METHODS[name](sample=0), "tol": 1e-9, "allreduce": allreduce, "epochs": 200}
    plain, other = (
        fit(models.Logistic(3, dtype=np.float64), whole_shard(rows, y, comm), comm, **options) for rows in (x, far)
    )
    assert plain.converged
    assert other.converged
    np.testing.assert_allclose(other.w[:3] * scale, plain.w[:3], rtol=1e-6)
    assert other.train_loss == pytest.approx(plain.train_loss, rel=1e-12)
    w, best = logistic(far, y, l2=1e-3)
    penalised = fit(models.Logistic(3, dtype=np.float64), whole_shard(far, y, comm), comm, l2=1e-3, **options)
    assert penalised.converged
    np.testing.assert_allclose(penalised.w, w, rtol=1e-4, atol=1e-9)
    assert penalised.train_loss == pytest.approx(best, rel=1e-10)
    assert objective(far, y, penalised.w, 1e-3) == pytest.approx(best, rel=1e-10)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_softmax_far_from_zero(comm, name):
    x, y = make_rows(rows=900)
    rng = np.random.default_rng(1)
    y = (x @ rng.normal(size=(6, 3)) + rng.gumbel(size=(900, 3))).argmax(axis=1)
    far = (x + np.array([0, 1e4, -1e3, 0, 30, 0])) * np.array([1, 1, 1, 1e7, 1e-6, 1])
    options = {"optimizer": METHODS[name](), "tol": 1e-7, "epochs": 100}
    plain, other = (
        fit(models.Softmax(6, 3, dtype=np.float64), whole_shard(rows, y, comm), comm, **options) for rows in (x, far)
    )
    assert other.converged
    assert other.train_loss == pytest.approx(plain.train_loss, rel=1e-9)
    single = fit(
        models.Softmax(6, 3), standardize(whole_shard(far, y, comm), comm=comm)[0], comm, **options | {"tol": 1e-5}
    )
    assert single.converged
    assert single.train_loss == pytest.approx(plain.train_loss, rel=1e-6)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_without_a_bias_columns_are_scaled_and_not_shifted(comm, name):
    x, y = classes((1e7, 1e-6, 1), rows=900)
    rows, model = x / [1e7, 1e-6, 1], models.Logistic(3, bias=False, dtype=np.float64)
    plain, other = (
        fit(model, whole_shard(each, y, comm), comm, optimizer=METHODS[name](), tol=1e-8) for each in (rows, x)
    )
    assert other.converged
    np.testing.assert_allclose(other.w * [1e7, 1e-6, 1], plain.w, rtol=1e-6)


@mpi
def test_seconds_since_1970(comm):
    rng = np.random.default_rng(8)
    t = 1_709_023_537.0 + np.sort(rng.integers(0, 600, 600))
    x = np.column_stack([t, rng.normal(size=600)])
    y = 0.05 * (t - t[0]) + 2 * x[:, 1] + rng.normal(size=600)
    w, errors, loss = least_squares(x, y)
    for name in ALL:
        result = fit(models.Linear(2, dtype=np.float64), whole_shard(x, y, comm), comm, optimizer=ALL[name](), tol=1e-5)
        assert result.converged
        assert result.train_loss == pytest.approx(loss, rel=1e-8)
        assert (np.abs(result.w[:2] - w) / errors).max() < 0.01
    (near,) = centre_far(whole_shard(x, y, comm), comm=comm, dtype=np.float32)
    assert (near.dataset.standard.deviation == 1).all()
    assert near.dataset.standard.mean[1] == 0
    single = fit(models.Linear(2), near, comm, optimizer=optim.Auto(), tol=1e-5)
    assert single.converged
    assert single.train_loss == pytest.approx(loss, rel=1e-5)
    (same,) = centre_far(whole_shard(x[:, 1:], y, comm), comm=comm, dtype=np.float32)
    assert same.dataset.standard is None
    (wide,) = centre_far(whole_shard(x, y, comm), comm=comm, dtype=np.float64)
    assert wide.dataset.standard is None


@mpi
def test_what_float32_cannot_hold_is_not_called_converged(comm, capsys):
    x, y = classes((1, 1, 1), (0, 0, 3e6), rows=900)
    result = fit(models.Logistic(3), whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(), tol=1e-5)
    _, best = logistic(x.astype(np.float32), y)
    assert not result.converged
    assert result.stop_reason == "rounding of the parameters"
    true_gap = objective(x.astype(np.float32), y, result.w) / best - 1
    assert result.relative_gap == pytest.approx(true_gap, rel=0.5)
    assert result.train_loss == pytest.approx(best * (1 + true_gap), rel=1e-5)


@mpi
@pytest.mark.parametrize("name", ["newton", "auto", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_collinear_features_are_named(comm, name, dtype, capsys):
    x, y = off_centre()
    x = np.column_stack([x[:200], x[:200, 0] + 2 * x[:200, 1], np.full(200, 7.0)])
    y = y[:200]
    result = fit(models.Linear(5, dtype=dtype), whole_shard(x, y, comm), comm, optimizer=ALL[name](), tol=1e-5)
    assert result.converged
    assert result.collinear == [3, 4]
    assert result.train_loss == pytest.approx(least_squares(x[:, :3], y)[2], rel=1e-6)
    assert capsys.readouterr().err.count("features 3, 4 (counted from 0) are constant, or comb") == (comm.rank == 0)
    ridge = fit(models.Linear(5, dtype=dtype), whole_shard(x, y, comm), comm, optimizer=ALL[name](), tol=1e-5, l2=0.1)
    assert ridge.collinear == []


@mpi
def test_a_sample_s_solution_is_no_optimum(comm):
    """Rows of which the sample sees another law: what all rows say counts."""
    x, y = classes(rows=9000)
    w, best = logistic(x, y)
    result = fit(models.Logistic(3), whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(), tol=1e-5)
    assert result.converged
    assert result.iterations > 1
    assert objective(x, y, result.w) == pytest.approx(best, rel=1e-9)
    np.testing.assert_allclose(result.w, w, rtol=1e-3, atol=1e-4)
    first = result.history[0]
    assert first["relative_gap"] > 1e-6
    assert 1 / 3 < first["relative_gap"] / (first["running_loss"] / best - 1) < 3


@mpi
@pytest.mark.parametrize(("allreduce", "name"), [("native", "lbfgs"), ("ring", "lbfgs"), ("native", "newton-cg")])
def test_runs_in_other_units_go_on_with_the_same_bits(comm, tmp_path, allreduce, name):
    x, y = classes((1e6, 1, 1e-6), (0, 1e3, 0), rows=900)
    shard, folder = whole_shard(x, y, comm), comm.bcast_object(str(tmp_path / "saved"))
    options = {"optimizer": METHODS[name](), "tol": 1e-9, "l2": 1e-3, "allreduce": allreduce}
    straight = fit(models.Logistic(3), shard, comm, epochs=9, **options)
    for epochs, resume in ((2, False), (9, True)):
        result = fit(
            models.Logistic(3), shard, comm, epochs=epochs, checkpoint=Checkpoint(folder, 1, resume), **options
        )
    np.testing.assert_array_equal(result.w, straight.w)
    assert (result.iterations, result.converged) == (straight.iterations, straight.converged)
    again = fit(models.Logistic(3), shard, comm, epochs=9, checkpoint=Checkpoint(folder, 1, True), **options)
    assert (again.converged, again.relative_gap) == (straight.converged, straight.relative_gap)
    np.testing.assert_array_equal(again.w, straight.w)


@mpi
def test_methods_that_go_on_with_less_say_so(comm, monkeypatch, capsys):
    from distai_mpi.train.full_batch.sample import Estimate

    monkeypatch.setattr(Estimate, "of", staticmethod(lambda totals, everywhere: None))
    x, y = classes()
    result = fit(models.Logistic(3, dtype=np.float64), whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(), tol=1e-5)
    assert result.converged
    assert result.train_loss == pytest.approx(logistic(x, y)[1], rel=1e-9)
    assert capsys.readouterr().err.count("warning: the sample of the rows has no solution") == (comm.rank == 0)


@mpi
@pytest.mark.parametrize("large", [1e9, 1e18, 1e30])
def test_moments_of_large_columns_do_not_overflow(comm, large, capsys):
    """In float32 fourth powers of 1e10 are infinite, and squares of 1e20."""
    x, y = classes((1, 1, large), (0, 0, 5))
    result = fit(
        models.Logistic(3), whole_shard(x.astype(np.float32), y, comm), comm, optimizer=optim.LBFGS(), tol=1e-5
    )
    assert result.converged
    assert result.evaluations < 20
    assert result.train_loss == pytest.approx(logistic(x, y)[1], rel=1e-6)
    assert capsys.readouterr().err == ""


@mpi
def test_gaps_of_nets_are_not_known(comm):
    x, y = make_rows(rows=90)
    net = models.MLP(6, 3, (5,), activation="tanh", dtype=np.float64)
    result = fit(net, whole_shard(x, y, comm), comm, optimizer=optim.LBFGS(), epochs=5, tol=1e-5)
    assert result.relative_gap is None
    assert result.collinear is None


@mpi
@pytest.mark.parametrize("where", ["whole", "local", "target"])
def test_values_that_a_dtype_cannot_hold_are_told_by_row(comm, where):
    x, y = make_rows(rows=90, kind="value")
    model = models.Linear(6)
    if where == "target":
        y[17] = 1e50
        match = "the target of row 17 .* is 1e\\+50, which float32 cannot hold"
    else:
        x[17, 2] = -1.79e308
        match = "feature 2 of row 17 .* is -1.79e\\+308, which float32 cannot hold"
    shard = local_shard(x, y, comm, uneven(90, comm.size)) if where == "local" else whole_shard(x, y, comm)
    for method in (optim.Momentum(), optim.LBFGS()):
        with pytest.raises(DataError, match=match):
            fit(model, shard, comm, optimizer=method, epochs=1)
    with pytest.raises(DataError, match="too large"):  # standardized in float64, whose squares are too small for them
        standardize(shard if where != "target" else whole(Dataset(1e300 * x, y), comm.rank, comm.size), comm=comm)


@mpi
def test_evaluation_tells_values_that_a_dtype_cannot_hold(comm, shared_path):
    x, y = make_rows(rows=90, kind="value")
    far = np.where(np.arange(90) == 17, 1e50, y)
    if comm.rank == 0:
        np.savez(shared_path / "rows.npz", x=x, y=y)
        np.savez(shared_path / "far.npz", x=x, y=far)
    comm.barrier()
    words = ("train", "-q", "--data", "rows.npz", "--model", "linear", "--epochs", "1", "--out", "run")
    assert run_here(*words, cwd=shared_path).returncode == 0
    run = run_here("evaluate", "run", "--data", "far.npz", cwd=shared_path)
    assert run.returncode == 2
    assert "the target of row 17 (both counted from 0) is 1e+50, which float32 cannot hold" in run.stderr
    assert "Warning" not in run.stderr


@mpi
@pytest.mark.parametrize("model", [models.Softmax(6, 3), models.Logistic(6)], ids=["softmax", "logistic"])
def test_rows_without_labels_are_no_training_rows(comm, model):
    x, y = make_rows(rows=90)
    with pytest.raises(DataError, match="training rows: 1 without a label"):
        fit(model, whole_shard(x, np.where(np.arange(90) == 4, np.nan, y % 2), comm), comm, optimizer=optim.LBFGS())


def test_units_there_and_back():
    units = Units(np.array([3.0, -1e9, 0.5]), np.array([2.0, 1.0, 1024.0]), 7.0)
    for model in (models.Linear(3, dtype=np.float64), models.Linear(3, bias=False, dtype=np.float64)):
        given = Units(units.mean * model.bias, units.scale, 7.0 * model.bias)
        rng = np.random.default_rng(0)
        w, x = rng.normal(size=model.layout.size), rng.normal(size=(5, 3)) * 100
        inner = given.inward(model, w)
        z = (x - given.mean) / given.scale
        bias, inner_bias = (w[3], inner[3]) if model.bias else (0.0, 0.0)
        np.testing.assert_allclose(z @ inner[:3] + inner_bias, x @ w[:3] + bias - given.target, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(given.outward(model, inner), w, rtol=1e-6)


def test_norms_by_factored_matrices():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 9)) * np.array([1e9, 1, 1e-6, 1, 1, 1e3])[:, None]
    matrix, g, v = root @ root.T, rng.standard_normal(6), rng.standard_normal(6)
    for made in (Factored(matrix.copy()), RankFactored(matrix.copy(), np.zeros(6), biases=2)):
        assert made.inverse_square(g) == pytest.approx(g @ np.linalg.solve(matrix, g), rel=1e-8)
        assert made.square(v) == pytest.approx(v @ matrix @ v, rel=1e-10)
    diagonal = Diagonal(np.arange(1.0, 7))
    assert diagonal.inverse_square(g) == pytest.approx((g * g / np.arange(1.0, 7)).sum())
    assert diagonal.square(v) == pytest.approx((v * v * np.arange(1.0, 7)).sum())


def test_parameters_that_depend_on_those_before_them_are_left_out():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((50, 4))
    z[:, 2] = z[:, 0] - 3 * z[:, 1]
    last = RankFactored(z.T @ z, np.zeros(4), biases=2)  # the last two come first: another one depends on those before
    np.testing.assert_array_equal(last.dropped, [False, True, False, False])
    made = RankFactored(z.T @ z, np.zeros(4))
    np.testing.assert_array_equal(made.dropped, [False, False, True, False])
    b = z.T @ rng.standard_normal(50)
    x = b.copy()
    made.solve(x)
    assert x[2] == 0
    np.testing.assert_allclose(x, np.insert(np.linalg.lstsq(z[:, [0, 1, 3]], z @ x, rcond=None)[0], 2, 0), atol=1e-10)
    np.testing.assert_allclose((z.T @ z @ x), b, atol=1e-9)
    along = np.array([0, 0, 1e-7, 0])  # a gradient there is no rounding in float64 ...
    assert made.inverse_square(b + along) > made.inverse_square(b) + 1e-6
    noisy = RankFactored(z.T @ z, np.full(4, 1e-6))  # ... but it is where the columns themselves are rounded
    assert noisy.inverse_square(b + along) == pytest.approx(noisy.inverse_square(b), rel=1e-9)
    z[:, 2] += 1e-4 * rng.standard_normal(50)
    assert not RankFactored(z.T @ z, np.zeros(4)).dropped.any()
    assert RankFactored(z.T @ z, np.full(4, 1e-3)).dropped.any()


@mpi
def test_no_reason_to_judge_by_the_hessian_twice(comm, monkeypatch):
    made = []
    kept = State._precondition_by_all
    monkeypatch.setattr(State, "_precondition_by_all", lambda self, when: (made.append(when), kept(self, when)))
    x, y = classes(rows=100)
    result = fit(models.Softmax(3, 2), whole_shard(x, y, comm), comm, optimizer=optim.NewtonCG(), tol=1e-5)
    assert result.converged
    assert made == [1, 2]


@mpi
def test_the_command_keeps_the_means_of_features_far_from_zero(comm, shared_path):
    rng = np.random.default_rng(8)
    t = 1_709_023_537.0 + np.sort(rng.integers(0, 600, 600))
    x = np.column_stack([t, rng.normal(size=600)])
    y = 0.05 * (t - t[0]) + 2 * x[:, 1] + rng.normal(size=600)
    if comm.rank == 0:
        np.savez(shared_path / "far.npz", x=x, y=y)
    comm.barrier()
    words = ("train", "--data", shared_path / "far.npz", "--model", "linear", "--optimizer", "newton")
    done = run_here(*words, "--test-fraction", 0, "--out", shared_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("features 0 (counted from 0) lie so far from 0") == 1  # of all ranks
    seen = run_here("evaluate", shared_path / "run", "--rows", "train", "--json")
    if comm.rank == 0:
        told = json.loads(seen.stdout)
        explained = 1 - 2 * least_squares(x, y)[2] / y.var()
        assert told["metrics"]["r2"] == pytest.approx(explained, rel=1e-5)
        with np.load(shared_path / "run" / "model.npz") as model:
            np.testing.assert_allclose(model["extra.mean"], [t.mean(), 0], rtol=1e-12)
            np.testing.assert_array_equal(model["extra.deviation"], 1)
            np.testing.assert_allclose(model["layer1.weight"].ravel(), least_squares(x, y)[0], rtol=1e-3)
