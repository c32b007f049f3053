"""Speed of one-hot encoding and of hashed words beside scikit-learn, on one core, in turns.

    python tests/encoding_speeds.py [--rows 1000000] [--documents 20000] [--turns 3]

Prints the median times of both and their ratio.  What comes out is the same: a CSR matrix with the same entries.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from alone import Alone
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import OneHotEncoder

from distai_mpi.data.hashed_text import hash_documents
from distai_mpi.data.learn_encoding import learn_encoding
from distai_mpi.data.readers.chunk import Chunk
from distai_mpi.data.readers.columns import Columns
from distai_mpi.data.readers.levels import CATEGORY, Levels, levels_of_values

BITS = 18


class Table:
    """What `learn_encoding` asks of a file."""

    path = "table"

    def __init__(self, columns: int) -> None:
        self.features = columns
        self.feature_names = tuple(f"c{i}" for i in range(columns))
        self.encodes = {i: (f"c{i}", CATEGORY) for i in range(columns)}


def one_hot(table: np.ndarray) -> tuple:
    """The columns of ``table``, of text, as one-hot features: entries up to each row, and their features."""
    x, levels = np.empty(table.shape), {}
    for column in range(table.shape[1]):
        levels[column], x[:, column] = levels_of_values(table[:, column])
    chunk = Chunk(x, np.zeros(len(x)), None, None, levels)
    encoding, _ = learn_encoding(Table(table.shape[1]), chunk, Columns(), Alone())
    rows = encoding.encoded(chunk, "table").x
    return rows.ends, rows.indices


def hashed(documents: list[str]) -> tuple:
    """The words of ``documents``."""
    return hash_documents(Levels.of(documents), (1, 1), BITS)


def turns(what: str, ours, theirs, count: int) -> None:
    """Print how long both take."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for which, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run()
            times[which].append(time.perf_counter() - start)
    own, other = map(statistics.median, times)
    print(f"{what}: {own:.3f} s, scikit-learn {other:.3f} s, {other / own:.1f} times as long", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--rows", 1_000_000), ("--documents", 20_000), ("--turns", 3)):
        parser.add_argument(flag, type=int, default=default)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    words = np.array([f"level_{i:02d}" for i in range(100)])
    table = words[rng.integers(100, size=(options.rows, 10))]
    encoder = OneHotEncoder()
    vocabulary = np.array([f"word{i}" if i % 3 else f"Word{i}" for i in range(30_000)])
    chances = 1 / np.arange(1, 30_001)
    picks = [rng.choice(vocabulary, rng.integers(20, 200), p=chances / chances.sum()) for _ in range(options.documents)]
    documents = [" ".join(pick) for pick in picks]
    hashing = HashingVectorizer(n_features=1 << BITS)
    few = table[:2000]
    ends, indices = one_hot(few)
    assert np.array_equal(indices, encoder.fit_transform(few).indices)
    assert np.array_equal(np.diff(ends, prepend=0), np.full(2000, 10))
    assert np.allclose(hashed(documents[:9])[2], hashing.transform(documents[:9]).data)
    one_hot(few.astype(object))
    for kind, given in (("fixed-width text", table), ("Python strings", table.astype(object))):
        run = (lambda given=given: one_hot(given)), (lambda given=given: encoder.fit_transform(given))
        turns(f"one-hot, {options.rows:,} rows x 10 columns of 100 levels, {kind}", *run, options.turns)
    of_documents = (lambda: hashed(documents)), (lambda: hashing.transform(documents))
    turns(f"hashed words of {options.documents:,} documents", *of_documents, options.turns)


if __name__ == "__main__":
    main()
