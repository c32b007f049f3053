"""Training that goes on, on any number of ranks: mpiexec -n 2 python examples/resume.py 1, then -n 3 and 2 epochs"""

import sys

from distai_mpi import Checkpoint, Communicator, data, fit, models, world

with Communicator(world()) as comm:
    train, test = data.load("mnist", comm)
    model = models.MLP(train.features, train.labels.classes, dropout=0.2)
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    checkpoint = Checkpoint("mnist-run", every=1, resume=True)

    result = fit(model, train, comm, test=test, epochs=epochs, callbacks=[checkpoint])
    if comm.rank == 0:
        print(f"accuracy {100 * result.test_accuracy:.2f} % after {result.epochs} epochs")
