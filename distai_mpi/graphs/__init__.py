"""Graphs whose nodes have labels: features of nodes from edges, and predictions smoothed over them."""

from .edges import EdgeList, edges_from_local
from .encoder import NodeRows, encode_nodes

__all__ = ["EdgeList", "NodeRows", "edges_from_local", "encode_nodes"]
