"""Clicks on advertisements: columns of words become features by themselves, and a cross of two of them as well:

mpiexec -n 2 python examples/categories.py
"""

import csv

import numpy as np

from distai_mpi import Communicator, data, fit, models, optim, world

SITES, ADS, ROWS = [f"site-{i}" for i in range(20)], [f"ad-{i}" for i in range(15)], 6000


def write_clicks(path):
    """Rows of site, ad, hour and click; which ad is clicked on depends on the site."""
    rng = np.random.default_rng(0)
    liking = rng.normal(scale=2, size=(len(SITES), len(ADS)))
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["site", "ad", "hour", "click"])
        for _ in range(ROWS):
            site, ad, hour = rng.integers(len(SITES)), rng.integers(len(ADS)), rng.integers(24)
            click = rng.random() < 1 / (1 + np.exp(-liking[site, ad]))
            out.writerow([SITES[site], ADS[ad], hour, int(click)])


with Communicator(world()) as comm:
    if comm.rank == 0:
        write_clicks("clicks.csv")
    comm.barrier()
    for cross in (None, "site:ad"):
        train, test = data.load("clicks.csv", comm, categorical="hour", cross=cross)
        model = models.Logistic(train.features)
        result = fit(model, train, comm, test=test, optimizer=optim.LBFGS(), l2=1e-3)
        if comm.rank == 0:
            name = f"with the cross {cross}" if cross else "without crosses"
            print(f"{name}: {train.features} features, AUC {result.metrics['auc']:.3f}")
