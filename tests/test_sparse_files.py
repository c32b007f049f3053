"""Sparse matrices in .npz and HDF5 files: every layout gives the rows of the dense matrix, at each number of ranks."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from alone import Alone, load_features
from commands import run_here

import distai_mpi
from distai_mpi.data import load, load_sets
from distai_mpi.data.formats import find
from distai_mpi.data.readers.chunk import Csr
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.sparse_rows import SparseRows
from distai_mpi.errors import ConfigError, DataError

h5py = pytest.importorskip("h5py", reason="not available: h5py")

ROWS, FEATURES = 45, 11
GENES = tuple(f"g{j}" for j in range(FEATURES))


def make_matrix() -> Any:
    """CSR in float64, values that float32 does not hold; rows 0, 7 and the last ten are empty, and column 5."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, FEATURES)) * (rng.random((ROWS, FEATURES)) < 0.3)
    x[[0, 7]], x[-10:], x[:, 5] = 0, 0, 0
    return sp.csr_array(x)


M = make_matrix()
X, Y = M.toarray(), np.arange(ROWS) % 3
WORDS = [("B", "monocyte", "T")[y] for y in Y]


def arrays(matrix: Any = M, prefix: str = "x", **others: Any) -> dict[str, Any]:
    """The arrays of a sparse matrix by names, as other programs call them in an .npz."""
    parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": matrix.shape}
    return {f"{prefix}{prefix and '_'}{role}": array for role, array in (parts | others).items()}


def save_npz(folder: Path, how: Callable[..., None] = np.savez, **given: Any) -> None:
    how(folder / "a.npz", **(arrays() | {"y": Y} | given))


def save_scipy(folder: Path, layout: str, packed: bool = False, labels: str = "y.npy") -> None:
    sp.save_npz(folder / "a.npz", M.asformat(layout), compressed=packed)
    if labels == "y.npy":
        np.save(folder / labels, Y)
    elif labels == "y.npz":
        np.savez(folder / labels, Y)
    else:
        (folder / labels).write_text("label\n" + "".join(f"{y}\n" for y in Y))


def save_group(folder: Path, group: str = "x", layout: str | None = None, **options: Any) -> None:
    """Data, indices and indptr in a group of an HDF5 file, the shape beside them."""
    matrix = M if layout is None else M.asformat(layout)
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in arrays(matrix, "").items():
            file.create_dataset(f"{group}/{name}", data=array, **(options if name != "shape" else {}))
        if layout is not None:
            file[group or "/"].attrs["format"] = layout
        file["y"] = Y


def save_anndata(folder: Path, layout: str = "csr", named: bool = True, old: bool = False) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        matrix = M.asformat(layout)
        for name in ("data", "indices", "indptr"):
            file.create_dataset(f"X/{name}", data=getattr(matrix, name), chunks=(8,), compression="gzip")
        known = ("h5sparse_format", "h5sparse_shape") if old else ("encoding-type", "shape")
        file["X"].attrs[known[0]] = layout if old else f"{layout}_matrix"
        file["X"].attrs[known[1]] = M.shape
        file["obs/y"], file["obs/word"] = Y, WORDS
        file["obs/kind/codes"], file["obs/kind/categories"] = Y.astype("i1"), ["B", "monocyte", "T"]
        file["obs/kind"].attrs["encoding-type"] = "categorical"
        if named:
            file["var/_index"] = GENES


def save_10x(folder: Path, group: str = "matrix", genes: str = "features/id") -> None:
    """As Cell Ranger writes it: genes × cells by columns, so that the entries of a cell stand together."""
    turned = M.T.tocsc()
    with h5py.File(folder / "a.h5", "w") as file:
        for name in ("data", "indices", "indptr", "shape"):
            file[f"{group}/{name}"] = getattr(turned, name)
        file[f"{group}/barcodes"] = [f"AAAC-{i}" for i in range(ROWS)]
        file[f"{group}/{genes}"] = GENES
    np.save(folder / "y.npy", Y)


@dataclass(frozen=True)
class Form:
    """A way in which the matrix is stored."""

    write: Callable[[Path], None]
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


