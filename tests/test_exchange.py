"""What a user asks of the exchange, what that becomes, and what all exchanges have in common."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from distai_mpi import backend
from distai_mpi.cli.info import describe_exchange
from distai_mpi.comm import ALGORITHMS, CHOICES, SHARING, Communicator, Exchange, choose_exchange
from distai_mpi.comm.communicator import SHARED_BYTES
from distai_mpi.comm.exchange.choice import resolve
from distai_mpi.comm.exchange.compressed import CompressedExchange
from distai_mpi.errors import ConfigError

mpi = pytest.mark.mpi
LONG = SHARED_BYTES // 4  # float32 numbers


def test_every_algorithm_has_a_name_to_ask_for():
    assert ("auto", *ALGORITHMS, *SHARING) == CHOICES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "rings"}, "algorithm of Exchange must be one of auto, native, .*, got 'rings'"),
        ({"dtype": "float8"}, "dtype of Exchange must be one of float32, float16, got 'float8'"),
        ({"factors": True, "overlap": True}, "factors and overlap exclude each other"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Exchange(**settings)


def ranks(size, nodes):
    """As much of a communicator as the rule looks at."""
    return SimpleNamespace(default_algorithm="auto", size=size, leaders=tuple(range(nodes)), exchange=lambda name: None)


@pytest.mark.parametrize(
    ("size", "nodes", "settings", "length", "dtype", "expected"),
    [
        (1, 1, {}, 10**6, "f4", "native"),
        (2, 1, {}, LONG, "f4", "shared"),
        (2, 1, {}, LONG - 1, "f4", "native"),
        (4, 2, {}, LONG, "f8", "hierarchical"),
        (4, 4, {}, LONG, "f4", "hierarchical"),
        (4, 2, {}, 1, "f4", "native"),
        (4, 2, {"dtype": "float16"}, 1, "f4", "hierarchical"),
        (4, 2, {"overlap": True}, 1, "f4", "hierarchical"),
        (4, 1, {"overlap": True}, LONG, "f4", "shared"),
        (4, 1, {}, 10**6, "f2", "native"),
        (4, 1, {"algorithm": "hierarchical"}, 1, "f4", "shared"),
        (4, 2, {"algorithm": "hierarchical"}, 1, "f4", "hierarchical"),
        (4, 2, {"algorithm": "tree"}, 10**6, "f4", "tree"),
    ],
)
def test_the_rule(size, nodes, settings, length, dtype, expected):
    found = resolve(ranks(size, nodes), Exchange(**settings), length, dtype)
    assert found.name == expected
    assert bool(found.reason) == (settings.get("algorithm", "auto") == "auto")


def test_vectors_on_a_device_travel_by_messages():
    device = SimpleNamespace(name="gpu")
    assert device is not backend.HOST
    assert resolve(ranks(4, 1), Exchange(), 10**6, "f4", device) == ("native", "float32 on gpu")


@mpi
def test_all_ranks_have_the_same_exchange_for_a_run(nodes):
    for name in CHOICES:
        if name == "shared" and len(nodes.leaders) > 1:
            with pytest.raises(ConfigError, match="shared is for one node"):
                choose_exchange(nodes, Exchange(name), 1000, "f4")
            continue
        found = choose_exchange(nodes, Exchange(name), 100_000, "f4")
        assert found is nodes.exchange(found.name) or found is nodes.exchange(name)
        assert len(set(nodes.allgather_object(found.name))) == 1
        assert not found.state


@mpi
def test_every_run_has_float16_messages_of_its_own(nodes):
    first, second = (choose_exchange(nodes, Exchange(dtype="float16"), 5000, "f4") for _ in range(2))
    if len(nodes.leaders) == 1:
        assert first is second
        assert first.dtype is None
        return
    assert first is not second
    assert isinstance(first, CompressedExchange)
    held = nodes.allgather_object([(start, start + part.size) for part, start in first.state.values()])
    ranges = sorted(span for of_rank in held for span in of_rank if span[0] < span[1])
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]  # the ranks hold each number once
    assert ranges[-1][1] == 5000


@mpi
def test_auto_sums_rightly_at_any_length(nodes):
    for length in (1, LONG - 1, LONG, 3 * LONG + 5):
        x, out = nodes.empty(length, "f4"), nodes.empty(length, "f4", one_copy=True)
        expected = nodes.size * (nodes.size + 1) // 2
        for _ in range(3):
            x[:] = nodes.rank + 1
            nodes.allreduce(x)
            assert (x == expected).all()
            x[:] = nodes.rank + 1
            nodes.allreduce(x, out=out)
            assert (out == expected).all()
            nodes.barrier()
        by = nodes.exchange().summed_by(x)
        if length < LONG or nodes.size == 1:
            assert by == "native"
        else:
            assert by == ("shared" if len(nodes.leaders) == 1 else "hierarchical")


@mpi
def test_a_recorder_is_called_back_at_messages(comm):
    class Called(list):
        def mark(self, phase):
            self.append(phase)
            return phase

        def timed(self, phase, work):
            return lambda: self.append(phase) or work()

    calls = Called()
    comm.trace(calls)
    try:
        comm.allreduce(np.ones(1000), "ring")
    finally:
        comm.trace(None)
    assert bool(calls) == (comm.size > 1)


@pytest.mark.mpi(min_size=2)
def test_ranks_that_ask_for_different_sums_are_told(monkeypatch):
    from mpi4py import MPI

    with Communicator(MPI.COMM_WORLD) as comm:
        monkeypatch.setattr(comm, "compares", True)
        with pytest.raises(ConfigError, match="vectors of allreduce differ"):
            comm.allreduce(np.ones(1000 + comm.rank))


# --- the commands


def job(run_command, tmp_path, *words, ranks=2):
    done = run_command(ranks, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_goes_on_with_its_exchange(run_command, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(64, 40)), y=rng.integers(0, 2, 64))
    flags = ("train", "--data", "rows.npz", "--model", "softmax", "--out", "run", "--checkpoint-every", "1", "-v")
    job(run_command, tmp_path, *flags, "--epochs", "1", "--allreduce", "rabenseifner")
    told = job(run_command, tmp_path, *flags, "--epochs", "2", "--resume")
    assert "exchange rabenseifner\n" in told
    assert json.loads((tmp_path / "run/result.json").read_text())["allreduce"] == "rabenseifner"
    assert "rabenseifner" not in (tmp_path / "run/settings.toml").read_text()
    assert "exchange native (auto: one rank)\n" in job(
        run_command, tmp_path, *flags, "--epochs", "3", "--resume", ranks=1
    )


def test_info_tells_what_auto_takes():
    told = "\n".join(text for _, text in describe_exchange(ranks(2, 1)))
    assert "500 parameters: native (auto: gradients shorter than 4 KiB)" in told
    assert "100,000 parameters: shared (auto: one node)" in told
