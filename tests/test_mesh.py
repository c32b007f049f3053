"""Models split over a mesh of ranks: the same training as one rank's, to rounding, with a part of the parameters."""

import json
from pathlib import Path

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, whole_shard
from test_state import Keep

from distai_mpi import Checkpoint, Communicator, EarlyStopping, Exchange, Mesh, models, optim, world
from distai_mpi.comm.mesh import MeshShape, arrange, check_parts
from distai_mpi.errors import ConfigError
from distai_mpi.models.split import COLUMN, ROW, choose_kinds, cut_units
from distai_mpi.train import parts
from distai_mpi.train.checkpoint.strided import Strided, put, shared, take
from distai_mpi.train.parts import part_of, whole_params
from distai_mpi.train.report import ResultFiles

mpi = pytest.mark.mpi
WIDTHS = [(6, 8, 3), (6, 8, 9, 3), (6, 40, 5, 7, 3), (6, 5, 5, 5, 30, 40)]
METHODS = {
    "sgd": optim.SGD(0.1),
    "adam": optim.Adam(0.01, clip_norm=0.5),
    "momentum": optim.Momentum(0.1, schedule=optim.Cosine(final_factor=0.1)),
    "factors": optim.Momentum(0.1),
    "average": optim.LocalSGD(optim.Momentum(0.1, clip_norm=0.5), sync_every=2),
    "lbfgs": optim.LBFGS(max_iter=6, tol=None),
}