LABEL = {"label": "y"}
PAIR = "a.npz,y.npy"
FORMS = {
    "npz": Form(save_npz, "a.npz"),
    "npz, compressed": Form(partial(save_npz, how=np.savez_compressed), "a.npz"),
    "npz, of training": Form(lambda folder: np.savez(folder / "a.npz", y_train=Y, **arrays(prefix="x_train")), "a.npz"),
    "npz, without a name": Form(lambda folder: np.savez(folder / "a.npz", y=Y, **arrays(prefix="")), "a.npz"),
    "npz, named": Form(
        lambda folder: np.savez(folder / "a.npz", t=Y, **arrays(prefix="bag_of")),
        "a.npz",
        {"variable": "bag_of", "label": "t"},
    ),
    "npz, int64": Form(partial(save_npz, x_indices=M.indices.astype("i8"), x_indptr=M.indptr.astype("u8")), "a.npz"),
    "npz, big-endian": Form(partial(save_npz, x_data=M.data.astype(">f8"), x_indices=M.indices.astype(">i4")), "a.npz"),
    "npz, columns": Form(lambda folder: np.savez(folder / "a.npz", y=Y, **arrays(M.tocsc(), format=b"csc")), "a.npz"),
    "npz, transposed": Form(
        lambda folder: np.savez(folder / "a.npz", y=Y, **arrays(M.T.tocsc(), format="csc")),
        "a.npz",
        {"transpose": True},
    ),
    **{f"scipy {kind}": Form(partial(save_scipy, layout=kind), PAIR) for kind in ("csr", "csc", "coo", "bsr", "dia")},
    "scipy csr, compressed": Form(partial(save_scipy, layout="csr", packed=True), PAIR),
    "scipy coo, compressed": Form(partial(save_scipy, layout="coo", packed=True), PAIR),
    "scipy and y.npz": Form(partial(save_scipy, layout="csr", labels="y.npz"), "a.npz,y.npz"),
    "scipy and text": Form(partial(save_scipy, layout="csr", labels="y.txt"), "a.npz,y.txt"),
    "hdf5": Form(save_group, "a.h5"),
    "hdf5 at the root": Form(partial(save_group, group=""), "a.h5"),
    "hdf5 in chunks": Form(partial(save_group, chunks=(7,), compression="gzip"), "a.h5"),
    "hdf5 columns": Form(partial(save_group, layout="csc"), "a.h5"),
    "anndata": Form(save_anndata, "a.h5", LABEL),
    "anndata columns": Form(partial(save_anndata, layout="csc"), "a.h5", LABEL),
    "anndata, early": Form(partial(save_anndata, old=True, named=False), "a.h5", LABEL),
    "anndata and y.npy": Form(
        lambda folder: (save_anndata(folder), np.save(folder / "y.npy", Y))[0],  # type: ignore[func-returns-value]
        "a.h5,y.npy",
    ),
    "10x": Form(save_10x, "a.h5,y.npy"),
    "10x, earlier": Form(partial(save_10x, group="GRCh38", genes="genes"), "a.h5,y.npy"),
}
ONE_READER = {name for name in FORMS if re.search("compressed|columns|coo|bsr|scipy dia|csc|text", name)}


def path_of(form: Form, folder: Path) -> str:
    return ",".join(str(folder / name) for name in form.name.split(","))


def dense(x: Any) -> Any:
    """Features as an array, however they are held."""
    if not isinstance(x, SparseRows):
        return x
    out = np.empty(x.shape, x.dtype)
    x.fill(out)
    return out


def held(path: Any, comm: Any = None, **options: Any) -> Any:
    return load(path, comm or Alone(), test_fraction=0, **options)[0].dataset


def bad(match: str, path: str = "a.npz", **options: Any) -> None:
    with pytest.raises(DataError, match=match):
        held(path, **options)


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_of_every_layout(folder, form):
    FORMS[form].write(folder)
    path, options = FORMS[form].name, FORMS[form].options
    found, _ = find(path, None, Columns(**options))
    assert found.features == FEATURES
    assert found.sequential == (form in ONE_READER)
    assert {str(name) for name in found.files} == set(path.split(","))
    data = held(path, **options)
    assert np.array_equal(dense(data.x), X)
    assert np.array_equal(data.y, Y)
    if "," not in path:
        assert np.array_equal(dense(load_features(path, **options).dataset.x), X)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [2, 3, ROWS + 4])
