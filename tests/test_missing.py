"""Missing values: filled by numbers of the training rows, or their rows left out; the same on any number of ranks."""

import json
import re

import numpy as np
import pytest
from alone import Alone, load_features
from commands import run_here
from problems import uneven
from test_standardize import gathered

from distai_mpi.data import Dataset, fill_missing, from_local, load_sets, standardize, whole
from distai_mpi.errors import ConfigError, DataError

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)


def holed(rows=203, columns=6, dtype=np.float64, seed=0):
    """Random rows of which about a tenth of the values is missing, in all columns but the last."""
    rng = np.random.default_rng(seed)
    x = (1e3 * rng.normal(size=(rows, columns))).round(2).astype(dtype)
    x[:, :-1][rng.random((rows, columns - 1)) < 0.1] = np.nan
    return x


def expected(x, by, weight=None):
    """The numbers that stand for missing values, from rows repeated as often as they weigh."""
    repeated = x if weight is None else np.repeat(x, weight, axis=0)
    exact = repeated.astype(np.float64)
    return (
        np.nanmean(exact.astype(np.longdouble), axis=0).astype(float) if by == "mean" else np.nanmedian(exact, axis=0)
    )


@pytest.mark.parametrize("by", ["mean", "median"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 7, 202, 203])
def test_numbers_are_those_of_numpy(by, dtype, rows):
    x = holed(rows, dtype=dtype)
    x[0] = np.arange(6) - 3  # no column is missing everywhere
    (shard,) = fill_missing(whole(Dataset(x, np.zeros(rows))), comm=Alone(), by=by)
    np.testing.assert_allclose(shard.dataset.fill.values, expected(x, by), rtol=2e-16, atol=0)
    values, _ = gathered(shard)
    assert np.array_equal(values, np.where(np.isnan(x), shard.dataset.fill.values, x.astype(np.float64)))


@pytest.mark.parametrize("by", ["mean", "median"])
def test_a_row_of_weight_two_counts_as_two(by):
    x, weight = holed(60), np.random.default_rng(1).integers(0, 4, 60)
    for scale in (1.0, 0.25, 2.0**40):
        (shard,) = fill_missing(whole(Dataset(x, np.zeros(60), scale * weight)), comm=Alone(), by=by)
        np.testing.assert_allclose(shard.dataset.fill.values, expected(x, by, weight), rtol=3e-16)


@pytest.mark.parametrize(
    ("column", "median"),
    [
        ([-1.0, 1.0], 0),
        ([-3.0, -0.0, 0.0], 0),
        ([-1e308, 1e308, 5e-324], 5e-324),
        ([-5e-324, -5e-324, 1.0, -2.0], -5e-324),
        ([1.7e308, 1.7e308], 1.7e308),
        ([4.0, np.nan, -6.0, 5.0], 4),
    ],
)
def test_signs_zeros_and_extremes_have_their_place_in_a_median(column, median):
    shard = whole(Dataset(np.array([column]).T, np.zeros(len(column))))
    assert fill_missing(shard, comm=Alone(), by="median")[0].dataset.fill.values == [median]


def test_indicators_are_features_that_are_standardized_too():
    x, other = holed(40), holed(30, seed=3)
    x[:, 2] = 5.0
    train, nothing, test = fill_missing(
        whole(Dataset(x, np.zeros(40))), None, whole(Dataset(other, np.zeros(30))), comm=Alone(), indicator=True
    )
    assert nothing is None
    assert train.dataset.fill.indicators.tolist() == [0, 1, 3, 4], "the columns that have missing values in training"
    assert (train.features, test.features, train.labels.features) == (10, 10, 10)
    for shard, raw in ((train, x), (test, other)):
        filled = np.where(np.isnan(raw), train.dataset.fill.values, raw)
        assert np.array_equal(gathered(shard)[0], np.hstack([filled, np.isnan(raw)[:, [0, 1, 3, 4]]]))
    train, test = standardize(train, test, comm=Alone())
    values = gathered(train)[0]
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(0), [1, 1, 0, *[1] * 7], atol=1e-12)


@pytest.mark.parametrize("by", ["mean", "median"])
def test_a_feature_without_a_value_in_training_is_0(by):
    x, other = holed(20), holed(20, seed=1)
    x[:, 1] = np.nan
    sets = [whole(Dataset(rows, np.zeros(20))) for rows in (x, other)]
    train, test = fill_missing(*sets, comm=Alone(), by=by)
    assert re.search(r"feature 1 \(counted from 0\) missing in all training rows .*as 0", " ".join(train.notes))
    for shard, rows in ((train, x), (test, other)):
        rows = np.where(np.isnan(rows), train.dataset.fill.values, rows)
        rows[:, 1] = 0  # also where there is a value
        assert np.array_equal(gathered(shard)[0], rows)
    train, test = standardize(train, test, comm=Alone())
    assert not gathered(test)[0][:, 1].any()