def meshes(ranks):
    return [(data, ranks // data) for data in range(1, ranks) if ranks % data == 0]


@mpi
@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("name", METHODS)
def test_a_split_mlp_trains_as_a_whole_one(comm, name):
    x, y = make_rows(rows=64)
    options = {"optimizer": METHODS[name], "epochs": 3, "l2": 0.01, "seed": 3, "global_batch_size": 16}
    if name == "factors":
        options["exchange"] = Exchange(factors=True)
    if name == "lbfgs":
        options = {"optimizer": METHODS[name], "l2": 0.01, "seed": 3}
    for data, tensor in meshes(comm.size):
        for widths in WIDTHS if name == "adam" else WIDTHS[1:2]:
            outputs = min(widths[-1], 3)
            shape = (widths[0], outputs if widths[-1] < 10 else widths[-1], widths[1:-1])
            dropout = 0.0 if name == "lbfgs" else 0.3
            model = models.MLP(*shape, dropout=dropout, dtype=np.float64, activation="tanh")
            if min(widths[1:-1]) < tensor:
                continue
            with Mesh(comm, data=data, tensor=tensor) as mesh:
                shard = whole_shard(x, y, mesh.data_group)
                alone = fit(model, shard, mesh.data_group, test=shard, **options)
                split = fit(model, shard, mesh, test=shard, **options)
                found = whole_params(model, split.params, mesh)
            assert split.params.size < alone.params.size
            assert split.train_loss == pytest.approx(alone.train_loss, rel=1e-9)
            assert (split.test_loss, split.test_accuracy) == pytest.approx((alone.test_loss, alone.test_accuracy))
            if comm.rank == 0:
                np.testing.assert_allclose(found, alone.params, rtol=1e-8, atol=1e-10)
            assert sum(comm.allgather_object(split.params.size)) == data * alone.params.size


def test_ranks_of_a_tensor_group_share_a_node_where_they_can():
    shape = MeshShape(2, 1, 2)
    assert arrange([[0, 2], [1, 3]], shape) == [0, 2, 1, 3]
    assert arrange([[0, 1, 2], [3, 4, 5]], MeshShape(3, 1, 2)) == [0, 1, 3, 4, 2, 5]
    assert arrange([[0, 1, 2, 3], [4, 5]], MeshShape(1, 3, 2)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "ranks", "told"),
    [
        ("data=2,tensor=2", 3, "needs exactly 4 ranks, and there are 3"),
        ("tensor=2", 3, "needs whole copies of 2 ranks, and there are 3"),
        ("tensor=0", 2, "tensor must be a whole number from 1 up, got 0"),
        ("tensor=2,tensor=2", 2, "each once"),
        ("rows=2", 2, "expected lengths such as data=2"),
        ("", 2, "expected lengths"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(text, ranks, told):
    with pytest.raises(ConfigError, match=told):
        MeshShape.parse(text, ranks)


def test_layers_are_cut_so_that_the_fewest_numbers_travel():
    assert choose_kinds((784, 4096, 4096, 10), True)[-1] == ROW  # its sum is of 10 numbers
    assert choose_kinds((784, 128, 10), True) == [COLUMN, ROW]
    assert choose_kinds((784, 128, 50_000), True) == [COLUMN, COLUMN]  # softmax over split outputs
    assert choose_kinds((784, 128, 50_000), False) == [COLUMN, ROW]
    assert choose_kinds((784, 512, 512, 512, 512, 1), False)[:2] == [COLUMN, ROW]
    assert cut_units(100, (3.0, 1.0), "layer") == [0, 80, 100]  # on multiples of 16 units
    assert cut_units(10, (1.0, 1.0, 1.0), "layer") == [0, 3, 7, 10]
    with pytest.raises(ConfigError, match="too few for 4 parts: choose tensor=3 or less"):
        cut_units(3, (1.0,) * 4, "layer 2 of 3")


@mpi
@pytest.mark.ranks(2)
def test_models_that_cannot_be_split_are_refused_on_all_ranks(comm):
    x, y = make_rows(rows=20)
    with Mesh(comm, tensor=2) as mesh:
        shard = whole_shard(x, y, mesh.data_group)
        with pytest.raises(ConfigError, match="Softmax cannot be split over ranks"):
            fit(models.Softmax(6, 3), shard, mesh)
        with pytest.raises(ConfigError, match="too few for 2 parts: choose tensor=1"):
            fit(models.MLP(6, 3, (8, 1)), shard, mesh)
        w = np.arange(models.MLP(6, 3, (8,)).layout.size, dtype=np.float32)
        model = models.MLP(6, 3, (8,))
        started = fit(model, shard, mesh, epochs=1, optimizer=optim.SGD(1e-30), start=w)
        part = model.split(mesh.position.tensor, (1.0, 1.0))
        np.testing.assert_allclose(started.params, part_of(part, w), atol=1e-25)


def test_what_strided_ranges_share_is_what_their_elements_say():
    rng, size = np.random.default_rng(0), 120
    for _ in range(50):
        tables = []
        for _ in range(2):
            rows, columns = (6, 20) if rng.random() < 0.5 else (10, 12)
            low, high = sorted(rng.choice(columns + 1, 2, replace=False))
            first, last = sorted(rng.choice(rows + 1, 2, replace=False))
            table = [Strided(int(first * columns + low), int(high - low), columns, int(last - first))]
            tables.append(table[::-1])
        numbers = np.arange(size)
        one, other = (np.empty(sum(each.size for each in table), int) for table in tables)
        take(one, tables[0], numbers)
        take(other, tables[1], numbers)
        found = np.full(size, -1)
        for here, there, count in shared(*tables):
            np.testing.assert_array_equal(one[here : here + count], other[there : there + count])
            found[one[here : here + count]] = one[here : here + count]
        assert set(found[found >= 0]) == set(one) & set(other)
        back = np.zeros(size, int)
        put(one, tables[0], back)
        assert set(np.flatnonzero(back)) == set(one) - {0}


@mpi
@pytest.mark.ranks(4)
def test_a_checkpoint_of_one_mesh_goes_on_on_another_and_on_one_rank(comm, tmp_path):
    folder = comm.bcast_object(str(tmp_path / "run"))
    x, y = make_rows(rows=64)
    model = models.MLP(6, 3, (8, 9), dropout=0.3, dtype=np.float64, activation="tanh")
    options = {"optimizer": optim.Adam(0.01), "l2": 0.01, "seed": 3, "global_batch_size": 16}
    keep = Keep()
    with Mesh(comm, data=1, tensor=4) as mesh:
        shard = whole_shard(x, y, mesh.data_group)
        straight = fit(model, shard, mesh, epochs=4, **options)
        expected = whole_params(model, straight.params, mesh)
        saved = Checkpoint(folder, every=1)
        fit(model, shard, mesh, epochs=2, callbacks=[saved, keep], **options)
    again = Checkpoint(folder, resume=True)
    with Mesh(comm, data=2, tensor=2) as mesh:
        shard = whole_shard(x, y, mesh.data_group)
        for callbacks, start in (([again], None), ([], keep.state)):
            resumed = fit(model, shard, mesh, epochs=4, callbacks=callbacks, start=start, **options)
            found = whole_params(model, resumed.params, mesh)
            assert resumed.train_loss == pytest.approx(straight.train_loss, rel=1e-9)
            assert resumed.history[-1]["running_loss"] == pytest.approx(straight.history[-1]["running_loss"], rel=1e-9)
            if comm.rank == 0:
                np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    alone = comm.part([0])
    if alone is not None:
        with alone:
            shard = whole_shard(x, y, alone)
            last = fit(model, shard, alone, epochs=4, start=keep.state, **options)
        np.testing.assert_allclose(last.params, expected, rtol=1e-8, atol=1e-10)
    comm.barrier()


@mpi
@pytest.mark.ranks(2)
def test_files_of_a_split_model_are_those_of_the_whole_one(comm, tmp_path, monkeypatch):
    folder = comm.bcast_object(str(tmp_path / "run"))
    monkeypatch.setattr(parts, "CHUNK", 17)
    monkeypatch.setattr(parts, "MAPPED_BYTES", 100)
    x, y = make_rows(rows=40)
    model = models.MLP(6, 3, (8, 9))
    with Mesh(comm, tensor=2, parts=(3, 1)) as mesh:
        shard = whole_shard(x, y, mesh.data_group)
        files = ResultFiles(folder, {"data": "rows", "model": "mlp"}, {})
        result = fit(model, shard, mesh, epochs=2, callbacks=[files])
        found = whole_params(model, result.params, mesh)
    sizes = comm.allgather_object(result.params.size)
    assert sum(sizes) == model.layout.size
    assert sizes[0] > 2 * sizes[1]
    if comm.rank == 0:
        saved, w, _ = models.load_model(f"{folder}/model.npz")
        np.testing.assert_array_equal(w, found)
        fields = json.loads(Path(folder, "result.json").read_text())
        assert fields["mesh"] == {"data": 1, "stage": 1, "tensor": 2}
        assert fields["parameters"] == saved.layout.size


@pytest.mark.parametrize(("given", "told"), [((1.0,), "1 weights for tensor=2"), ((1, 0), "not all finite and above")])
def test_parts_that_cannot_be_are_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        check_parts(given, 2)


@mpi
@pytest.mark.ranks(2, 4)
def test_parts_on_several_nodes_train_as_a_whole(comm):
    x, y = make_rows(rows=61)
    options = {"optimizer": optim.LBFGS(max_iter=5, tol=None), "l2": 0.01, "seed": 3}
    model = models.MLP(6, 3, (8, 9, 7), dropout=0.0, dtype=np.float64, activation="tanh")
    with Communicator(world(), nodes=(1,) * comm.size) as nodes, Mesh(nodes, data=1, tensor=comm.size) as mesh:
        shard = whole_shard(x, y, mesh.data_group)
        alone = fit(model, shard, mesh.data_group, **options)
        split = fit(model, shard, mesh, callbacks=[EarlyStopping(shard, patience=2)], **options)
        found = whole_params(model, split.params, mesh)
    if comm.rank == 0:
        np.testing.assert_allclose(found, alone.params, rtol=1e-8, atol=1e-10)


@mpi
@pytest.mark.ranks(4)
def test_data_groups_whose_rows_are_cut_otherwise_are_refused(comm):
    x, y = make_rows(rows=40)
    with Mesh(comm, data=2, tensor=2) as mesh:
        group, part = mesh.data_group, mesh.position.tensor
        shard = local_shard(x, y, group, [20 + part, 20 - part])
        with pytest.raises(ConfigError, match="training rows of the ranks is .*give all ranks the same"):
            fit(models.MLP(6, 3, (8,)), shard, mesh)