def test_all_parts_together_are_all_rows(folder, form, parts):
    """Each is sparse, also one without rows."""
    FORMS[form].write(folder)
    found = pickle.loads(pickle.dumps(find(FORMS[form].name, None, Columns(**FORMS[form].options))[0]))
    parts = 1 if found.sequential else parts
    chunks = [found.read(part, parts) for part in range(parts)]
    assert sum(chunk.rows for chunk in chunks) == ROWS
    for chunk in (*chunks, found.empty()):
        assert isinstance(chunk.x, Csr)
        assert (chunk.x.ends.dtype, chunk.x.indices.dtype, chunk.x.values.dtype) == (np.int64, np.int32, found.dtype)
        assert len(chunk.x.ends) == chunk.rows
    assert np.array_equal(np.concatenate([chunk.x.values for chunk in chunks]), M.data)
    assert np.array_equal(np.concatenate([chunk.x.indices for chunk in chunks]), M.indices)
    lengths = np.concatenate([np.diff(chunk.x.ends, prepend=0) for chunk in chunks])
    assert np.array_equal(lengths, np.diff(M.indptr))


@pytest.mark.mpi
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("form", FORMS)
def test_ranks_read_the_rows_of_every_layout(comm, shared_folder, form):
    folder = shared_folder(FORMS[form].write)
    for way in ({"shuffle": "global"}, {"distribute": "scatter"}):
        shard, _ = load(path_of(FORMS[form], folder), comm, test_fraction=0, **FORMS[form].options, **way)
        x, y = dense(shard.dataset.x), shard.dataset.y
        assert shard.rows == ROWS
        if way == {"shuffle": "global"}:
            assert np.array_equal(x, X)
            assert np.array_equal(y, Y)
        else:
            parts = comm.allgather_object((x, y))
            rows = np.column_stack([np.concatenate(part) for part in zip(*parts, strict=True)])
            expected = np.column_stack([X, Y])
            assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


@pytest.mark.mpi
@pytest.mark.ranks(1, 2, 3)
def test_faults_are_told_alike(comm, shared_folder):
    """Of an array that is damaged in one place, whoever reads it; other places are those of other ranks."""
    for role, at, value, match in (
        ("indices", -1, FEATURES, f"x_indices holds {FEATURES} in row 34"),
        ("indptr", -3, 0, r"x_indptr falls from \d+ to 0 in row 42"),
        ("data", 0, np.inf, "x holds inf in row 1, column"),
    ):

        def fill(folder, role=role, at=at, value=value):
            given = arrays()
            given[f"x_{role}"] = given[f"x_{role}"].copy()
            given[f"x_{role}"][at] = value
            np.savez(folder / "a.npz", y=Y, **given)

        with pytest.raises(DataError, match=match) as caught:
            held(str(shared_folder(fill) / "a.npz"), comm)
        assert set(comm.allgather_object(str(caught.value))) == {str(caught.value)}


@pytest.mark.mpi
def test_training_and_test_rows_of_one_file(comm, shared_folder):
    def fill(folder):
        given = arrays(M[:30], "x_train") | arrays(M[30:], "x_test")
        np.savez(folder / "a.npz", y_train=Y[:30], y_test=Y[30:], **given)

    train, test = load(str(shared_folder(fill) / "a.npz"), comm, shuffle="global")
    assert np.array_equal(dense(train.dataset.x), X[:30])
    assert np.array_equal(dense(test.dataset.x), X[30:])
    assert np.array_equal(test.dataset.y, Y[30:])


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_test_rows_are_evaluated_with_labels_and_weights_of_their_own(comm, shared_folder):
    def fill(folder):
        given = arrays(M[:30], "x_train") | arrays(M[30:], "x_test")
        weights = {"weight_train": np.arange(30.0), "weight_test": np.arange(len(Y) - 30.0)}
        np.savez(folder / "a.npz", y_train=Y[:30] > 0, y_test=Y[30:] > 0, **weights, **given)

    folder = shared_folder(fill)
    done = run_here("train", "--data", "a.npz", "--model", "logistic", "--optimizer", "gd", "--out", "m", cwd=folder)
    assert done.returncode == 0, done.stderr
    kept = json.loads((folder / "m" / "result.json").read_text())["test_loss"]
    done = run_here("evaluate", "m", "--data", "a.npz", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss"] == pytest.approx(kept)


@pytest.mark.mpi
@pytest.mark.ranks(2)
def test_the_command_trains_and_predicts(comm, shared_folder):
    """The same as on a dense matrix."""

    def fill(folder):
        np.savez(folder / "sparse.npz", y=Y > 0, **arrays())
        np.savez(folder / "dense.npz", x=X, y=Y > 0)

    folder = shared_folder(fill)
    kept = {}
    for name in ("sparse", "dense"):
        train = ("train", "--data", f"{name}.npz", "--model", "logistic", "--optimizer", "lbfgs", "--l2", "0.1")
        done = run_here(*train, "--dtype", "float64", "--out", name, "-q", cwd=folder)
        assert done.returncode == 0, done.stderr
        kept[name] = json.loads((folder / name / "result.json").read_text())["train_loss"]
        done = run_here("evaluate", name, "--data", "sparse.npz", cwd=folder)
        assert done.returncode == 0, done.stderr
    assert kept["sparse"] == pytest.approx(kept["dense"], rel=1e-9)
    predictor = distai_mpi.load(str(folder / "sparse"))
    ((labels, _),) = predictor.blocks(str(folder / "sparse.npz"), "predict")
    assert np.array_equal(labels, predictor.predict(X))


# --- types


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("f4", "f4"), ("f2", "f4"), ("f8", "f8"), ("i1", "f4"), ("u2", "f4"), ("i4", "f8"), ("i8", "f8"), ("?", "f4")],
)
def test_types_of_values(folder, stored, kept):
    """float32 where that loses nothing: by their type or, as they are read, by the values there are."""
    values = np.arange(M.nnz).astype(stored) if stored != "?" else np.ones(M.nnz, bool)
    for last in (1, (1 << 24) + 1) if kept == "f8" else (1,):  # the latter is no float32
        values[-1] = last
        save_npz(folder, x_data=values)
        found = find("a.npz")[0]
        assert found.dtype == kept
        assert found.read(0, 1).x.values.dtype == ("f4" if last == 1 else kept)
        assert np.array_equal(found.read(0, 1).x.values, values)


