"""Classes of a graph's nodes from their neighbours' classes, corrected and smoothed over the edges:

mpiexec -n 2 python examples/node_classification.py
"""

import numpy as np

from distai_mpi import Communicator, data, fit, graphs, models, optim, world

NODES, CLASSES, EDGES, KNOWN = 3000, 3, 9000, 300

rng = np.random.default_rng(0)  # the same graph on every rank: half of the edges stay within a class
classes = rng.integers(0, CLASSES, NODES)
by_class = np.argsort(classes, kind="stable")
sizes = np.bincount(classes)
starts = np.cumsum(sizes) - sizes
src = rng.integers(0, NODES, EDGES)
alike = by_class[starts[classes[src]] + rng.integers(0, sizes[classes[src]])]
dst = np.where(rng.random(EDGES) < 0.5, alike, rng.integers(0, NODES, EDGES))
labels = np.where(rng.permutation(NODES) < KNOWN, classes, -1)  # of the others the labels are to be found

with Communicator(world()) as comm:
    mine = slice(comm.rank, None, comm.size)
    edges = graphs.edges_from_local(src[mine], dst[mine], comm, nodes=NODES)
    rows = graphs.encode_nodes(edges, labels, comm, classes=CLASSES, unit=True)
    own = slice(rows.first, rows.first + len(rows.values))
    known = labels[own] >= 0

    train = data.from_local(data.Dataset(rows.values[known], labels[own][known]), comm)
    model = models.Softmax(CLASSES, CLASSES)
    result = fit(model, train, comm, optimizer=optim.LBFGS(), l2=1e-3)

    scores = np.exp(model.outputs(result.params, rows.values))
    predictions = graphs.NodeRows(rows.first, scores / scores.sum(axis=1, keepdims=True))
    smoothed = graphs.correct_and_smooth(edges, predictions, labels, comm)

    right = [(each.values.argmax(axis=1) == classes[own])[~known].sum() for each in (predictions, smoothed)]
    plain, better = 100 * comm.sum(right) / (NODES - KNOWN)
    if comm.rank == 0:
        print(f"accuracy {plain:.1f} % of nodes without labels, corrected and smoothed {better:.1f} %")
