"""A model of your own cut into stages, a residual network: mpiexec -n 2 python examples/staged_model.py"""

import numpy as np

from distai_mpi import Communicator, Mesh, Pipeline, data, fit, models, optim, world
from distai_mpi.models.split import Piece
from distai_mpi.models.stages import LayerCost
from distai_mpi.params import Layout

UNITS = 20


class Residual:
    """x ← x + tanh(x · weight), layer by layer; the first of its UNITS outputs is the value, with a squared loss."""

    loss_function, widths, target_dtype = models.LOSSES["squared"], (UNITS, 1), np.dtype(np.float64)

    def __init__(self, layers):
        self.layers, self.dtype = layers, np.dtype(np.float64)
        self.layout = Layout.of([(f"layer{i}.weight", (UNITS, UNITS), True) for i in range(layers)])

    def layer_costs(self):  # a layer keeps its input's tanh, and hands on as many numbers as it gets
        ends = [UNITS] * (self.layers - 1) + [1]
        return [LayerCost(parameters=UNITS**2, kept=2 * UNITS, outputs=end) for end in ends]

    def stage(self, first, stop, rank, shares):
        return Layers(self, range(first, stop))

    def score_outputs(self, outputs, batch):
        return half_squares(outputs[:, 0] - batch.y), 0.0


class Layers:
    """Some of the layers, whole: what a rank holds."""

    def __init__(self, whole, span):
        self.whole, self.span, self.dtype, self.kept = whole, span, whole.dtype, {}
        self.layout = Layout.of([(f"layer{i}.weight", (UNITS, UNITS), True) for i in span])
        self.pieces = tuple(Piece(i, (slice(0, UNITS), slice(0, UNITS))) for i in span)

    def join(self, sums):
        """Nothing is exchanged within a stage."""

    def init(self, rng):
        return 0.1 * rng.normal(size=(self.whole.layers, UNITS * UNITS))[self.span].ravel()

    def forward(self, w, batch, x, kept):
        x, inputs = batch.x if x is None else x, []
        for weight in self.layout.views(w).values():
            inputs.append((x, np.tanh(x @ weight)))
            x = x + inputs[-1][1]
        self.kept[kept] = inputs
        return x if self.span.stop < self.whole.layers else x[:, :1]

    def losses(self, w, batch, x, kept):
        self.error = self.forward(w, batch, x, kept) - batch.y[:, None]
        return half_squares(self.error[:, 0])

    def backward(self, w, batch, x, kept, delta, grad):
        if delta is None:
            delta = np.pad(self.error, ((0, 0), (0, UNITS - 1)))
        arrays = zip(self.layout.views(w).values(), self.layout.views(grad).values(), self.kept[kept], strict=True)
        for weight, into, (given, tanh) in reversed(list(arrays)):
            inner = delta * (1 - tanh**2)
            into += given.T @ inner
            delta = delta + inner @ weight.T
        return None if self.span.start == 0 else delta


def half_squares(error):
    return models.Sums(0.5 * float(error @ error), len(error))


with Communicator(world()) as comm, Mesh(comm, data=1, stage=comm.size, pipeline=Pipeline(micro_batches=4)) as mesh:
    rng = np.random.default_rng(0)  # alike on all ranks of the one copy of the model
    x = rng.normal(size=(2_000, UNITS))
    shard = data.from_local(data.Dataset(x, x[:, 0] + np.sin(x[:, 1])), mesh.data_group)

    result = fit(Residual(6), shard, mesh, optimizer=optim.Adam(0.003), epochs=10, test=shard)

    if comm.rank == 0:
        told = result.pipeline
        print(f"R² {result.metrics['r2']:.3f}, stages begin with layers {[0, *told['cuts']]}")
        print(f"a micro-batch takes {1e3 * told['measured_latency']:.2f} ms, n · d is {1e3 * told['latency']:.2f} ms")
