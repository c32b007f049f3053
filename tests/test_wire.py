"""Training between nodes with float16 messages: close to float32's, in half the bytes, the same bits on all ranks."""

import json
from functools import lru_cache

import numpy as np
import pytest
from fits import fit
from problems import local_shard, make_rows, uneven, whole_shard
from test_shared import sent_in_messages

from distai_mpi import models, optim
from distai_mpi.comm.exchange.settings import DTYPES
from distai_mpi.errors import ConfigError

mpi = pytest.mark.mpi


@lru_cache
def problem():
    x, y = make_rows(rows=131, features=40)
    return x.astype(np.float32), y


def train(comm, wire, shard=None, *, dtype=np.float32, hidden=(64,), **options):
    options = {"epochs": 3, "global_batch_size": 16, "optimizer": optim.Momentum(0.05), "factors": False} | options
    options = {"allreduce": "hierarchical"} | options
    model = models.MLP(40, 3, hidden, activation="tanh", dtype=dtype)
    shard = shard or whole_shard(*problem(), comm)
    before = sent_in_messages(comm)
    result = fit(model, shard, comm, seed=3, wire=wire, **options)
    return result, sent_in_messages(comm) - before


METHODS = {
    "momentum": optim.Momentum(0.05),
    "adam": optim.Adam(0.003),
    "averaging": optim.LocalSGD(inner=optim.SGD(0.05), sync_every=2),
}


@mpi
@pytest.mark.parametrize("method", METHODS)
def test_training_stays_close_in_half_the_bytes(nodes, method):
    shard = local_shard(*problem(), nodes, uneven(131, nodes.size))
    exact, whole = train(nodes, "float32", shard, optimizer=METHODS[method])
    rounded, half = train(nodes, "float16", shard, optimizer=METHODS[method])
    moved = exact.w - models.MLP(40, 3, (64,), activation="tanh").init(np.random.default_rng(3))
    assert np.linalg.norm(rounded.w - exact.w) < 5e-3 * np.linalg.norm(moved)
    assert len(set(nodes.allgather_object(rounded.w.tobytes()))) == 1
    if len(nodes.leaders) == 1:
        assert rounded.w.tobytes() == exact.w.tobytes()
    else:
        assert (rounded.w != exact.w).any()
        total = nodes.sum([whole, half])
        assert total[1] == pytest.approx(total[0] / 2, rel=0.01)


@mpi
def test_a_second_run_starts_clean(nodes):
    first, second = (train(nodes, "float16")[0] for _ in range(2))
    assert first.w.tobytes() == second.w.tobytes()


@mpi
def test_what_a_step_loses_comes_later(nodes):
    """Steps far below a float16's precision of the parameters add up."""
    options = {"optimizer": optim.SGD(1e-6), "epochs": 10}
    exact, rounded = train(nodes, "float32", **options)[0], train(nodes, "float16", **options)[0]
    moved = np.linalg.norm(exact.w - train(nodes, "float32", optimizer=optim.SGD(1e-12), epochs=1)[0].w)
    assert moved > 0
    assert np.linalg.norm(rounded.w - exact.w) < 0.02 * moved


@mpi
def test_divergence_is_seen(nodes):
    result, _ = train(nodes, "float16", optimizer=optim.SGD(1e38))
    assert (result.status, result.stop_reason) == ("diverged", "loss is not finite")


@mpi
def test_factors_and_clipping_and_no_shared_memory(nodes, monkeypatch):
    exact, _ = train(nodes, "float32", clip_norm=0.5, l2=0.01)
    for options in ({"factors": True}, {"factors": False}):
        rounded, _ = train(nodes, "float16", clip_norm=0.5, l2=0.01, **options)
        np.testing.assert_allclose(rounded.w, exact.w, atol=2e-3)
    monkeypatch.setattr("distai_mpi.comm.vectors.Vectors.shared", lambda *args: None)
    rounded, _ = train(nodes, "float16", clip_norm=0.5, l2=0.01)
    np.testing.assert_allclose(rounded.w, exact.w, atol=2e-3)


@mpi
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allreduce": "ring"}, "is for algorithm hierarchical or auto, not ring"),
        ({"dtype": np.float64}, "float32 numbers, not float64"),
        ({"wire": "float8"}, "must be one of float32, float16, got 'float8'"),
    ],
)
def test_what_cannot_be_is_said(nodes, options, message):
    with pytest.raises(ConfigError, match=message):
        train(nodes, **{"wire": "float16"} | options)


def test_the_flag(run_command, tmp_path):
    np.savez(tmp_path / "rows.npz", x=problem()[0], y=problem()[1])
    (tmp_path / "run.toml").write_text("wire = 'float16'\nepochs = 1\nquiet = true\n")
    words = ["train", "--data", tmp_path / "rows.npz", "--config", tmp_path / "run.toml", "--json"]
    for nodes, expected in (("1", "float16"), ("2", "float32")):
        done = run_command(2, *map(str, words), env={"DISTAI_NODES": nodes})
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["wire"] == expected
        assert result["allreduce"] == "hierarchical" or expected == "float32"
    done = run_command(2, *map(str, words), "--dtype", "float64")
    assert done.returncode != 0
    assert "--wire float16 stands for float32 numbers, not float64: leave it out" in done.stderr


def test_the_flag_names_all_wires():
    from distai_mpi.cli.train import command

    choices = {param.name: param.type for param in command.params}
    assert tuple(choices["wire"].choices) == DTYPES


@mpi
@pytest.mark.parametrize("early", [True, False])
def test_a_traced_run_tells_of_its_messages(nodes, tmp_path, early):
    """And is the same run."""
    equal = len({len(ranks) for ranks in nodes.topology.nodes}) == 1
    options = {"early": early and equal}
    plain, _ = train(nodes, "float16", **options)
    path = nodes.bcast_object(tmp_path / "trace.json")
    traced, _ = train(nodes, "float16", trace=str(path), **options)
    assert traced.w.tobytes() == plain.w.tobytes()
    if nodes.rank == 0 and len(nodes.leaders) > 1:
        carriers = nodes.topology.rails * len(nodes.leaders)
        assert path.read_text().count('"exchange"') >= 2 * traced.iterations * carriers
