"""Newton's method and L-BFGS come to the optimum of SciPy, of one rank, and of rows however shared out."""

import json

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, whole_shard
from second_order import KINDS, METHODS, minimise, rows_for

from distai_mpi import Exchange, Objective, models, optim
from distai_mpi.errors import ConfigError
from distai_mpi.optim.solvers.newton_cg import next_radius, steihaug
from distai_mpi.optim.solvers.preconditioner import Diagonal, Factored
from distai_mpi.train.full_batch.sample import Estimate, sample_size, solve_sample, spread_of

mpi = pytest.mark.mpi


@pytest.mark.parametrize("radius", [np.inf, 3.0, 0.5])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_steihaug_minimises_the_model_in_the_region(preconditioned, radius):
    rng = np.random.default_rng(1)
    a = rng.standard_normal((12, 15))
    h = a @ a.T + 0.1 * np.eye(12)
    grad, out = rng.standard_normal(12), np.empty(12)
    scale = np.diag(h).copy() if preconditioned else np.ones(12)

    def product(v, out):
        out[:] = h @ v

    dots = lambda *pairs: [float(a @ b) for a, b in pairs]  # noqa: E731
    step = steihaug(product, grad, radius, 1e-12, 100, dots, Diagonal(scale) if preconditioned else None, out)
    decrease = -(grad @ out + 0.5 * out @ h @ out)
    assert step.decrease == pytest.approx(decrease, rel=1e-9)
    assert step.length == pytest.approx(np.sqrt(out @ (scale * out)), rel=1e-9)
    whole = -np.linalg.solve(h, grad)
    if np.sqrt(whole @ (scale * whole)) < radius:
        np.testing.assert_allclose(out, whole, rtol=1e-6)
        assert not step.at_edge
    else:
        assert step.at_edge
        assert step.length == pytest.approx(radius, rel=1e-9)
        way = grad / scale  # the steepest descent in this norm, to the edge or its own minimum
        t = min(radius / np.sqrt(way @ (scale * way)), grad @ way / (way @ h @ way))
        assert decrease >= t * grad @ way - 0.5 * t * t * way @ h @ way - 1e-12


def test_steihaug_leaves_along_negative_curvature():
    h, grad, out = np.diag([1.0, -2.0]), np.array([1.0, 1.0]), np.empty(2)

    def product(v, out):
        out[:] = h @ v

    step = steihaug(product, grad, 4.0, 1e-9, 10, lambda *p: [float(a @ b) for a, b in p], None, out)
    assert step.at_edge
    assert np.linalg.norm(out) == pytest.approx(4.0)
    assert step.decrease == pytest.approx(-(grad @ out + 0.5 * out @ h @ out))


def test_the_region_follows_the_quality_of_the_model():
    assert next_radius(2.0, 2.0, 0.9) == 4.0
    assert next_radius(2.0, 0.5, 0.9) == 2.0
    assert next_radius(2.0, 2.0, 0.5) == 2.0
    assert next_radius(2.0, 1.0, 0.1) == 0.25
    assert next_radius(2.0, 1.0, np.nan) == 0.25


def test_singular_matrices_are_factored_with_something_added():
    for matrix in (np.ones((5, 5)), np.zeros((3, 3)), np.diag([1.0, 0.0, 2.0])):
        made = Factored(matrix.copy())
        assert made.added > 0
        b = np.arange(1.0, len(matrix) + 1)
        x = b.copy()
        made.solve(x)
        assert np.isfinite(x).all()
        shifted = matrix + made.added * np.diag(np.diag(matrix))
        if np.diag(matrix).min() > 0:
            np.testing.assert_allclose(shifted @ x, b, rtol=1e-5)
    good = Factored(np.diag([4.0, 9.0]))
    assert good.added == 0
    x = np.array([1.0, 1.0])
    good.solve(x)
    np.testing.assert_allclose(x, [0.25, 1 / 9])
    assert np.isfinite(Factored(np.full((2, 2), np.nan)).factor).all()
    assert np.isfinite(Factored(np.array([[0.0, 1.0], [1.0, 0.0]])).factor).all()
    assert np.isfinite(Factored(-np.eye(2)).factor).all()


