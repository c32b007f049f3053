"""Graphs: features of nodes and predictions against dense formulas, files, bad input, and the commands."""

import gzip

import numpy as np
import pytest
from commands import run_here

from distai_mpi import Communicator, data, fit, graphs, models, optim
from distai_mpi.cli.bench import graph as bench
from distai_mpi.errors import DataError
from distai_mpi.graphs import encoder

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(1, 2, 4)

NODES, CLASSES, EDGES = 300, 5, 1500
RNG = np.random.default_rng(0)
GROUPS = RNG.integers(0, CLASSES, NODES)
BY_GROUP = [np.flatnonzero(GROUPS == k) for k in range(CLASSES)]
SRC = RNG.integers(0, NODES - 3, EDGES)  # the last nodes have edges by chance, or none
DST = np.where(RNG.random(EDGES) < 0.7, [RNG.choice(BY_GROUP[k]) for k in GROUPS[SRC]], RNG.integers(0, NODES, EDGES))
SRC, DST = np.append(SRC, [7, 8, 8]), np.append(DST, [7, 9, 9])  # a loop, and a repeated edge
WEIGHT = RNG.random(len(SRC)).astype(np.float32)
LABELS = np.where(RNG.random(NODES) < 0.5, GROUPS, -1)


def part(comm):
    """A rank's edges: of several ranks the second has none."""
    if comm.size == 1:
        return slice(None)
    return slice(0, 0) if comm.rank == 1 else slice(comm.rank - (comm.rank > 1), None, comm.size - 1)


def graph(comm, weight=None):
    mine = part(comm)
    return graphs.edges_from_local(
        SRC[mine], DST[mine], comm, weight=None if weight is None else weight[mine], nodes=NODES
    )


def matrix(weight=None, directed=False):
    """The adjacency matrix."""
    weight = np.ones(len(SRC)) if weight is None else weight.astype(np.float64)
    dense = np.zeros((NODES, NODES))
    np.add.at(dense, (SRC, DST), weight)
    if not directed:
        other = SRC != DST
        np.add.at(dense, (DST[other], SRC[other]), weight[other])
    return dense


def normalised(dense):
    """D^-1/2 A D^-1/2."""
    root = np.sqrt(dense.sum(axis=1))
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    return inverse[:, None] * dense * inverse


def all_rows(rows, comm):
    """The rows of all nodes."""
    values = getattr(rows.values, "toarray", lambda: rows.values)()
    parts = comm.allgather_object((rows.first, values))
    assert [first for first, _ in parts] == np.cumsum([0, *(len(values) for _, values in parts[:-1])]).tolist()
    return np.concatenate([values for _, values in parts])


@mpi
def test_the_encoder_is_the_formula_of_the_paper(comm, monkeypatch):
    for case in range(8):
        if case == 4:  # many tiles, and blocks of few nodes
            monkeypatch.setattr(encoder, "TILE_SHIFT", 5)
            monkeypatch.setattr(encoder, "BLOCK_BYTES", 4 * CLASSES * 4)
        directed, laplacian, diagonal, unit = case % 2 == 1, case in (2, 5, 6), case in (3, 6, 7), case in (1, 4, 6)
        weight, labels = WEIGHT if case in (0, 3, 5) else None, GROUPS if case in (2, 3, 4) else LABELS
        a = matrix(weight, directed) + diagonal * np.eye(NODES)
        hot = (labels[:, None] == np.arange(CLASSES)) / np.maximum(1, np.bincount(labels[labels >= 0]))
        z = (normalised(a) if laplacian else a) @ hot
        if unit:
            z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300)
        options = {"directed": directed, "laplacian": laplacian, "diagonal": diagonal, "unit": unit}
        found = graphs.encode_nodes(graph(comm, weight), labels, comm, **options)
        np.testing.assert_allclose(all_rows(found, comm), z, rtol=2e-6, atol=1e-9)


