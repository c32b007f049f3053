"""A function of the user's own: shared out over the ranks, checked at the start."""

import numpy as np
import pytest
from problems import make_rows, whole_shard

from distai_mpi import Exchange, minimize, optim
from distai_mpi.errors import ConfigError
from distai_mpi.train import Callback, Checkpoint, EarlyStopping, Trace

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 3, 4)
RING = Exchange("ring")
SIZE = 40


def rosenbrock(comm, size=SIZE):
    """Σ 100 (w₂ᵢ₊₁ - w₂ᵢ²)² + (1 - w₂ᵢ)², of which each rank has some of the terms."""
    mine = slice(comm.rank, None, comm.size)

    def function(w, grad):
        even, odd = w[0::2][mine], w[1::2][mine]
        off, rest = odd - even**2, 1 - even
        grad[:] = 0
        grad[0::2][mine] = -400 * even * off - 2 * rest
        grad[1::2][mine] = 200 * off
        return float(100 * (off @ off) + rest @ rest)

    return function


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring", "hierarchical", "tree"])
def test_the_optimum_and_the_figures(comm, allreduce):
    start = np.tile([-1.2, 1.0], SIZE // 2)
    result = minimize(rosenbrock(comm), start, comm, optim.LBFGS(max_iter=300, tol=1e-10), exchange=Exchange(allreduce))
    assert result.converged
    assert result.stop_reason == "tolerance"
    np.testing.assert_allclose(result.w, 1, atol=1e-8)
    assert result.train_loss < 1e-12
    assert result.evaluations >= result.iterations
    assert result.gradient_norm < 1e-6
    np.testing.assert_array_equal(start, np.tile([-1.2, 1.0], SIZE // 2))
    assert len(set(comm.allgather_object(result.w.tobytes()))) == 1


@mpi
def test_single_precision_a_penalty_and_going_on(comm, tmp_path):
    start = np.tile(np.array([-1.2, 1.0], np.float32), SIZE // 2)
    folder = comm.bcast_object(str(tmp_path / "saved"))
    for most, resume in ((5, False), (200, True)):
        result = minimize(
            rosenbrock(comm), start, comm, optim.LBFGS(max_iter=most), l2=0.1, callbacks=[Checkpoint(folder, 1, resume)]
        )
    wide = minimize(rosenbrock(comm), start.astype(float), comm, optim.LBFGS(max_iter=300, tol=1e-9), l2=0.1)
    assert result.w.dtype == np.float32
    np.testing.assert_allclose(result.w, wide.w, rtol=1e-3)
    assert wide.train_loss == pytest.approx(
        comm.sum([rosenbrock(comm)(wide.w, wide.w.copy())])[0] + 0.05 * wide.w @ wide.w
    )


@mpi
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_that_goes_on_comes_to_the_same_bits(comm, tmp_path, dtype):
    size = 20_002  # too many for whole vectors: the history lies in slices
    start = np.tile(np.array([-1.2, 1.0], dtype), size // 2)
    folder = comm.bcast_object(str(tmp_path / "saved"))
    whole = minimize(rosenbrock(comm, size), start, comm, optim.LBFGS(4, max_iter=14, tol=1e-30), exchange=RING)
    for most, resume in ((3, False), (9, True), (14, True)):
        checkpoint = Checkpoint(folder, 1, resume)
        solver = optim.LBFGS(4, max_iter=most, tol=1e-30)
        made = minimize(rosenbrock(comm, size), start, comm, solver, callbacks=[checkpoint], exchange=RING)
    assert made.iterations == 14
    np.testing.assert_array_equal(made.w, whole.w)


@mpi
def test_callbacks_see_the_run(comm, tmp_path):
    class Seen(Callback):
        def __init__(self):
            self.losses, self.closed = [], False

        def on_step(self, run):
            assert run.w.shape == (SIZE,)

        def on_epoch(self, run, record):
            self.losses.append(record["running_loss"])

        def on_close(self):
            self.closed = True

    seen, path = Seen(), comm.bcast_object(str(tmp_path / "trace.json"))
    start = np.tile([-1.2, 1.0], SIZE // 2)
    result = minimize(rosenbrock(comm), start, comm, optim.LBFGS(max_iter=7), callbacks=[seen, Trace(path)])
    assert len(seen.losses) == result.iterations == 7
    assert seen.losses[-1] == result.train_loss
    assert seen.closed
    assert all(len(seconds) == comm.size for seconds in result.time.values())
    if comm.rank == 0:
        assert '"parameters": 40' in (tmp_path / "trace.json").read_text()


@mpi
def test_a_function_is_called_once_more_than_is_counted(comm):
    calls = 0

    def counted(w, grad):
        nonlocal calls
        calls += 1
        return rosenbrock(comm)(w, grad)

    result = minimize(counted, np.zeros(SIZE), comm, optim.LBFGS(max_iter=5))
    assert calls == result.evaluations + 1


@mpi
def test_a_lost_objective_is_lost_whatever_else_would_end_the_run(comm, capsys):
    calls = 0

    def lost(w, grad):
        nonlocal calls
        calls += 1
        grad[:] = w / comm.size
        return np.nan if calls > 4 else 0.5 * w @ w / comm.size + 1.0

    result = minimize(lost, np.ones(5), comm, optim.LBFGS(search=optim.Armijo(most=2), tol=1e-30, min_decrease=1e-12))
    assert result.status == "diverged"
    assert "not finite" in result.stop_reason
    assert np.isfinite(result.w).all()
    told = capsys.readouterr().err.count(f"iteration {result.iterations}: loss or gradient is not finite")
    assert told == (comm.rank == 0)


def wrong_functions():
    def vector(w, grad):
        grad[:] = w
        return np.zeros(3)

    def pair(w, grad):
        return 1.0, w

    def nothing(w, grad):
        grad[:] = w

    def part(w, grad):
        grad[1:] = w[1:]
        return 1.0

    def lost(w, grad):
        grad[:] = w
        return float("nan")

    def complex_value(w, grad):
        grad[:] = w
        return 1j

    return [vector, pair, nothing, part, lost, complex_value]


@mpi
@pytest.mark.parametrize("function", wrong_functions(), ids=lambda function: function.__name__)
def test_functions_that_do_not_keep_their_promise(comm, function):
    def on_the_last(w, grad):
        if comm.rank == comm.size - 1:
            return function(w, grad)
        grad[:] = w
        return 1.0

    with pytest.raises(ConfigError, match="the objective"):
        minimize(on_the_last, np.ones(5), comm)


@mpi
@pytest.mark.parametrize("start", [np.ones((2, 2)), np.ones(3, int), [1.0, 2.0], np.empty(0)], ids=str)
def test_starts_that_cannot_be(comm, start):
    with pytest.raises(ConfigError, match="the start w"):
        minimize(rosenbrock(comm), start, comm)


@mpi
def test_starts_that_differ(comm):
    if comm.size == 1:
        start = np.ones((1, 2))
    else:
        start = np.ones(4) + (comm.rank == comm.size - 1)
    with pytest.raises(ConfigError, match="the start w"):
        minimize(rosenbrock(comm), start, comm)


@mpi
def test_a_wall_is_backed_off_from_and_a_lost_objective_names_itself(comm):
    def walled(w, grad):
        grad[:] = 2 * (w - 1) / comm.size
        return float("nan") if w.max() > 3 else float((w - 1) @ (w - 1)) / comm.size

    result = minimize(walled, np.full(6, 2.9), comm, optim.LBFGS(tol=1e-8))
    assert result.converged
    np.testing.assert_allclose(result.w, 1, atol=1e-6)

    def bad_elsewhere(w, grad):
        grad[:] = 1.0
        return 0.0 if (w == 1).all() else float("inf")

    result = minimize(bad_elsewhere, np.ones(6), comm)
    assert result.status == "diverged"
    assert "not finite near" in result.stop_reason
    assert result.iterations == 1
    np.testing.assert_array_equal(result.w, 1)


@mpi
def test_methods_that_need_more_than_a_gradient_are_refused(comm):
    for method in (optim.NewtonCG(), optim.Momentum(), optim.Auto()):
        with pytest.raises(ConfigError, match=r"minimize takes optim.LBFGS\(\)"):
            minimize(rosenbrock(comm), np.ones(SIZE), comm, method)
    with pytest.raises(ConfigError, match="EarlyStopping is nothing for minimize"):
        minimize(rosenbrock(comm), np.ones(SIZE), comm, callbacks=[EarlyStopping(whole_shard(*make_rows(), comm))])
    for most in (0, -1, 10.0, "many"):
        with pytest.raises(ConfigError, match="max_iter of LBFGS must be a whole number from 1 up"):
            minimize(rosenbrock(comm), np.ones(SIZE), comm, optim.LBFGS(max_iter=most))


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring"])
def test_gradients_that_are_no_numbers(comm, allreduce):
    def lost_after(calls):
        seen = 0

        def function(w, grad):
            nonlocal seen
            seen += 1
            grad[:] = w if seen <= calls else np.nan
            return float(0.5 * w @ w)

        return function

    for calls in (2, 4):
        result = minimize(
            lost_after(calls), np.arange(1.0, 7.0), comm, optim.LBFGS(tol=1e-30), exchange=Exchange(allreduce)
        )
        assert result.status == "diverged"
        assert "gradient is not finite" in result.stop_reason
        assert np.isfinite(result.w).all()

    def huge(w, grad):
        grad[:] = 1e200 * w
        return 0.5e200 * float(w @ w)

    result = minimize(huge, np.ones(4), comm, exchange=Exchange(allreduce))
    assert (result.status, result.converged) == ("diverged", False)