def test_sums_of_free_parameters_are_left_alone():
    rng = np.random.default_rng(0)
    free = np.array([[1, 3, 4]])
    n = np.zeros(6)
    n[free] = 1
    b = rng.standard_normal(6)
    b[4] -= n @ b  # as gradients have it: nothing changes along n
    scale = rng.random(6) + 0.5
    x = b.copy()
    Diagonal(scale, free).solve(x)
    assert abs(n @ x) < 1e-15
    bordered = np.block([[np.diag(scale), n[:, None]], [n, np.zeros((1, 1))]])
    np.testing.assert_allclose(x, np.linalg.solve(bordered, np.append(b, 0.0))[:6], rtol=1e-12)
    root = rng.standard_normal((6, 9))
    matrix = (np.eye(6) - np.outer(n, n) / 3) @ root @ root.T @ (np.eye(6) - np.outer(n, n) / 3)
    made = Factored(matrix.copy(), free=free)
    assert made.added == 0
    x = b.copy()
    made.solve(x)
    assert abs(n @ x) < 1e-12
    np.testing.assert_allclose(matrix @ x, b, rtol=1e-9, atol=1e-10)


@mpi
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_softmax_has_one_optimum(comm, name, l2):
    x, _ = make_rows(rows=600)
    x[:, 1], x[:, 3] = x[:, 0], 0.0 if l2 else x[:, 3]  # a repeated column, and one of zeros
    rng = np.random.default_rng(1)
    y = (x @ rng.normal(size=(6, 3)) + 2 * rng.gumbel(size=(600, 3))).argmax(1)
    result = minimise(comm, whole_shard(x, y, comm), "softmax", METHODS[name](sample=300), l2=l2)
    assert result.converged
    part = comm.part([0])
    if part is not None:
        with part:
            alone = minimise(part, whole_shard(x, y, part), "softmax", optim.LBFGS(sample=0), l2=l2, tol=1e-11)
        if l2:
            np.testing.assert_allclose(result.w, alone.w, rtol=1e-7, atol=1e-8)
        assert result.train_loss == pytest.approx(alone.train_loss, rel=1e-12)
    comm.barrier_asleep()
    assert np.abs(result.w.reshape(7, 3).sum(axis=1)[slice(None) if l2 == 0 else slice(6, 7)]).max() < 1e-8


@mpi
def test_diagonals_of_many_parameters_leave_sums_of_biases_alone(comm):
    x, _ = make_rows(rows=300, features=400)
    y = np.arange(300) % 3
    model = models.Softmax(400, 3, dtype=np.float64)
    result = fit(model, whole_shard(x, y, comm), comm, optimizer=optim.NewtonCG(), epochs=50, l2=0.1, tol=1e-9)
    assert result.converged
    assert abs(result.w[-3:].sum()) < 1e-12


@mpi
def test_weights_may_be_summed_in_the_dtype_of_the_rows(comm):
    class Own(models.Logistic):
        def loss_and_grad(self, w, batch, grad, on_ready=None):
            sums = super().loss_and_grad(w, batch, grad)
            return models.Sums(sums.loss, float(np.cumsum(batch.weight, dtype=np.float32)[-1]))  # one after another

    rows = 30_000 * comm.size
    x, y = make_rows(rows=rows, kind="binary")
    weight = np.random.default_rng(0).random(rows).astype(np.float32)
    shard = local_shard(x, y, comm, [30_000] * comm.size, weight)
    assert fit(Own(6), shard, comm, optimizer=optim.LBFGS(), epochs=3).iterations == 3


@mpi
@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_newton_compiles_nothing_once_it_runs(comm, kind, monkeypatch):
    from distai_mpi.models.curvature import MarginRows, SoftmaxRows
    from distai_mpi.train import Callback

    made = []
    for rows in (SoftmaxRows, MarginRows):
        add = rows.add_matrix
        monkeypatch.setattr(rows, "add_matrix", lambda *words, add=add: (made.append(len(words[1].x)), add(*words)))

    class Look(Callback):
        def on_start(self, run):
            self.before = list(made)

    look = Look()
    minimise(comm, whole_shard(*rows_for(kind), comm), kind, optim.Newton(sample=0), epochs=2, callbacks=[look])
    assert look.before  # every kernel that a Hessian takes has run,
    assert max(look.before) <= 1  # on a row
    assert len(made) > len(look.before)


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring"])
def test_models_that_give_means_are_told_so(comm, allreduce):
    class Mean(models.Logistic):
        def loss_and_grad(self, w, batch, grad, on_ready=None):
            sums = super().loss_and_grad(w, batch, grad)
            grad /= sums.weight or 1.0
            return models.Sums(sums.loss / (sums.weight or 1.0), 1.0)

    shard = whole_shard(*rows_for("logistic"), comm)
    with pytest.raises(ConfigError, match="must be the sum of the rows' weights"):
        fit(Mean(6, dtype=np.float64), shard, comm, optimizer=optim.LBFGS(), epochs=3, allreduce=allreduce)


