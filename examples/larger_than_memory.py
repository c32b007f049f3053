"""Logistic regression on documents that take four times the memory that they may have.

    mpiexec -n 2 python examples/larger_than_memory.py [DOCUMENTS] [FOLDER]

Text of 100 words a document is written to FOLDER, parsed once into a cache there, and read from it in every iteration.
"""

import os
import sys

import numpy as np

from distai_mpi import Communicator, data, fit, models, optim, world

PARTS, WORDS, LENGTH = 8, 10_000, 100  # files, words of the vocabulary, and of a document


def write_part(path, documents, part):
    """Documents as libsvm text: a label, and the inverse frequency of each of its words."""
    rng = np.random.default_rng([2026, part])
    weight = np.random.default_rng(2026).normal(size=WORDS)
    idf = np.log(np.arange(2, WORDS + 2)).round(3)
    tokens = [f"{word + 1}:{value:.3f}".encode() for word, value in enumerate(idf)]
    with open(path, "wb") as file:
        for start in range(0, documents, 1000):
            gaps = rng.integers(1, WORDS // LENGTH, (min(1000, documents - start), LENGTH))
            words = gaps.cumsum(axis=1) - 1
            score = (weight[words] * idf[words]).sum(axis=1) + 20 * rng.normal(size=len(words))
            for label, row in zip(score > 0, words.tolist(), strict=True):
                file.write(b"%d " % label + b" ".join([tokens[word] for word in row]) + b"\n")


with Communicator(world()) as comm:
    documents = int(float(sys.argv[1])) if len(sys.argv) > 1 else 20_000
    folder = sys.argv[2] if len(sys.argv) > 2 else "documents"
    os.makedirs(folder, exist_ok=True)
    for part in range(comm.rank, PARTS, comm.size):
        write_part(f"{folder}/part-{part}.svm", documents // PARTS, part)
    comm.barrier()

    nbytes = documents * LENGTH * 8  # an index and a value for each word
    disk = data.OutOfCore(memory=nbytes // 4, cache_dir=f"{folder}-cache")
    train, test = data.load(folder, comm, out_of_core=disk)
    model = models.Logistic(train.features)
    result = fit(model, train, comm, optimizer=optim.LBFGS(max_iter=20), l2=1e-5, test=test)
    if comm.rank == 0:
        print(*train.notes, sep="\n")
        print(f"accuracy {100 * result.test_accuracy:.2f} % after {result.iterations} iterations", end=", ")
        print(f"{result.seconds:.1f} s, {result.bytes_read / nbytes:.0f} times the data read", end=", ")
        print(f"memory of a rank at most {result.peak_memory / 1e6:,.0f} MB for {nbytes / 1e6:,.0f} MB of rows")
