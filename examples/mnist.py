"""Train the MNIST MLP on all ranks: mpiexec -n 2 python examples/mnist.py"""

from distai_mpi import Communicator, data, fit, models, optim, world

with Communicator(world()) as comm:
    train, test = data.load("mnist", comm)
    model = models.MLP(train.features, train.labels.classes, hidden=(128,), dropout=0.2)
    result = fit(model, train, comm, test=test, optimizer=optim.Momentum(lr=0.12), epochs=5, global_batch_size=256)
    if comm.rank == 0:
        print(f"accuracy {100 * result.test_accuracy:.2f} % at {result.samples_per_second:,.0f} samples/s")