@mpi
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sample", [0, 60])
@pytest.mark.parametrize("allreduce", ["native", "ring"])
def test_optima_are_those_of_one_rank(comm, kind, name, sample, allreduce):
    if name == "newton" and allreduce == "ring" and comm.size > 0:
        allreduce = "auto"
    shard = whole_shard(*rows_for(kind), comm)
    result = minimise(comm, shard, kind, METHODS[name](sample=sample), allreduce=allreduce)
    assert result.converged
    part = comm.part([0])
    if part is not None:
        with part:
            x, y = rows_for(kind)
            alone = minimise(part, whole_shard(x, y, part), kind, optim.LBFGS(sample=0), tol=1e-11)
        np.testing.assert_allclose(result.w, alone.w, rtol=1e-7, atol=1e-8)
    if kind == "softmax":  # its biases may all grow alike, and don't
        assert abs(result.w[18:].sum()) < 1e-9
    comm.barrier_asleep()
    assert len(set(comm.allgather_object(result.w.tobytes()))) == 1
    assert result.history[-1]["running_loss"] == pytest.approx(result.train_loss, rel=1e-12)
    assert result.gradient_norm <= 1e-10 * 10


@mpi
def test_rounds_of_few_parameters_are_evaluations_and_products(comm):
    shard = whole_shard(*rows_for("logistic"), comm)
    for name, method in METHODS.items():
        result = minimise(comm, shard, "logistic", method(sample=0), tol=1e-8, allreduce="native")
        expected = result.evaluations + result.products
        assert result.calls.get("allreduce", 0) <= (expected + 12) * (comm.size > 1)  # and the trials of searches
        if name == "newton-cg":  # and the Hessian that confirms the optimum
            assert result.calls == ({"allreduce": expected + 1} if comm.size > 1 else {})
            assert result.products > 0
        assert result.rounds == sum(result.calls.values())
        sampled = minimise(comm, shard, "logistic", method(sample=100), tol=1e-8, allreduce="native")
        assert sampled.calls.get("alltoall", 0) == (comm.size > 1)


@mpi
def test_trials_of_a_search_need_no_pass_where_there_are_margins(comm):
    shard = whole_shard(*rows_for("logistic"), comm)

    class Counting(models.Logistic):
        passes = 0

        def _linear(self, *arguments):
            self.passes += 1
            return super()._linear(*arguments)

    model = Counting(6, dtype=np.float64)
    search = optim.StrongWolfe(1e-4, 1e-3)  # wants an exact minimum along the line
    result = fit(model, shard, comm, optimizer=optim.LBFGS(search=search, sample=0), epochs=8, l2=0.01, tol=1e-30)
    if comm.size > 1:
        assert result.calls["allreduce"] > result.evaluations
    assert result.evaluations <= 1 + 2 * result.iterations
    free = minimise(comm, shard, "softmax", optim.LBFGS(search=search, sample=0), epochs=8, tol=1e-30)
    assert free.evaluations > 0


@mpi
def test_the_sample_is_of_all_ranks_rows_and_the_same_every_time(comm):
    x, y = rows_for("logistic", 400)
    order = np.argsort(y, kind="stable")
    shard = whole_shard(x[order], y[order], comm)
    from distai_mpi.train.evaluation import make_loader

    model = models.Logistic(6, dtype=np.float64)
    objective = Objective(model, make_loader(model, shard, comm, 400, 0), comm, l2=0.01, whole=True)
    assert sample_size(objective, None) == 50
    assert sample_size(objective, 0) == 0
    assert sample_size(objective, 10_000) == 400
    spread, penalty = spread_of(objective), np.append(np.full(6, 0.01), 0.0)
    parts = [solve_sample(objective, 50, spread, penalty) for _ in range(2)]
    np.testing.assert_array_equal(parts[0].w, parts[1].w)
    assert comm.sum([parts[0].moments.weight])[0] == 50
    assert np.isfinite(parts[0].w).all()
    np.testing.assert_allclose(parts[0].everywhere, [*np.square(x).mean(axis=0), 1], rtol=1e-10)
    w, matrix = Estimate.of(comm.sum(parts[0].message()), parts[0].everywhere)
    matrix += np.diag([0.01] * 6 + [0])
    best = minimise(comm, shard, "logistic", optim.Newton(sample=0))
    assert objective.value(w) < objective.value(np.zeros(7))
    ratio = np.linalg.eigvals(np.linalg.solve(matrix, hessian(objective, best.w))).real
    assert 0.1 < ratio.min()
    assert ratio.max() < 10