def test_what_cannot_be_filled():
    with pytest.raises(DataError, match=r"feature 0 \(counted from 0\) missing in all training rows.*drop="):
        fill_missing(whole(Dataset(np.full((20, 1), np.nan), np.zeros(20))), comm=Alone())
    with pytest.raises(ConfigError, match="mean or median, not 'mode'"):
        fill_missing(whole(Dataset(holed(), np.zeros(203))), comm=Alone(), by="mode")
    x = np.array([[1e308], [1.5e308], [np.nan]])
    with pytest.raises(DataError, match="too large for a mean"):
        fill_missing(whole(Dataset(x, np.zeros(3))), comm=Alone())
    (shard,) = fill_missing(whole(Dataset(x, np.zeros(3))), comm=Alone(), by="median")
    assert shard.dataset.fill.values == [1.25e308]
    with pytest.raises(DataError, match="x holds nan in row"):
        from_local(Dataset(holed(), np.zeros(203)), Alone())
    x = holed()
    x[7, 2] = np.inf
    with pytest.raises(DataError, match="x holds inf in row 7, column 2"):
        from_local(Dataset(x, np.zeros(203)), Alone(), keeps_missing=True)
    with pytest.raises(DataError, match="y holds nan in row 1"):
        from_local(Dataset(np.ones((2, 1)), np.array([1, np.nan])), Alone(), keeps_missing=True)
    with pytest.raises(DataError, match="6 columns, but values for 2"):
        Dataset(holed(), np.zeros(203), fill=shard.dataset.fill.__class__(np.zeros(2), np.empty(0, np.int64)))


