"""Texts of two kinds, told apart by hashed words that are weighed by tf-idf:

mpiexec -n 2 python examples/text_hashing.py
"""

import numpy as np

from distai_mpi import Communicator, data, fit, models, optim, world

COMMON = "the a of and to in is it was for with on that as at by from this be are".split()
KINDS = {
    "weather": "rain sun wind cloud storm warm cold front snow degrees north coast".split(),
    "kitchen": "salt oven dough stir onion sugar simmer bake butter spoon garlic pan".split(),
}


def write_texts(path):
    """A text a line, behind its label and a tab: mostly common words, and some of either kind."""
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for _ in range(2000):
            kind = rng.choice(list(KINDS))
            other = rng.choice([word for words in KINDS.values() for word in words], 3)
            words = [*rng.choice(COMMON, 20), *rng.choice(KINDS[kind], 3), *other]
            file.write(f"{kind}\t{' '.join(rng.permutation(words))}\n")


with Communicator(world()) as comm:
    if comm.rank == 0:
        write_texts("texts.txt")
    comm.barrier()
    train, test = data.load("texts.txt", comm, format="text", tfidf=True, hash_bits=12)
    model = models.Logistic(train.features)
    result = fit(model, train, comm, test=test, optimizer=optim.LBFGS(), l2=1e-3)
    if comm.rank == 0:
        print(f"{train.features:,} features, accuracy {100 * result.test_accuracy:.1f} %: {' or '.join(train.classes)}")