@mpi
def test_updates_in_the_memory_of_the_rows(comm, monkeypatch):
    """Where edges are few beside the rows: unless rows would be written over updates that are still to be summed."""
    nodes, classes, stay_ahead, ahead = 4000, 30, encoder._stay_ahead, []
    monkeypatch.setattr(encoder, "_stay_ahead", lambda *of: ahead.append(stay_ahead(*of)) or ahead[-1])
    mine, labels = slice(comm.rank, None, comm.size), np.arange(nodes) % classes
    for last in (False, True):  # the last nodes have all edges
        ends = np.random.default_rng(1).integers(nodes - 8 if last else 0, nodes, (2, 1500))
        edges = graphs.edges_from_local(*ends[:, mine], comm, nodes=nodes)
        found = all_rows(graphs.encode_nodes(edges, labels, comm, directed=True), comm)
        counted = np.zeros((nodes, classes))
        np.add.at(counted, (ends[0], labels[ends[1]]), 1)
        np.testing.assert_allclose(found, counted / np.bincount(labels), rtol=2e-6)
        if last:
            continue
        found = all_rows(graphs.encode_nodes(edges, labels, comm), comm)
        np.add.at(counted, (ends[1], labels[ends[0]]), ends[0] != ends[1])
        np.testing.assert_allclose(found, counted / np.bincount(labels), rtol=2e-6)
    ahead = comm.allgather_object(ahead)
    assert all(all(each[:2]) and len(each) == 3 for each in ahead)
    assert comm.size > 1 or not ahead[0][2]