def test_entries_of_one_feature_are_summed(folder):
    """And those of a row sorted, as SciPy's sum_duplicates does."""
    given = dict(x_data=[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], x_indices=[3, 1, 3, 0, 0, 2], x_indptr=[0, 3, 3, 6, 6])
    save_npz(folder, x_shape=(4, 5), y=Y[:4], **given)
    x = find("a.npz")[0].read(0, 1).x
    assert x.ends.tolist() == [2, 2, 4, 4]
    assert x.indices.tolist() == [1, 3, 0, 2]
    assert x.values.tolist() == [2, 5, 24, 32]
    save_npz(folder, x_shape=(4, 5), y=Y[:4], **(given | {"x_indices": [3, 1, 0, 4, 0, 2]}))
    assert find("a.npz")[0].read(0, 1).x.indices.tolist() == [0, 1, 3, 0, 2, 4]
    save_npz(folder, x_shape=(4, 5), y=Y[:4], **(given | {"x_data": [True] * 6}))
    assert find("a.npz")[0].read(0, 1).x.values.tolist() == [1, 1, 1, 1]
    save_npz(folder, x_shape=(5, 4), y=Y[:5], x_format="csc", **given)
    assert find("a.npz")[0].read(0, 1).x.values.tolist() == [24, 2, 32, 5]


def test_many_features(folder):
    """Numbers from 2³¹ on, of which only those that occur take memory."""
    given = dict(x_data=[1.5, 2.5], x_indices=np.array([7, (1 << 32) - 1]), x_indptr=[0, 1, 2])
    save_npz(folder, x_shape=(2, 1 << 32), y=[0, 1], **given)
    found = find("a.npz")[0]
    assert found.features == 1 << 32
    assert found.empty().x.indices.dtype == np.uint32
    assert found.read(0, 1).x.indices.tolist() == [7, (1 << 32) - 1]
    bad("x has 4,294,967,296 columns, and --drop chooses among", drop="3")
    save_npz(folder, x_shape=(2, (1 << 32) + 1), y=[0, 1], **given)
    bad("a.npz: x has 4,294,967,297 features, and 4,294,967,296 are the most")


def test_a_matrix_without_entries(folder):
    none = dict(x_data=np.empty(0), x_indices=np.empty(0, np.int32), x_indptr=np.zeros(ROWS + 1, int))
    save_npz(folder, **none)
    assert np.array_equal(dense(held("a.npz").x), np.zeros((ROWS, FEATURES)))
    save_npz(folder, **(none | {"x_indptr": M.indptr}))
    bad("x_indptr ends with .*, but there are 0 entries")


