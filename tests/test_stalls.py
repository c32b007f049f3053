"""Stalls: found in the rows that ranks have recorded, and told by a traced run."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from fits import fit
from problems import make_rows, whole_shard

from distai_mpi import models
from distai_mpi.trace import COMPUTE, EXCHANGE, STEP, WAIT
from distai_mpi.train.callbacks import Callback
from distai_mpi.train.stalls import Stall, find_stalls, longest

TICK = 1e-3  # of these clocks: milliseconds
SHORT = [(STEP, n, 10 * n, 10 * n + 10) for n in range(10)]


def rows(*more):
    return np.array([*SHORT, *more], np.int64)


def test_a_rank_that_computes_while_the_others_wait():
    waits = rows((STEP, 812, 100, 20_110), (COMPUTE, 0, 100, 105), (WAIT, 0, 105, 20_105))
    works = rows((STEP, 812, 100, 20_110), (COMPUTE, 0, 100, 20_104), (WAIT, 0, 20_104, 20_105))
    stalls = find_stalls([waits, waits, works], TICK, [[], [], []])
    assert stalls == [Stall(105, 20_105, 812, 2, False)]
    assert stalls[0].text(TICK) == "all other ranks waited 20 s in step 812 for rank 2"


def test_a_stall_inside_of_a_wait():
    """Rank 2 was stopped in a wait whose end the others have seen: they are in the next one already."""
    others = rows((STEP, 812, 100, 20_110), (WAIT, 0, 104, 106), (EXCHANGE, 0, 106, 20_105))
    stopped = rows((STEP, 812, 100, 20_110), (WAIT, 0, 103, 20_100))
    (stall,) = find_stalls([others, others, stopped], TICK, [[], [], []])
    assert (stall.step, stall.rank, stall.waits) == (812, 2, True)
    assert stall.text(TICK) == "all ranks waited 20 s in step 812 for rank 2"


def test_a_process_that_did_not_run_is_the_one():
    wait = rows((STEP, 812, 100, 20_110), (WAIT, 0, 104, 20_105))
    first = rows((STEP, 812, 100, 20_110), (WAIT, 0, 103, 20_105))
    assert find_stalls([first, wait, wait], TICK, [[], [], []])[0].rank == 0
    assert find_stalls([first, wait, wait], TICK, [[], [], [(90, 20_000)]])[0].rank == 2


def test_short_waits_and_long_steps_are_no_stalls():
    short = rows((STEP, 12, 100, 900), (WAIT, 0, 105, 895))
    assert find_stalls([short, short], TICK, [[], []]) == []
    slow = np.array([(STEP, n, 5000 * n, 5000 * n + 5000) for n in range(9)] + [(WAIT, 0, 0, 3000)], np.int64)
    works = slow[:9]
    assert find_stalls([slow, works], TICK, [[], []]) == []
    assert find_stalls([rows((WAIT, 0, 100, 30_000))], TICK, [[]]) == []  # one rank waits for nobody


def test_the_longest_are_told():
    stalls = [Stall(t, t + length, 0, 0, False) for t, length in ((0, 5), (10, 9), (20, 1), (30, 7))]
    assert [stall.begin for stall in longest(stalls)] == [0, 10, 30]


class Sleep(Callback):
    """The last rank sleeps once, in the midst of training."""

    def on_step(self, run):
        if run.iterations == 20 and run.comm.rank == run.comm.size - 1:
            time.sleep(1.5)


@pytest.mark.mpi(min_size=2)
def test_a_traced_run_tells_of_its_stall(comm, shared_path, capfd):
    x, y = make_rows()
    path = shared_path / "trace.json"
    model = models.MLP(6, 3, (8,), dtype=np.float64)
    fit(model, whole_shard(x, y, comm), comm, epochs=6, global_batch_size=32, trace=str(path), callbacks=[Sleep()])
    told = capfd.readouterr().err
    if comm.rank == 0:
        assert f" in step 20 for rank {comm.size - 1}" in told
        assert "all other ranks waited 1." in told
        marks = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "i"]
        assert [event["tid"] for event in marks] == [comm.size]
    comm.barrier()


@pytest.mark.mpi
def test_the_rate_of_an_epoch_is_its_own(comm):
    x, y = make_rows()
    model = models.MLP(6, 3, (8,), dtype=np.float64)
    result = fit(model, whole_shard(x, y, comm), comm, epochs=6, global_batch_size=32, callbacks=[Sleep()])
    slow = 20 // 7  # epochs have 7 steps
    seconds = np.diff([0, *(record["seconds"] for record in result.history)])
    rates = [record["samples_per_second"] for record in result.history]
    np.testing.assert_allclose(rates, len(x) / seconds, rtol=1e-9)
    assert seconds[slow] > 1.4
    assert rates[slow] < 203 / 1.4 < max(rates[slow + 1 :])
    assert result.samples_per_second == pytest.approx(6 * len(x) / result.seconds)
