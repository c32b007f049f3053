"""Graphs whose nodes have labels: features of nodes from edges, and predictions smoothed over them."""

from .adjacency import NodeRows
from .edges import EdgeList, edges_from_local
from .encoder import encode_nodes
from .neighbours import hash_neighbours
from .nodes import NodeFeatures, node_sets
from .reading import read_edges, read_labels
from .smoothing import correct_and_smooth

__all__ = [
    "EdgeList",
    "NodeFeatures",
    "NodeRows",
    "correct_and_smooth",
    "edges_from_local",
    "encode_nodes",
    "hash_neighbours",
    "node_sets",
    "read_edges",
    "read_labels",
]