def hessian(objective, w):
    model, size = objective.model, w.size
    matrix = np.zeros((size, size))
    for batch in objective.loader.sequential():
        _, kept = model.linearize(w, batch, np.empty(size))
        kept.add_matrix(batch, matrix)
    total = objective.comm.sum(matrix.ravel()).reshape(size, size) / objective.loader.shard.total_weight
    return total + np.diag(np.append(np.full(size - 1, objective.l2), 0.0))


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring", "hierarchical"])
def test_newton_cg_trains_a_net(comm, allreduce):
    x, y = make_rows(rows=120)
    model = models.MLP(6, 3, (5,), activation="tanh", dtype=np.float64)
    shard = whole_shard(x, y, comm)
    result = fit(
        model, shard, comm, optimizer=optim.NewtonCG(), epochs=60, l2=0.01, tol=1e-8, seed=3, allreduce=allreduce
    )
    best = fit(model, shard, comm, optimizer=optim.LBFGS(), epochs=200, l2=0.01, tol=1e-6, seed=3)
    assert best.train_loss < result.train_loss < 1.02 * best.train_loss < 0.4 * result.history[0]["running_loss"]
    falls = np.diff([record["running_loss"] for record in result.history])
    assert (falls <= 1e-12).all()


class Cosines:
    """Σ weight (1 - cos(x·w - y)): a model of one's own that is not convex, with its Hessian's products."""

    def __init__(self):
        from distai_mpi.params import Layout

        self.layout, self.dtype = Layout.of([("w", (6,), True)]), np.dtype(float)
        self.target_dtype = self.dtype

    def init(self, rng):
        return np.full(6, 0.1)

    def loss_and_grad(self, w, batch, grad):
        off = batch.x @ w - batch.y
        grad[:] = np.sin(off) @ batch.x
        return models.Sums(np.sum(1 - np.cos(off)), len(off))

    def loss(self, w, batch):
        return self.loss_and_grad(w, batch, np.empty(6))

    def predict(self, w, x):
        return x @ w

    def curvature_at(self, w, batch):
        curved = np.cos(batch.x @ w - batch.y)

        def product(v, out):
            out[:] = (curved * (batch.x @ v)) @ batch.x

        return product


@mpi
@pytest.mark.parametrize("allreduce", ["native", "ring"])
def test_newton_cg_on_a_model_that_is_not_convex(comm, allreduce):
    x, y = make_rows(rows=200, kind="value")
    model, shard = Cosines(), whole_shard(x, y, comm)
    result = fit(model, shard, comm, optimizer=optim.NewtonCG(), epochs=80, tol=1e-9, l2=0.01, allreduce=allreduce)
    assert result.converged
    falls = np.diff([record["running_loss"] for record in result.history])
    assert (falls <= 1e-12).all()
    curved = np.cos(x @ result.w - y)
    assert np.linalg.eigvalsh((x.T * curved) @ x / 200 + 0.01 * np.eye(6)).min() > 0  # a minimum, no saddle


@mpi
def test_newton_is_refused_where_it_cannot_be(comm):
    shard = whole_shard(*make_rows(rows=60), comm)
    with pytest.raises(ConfigError, match="newton-cg"):
        fit(models.MLP(6, 3, (5,)), shard, comm, optimizer=optim.Newton(), epochs=3)
    with pytest.raises(ConfigError, match="newton-cg"):
        fit(models.Softmax(6, 3), shard, comm, optimizer=optim.Newton(), epochs=3, allreduce="ring")


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_where_it_was_saved(comm, tmp_path, name):
    from distai_mpi.train import Checkpoint

    shard, folder = whole_shard(*rows_for("logistic"), comm), comm.bcast_object(str(tmp_path / "saved"))
    method = METHODS[name](sample=100)
    whole = minimise(comm, shard, "logistic", method, epochs=9, tol=1e-30)
    for epochs, resume in ((2, False), (9, True)):
        checkpoint = Checkpoint(folder, 1, resume)
        made = minimise(comm, shard, "logistic", method, epochs=epochs, tol=1e-30, checkpoint=checkpoint)
    assert made.iterations <= 9
    assert made.evaluations >= made.iterations
    np.testing.assert_allclose(made.w, whole.w, rtol=1e-6, atol=1e-8)


