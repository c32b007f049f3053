"""Solvers on plain problems, without training, ranks or rows."""

import numpy as np
import pytest
from scipy import optimize

from distai_mpi import optim
from distai_mpi.errors import ConfigError
from distai_mpi.optim.solvers.problem import NOTHING, Evaluation, Problem
from distai_mpi.optim.solvers.state import STOPPED

SIZE = 12


def solve(problem, solver):
    """Iterations until the tolerance is met, no step is possible, or there were as many as may be."""
    state = solver.start(problem)
    for _ in range(solver.max_iter):
        state.step()
        if state.met or state.stop_reason is not None:
            break
    return state


class Plain(Problem):
    """A function of NumPy arrays with its gradient and Hessian, minimised by one process."""

    has_products = True

    def __init__(self, function, gradient, hessian, start, replicated=True):
        self.function, self.gradient, self.hessian, self.replicated = function, gradient, hessian, replicated
        self.point, self.trial = start.copy(), start.copy()
        self.grad, self.trial_grad = np.zeros_like(start), np.zeros_like(start)
        self.dtype = self.parameter_dtype = start.dtype
        self.counts = {"evaluations": 0, "products": 0}

    @property
    def w(self):
        return self.point

    def evaluate(self, auxiliary=NOTHING, products=None, more=None, *, current=False):
        w = self.point if current else self.trial
        self.counts["evaluations"] += 1
        self.trial_grad[:] = self.gradient(w)
        asked = NOTHING if products is None else products()
        return Evaluation(float(self.function(w)), float(self.trial_grad @ self.trial_grad), None, auxiliary, asked)

    def accept(self, *, current=False):
        self.grad, self.trial_grad = self.trial_grad, self.grad
        if not current:
            self.point, self.trial = self.trial, self.point

    def move(self, t, direction):
        self.trial[:] = self.point + t * direction

    def propose(self, w):
        self.trial[:] = w

    def dots(self, *pairs):
        return [float(a @ b) for a, b in pairs]

    def product(self, v, out):
        self.counts["products"] += 1
        out[:] = self.hessian(self.point) @ v


def rosenbrock(replicated=True, start=(-1.2, 1.0)):
    start = np.tile(start, SIZE // 2)
    return Plain(optimize.rosen, optimize.rosen_der, optimize.rosen_hess, start, replicated)


def quadratic(condition=1e3):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    matrix, b = (q * np.geomspace(1, condition, SIZE)) @ q.T, rng.standard_normal(SIZE)
    problem = Plain(lambda w: 0.5 * w @ matrix @ w - b @ w, lambda w: matrix @ w - b, lambda w: matrix, np.zeros(SIZE))
    return problem, np.linalg.solve(matrix, b)


@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("search", [optim.StrongWolfe(), optim.Armijo()], ids=["wolfe", "armijo"])
def test_lbfgs_finds_what_scipy_finds(replicated, search):
    problem = rosenbrock(replicated)
    state = solve(problem, optim.LBFGS(search=search, max_iter=300, tol=1e-10))
    best = optimize.minimize(optimize.rosen, rosenbrock().w, jac=optimize.rosen_der, method="BFGS")
    assert state.met
    assert state.stop_reason is None
    assert state.gradient_norm <= 1e-10 * state.progress.first_norm
    assert state.at.value <= best.fun + 1e-12
    assert np.linalg.norm(optimize.rosen_der(problem.w)) == pytest.approx(state.gradient_norm)


def test_newton_cg_finds_what_scipy_finds():
    problem = rosenbrock(start=(0.5, 0.5))  # from the other start it finds the second minimum
    state = solve(problem, optim.NewtonCG(tol=1e-9))
    assert state.met
    np.testing.assert_allclose(problem.w, 1.0, atol=1e-6)
    assert problem.counts["products"] > 0


@pytest.mark.parametrize(
    "solver", [optim.LBFGS(max_iter=400, tol=1e-6), optim.NewtonCG(tol=1e-6)], ids=lambda s: s.name
)
def test_a_quadratic_function(solver):
    problem, solution = quadratic()
    assert solve(problem, solver).met
    np.testing.assert_allclose(problem.w, solution, rtol=1e-4, atol=1e-5)


def test_limits_are_the_solvers_own():
    problem = rosenbrock()
    state = solve(problem, optim.LBFGS(max_iter=3))
    assert state.met is False
    assert not state.met
    assert state.stop_reason is None
    assert 4 <= problem.counts["evaluations"] <= 30
    assert solve(rosenbrock(), optim.LBFGS(max_iter=1, tol=None)).met is None


def test_what_cannot_be_improved_ends():
    problem = Plain(lambda w: 1.0 + 0 * w.sum(), np.ones_like, None, np.zeros(3))  # a gradient that leads nowhere
    state = solve(problem, optim.LBFGS())
    assert (state.stop_reason, state.failed, state.met) == (STOPPED, False, False)


def test_a_state_goes_on_where_another_was():
    whole, half = rosenbrock(), rosenbrock()
    solve(whole, optim.LBFGS(max_iter=20, tol=1e-30))
    first = solve(half, optim.LBFGS(max_iter=9, tol=1e-30))
    rest = rosenbrock()
    state = optim.LBFGS(tol=1e-30).start(rest)
    rest.w[:] = half.w
    for name, value in first.arrays["history"].items():
        if name == "place":
            state.arrays["history"]["place"].update(value)
        else:
            state.arrays["history"][name][:] = value
    vars(state.progress).update(vars(first.progress))
    state.resumed = True
    for _ in range(11):
        state.step()
    np.testing.assert_array_equal(rest.w, whole.w)
    assert state.progress.first_norm == first.progress.first_norm


@pytest.mark.parametrize(
    ("options", "words"), [({"max_iter": 0}, "max_iter"), ({"tol": -1.0}, "tol"), ({"max_iter": 2.5}, "max_iter")]
)
def test_limits_that_cannot_work(options, words):
    for kind in (optim.LBFGS, optim.Newton, optim.NewtonCG, optim.Auto):
        with pytest.raises(ConfigError, match=words):
            kind(**options)
