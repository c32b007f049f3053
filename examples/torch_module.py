"""Train a PyTorch module on all ranks: mpiexec -n 2 python examples/torch_module.py"""

import torch
from torch import nn

from distai_mpi import Communicator, data, fit, models, optim, world

with Communicator(world()) as comm:
    train, test = data.load("mnist", comm)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, kernel_size=5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 10),
    )

    model = models.from_torch(module, nn.CrossEntropyLoss(reduction="none"))
    result = fit(model, train, comm, test=test, optimizer=optim.Adam(lr=2e-3), epochs=1)
    model.load(result.params)  # the trained parameters, into the module
    if comm.rank == 0:
        print(f"accuracy {100 * result.test_accuracy:.2f} % at {result.samples_per_second:,.0f} samples/s")
