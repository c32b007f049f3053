"""No run says that it converged where it did not; and the judge of that is itself right, and can find runs wrong."""

from dataclasses import replace
from fractions import Fraction

import hard_problems
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hard_solutions import Unfit, as_read, solve
from hard_tables import KINDS, METHODS, MODELS, Problem, draw
from run import find_mpiexec


@pytest.fixture(scope="module")
def solutions():
    found, _ = hard_problems.choose(1, range(len(KINDS)))
    return list(found.values())


def problem(x, y, **settings):
    """A problem of a table, by default of linear regression in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y)
    given = dict(model="linear", method="newton", dtype="float64", standardize=False, l2=0.0, feed="whole", weight=None)
    return Problem(seed=0, number=0, attempt=0, x=x, y=y, traits=("own",), **(given | settings))


def test_thirty_problems_at_one_and_three_ranks(capsys):
    if find_mpiexec() is None:
        pytest.skip("not available: mpiexec")
    verdicts = hard_problems.check(0, range(30), (1, 3), speak=lambda line: None)
    assert len(verdicts) == 60
    told = "\n".join(hard_problems.details(verdicts, 0))
    assert not [verdict for verdict in verdicts if verdict.wrong], told
    assert not hard_problems.missed(verdicts), told


def test_problems_are_of_all_kinds_and_come_out_alike():
    drawn = [solution.problem for solution in hard_problems.choose(3, range(96))[0].values()]
    assert len(KINDS) == len(MODELS) * len(METHODS) * 4
    kinds = [(p.model, p.method, p.dtype, p.standardize) for p in drawn]
    assert len(set(kinds)) == len(KINDS)
    again = draw(3, 7, drawn[7].attempt)
    np.testing.assert_array_equal(drawn[7].x, again.x)
    np.testing.assert_array_equal(drawn[7].y, again.y)
    for trait in ("collinear", "scales", "offset", "weighted", "rare", "targets"):
        assert any(trait in word for p in drawn for word in p.traits), trait


def exact_least_squares(x, y):
    """Coefficients and bias in rational arithmetic, by elimination on the normal equations."""
    rows = [[*map(Fraction, row.tolist()), Fraction(1)] for row in x]
    n = len(rows[0])
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(n)] for i in range(n)]
    matrix = [[*line, sum(row[i] * Fraction(float(value)) for row, value in zip(rows, y, strict=True))]
              for i, line in enumerate(matrix)]  # fmt: skip
    for i in range(n):
        pivot = next(k for k in range(i, n) if matrix[k][i])
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        matrix[i] = [value / matrix[i][i] for value in matrix[i]]
        for k in range(n):
            if k != i:
                matrix[k] = [a - matrix[k][i] * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return np.array([float(line[-1]) for line in matrix])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_least_squares_are_those_of_rational_arithmetic(dtype):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 3))
    x = base * [1e-9, 1.0, 1e6] + [0.0, 3000.0, 1e7]
    y = base.sum(axis=1) + rng.normal(size=60) - 500
    solution = solve(problem(x, y, dtype=dtype))
    w = exact_least_squares(x.astype(dtype), y.astype(dtype))
    assert abs(solution.gap(w)) < 1e-9
    assert solution.off(w) < 1e-6
    theta = solution.theta[:-1, 0] / solution.table.deviation * solution.table.y_deviation
    np.testing.assert_allclose(theta, w[:-1], rtol=1e-9)


@pytest.mark.parametrize("model", ["logistic", "softmax"])
def test_the_optimum_is_that_of_scipy(model):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3))
    classes = 3 if model == "softmax" else 2
    y = (x @ rng.normal(size=(3, classes)) + rng.gumbel(size=(400, classes))).argmax(axis=1)
    weight = rng.exponential(size=400)
    outputs = classes if model == "softmax" else 1

    def objective(w):
        z = x @ w[: 3 * outputs].reshape(3, outputs) + w[3 * outputs :]
        z = z if outputs > 1 else np.hstack([np.zeros_like(z), z])
        loss = scipy.special.logsumexp(z, axis=1) - z[np.arange(400), y]
        return weight @ loss / weight.sum() + 0.5 * 0.01 * (w[: 3 * outputs] ** 2).sum()

    best = scipy.optimize.minimize(objective, np.zeros(4 * outputs), method="BFGS", options={"gtol": 1e-9})
    solution = solve(problem(x, y, model=model, weight=weight, l2=0.01))
    assert solution.value == pytest.approx(best.fun, rel=1e-9)
    assert abs(solution.gap(best.x)) < 1e-9
    assert solution.off(best.x) < 1e-3
    assert solution.off(best.x + np.append(np.zeros(3 * outputs), np.ones(outputs))) == pytest.approx(
        0 if model == "softmax" else 1 / np.sqrt(solution.inverse[-1, -1]), abs=1e-3
    ), "a constant added to all classes changes nothing"


def moved(solution, errors):
    """Parameters of a float64 run that stops ``errors`` standard errors off in its first told coefficient."""
    theta = solution.theta.copy()
    theta[0, 0] += errors * np.sqrt(solution.inverse[0, 0])
    table = solution.table
    weight = theta[:-1] * table.y_deviation / np.where(table.deviation > 0, table.deviation, 1.0)[:, None]
    bias = theta[-1] * table.y_deviation + table.y_mean - table.mean @ weight.astype(np.longdouble)
    return np.concatenate([weight.ravel(), bias.astype(np.float64)])


def found(w, **more):
    return {
        "w": w,
        "converged": True,
        "status": "completed",
        "reason": "tolerance",
        "iterations": 3,
        "alike": True,
    } | more


def test_a_run_is_wrong_from_a_fifth_of_a_standard_error_on(solutions):
    looked_at = 0
    for solution in solutions:
        p = solution.problem
        if p.model == "softmax" or solution.has_noise or p.dtype == "float32":
            continue
        judge = hard_problems.judge
        assert not judge(solution, 1, found(moved(solution, 0.0))).wrong, str(p)
        assert not judge(solution, 1, found(moved(solution, 0.05))).wrong, str(p)
        assert judge(solution, 1, found(moved(solution, 0.25))).wrong, str(p)
        assert not judge(solution, 1, found(moved(solution, 0.25), converged=False)).wrong
        looked_at += 1
    assert looked_at > 5


KIND = ("float64", 1, True)  # where 0.2 standard errors are less than a gap of 1e-4


def test_what_else_is_wrong(solutions):
    solution = next(s for s in solutions if (s.problem.dtype, s.problem.classes, s.table.rows > 1000) == KIND)
    right = found(moved(solution, 0.0).tolist())
    assert hard_problems.judge(solution, 1, right | {"alike": False}).wrong == "ranks disagree"
    assert hard_problems.judge(solution, 1, {"crashed": "status 1"}).wrong == "crashed"
    assert not hard_problems.judge(solution, 1, {"refused": "too large"}).wrong
    lost = found([float("nan")] * len(right["w"]))
    assert hard_problems.judge(solution, 1, lost).wrong == "gap"
    ends = {1: found(moved(solution, -0.15).tolist()), 2: found(moved(solution, 0.15).tolist())}
    verdicts = [hard_problems.judge(solution, ranks, end) for ranks, end in ends.items()]
    hard_problems.compare(solution, ends, verdicts)
    assert [verdict.wrong for verdict in verdicts] == ["", "not as at 1 ranks"]
    few = [replace(verdicts[0], end="refused")] * 6 + [verdicts[0]] * 94
    assert hard_problems.missed(few) == ["94 of 100 float64 runs converged, fewer than 95%"]
    assert not hard_problems.missed([*few[1:], verdicts[0]])


def test_separable_classes_are_left_out():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 2))
    with pytest.raises(Unfit, match="separable"):
        solve(problem(x, (x[:, 0] > 0).astype(np.int64), model="logistic"))
    rare = np.column_stack([x[:, 0], x[:, 1] > 1])  # a column that is 1 in rows of one class alone
    with pytest.raises(Unfit, match="separable"):
        solve(problem(rare, ((x[:, 1] > 1) | (rng.random(200) < 0.5)).astype(np.int64), model="logistic"))


def test_collinear_columns_are_compared_by_their_sum():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 300))
    x = np.column_stack([a, b, 2 * a, np.full(300, 5.0)])
    y = a + b + rng.normal(size=300)
    solution = solve(problem(x, y))
    assert solution.has_noise
    slope_a, slope_b, bias = exact_least_squares(x[:, :2], y)
    for part in (0.0, 1.0, -7.0):
        w = np.array([slope_a * part, slope_b, slope_a * (1 - part) / 2, bias / 5, 0.0])
        assert abs(solution.gap(w)) < 1e-12
        assert solution.off(w) < 1e-6
    assert solution.off(np.array([slope_a, slope_b, 0.1, 0.0, bias])) > 0.2


def test_tables_are_rounded_as_runs_read_them():
    x = np.array([[1e9, 1.0], [1e9 + 1, 2.0], [1e9 + 2, 4.0], [1e9 + 3, 5.0]])
    y = np.array([0.0, 1.0, 2.0, 4.0])
    assert as_read(problem(x, y, dtype="float32")).deviation[0] == 0, "in float32 these are one number"
    assert as_read(problem(x, y, dtype="float64")).deviation[0] == pytest.approx(np.sqrt(1.25))
    assert as_read(problem(x, y, dtype="float32", standardize=True)).deviation == pytest.approx(1, rel=1e-6)