def test_shapes_that_are_not_told(folder):
    """As many features as the greatest number says."""
    matrix = M[:, :5]
    given = arrays(matrix)
    del given["x_shape"]
    np.savez("a.npz", y=Y, **given)
    assert find("a.npz")[0].features == matrix.indices.max() + 1
    assert np.array_equal(dense(held("a.npz", transpose=True).x), X[:, : matrix.indices.max() + 1])


# --- columns and labels


def test_labels_of_anndata(folder):
    save_anndata(folder)
    bad("holds X, but no y; name the labels with --label, or give them in a second file .a.h5,y.npy.", "a.h5")
    for name in ("obs/kind", "kind", "word"):
        data = held("a.h5", label=name)
        names = load("a.h5", Alone(), test_fraction=0, label=name)[0].classes
        assert [names[int(y)] for y in data.y] == WORDS
    with h5py.File("a.h5", "a") as file:
        file["obs/kind/codes"][4] = -1
    bad("a.h5: obs/kind.* is missing .no category. in row 4", "a.h5", label="kind")


def test_features_by_name(folder):
    """A model's features are found by their names; --columns and --drop choose them."""
    save_anndata(folder)
    assert find("a.h5", None, Columns(label="y"))[0].feature_names == GENES
    order = tuple(reversed(GENES))
    found = find("a.h5", None, Columns(label="y", required=order))[0]
    assert np.array_equal(dense(held("a.h5", label="y", required=order).x), X[:, ::-1])
    assert found.feature_names == order
    assert np.array_equal(dense(held("a.h5", label="y", columns="g2,g7").x), X[:, [2, 7]])
    save_npz(folder)
    assert np.array_equal(dense(held("a.npz", drop="0-3").x), X[:, 4:])
    bad("there is no such column", columns="17")


def test_names_of_10x(folder):
    save_10x(folder)
    assert find("a.h5,y.npy")[0].feature_names == GENES
    assert load_features("a.h5").column_names == GENES


def test_what_a_sparse_matrix_cannot_be(folder):
    given = arrays() | arrays(M[:, :1], "t") | {"y": Y, "z": Y}
    np.savez("a.npz", **given)
    bad("t is a sparse matrix; labels and weights are arrays", label="t")
    bad("t is a sparse matrix; labels and weights are arrays", weight="t")
    bad("x is a sparse matrix, to which z cannot be joined", variable="x,z")
    bad("x is a sparse matrix, to which t cannot be joined", variable="x,t", label="y")
    bad("x is a sparse matrix, of which no column can be the label", label="0")
    save_npz(folder, weight=np.linspace(0, 1, ROWS))
    assert np.array_equal(held("a.npz").weight, np.linspace(0, 1, ROWS))
    save_npz(folder, y=Y[1:])
    bad("a.npz: x has 45 rows, but y has 44; every row needs one label")


def test_labels_in_a_second_file(folder):
    save_scipy(folder, "csr")
    bad("a.npz: holds x, but no y; name the labels with --label, or give them in a second file .a.npz,y.npy.")
    np.save("y.npy", Y[1:])
    bad("a.npz: x has 45 rows, but labels has 44", PAIR)
    np.save("y.npy", Y)
    with pytest.raises(ConfigError, match="--weight 1: .* is no table"):
        held(PAIR, weight="1")
    np.savez("two.npz", Y, Y)
    bad("two.npz: no training data|a.npz: holds x, but no y", "a.npz,two.npz")
    np.savetxt("y.txt", Y, "%d")
    bad("y.txt: whether line 1 .0. is a row or names the columns .* --header or --no-header", "a.npz,y.txt")
    assert np.array_equal(held("a.npz,y.txt", header=False).y, Y)
    (folder / "y.txt").write_text("".join(f"{word}\n" for word in ["kind", *WORDS]))
    shard = load("a.npz,y.txt", Alone(), test_fraction=0)[0]
    assert [shard.classes[int(y)] for y in shard.dataset.y] == WORDS
    (folder / "y.txt").write_text("kind\n0\n1\n")
    bad("a.npz: has 45 rows, but y.txt has 2 labels", "a.npz,y.txt")