@mpi
@pytest.mark.parametrize("by", ["mean", "median"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [3, 203])
def test_any_ranks_and_any_shards_give_the_same_numbers(comm, by, weighted, rows):
    x = holed(rows)
    x[-1] = 7.0
    weight = 0.1 + np.random.default_rng(1).random(rows) if weighted else None
    y, counts = np.zeros(rows), uneven(rows, comm.size)
    start = sum(counts[: comm.rank])
    mine = slice(start, start + counts[comm.rank])
    local = Dataset(x[mine], y[mine], None if weight is None else weight[mine])
    (alone,) = fill_missing(whole(Dataset(x, y, weight)), comm=Alone(), by=by)
    for shard in (whole(Dataset(x, y, weight), comm.rank, comm.size), from_local(local, comm, keeps_missing=True)):
        (shard,) = fill_missing(shard, comm=comm, by=by)
        assert shard.dataset.fill.values.tobytes() == alone.dataset.fill.values.tobytes()


@mpi
@pytest.mark.parametrize("options", [{"shuffle": "global"}, {"shuffle": "local"}, {"distribute": "scatter"}])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_are_filled_alike_however_they_come(comm, shared_path, options, save):
    x, y = holed(), np.arange(203) % 3
    if comm.rank == 0:
        save(shared_path / "a.npz", x=x, y=y)
    comm.barrier()
    sets = load_sets(shared_path / "a.npz", comm, missing="median", indicator=True, valid=0.2, **options)
    parts = comm.allgather_object(gathered(sets.train, comm.rank, comm.size))
    values, ids = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    assert len(ids) == sets.train.rows
    raw = x[ids]
    assert np.array_equal(sets.train.dataset.fill.values, expected(raw, "median"))
    filled = np.where(np.isnan(raw), expected(raw, "median"), raw)
    assert np.array_equal(values, np.hstack([filled, np.isnan(raw)[:, sets.train.dataset.fill.indicators]]))
    assert sets.test.dataset.fill is sets.valid.dataset.fill is sets.train.dataset.fill
    with pytest.raises(DataError, match="x holds nan in row"):
        load_sets(shared_path / "a.npz", comm, **options)


@mpi
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_that_lack_a_value_are_dropped(comm, shared_path, save):
    x, y = holed(), np.arange(203) % 2.0
    y[5] = np.nan
    whole_rows = ~np.isnan(x).any(1) & ~np.isnan(y)
    if comm.rank == 0:
        save(shared_path / "a.npz", x=x, y=y, weight=np.arange(203.0))
        np.savez(shared_path / "b.npz", x=x[whole_rows], y=y[whole_rows], weight=np.arange(203.0)[whole_rows])
        np.savez(shared_path / "none.npz", x=np.full((4, 2), np.nan), y=np.zeros(4))
    comm.barrier()
    for shuffle in ("global", "local"):
        ours, theirs = (
            load_sets(shared_path / name, comm, missing="drop", shuffle=shuffle).train for name in ("a.npz", "b.npz")
        )
        assert ours.counts == theirs.counts
        for field in ("x", "y", "weight"):
            assert np.array_equal(getattr(ours.dataset, field), getattr(theirs.dataset, field))
    left_out = int(203 - whole_rows.sum())
    assert ours.notes == (f"{shared_path / 'a.npz'}: {left_out} of 203 rows left out, which lack a value",)
    assert theirs.notes == ()
    train = load_sets(shared_path / "a.npz", comm, missing="mean", test_fraction=0).train  # rows without a label alone
    assert train.rows == 202
    assert train.notes == (f"{shared_path / 'a.npz'}: 1 of 203 rows left out, which lack a label",)
    with pytest.raises(DataError, match="every row lacks a value"):
        load_sets(shared_path / "none.npz", comm, missing="drop")


TRAIN = ("train", "--model", "logistic", "--optimizer", "lbfgs", "--l2", "1e-3", "--dtype", "float64", "-q")


def command(*words, status=0, **kwargs):
    done = run_here(*words, **kwargs)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@mpi
@pytest.mark.parametrize("by", ["mean", "median"])
def test_a_model_keeps_what_was_filled(comm, shared_path, by):
    rng = np.random.default_rng(5)
    full = rng.normal(size=(300, 4))
    y = (full @ [1, -2, 0.5, 0] + rng.logistic(size=300) > 0).astype(int)
    x = full.copy()
    x[:, :3][rng.random((300, 3)) < 0.2] = np.nan
    fill = expected(x, by)
    filled = np.hstack([np.where(np.isnan(x), fill, x), np.isnan(x)[:, :3]])
    new = np.array([[np.nan] * 4, [1, 2, np.nan, 3], [0, 0, 0, np.nan]])  # the last column was nowhere missing
    if comm.rank == 0:
        np.savez(shared_path / "holed.npz", x=x, y=y)
        np.savez(shared_path / "filled.npz", x=filled, y=y)
        np.save(shared_path / "new.npy", new)
        np.save(shared_path / "new_filled.npy", np.hstack([np.where(np.isnan(new), fill, new), np.isnan(new)[:, :3]]))
    comm.barrier()
    at = {"cwd": shared_path}
    flags = ("--test-fraction", 0)
    command(*TRAIN, *flags, "--data", "holed.npz", "--missing", by, "--missing-indicator", "--out", "a", **at)
    command(*TRAIN, *flags, "--data", "filled.npz", "--out", "b", **at)
    with np.load(shared_path / "a" / "model.npz") as ours, np.load(shared_path / "b" / "model.npz") as theirs:
        np.testing.assert_allclose(ours["layer1.weight"], theirs["layer1.weight"], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(ours["extra.fill"], fill, rtol=1e-15)
    losses = [
        json.loads(command("evaluate", run, "--data", f"{name}.npz", "--json", **at))["loss"]
        for run, name in (("a", "holed"), ("b", "filled"))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for run, name in (("a", "new"), ("b", "new_filled")):
        command("predict", run, "--data", f"{name}.npy", "--out", f"{run}.npy", **at)
    assert np.array_equal(np.load(shared_path / "a.npy"), np.load(shared_path / "b.npy"))
    assert "holds nan" in command("predict", "b", "--data", "new.npy", "--out", "no.npy", status=2, **at)
    command(*TRAIN, "--data", "holed.npz", "--missing", "drop", "--out", "c", **at)
    told = command("evaluate", "c", "--data", "holed.npz", "--json", **at)
    assert json.loads(told)["count"] == np.count_nonzero(~np.isnan(x).any(1))
    assert "holds nan" in command("predict", "c", "--data", "new.npy", "--out", "no.npy", status=2, **at)


def test_flags_that_go_together(tmp_path):
    assert "--missing-indicator needs --missing" in command("train", "--missing-indicator", status=2)
    with pytest.raises(ConfigError, match="need missing='mean' or 'median'"):
        load_sets("mnist", Alone(), missing="drop", indicator=True)
    with pytest.raises(ConfigError, match="missing must be one of refuse, mean, median, drop"):
        load_sets("mnist", Alone(), missing="mode")
    with pytest.raises(ConfigError, match="every row gets a prediction"):
        load_features("mnist", missing="drop")
