"""Logistic regression on a libsvm file, of which each rank parses its part:

mpiexec -n 2 python examples/libsvm_logistic.py FILE
"""

import sys

from distai_mpi import Communicator, EarlyStopping, data, fit, models, optim, world

if len(sys.argv) != 2:
    sys.exit(__doc__)

with Communicator(world()) as comm:
    sets = data.load_sets(sys.argv[1], comm, valid=0.1, test_fraction=0.1)
    train, test, valid = data.standardize(*sets, comm=comm)
    model = models.Logistic(train.features)

    result = fit(
        model,
        train,
        comm,
        test=test,
        optimizer=optim.Adam(lr=0.02),
        epochs=50,
        global_batch_size=128,
        l2=1e-4,
        callbacks=[EarlyStopping(valid, "auc", patience=5)],
    )
    if comm.rank == 0:
        print(f"AUC {result.metrics['auc']:.3f} after {result.best_epoch} of {result.epochs} epochs")
