"""Ranks train on their own rows; every 50 steps parameters are averaged: mpiexec -n 2 python examples/averaging.py"""

from distai_mpi import Communicator, data, fit, models, optim, world

with Communicator(world()) as comm:
    train, test = data.load("mnist", comm, shuffle="local")
    model = models.MLP(train.features, train.labels.classes)
    method = optim.LocalSGD(optim.Momentum(lr=0.05), sync_every=50)

    result = fit(model, train, comm, test=test, optimizer=method, epochs=3, global_batch_size=128 * comm.size)
    if comm.rank == 0:
        print(
            f"accuracy {100 * result.test_accuracy:.2f} % with {result.rounds} exchanges in {result.iterations} steps"
        )