@mpi
@pytest.mark.parametrize("name", ["lbfgs", "newton-cg"])
@pytest.mark.parametrize("ways", [("native", "ring"), ("ring", "native")], ids=str)
def test_a_run_goes_on_under_another_exchange(comm, tmp_path, name, ways):
    from distai_mpi.train import Checkpoint

    shard, folder = whole_shard(*rows_for("logistic"), comm), comm.bcast_object(str(tmp_path / "saved"))
    for epochs, resume, allreduce in ((3, False, ways[0]), (60, True, ways[1])):
        method, checkpoint = METHODS[name](), Checkpoint(folder, 1, resume)
        options = {"epochs": epochs, "tol": 1e-4, "allreduce": allreduce, "checkpoint": checkpoint}
        made = minimise(comm, shard, "logistic", method, np.float32, **options)
    assert made.converged
    assert made.rounds == sum(made.calls.values())
    if comm.size > 1:  # those of both, the sample's exchange perhaps besides
        assert {"allreduce", "reduce_scatter", "allgather"} <= set(made.calls)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_overrides_its_loss_alone_keeps_it(comm, name):
    class Doubled(models.Logistic):
        def loss_and_grad(self, w, batch, grad, on_ready=None):
            sums = super().loss_and_grad(w, batch, grad)
            grad *= 2
            return models.Sums(2 * sums.loss, sums.weight)

    shard, model = whole_shard(*rows_for("logistic"), comm), Doubled(6, dtype=np.float64)
    if name != "lbfgs":
        with pytest.raises(ConfigError, match="optimizer newton"):
            fit(model, shard, comm, optimizer=METHODS[name](), epochs=9)
        return
    result = fit(model, shard, comm, optimizer=optim.LBFGS(), epochs=100, l2=0.02, tol=1e-10)
    plain = minimise(comm, shard, "logistic", optim.LBFGS())
    np.testing.assert_allclose(result.w, plain.w, rtol=1e-6, atol=1e-8)


@mpi
def test_the_best_of_an_earlier_iteration_has_not_converged(comm):
    x, y = make_rows(rows=60, seed=4)
    train, valid = whole_shard(x[:25], y[:25], comm), whole_shard(x[25:], y[25:], comm)
    result = minimise(comm, train, "softmax", optim.LBFGS(sample=0), l2=1e-6, valid=valid)
    assert result.best_epoch is not None
    assert result.best_epoch < result.epochs
    assert result.gradient_norm is None
    assert result.converged is None
    assert len({json.dumps(history) for history in comm.allgather_object(result.history)}) == 1


@mpi
def test_small_decrease_ends_a_run(comm):
    shard = whole_shard(*rows_for("softmax"), comm)
    result = minimise(comm, shard, "softmax", optim.LBFGS(sample=0), tol=1e-30, min_decrease=1e-3)
    assert result.stop_reason == "small decrease"
    losses = [record["running_loss"] for record in result.history]
    assert losses[-2] - losses[-1] < 1e-3 * losses[-1] <= losses[-3] - losses[-2]
    with pytest.raises(ConfigError, match="SGD has no parameter min_decrease"):
        minimise(comm, shard, "softmax", optim.SGD(0.1), tol=None, min_decrease=1e-3)


@mpi
@pytest.mark.parametrize("name", METHODS)
def test_records_tell_the_work_and_the_gradient(comm, name):
    shard = whole_shard(*rows_for("logistic"), comm)
    result = minimise(comm, shard, "logistic", METHODS[name](sample=0), tol=1e-8)
    last = result.history[-1]
    assert last["gradient_norm"] == result.gradient_norm
    assert (last["evaluations"], last["products"]) == (result.evaluations, result.products)
    for which in ("evaluations", "products"):
        counts = [record[which] for record in result.history]
        assert counts == sorted(counts)
    figures = [[record[key] for key in ("gradient_norm", "evaluations", "products")] for record in result.history]
    assert all(other == figures for other in comm.allgather_object(figures))
    plain = minimise(comm, shard, "logistic", optim.GradientDescent(0.1), epochs=2)
    assert "gradient_norm" not in plain.history[0]


