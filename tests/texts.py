"""Texts of tables as files, and what is read from them."""

import numpy as np
from test_text import read

from distai_mpi.data.formats import find

PARTS = (1, 2, 3, 7, 50)


def write(text, name="a"):
    with open(name, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def table(text, columns=None):
    """x and y of a text, the same in any number of ranges."""
    write(text)
    x, y, _ = read("a", columns)
    for parts in PARTS[1:]:
        other = read("a", columns, parts)
        assert np.array_equal(other[0], x, equal_nan=True)
        assert np.array_equal(other[1], y, equal_nan=y.dtype.kind == "f")
    return x.tolist(), y.tolist()


def names_of(text, columns=None):
    write(text)
    found, _ = find("a", None, columns)
    return found.names, found.feature_names
