"""What ``evaluate`` and ``predict`` do where a model's rows are the nodes of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..comm import launch
from ..errors import ConfigError, DataError


def nodes_as_trained(kept: dict[str, Any], comm: Any) -> tuple[Any, Any]:
    """The training and the test nodes of the model that keeps ``kept``; collective."""
    from ..graphs import NodeFeatures, node_sets

    sets = node_sets(
        kept["data"],
        kept["node_labels"],
        comm,
        features=NodeFeatures(kept["node_features"], kept["directed"]),
        test_fraction=kept["test_fraction"],
        valid_fraction=kept["valid"] or 0.0,
        seed=kept["seed"],
    )
    return sets.train, sets.test


def predict_nodes(path: str, edges: str, labels: str, how: str, smooth: bool, out: str) -> None:
    """Write what the model in ``path`` predicts for all nodes of a graph; an SPMD program.

    Args:
        path: folder of the run, or its model.npz.
        edges, labels: files of the graph; labels are used for features, and to correct and smooth.
        how: the method of `Predictor` whose answers are written.
        smooth: whether to correct and smooth; then scores stand for probabilities.
        out: FILE.npy or FILE.csv.
    """
    from ..comm import Communicator
    from ..files import check_writable, write_whole
    from ..predictor import load
    from .predict import write_csv, write_npy

    with Communicator(launch.world()) as comm:
        with comm.agreed():
            if comm.rank == 0:
                check_writable(out)
            predictor = load(path)
            if not predictor.kept.get("node_features"):
                raise DataError(f"{path}: is no model of the nodes of a graph; leave --node-labels out")
            if smooth and how == "decision_function":
                raise ConfigError("--decision has no meaning with --correct-and-smooth, whose scores are probabilities")
        answers = node_answers(predictor, edges, labels, "predict_proba" if smooth else how, smooth, comm)
        if smooth and how == "predict":
            answers = predictor.classes[answers.argmax(axis=1)]
        blocks = gathered(answers, comm)
        with comm.agreed():
            if comm.rank == 0:
                heads = ["label"] if how == "predict" else predictor.classes
                if out.endswith(".npy"):
                    write_whole(out, lambda file: write_npy(file, blocks))
                else:
                    write_whole(out, lambda file: write_csv(file, blocks, heads))
                print(f"{sum(map(len, blocks)):,} predictions → {out}", flush=True)


def node_answers(predictor: Any, edges: str, labels: str, how: str, smooth: bool, comm: Any) -> Any:
    """The answers for the nodes that this rank owns, shape (own nodes, ...); collective."""
    from ..graphs import NodeFeatures, NodeRows, correct_and_smooth
    from ..graphs.nodes import read_graph

    classes = predictor.classes
    graph, codes, _ = read_graph(edges, labels, comm, classes=tuple(classes.tolist()))
    features = NodeFeatures(predictor.kept["node_features"], predictor.kept["directed"])
    rows = features.of(graph, codes, len(classes), comm)
    with comm.agreed():
        answers = getattr(predictor, how)(rows.values)
    if not smooth:
        return answers
    return correct_and_smooth(graph, NodeRows(rows.first, answers), codes, comm).values


def gathered(answers: Any, comm: Any) -> list[Any]:
    """All ranks' answers, one rank's after the other's, on rank 0; collective."""
    shape = answers.shape[1:]
    width = int(np.prod(shape, dtype=np.int64))
    counts = [count * width for count in comm.allgather_object(len(answers))]
    dtype = np.result_type(*comm.allgather_object(answers.dtype))
    whole = np.empty(sum(counts), dtype) if comm.rank == 0 else None
    comm.gatherv(np.ascontiguousarray(answers, dtype).reshape(-1), counts, whole)
    return [] if whole is None else [whole.reshape(-1, *shape)]