@mpi
def test_float16_messages_are_refused_on_one_node_too(comm):
    shard = whole_shard(*rows_for("logistic"), comm)
    for name, method in METHODS.items():
        with pytest.raises(ConfigError, match=f"dtype float16 rounds gradients, from which {name}"):
            minimise(comm, shard, "logistic", method(), np.float32, wire="float16")


def test_the_command(run_command, tmp_path):
    x, y = make_rows(rows=400)
    x = np.tile(x, 60)  # softmax with more parameters than newton takes
    x += 0.1 * np.random.default_rng(1).standard_normal(x.shape)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    words = ["train", "--data", str(tmp_path / "rows.npz"), "--model", "softmax", "--l2", "1e-2"]
    words += ["--max-iter", "2"]
    for name in ("newton-cg", "auto"):
        run = run_command(2, *words, "--optimizer", name, "--out", str(tmp_path / name))
        assert run.returncode == 0, run.stderr
        found = json.loads((tmp_path / name / "result.json").read_text())
        assert found["iterations"] == 2
        assert found["stop_reason"] == "iterations"
        assert found["rounds"] == sum(found["calls"].values())
    run = run_command(
        2, *words[:-1], "50", "--min-decrease", "0.01", "--optimizer", "lbfgs", "--out", str(tmp_path / "few")
    )
    found = json.loads((tmp_path / "few" / "result.json").read_text())
    assert found["stop_reason"] == "small decrease"
    assert "ended by small decrease" in run.stdout
    wrong = run_command(2, *words, "--optimizer", "newton")
    assert wrong.returncode == 2
    assert wrong.stderr.count("newton-cg takes more") == 1


def test_auto_keeps_the_method_that_a_run_began_with(run_command, tmp_path):
    x, y = make_rows(rows=400, kind="binary")
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    words = ["train", "--data", str(tmp_path / "rows.npz"), "--model", "logistic", "--l2", "1e-3"]
    words += ["--optimizer", "auto", "--sample", "0", "--tol", "1e-6", "--out", str(tmp_path / "out")]
    found = []
    for ranks, more in ((1, ["--max-iter", "2"]), (3, ["--max-iter", "50", "--resume"])):
        run = run_command(ranks, *words, *more)
        assert run.returncode == 0, run.stderr
        found.append(json.loads((tmp_path / "out" / "result.json").read_text()))
        assert run.stdout.startswith(f"optimizer auto: {found[-1]['optimizer']}\n")
    assert found[1]["optimizer"] == found[0]["optimizer"]
    assert found[1]["converged"]
    assert (found[0]["iterations"], found[0]["ranks"], found[1]["ranks"]) == (2, 1, 3)
    assert found[1]["evaluations"] > found[1]["iterations"] > 2


def test_auto_goes_by_rows_columns_and_ranks():
    from types import SimpleNamespace

    from distai_mpi.train.full_batch import choose

    def chosen(model, rows, ranks=2, allreduce=None, l2=0.0):
        comm = SimpleNamespace(size=ranks, default_algorithm="native")
        return choose(optim.Auto(), model, rows, comm, Exchange(allreduce), l2=l2).name

    assert chosen(models.Linear(100), 10**6) == "newton"
    assert chosen(models.Logistic(5), 10**6) == "newton"
    assert chosen(models.Logistic(5), 10**6, allreduce="ring") == "lbfgs"  # slices
    assert chosen(models.Logistic(200), 200_000) == "lbfgs"
    assert chosen(models.Logistic(60), 3_000, 1024) == "newton"  # rounds are what costs
    assert chosen(models.Softmax(784, 10), 60_000) == "newton-cg"
    assert chosen(models.Logistic(100_000), 10_000) == "newton-cg"
    assert chosen(models.Logistic(100_000), 10_000, l2=1e-4) == "lbfgs"  # preconditioned
    assert chosen(models.Logistic(10_000), 10_000, l2=1e-4) == "newton-cg"  # replicated
    assert chosen(models.Linear(100_000), 10_000, l2=1e-4) == "newton-cg"
    assert chosen(models.Softmax(100_000, 3), 10_000, l2=1e-4) == "newton-cg"
    assert chosen(models.MLP(784, 10), 60_000) == "lbfgs"
