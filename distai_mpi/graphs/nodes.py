"""Training, test and validation sets whose rows are the nodes of a graph that have labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data import Dataset, Partition, Sets, from_local, repartition, stream_key
from ..data.spec import Spec
from ..errors import ConfigError
from .adjacency import NodeRows
from .edges import EdgeList, check_memory
from .encoder import encode_nodes
from .neighbours import BITS, hash_neighbours
from .reading import read_edges, read_labels

Array = Any
FEATURES = ("encoder", "neighbours")


@dataclass(frozen=True)
class NodeFeatures:
    """How features of nodes are made from edges.

    Attributes:
        kind: ``encoder``: `encode_nodes`, from the labels of training nodes, rows of length 1; ``neighbours``:
            `hash_neighbours`.
        directed: edges lead from src to dst alone.
        bits: of ``neighbours``.
    """

    kind: str = "encoder"
    directed: bool = False
    bits: int = BITS

    def __post_init__(self) -> None:
        if self.kind not in FEATURES:
            raise ConfigError(f"features of nodes are {' or '.join(FEATURES)}, not {self.kind}")

    def of(self, edges: EdgeList, labels: Array, classes: int, comm: Any) -> NodeRows:
        """The features of all nodes, sharded by nodes; collective.

        ``labels``: see `encode_nodes`; of nodes whose labels may be used.
        """
        if self.kind == "neighbours":
            return hash_neighbours(edges, comm, bits=self.bits, directed=self.directed)
        return encode_nodes(edges, labels, comm, classes=classes, directed=self.directed, unit=True)


def read_graph(
    edges: Spec, labels: Spec, comm: Any, classes: Sequence[Any] | None = None
) -> tuple[EdgeList, Array, tuple[Any, ...]]:
    """The graph in files, codes of all its nodes' labels (-1: none), replicated, and the classes; collective.

    There are as many nodes as the largest number in either says; see `read_edges` and `read_labels`.
    """
    graph = read_edges(edges, comm)
    codes, classes = read_labels(labels, comm, classes=classes)
    graph = replace(graph, nodes=max(graph.nodes, len(codes)))
    check_memory(graph.nodes, 3 * codes.itemsize, 0, graph.name, comm)
    return graph, np.append(codes, np.full(graph.nodes - len(codes), -1, codes.dtype)), classes


def node_sets(
    edges: Spec,
    labels: Spec,
    comm: Any,
    *,
    features: NodeFeatures | None = None,
    test_fraction: float = 0.1,
    valid_fraction: float = 0.0,
    seed: int = 0,
    shards: Partition | None = None,
) -> Sets:
    """Training, test and validation sets of the nodes with labels, each rank the nodes that it owns; collective.

    The nodes that are held back depend on ``seed`` alone, not on the ranks.  Their labels are not used for features.
    The rows of a rank are in random order; as under the local shuffle, they stay with it.

    Args:
        edges, labels: files, see `read_edges` and `read_labels`.
        comm: the ranks, a `comm.Communicator`.
        features: how features are made; None: by the encoder.
        test_fraction, valid_fraction: of the nodes with labels, held back for testing and, of what is left,
            validation.
        seed: of what is held back, and of the rows' order.
        shards: the ranks' fractions of the rows; None: the same for all ranks.

    Raises:
        DataError, ConfigError: the same on all ranks.
    """
    features = features or NodeFeatures()
    graph, codes, classes = read_graph(edges, labels, comm)
    name = graph.name
    known = np.flatnonzero(codes >= 0)
    order = np.random.default_rng(stream_key(seed, "nodes")).permutation(known)
    tested = int(test_fraction * len(order))
    validated = int(valid_fraction * (len(order) - tested))
    parts = {"test": order[:tested], "valid": order[tested : tested + validated], "train": order[tested + validated :]}
    trained = np.unique(codes[parts["train"]])  # classes of no training node have no column
    visible = np.full_like(codes, -1)
    visible[parts["train"]] = np.searchsorted(trained, codes[parts["train"]])
    rows = features.of(graph, visible, len(trained), comm)
    stop = rows.first + len(rows.values)
    words = np.array(classes)
    made: dict[str, Any] = {}
    for key, nodes in parts.items():
        own = nodes[(nodes >= rows.first) & (nodes < stop)]
        dataset = Dataset(rows.values[own - rows.first], words[codes[own]])
        shard = from_local(dataset, comm, name) if len(nodes) else None
        made[key] = shard and repartition(shard, shards or Partition.even(comm.size), comm)
    return Sets(made["train"], made["test"], made["valid"])
