"""The format of checkpoints: cut anew for other ranks, and never damaged by an abort, a crash or a full disk."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distai_mpi.errors import DataError, DistaiError
from distai_mpi.params import Ownership
from distai_mpi.train.checkpoint import files
from distai_mpi.train.checkpoint.files import Image, Part, Stored

SIZE = 10_007


def vectors(step, size=SIZE):
    """What the checkpoint after ``step`` steps holds."""
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=size).astype(np.float32), "velocity": rng.normal(size=size), "carry": np.ones(size)}


def cut(arrays, ranks, rank):
    """The parts of one rank, which are views of ``arrays``; and a vector of its own."""
    parts = []
    for name, array in arrays.items():
        mine = Ownership.sharded(array.size, ranks, array.itemsize).slices[rank]
        parts.append(Part.range(name, array[mine], mine.start, array.size))
    return [*parts, Part.range("own", np.full(rank, rank, np.int64), 0, rank, rank)]


def save(folder, step, ranks=3, size=SIZE, keep=2):
    """All that the ranks do to write a checkpoint, one after another."""
    path = files.step_folder(str(folder), step)
    shards = []
    for rank in range(ranks):
        parts = cut(vectors(step, size), ranks, rank)
        image = Image(parts)
        image.copy(parts)
        shards.append(files.write_shard(path, rank, image))
    files.commit(path, {"step": step, "shards": shards})
    files.prune(str(folder), keep)


def load(path, ranks, size=SIZE, own=False):
    """The vectors of a checkpoint, as so many ranks read them."""
    stored = Stored(path)
    arrays = {name: np.full_like(array, np.nan) for name, array in vectors(0, size).items()}
    for rank in range(ranks):
        parts = cut(arrays, ranks, rank)
        stored.read(parts if own else parts[:-1])
        if own:
            np.testing.assert_array_equal(parts[-1].array, np.full(rank, rank))
    return stored.body["step"], arrays


def check(folder, steps, size=SIZE):
    """The newest checkpoint is whole and that of one of ``steps``."""
    step, arrays = load(files.whole(str(folder))[0], 2, size)
    assert step in steps
    for name, array in vectors(step, size).items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_any_number_of_ranks_reads_what_three_have_written(tmp_path, ranks):
    save(tmp_path, 5)
    step, arrays = load(files.whole(str(tmp_path))[0], ranks, own=ranks == 3)
    assert step == 5
    for name, array in vectors(5).items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("size", [0, 1, 1024, 4096])
def test_vectors_of_any_length(tmp_path, size):
    save(tmp_path, 5, ranks=4, size=size)
    check(tmp_path, {5}, size)


def test_blocks_that_a_rank_does_not_need_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 4096)
    save(tmp_path, 5)
    path = files.whole(str(tmp_path))[0]
    with open(os.path.join(path, "rank-00000.bin"), "r+b") as file:
        file.seek(5000)  # in the second block of w
        file.write(b"\xff\xff")
    w = np.empty(1000, np.float32)
    Stored(path).read([Part.range("w", w, 0, SIZE)])
    np.testing.assert_array_equal(w, vectors(5)["w"][:1000])
    w = np.empty(1100, np.float32)
    with pytest.raises(DataError, match=r"rank-00000.bin: damaged between bytes 4,096"):
        Stored(path).read([Part.range("w", w, 0, SIZE)])


def test_files_that_a_rank_does_not_need_are_not_opened(tmp_path):
    save(tmp_path, 5, ranks=4)
    path = files.whole(str(tmp_path))[0]
    for rank in (0, 3):
        os.remove(os.path.join(path, files.shard_name(rank)))
    mine = Ownership.sharded(SIZE, 4, 4).slices[1]
    w = np.empty(mine.stop - mine.start, np.float32)
    Stored(path).read([Part.range("w", w, mine.start, SIZE)])
    np.testing.assert_array_equal(w, vectors(5)["w"][mine])


def test_the_newest_two_are_kept_and_nothing_that_never_became_one(tmp_path):
    os.makedirs(files.step_folder(str(tmp_path), 2))
    (tmp_path / "notes").mkdir()
    for step in (1, 3, 10, 2_000_000_000):
        save(tmp_path, step)
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-000000010", "step-2000000000"]
    check(tmp_path, {2_000_000_000})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_make_no_checkpoint(tmp_path, bad):
    w = np.zeros(3 * files.FINITE)
    w[2 * files.FINITE + 5] = bad
    parts = [Part.range("ids", np.arange(3), 0, 3), Part.range("w", w, 0, w.size)]
    image = Image(parts)
    image.copy(parts)
    with pytest.raises(DataError, match=r"rank-00000.bin.*not finite"):
        files.write_shard(str(tmp_path / "step-000000001"), 0, image)


def damage(kind, path):
    """Do harm to a checkpoint; return what the message must name."""
    shard, manifest = os.path.join(path, "rank-00001.bin"), os.path.join(path, "manifest.json")
    data = bytearray(open(manifest if "manifest" in kind else shard, "rb").read())
    if kind == "bit in shard":
        data[77] ^= 1
    elif kind == "bit in manifest":
        data[len(data) // 2] ^= 1
    elif kind.startswith("short"):
        del data[-5:]
    elif kind == "empty manifest":
        data.clear()
    if kind == "shard missing":
        os.remove(shard)
    elif kind == "newer manifest":
        files.commit(path, {**Stored(path).body, "version": 2})
    else:
        open(manifest if "manifest" in kind else shard, "wb").write(data)
    return "manifest.json" if "manifest" in kind else "rank-00001.bin"


DAMAGES = ["bit in shard", "bit in manifest", "short shard", "short manifest", "empty manifest", "shard missing",
           "newer manifest"]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_seen_and_named(tmp_path, kind):
    save(tmp_path, 5)
    path = files.whole(str(tmp_path))[0]
    name = damage(kind, path)
    with pytest.raises(DataError, match=name):
        load(path, 2)


@pytest.mark.parametrize(
    ("part", "word"),
    [
        (Part.range("w", np.empty(SIZE), 0, SIZE), "type"),
        (Part.range("w", np.empty(5, np.float32), 0, 5), "elements"),
        (Part.range("moment", np.empty(SIZE), 0, SIZE), "moment"),
    ],
)
def test_state_of_another_kind_is_refused(tmp_path, part, word):
    save(tmp_path, 5)
    with pytest.raises(DataError, match=word):
        Stored(files.whole(str(tmp_path))[0]).read([part])


CALLS = ("open", "write", "fsync", "replace", "makedirs", "remove", "rmdir", "unlink")


class Crash(BaseException):
    """The process ends here."""


def fault_at(monkeypatch, number, error):
    """Let call ``number`` to the operating system, counted from 0, raise ``error``, and with a crash all after it."""
    seen = []

    def fail(name, real):
        def call(*args, **kwargs):
            seen.append(name)
            if len(seen) == number + 1 or (len(seen) > number and isinstance(error, Crash)):
                raise error
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, fail(name, getattr(os, name)))
    return seen


def calls_of_a_save(folder, step):
    with pytest.MonkeyPatch.context() as patch:
        seen = fault_at(patch, 10**9, OSError())
        save(folder, step)
    return list(seen)


@pytest.mark.parametrize("crash", [True, False])
def test_a_fault_anywhere_leaves_a_whole_checkpoint(tmp_path, crash):
    for step in (1, 2):
        save(tmp_path / "count", step)
    calls = calls_of_a_save(tmp_path / "count", 3)
    assert {"open", "write", "fsync", "replace", "makedirs"} <= set(calls)
    for number in range(len(calls)):
        folder = tmp_path / str(number)
        for step in (1, 2):
            save(folder, step)
        error = Crash() if crash else OSError(errno.ENOSPC, "No space left on device")
        with pytest.MonkeyPatch.context() as patch:
            fault_at(patch, number, error)
            with contextlib.suppress(Crash, OSError, DistaiError):
                save(folder, 3)
        check(folder, {2, 3})
        save(folder, 4)
        check(folder, {4})


def test_files_are_on_the_disk_before_the_manifest_and_the_manifest_before_old_ones_go(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    calls = calls_of_a_save(tmp_path, 3)
    commit = calls.index("replace")
    assert calls[:commit].count("fsync") == 3 * 2 + 2 + 1, "each file and its folder; the folders above; the manifest"
    first_removal = min(calls.index(name) for name in ("remove", "unlink", "rmdir") if name in calls)
    assert "fsync" in calls[commit:first_removal]


SAVING = """
import itertools, sys
sys.path.insert(0, {tests!r})
from test_checkpoint_files import save
for step in itertools.count(1):
    save(sys.argv[1], step, ranks=2, size=400_000)
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    moments = random.Random(0)
    for turn in range(6):
        folder = tmp_path / str(turn)
        program = SAVING.format(tests=os.path.dirname(__file__))
        words = [sys.executable, "-c", program, str(folder)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "1\n"
            time.sleep(moments.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            done = [1, *map(int, child.stdout.read().split())]
        check(folder, {done[-1], done[-1] + 1}, size=400_000)


@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_file_system_without_direct_writes(tmp_path, monkeypatch, refused):
    real = getattr(os, refused)
    refusals = []

    def once(*args):
        direct = args[1] & os.O_DIRECT if refused == "open" else not refusals
        if direct:
            refusals.append(args)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(*args)

    monkeypatch.setattr(os, refused, once)
    save(tmp_path, 5)
    check(tmp_path, {5})
    assert refusals


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: max(1, len(data) // 3)]))
    save(tmp_path, 5)
    check(tmp_path, {5})
