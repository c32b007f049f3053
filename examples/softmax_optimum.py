"""Softmax regression on MNIST to its optimum, by few rounds: mpiexec -n 2 python examples/softmax_optimum.py"""

from distai_mpi import Communicator, data, fit, models, optim, world

with Communicator(world()) as comm:
    train, test = data.load("mnist", comm)
    model = models.Softmax(train.features, train.labels.classes)

    result = fit(model, train, comm, test=test, optimizer=optim.NewtonCG(max_iter=50, tol=1e-4), l2=1e-3)
    if comm.rank == 0:
        print(f"accuracy {100 * result.test_accuracy:.2f} %, loss {result.train_loss:.6f}, end: {result.stop_reason}")
        print(f"{result.evaluations} gradients, {result.products} Hessian products, {result.rounds} rounds")