@mpi
def test_declared_nodes_give_the_same(comm):
    if comm.size == 2:
        whole = all_rows(graphs.encode_nodes(graph(comm), LABELS, comm), comm)
        with Communicator(comm._comm, nodes=(1, 1)) as apart:
            assert np.array_equal(all_rows(graphs.encode_nodes(graph(apart), LABELS, apart), apart), whole)
            start = np.full((NODES, CLASSES), 0.2)
            bounds = NODES * comm.rank // 2
            mine = graphs.NodeRows(bounds, start[bounds : NODES * (comm.rank + 1) // 2])
            one, two = (graphs.correct_and_smooth(graph(c), mine, LABELS, c).values for c in (comm, apart))
            np.testing.assert_allclose(one, two, rtol=1e-12)


@mpi
def test_the_benchmarks_graph_is_the_same_on_any_ranks(comm, monkeypatch):
    monkeypatch.setattr(bench, "CHUNK", 64)
    parts = comm.allgather_object(bench.random_edges(1000, 50, 3, comm.rank, comm.size))
    found = np.concatenate([np.stack(each) for each in parts], axis=1)
    assert np.array_equal(found, bench.random_edges(1000, 50, 3, 0, 1))


@mpi
def test_hashed_neighbours(comm):
    found = all_rows(graphs.hash_neighbours(graph(comm, WEIGHT), comm, bits=6), comm)
    assert found.shape == (NODES, 65)
    a = matrix(WEIGHT)
    column = (np.arange(NODES, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(58)).astype(int)
    hashed = a @ np.eye(64)[column]
    np.testing.assert_allclose(found, np.column_stack([hashed, np.log1p(a.sum(axis=1))]), rtol=1e-5, atol=1e-7)


def smoothed(a, probabilities, scale, steps=12):
    """Correct and Smooth by dense matrices; the paper's sections 2.2 and 2.3."""
    known = (LABELS >= 0)[:, None]
    target, s = np.eye(CLASSES)[LABELS], normalised(a)
    error = first = np.where(known, target - probabilities, 0)
    for _ in range(steps):
        fixed = np.where(known, first, a / np.maximum(a.sum(axis=1, keepdims=True), 1e-300) @ error)
        error = 0.1 * first + 0.9 * s @ error if scale is None else fixed
    if scale is None:
        size = np.abs(error).sum(axis=1, keepdims=True)
        error = error / np.maximum(size, 1e-300) * np.abs(first).sum() / known.sum()
    score = first = np.where(known, target, probabilities + (scale or 1) * error)
    for _ in range(steps):
        score = 0.3 * first + 0.7 * s @ score
    return score


@mpi
def test_correct_and_smooth_is_the_papers_and_better_than_plain_predictions(comm):
    edges = graph(comm)
    rows = graphs.encode_nodes(edges, LABELS, comm, unit=True)
    own = slice(rows.first, rows.first + len(rows.values))
    known = LABELS[own] >= 0
    train = data.from_local(data.Dataset(rows.values[known], LABELS[own][known]), comm)
    model = models.Softmax(CLASSES, CLASSES)
    result = fit(model, train, comm, optimizer=optim.LBFGS(), l2=1e-3)
    scores = np.exp(model.outputs(result.params, rows.values).astype(np.float64))
    plain = graphs.NodeRows(rows.first, scores / scores.sum(axis=1, keepdims=True))
    for scale in (None, 0.7):
        options = {"correction_alpha": 0.9, "smoothing_alpha": 0.7, "iterations": 12, "scale": scale}
        found = graphs.correct_and_smooth(edges, plain, LABELS, comm, **options)
        expected = smoothed(matrix(), all_rows(plain, comm), scale)
        np.testing.assert_allclose(all_rows(found, comm), expected, rtol=1e-9, atol=1e-12)
        hidden = LABELS < 0
        right, better = ((all_rows(each, comm).argmax(1) == GROUPS)[hidden].mean() for each in (plain, found))
        assert right > 2.5 / CLASSES
        assert better > right + 0.02


@mpi
@pytest.mark.ranks(2)
def test_bad_edges_and_labels_are_refused_on_all_ranks(comm):
    bad = [
        ([0, -1], [1, 1], {}, "src holds -1 in edge 1.*integers from 0 up"),
        ([0, 1.5], [1, 1], {}, "src holds 1.5 in edge 1"),
        ([0, np.nan], [1, 1], {}, "src holds nan"),
        ([0, 1], [1], {}, "2 src and 1 dst"),
        ([0, 1], [1, 9], {"nodes": 9}, "an edge names node 9, but there are 9 nodes"),
        ([0, 1], [1, 1 << 32], {}, "below 2\\^32"),
        ([0, 1], [1, 1], {"weight": [1, -2]}, "weight is -2.0 in edge 1"),
        ([0, 1], [1, 1], {"weight": [1, np.inf]}, "weight is inf in edge 1"),
    ]
    for src, dst, options, message in bad:
        fine = {name: np.ones(1) if name == "weight" else value for name, value in options.items()}
        own = (src, dst, options) if comm.rank == 1 else ([0], [1], fine)  # the other rank's edges are fine
        with pytest.raises(DataError, match=message):
            graphs.edges_from_local(np.array(own[0]), np.array(own[1]), comm, **own[2])
    with pytest.raises(DataError, match="there are no edges"):
        graphs.edges_from_local(np.empty(0, int), np.empty(0, int), comm)
    weight = np.ones(1) if comm.rank else None
    with pytest.raises(DataError, match="some ranks give their edges weights"):
        graphs.edges_from_local(np.array([0]), np.array([1]), comm, weight=weight)
    edges = graph(comm)
    for labels, message in (
        (LABELS[:-1], "do not fit 300 nodes"),
        (LABELS - 1, "is -2"),
        (LABELS * 0 - 1, "no node has a label"),
    ):
        with pytest.raises(DataError, match=message):
            graphs.encode_nodes(edges, labels, comm)
    empty = graphs.edges_from_local(np.empty(0, int), np.empty(0, int), comm, nodes=4)
    rows = graphs.encode_nodes(empty, np.array([0, 1, 1, -1]), comm)  # labels of nodes that no edge names
    assert not all_rows(rows, comm).any()


def write(folder):
    """The graph's edges and labels in every form."""
    pairs = np.column_stack([SRC, DST])
    text = "# a comment\n% another\n" + "".join(f"{u}\t{v}\n" for u, v in pairs.tolist()) + "\n"
    (folder / "edges.txt").write_text(text)
    (folder / "edges.txt.gz").write_bytes(gzip.compress(text.encode()))
    weighted = "".join(f"{u}, {v}, {w!r}, 17\r\n" for (u, v), w in zip(pairs.tolist(), WEIGHT.tolist(), strict=True))
    (folder / "weighted.csv").write_text("src,dst,weight,time\n" + weighted)
    np.savez(folder / "edges.npz", src=SRC, dst=DST, weight=WEIGHT)
    np.savez_compressed(folder / "packed.npz", edges=pairs)
    np.savez_compressed(folder / "lone.npz", src=SRC, dst=DST, weight=WEIGHT.astype(np.float64))  # read by one rank
    np.save(folder / "edges.npy", pairs.astype(np.int16))
    known = np.flatnonzero(LABELS >= 0)
    lines = "".join(f"{node},{'vwxyz'[LABELS[node]]}\n" for node in known)
    (folder / "labels.csv").write_text("node,label\n" + lines)
    np.save(folder / "labels.npy", LABELS)
    np.save(folder / "pairs.npy", np.column_stack([np.arange(NODES), LABELS]))
    numbered = "".join(f"{node} {LABELS[node]}\n" for node in known)
    (folder / "numbered.txt").write_text(numbered)


@mpi
@pytest.mark.ranks(1, 2)
def test_files_give_the_edges_that_were_written(comm, shared_path):
    if comm.rank == 0:
        write(shared_path)
    comm.barrier()
    names = ["edges.txt", "edges.txt.gz", "weighted.csv", "edges.npz", "lone.npz", "packed.npz", "edges.npy"]
    try:
        import pyarrow as arrow
        import pyarrow.parquet

        if comm.rank == 0:
            table = arrow.table({"weight": WEIGHT, "target": DST, "source": SRC})
            arrow.parquet.write_table(table, shared_path / "edges.parquet", row_group_size=200)
        comm.barrier()
        names.append("edges.parquet")
    except ImportError:
        pass
    expected = graphs.encode_nodes(graph(comm), LABELS, comm), graphs.encode_nodes(graph(comm, WEIGHT), LABELS, comm)
    for name in names:
        edges = graphs.read_edges(shared_path / name, comm, nodes=NODES)
        assert comm.sum([len(edges)])[0] == len(SRC)
        assert len(edges) < 0.7 * len(SRC) or comm.size == 1
        found = graphs.encode_nodes(edges, LABELS, comm)
        wanted = expected[edges.weight is not None]
        assert (edges.weight is not None) == (name in ("weighted.csv", "edges.npz", "lone.npz", "edges.parquet"))
        np.testing.assert_allclose(all_rows(found, comm), all_rows(wanted, comm), rtol=1e-6)
    for name, classes in (
        ("labels.csv", tuple("vwxyz")),
        ("labels.npy", (0, 1, 2, 3, 4)),
        ("pairs.npy", (0, 1, 2, 3, 4)),
        ("numbered.txt", (0, 1, 2, 3, 4)),
    ):
        codes, found = graphs.read_labels(shared_path / name, comm)
        assert found == classes
        assert np.array_equal(codes, LABELS[: len(codes)])
        assert (LABELS[len(codes) :] == -1).all()
    bad = {
        "0 1\n1 x\n": "line 2: 'x' is no node",
        "0 1\n-1 2\n": "line 2: '-1' is no node",
        "0 1\n1.5 2\n": "line 2: '1.5' is no node",
        "0 1\n\n4294967296 2\n": "line 3: '4294967296' is no number of a node below",
        "0 1 2\n1 2 -3\n": "line 2: '-3' is no weight",
        "0 1 2\n1 2\n": "give all edges one",
        "": "the file is empty",
        ",src,dst\n0,1,2\n": "line 1 says that src is column 1",
        "%%MatrixMarket matrix coordinate pattern general\n3 3 1\n1 2\n": "Matrix Market",
    }
    for text, message in bad.items():
        if comm.rank == 0:
            (shared_path / "bad.txt").write_text(text)
        comm.barrier()
        with pytest.raises(DataError, match=message):
            graphs.read_edges(shared_path / "bad.txt", comm)
        comm.barrier()
    for text, message in {
        "0,1\n0,2\n": "node 0 has more than one",
        "-1,1\n2,0\n": "-1 is no node",
        "a,1\n": "words",
    }.items():
        if comm.rank == 0:
            (shared_path / "bad.csv").write_text("node,label\n" + text)
        comm.barrier()
        with pytest.raises(DataError, match=message):
            graphs.read_labels(shared_path / "bad.csv", comm)
        comm.barrier()


@mpi
@pytest.mark.ranks(2)
def test_commands(comm, shared_path):
    if comm.rank == 0:
        write(shared_path)
    comm.barrier()
    words = ["--data", "edges.txt", "--node-labels", "labels.csv", "--model", "softmax", "--optimizer", "lbfgs"]
    done = run_here("train", *words, "--node-features", "neighbours", "--l2", "0.01", "--out", "run", cwd=shared_path)
    assert done.returncode == 0, done
    assert "14 test rows" in run_here("evaluate", "run", cwd=shared_path).stdout
    assert run_here("train", *words, "--weight", "w", cwd=shared_path).returncode == 2
    assert run_here("train", "--directed", cwd=shared_path).returncode == 2