def test_several_files(folder):
    np.savez("a.npz", y=Y[:20], **arrays(M[:20]))
    np.savez("b.npz", y=Y[20:], **arrays(M[20:]))
    np.savez("c.npz", y=Y, x=X)
    np.savez("d.npz", y=Y, **arrays(M[:, :4]))
    data = held("a.npz,b.npz")
    assert np.array_equal(dense(data.x), X)
    assert np.array_equal(data.y, Y)
    bad("c.npz: is a file of arrays, but a.npz is a file of a sparse matrix", "a.npz,c.npz")
    bad("d.npz: has 4 features a row, but a.npz has 11", "a.npz,d.npz")
    with pytest.raises(DataError, match="has 4 features a row, but .* has 11; training and test data"):
        load_sets("a.npz", Alone(), test="d.npz")


# --- damage

X_OF = "a.npz: x_"
FAULTS = {
    "first pointer": (dict(x_indptr=M.indptr + 1), X_OF + "indptr begins with 1, and not with 0"),
    "pointers fall": (
        dict(x_indptr=np.where(np.arange(ROWS + 1) == 9, 2, M.indptr)),
        X_OF + r"indptr falls from \d+ to 2 in row 8 .counted from 0., and must ascend",
    ),
    "last pointer": (
        dict(x_indptr=np.where(np.arange(ROWS + 1) == ROWS, M.nnz + 1, M.indptr)),
        X_OF + f"indptr ends with {M.nnz + 1}, but there are {M.nnz} entries",
    ),
    "few pointers": (
        dict(x_indptr=M.indptr[:-1]),
        X_OF + r"indptr has 45 values, but the sparse matrix x of shape .45, 11. has 45 rows, and one value more",
    ),
    "columns": (
        dict(arrays(M.tocsc())),
        X_OF + "indptr has 12 values, .* give the file a format of csc; if a column is a row, --transpose",
    ),
    "index": (
        dict(x_indices=np.where(np.arange(M.nnz) == 3, 11, M.indices)),
        X_OF + r"indices holds 11 in row \d+ .counted from 0., but the matrix has 11 columns, numbered from 0",
    ),
    "index below 0": (dict(x_indices=M.indices - 1), X_OF + r"indices holds -1 in row \d+"),
    "lengths": (
        dict(x_indices=M.indices[1:]),
        X_OF + f"indptr belongs to the sparse matrix x, of which there are {M.nnz} values and {M.nnz - 1} indices",
    ),
    "two axes": (
        dict(x_data=M.data[:, None]),
        X_OF + r"data has shape .*, but an array of the sparse matrix x has one",
    ),
    "words": (dict(x_data=M.data.astype(str)), X_OF + "data is of type '<U.*', but these are numbers"),
    "complex": (dict(x_data=M.data.astype(complex)), X_OF + "data is of type 'complex128', but these are numbers"),
    "float indices": (
        dict(x_indices=M.indices.astype(float)),
        X_OF + "indices is of type 'float64', but these are int",
    ),
    "three axes": (dict(x_shape=(45, 11, 1)), r"a.npz: x has shape .45, 11, 1., but a matrix has two axes"),
    "no shape": (dict(x_shape=4.5), X_OF + "shape holds no shape: it needs the rows and the columns"),
    "large shape": (dict(x_shape=np.zeros(20, int)), X_OF + "shape cannot be read .an array of type 'int64' and shape"),
    "no features": (dict(x_shape=(45, 0)), r"a.npz: x has shape .45, 0.: there are no rows or no features"),
    "format": (dict(x_format="ell"), X_OF + "format is 'ell'; formats of sparse matrices are csr, csc, bsr, coo, dia"),
    "lost": (dict(x_format="coo"), r"a.npz: x is a sparse matrix .coo. of which .* are there, and no row, col"),
    "NaN": (
        dict(x_data=np.where(np.arange(M.nnz) == 3, np.nan, M.data)),
        r"a.npz: x holds nan in row \d+, column \d+ .counted from 0.; mend or remove that row, or give --missing mean",
    ),
    "infinity": (
        dict(x_data=np.where(np.arange(M.nnz) == 3, -np.inf, M.data)),
        r"a.npz: x holds -inf in row \d+, column \d+ .counted from 0.; mend or remove that row",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("how", [np.savez, np.savez_compressed])
def test_faults(folder, fault, how):
    given, match = FAULTS[fault]
    save_npz(folder, how, **given)
    bad(match)


def test_places_of_faults(folder):
    """Row and column are those of the matrix, also of columns that are chosen."""
    x = M.copy()
    x.data[x.indptr[20]] = np.nan
    column = x.indices[x.indptr[20]]
    save_npz(folder, x_data=x.data)
    bad(f"x holds nan in row 20, column {column} ")
    bad(f"x holds nan in row 20, column {column} ", drop="0")
    assert np.array_equal(dense(held("a.npz", drop=str(column)).x), np.delete(X, column, 1))
    kept = find("a.npz", None, Columns(missing="mean"))[0].read(0, 1).x
    assert np.isnan(kept.values).sum() == 1
    np.savez("a.npz", y=Y, **arrays(x.tocsc(), format="csc"))
    bad(f"x holds nan in row 20, column {column} ")
    turned = M.tocsc()
    turned.indices = np.where(np.arange(M.nnz) == 0, 45, turned.indices)
    np.savez("a.npz", y=Y, **arrays(turned, format="csc"))
    bad("x_indices holds 45 in column 0 .counted from 0., but the matrix has 45 rows")


def test_values_that_are_missing(folder):
    x = M.copy()
    x.data[x.indptr[20]] = np.nan
    save_npz(folder, x_data=x.data)
    data = held("a.npz", missing="drop")
    assert np.array_equal(dense(data.x), np.delete(X, 20, 0))
    assert np.array_equal(data.y, np.delete(Y, 20))
    x.data[x.indptr[30]] = np.inf
    save_npz(folder, x_data=x.data)
    bad("x holds inf in row 30", missing="drop")


def test_arrays_that_are_not_there(folder):
    given = arrays()
    del given["x_data"]
    np.savez("a.npz", y=Y, **given)
    bad("x is a sparse matrix .csr. of which x_indices, x_indptr, x_shape are there, and no data")
    coo = M.tocoo()
    np.savez("a.npz", data=coo.data, row=coo.row + 40, col=coo.col, shape=coo.shape, format="coo", y=Y)
    bad("a.npz: x is damaged: its arrays make no sparse matrix .coo.")
    np.savez("a.npz", data=coo.data.astype("U3"), row=coo.row, col=coo.col, shape=coo.shape, format="coo", y=Y)
    bad("a.npz: data is of type '<U3', and no real numbers")


def test_damage_in_compressed_arrays(folder):
    save_npz(folder, np.savez_compressed)
    data = bytearray(Path("a.npz").read_bytes())
    at = data.index(b"x_indices.npy") + 60
    data[at : at + 20] = bytes(20)
    Path("a.npz").write_bytes(data)
    bad("a.npz: .*(damaged|cannot be read)")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda file: file["x"].attrs.update({"format": "lil"}), "x is a sparse matrix of the format 'lil'"),
        (lambda file: file.__delitem__("x/shape"), None),
        (lambda file: (file.__delitem__("x/shape"), file["x"].attrs.update({"shape": 3})), "x is a .* no pair of int"),
        (lambda file: (file.__delitem__("x/data"), file.create_group("x/data")), "x has .*, but data is no array"),
        (lambda file: file["x/indptr"].__setitem__(ROWS, 3), "x/indptr falls from .* to 3 in row 44"),
        (lambda file: file["x/indices"].__setitem__(0, 99), "x/indices holds 99 in row 1"),
        (lambda file: file["x/data"].__setitem__(0, np.nan), "x holds nan in row 1, column"),
        (lambda file: (file.__delitem__("y"), file.create_dataset("y", data=Y[:9])), "x has 45 rows, but y has 9"),
    ],
)
def test_faults_of_hdf5(folder, change, match):
    save_group(folder)
    with h5py.File("a.h5", "a") as file:
        change(file)
    if match is None:
        assert np.array_equal(dense(held("a.h5").x), X[:, : M.indices.max() + 1])
    else:
        bad(f"a.h5: {match}", "a.h5")


def test_sparse_matrices_of_matlab(folder):
    """By columns, with the number of rows beside them."""
    matrix = M.tocsc()
    with h5py.File("a", "w", userblock_size=512) as file:
        for name, array in (("data", matrix.data), ("ir", matrix.indices), ("jc", matrix.indptr)):
            file[f"x/{name}"] = array
        file["y"] = Y[None].astype(float)
    block = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with Path("a").open("r+b") as raw:
        raw.write(block)
    bad("a: x holds a sparse matrix .data, ir, jc. without the attribute MATLAB_sparse", "a")
    with h5py.File("a", "a") as file:
        file["x"].attrs["MATLAB_sparse"] = np.uint64(ROWS)
    data = held("a")
    assert np.array_equal(dense(data.x), X)
    assert np.array_equal(data.y, Y)
