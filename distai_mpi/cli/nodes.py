"""What ``predict`` does where a model's rows are the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..comm import launch
from ..errors import ConfigError, DataError

Write = Callable[[Any, Any], None]


def predict_nodes(path: str, edges: str, labels: str, how: str, smooth: bool, write: Write) -> None:
    """Write what the model in ``path`` predicts for all nodes of a graph; an SPMD program.

    Args:
        path: folder of the run, or its model.npz.
        edges, labels: files of the graph; labels are used for features, and to correct and smooth.
        how: the method of `Predictor` whose answers are written.
        smooth: whether to correct and smooth; then scores stand for probabilities.
        write: called on rank 0 with blocks of answers and the names of their columns; None: say whether it can write.
    """
    from ..comm import Communicator
    from ..predictor import load

    with Communicator(launch.world()) as comm:
        with comm.agreed():
            if comm.rank == 0:
                write(None, None)
            predictor = load(path)
            if not predictor.kept.get("node_features"):
                raise DataError(f"{path}: is no model of the nodes of a graph; leave --node-labels out")
            if smooth and how == "decision_function":
                raise ConfigError("--decision has no meaning with --correct-and-smooth, whose scores are probabilities")
        answers = node_answers(predictor, edges, labels, "predict_proba" if smooth else how, smooth, comm)
        if smooth and how == "predict":
            answers = np.asarray(predictor.classes)[answers.argmax(axis=1)]
        blocks = gathered(answers, comm)
        with comm.agreed():
            if comm.rank == 0:
                write(blocks, ["label"] if how == "predict" else predictor.classes)


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
