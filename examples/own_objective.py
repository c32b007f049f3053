"""Minimise a function of your own with 10⁷ parameters: mpiexec -n 2 python examples/own_objective.py [PARAMETERS]"""

import sys

import numpy as np

from distai_mpi import Communicator, minimize, optim, world

size = int(float((sys.argv[1:] or [1e7])[0]))
BLOCK = 1 << 16  # parameters that stay in the cache between two operations

with Communicator(world()) as comm:
    # f(w) = Σ ½ aᵢ wᵢ² + cos(wᵢ), of which this rank computes the terms of its own stretch
    low, high = size * comm.rank // comm.size, size * (comm.rank + 1) // comm.size
    a = np.linspace(1, 100, size)[low:high]

    def function(w, grad):
        grad[:low] = grad[high:] = 0
        value = 0.0
        for start in range(low, high, BLOCK):
            part = slice(start, min(start + BLOCK, high))
            x, slope = w[part], a[start - low : part.stop - low] * w[part]
            value += 0.5 * (slope @ x) + np.cos(x).sum()
            grad[part] = slope - np.sin(x)
        return float(value)

    start = np.random.default_rng(0).standard_normal(size)
    result = minimize(function, start, comm, optim.LBFGS(memory=10, max_iter=500, tol=1e-6))
    if comm.rank == 0:
        print(f"value {result.train_loss:.6f}, end: {result.stop_reason}, after {result.iterations} iterations")
        print(f"{result.evaluations} gradients, {result.seconds:.2f} s, {result.rounds} rounds: {result.calls}")
