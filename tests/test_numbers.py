"""Numbers in text are read to the last bit as Python's float() reads them."""

import random
from fractions import Fraction

import numba
import numpy as np
import pytest

from distai_mpi.data.readers.kernels.numbers import DONE, HARD, WRONG, number

COUNT = 20_000


@numba.njit
def read_all(text, starts, values, ends, states):
    for i in range(starts.size):
        values[i], ends[i], states[i] = number(text, starts[i])


def read(tokens):
    """Values, whether all of each token was taken, and states."""
    text = np.frombuffer("".join(f"{token}\n" for token in tokens).encode(), np.uint8)
    stops = np.flatnonzero(text == ord("\n"))
    starts = np.concatenate(([0], stops[:-1] + 1))
    values, ends, states = np.empty(len(tokens)), np.empty_like(starts), np.empty_like(starts)
    read_all(text, starts, values, ends, states)
    return values, ends == stops, states


def decimal(fraction):
    """All digits of a fraction whose denominator is a power of two."""
    power = fraction.denominator.bit_length() - 1
    return f"{fraction.numerator * 5**power}e-{power}"


def halves(rng):
    """The points half-way between neighbouring floats, in all their digits, and a little beside."""
    for _ in range(COUNT // 10):
        low = float(np.ldexp(rng.randrange(2**52, 2**53), rng.randrange(-80, 40)))
        middle = (Fraction(low) + Fraction(float(np.nextafter(low, np.inf)))) / 2
        yield decimal(middle)
        yield decimal(middle + Fraction(1, 2**300))
        yield decimal(middle - Fraction(1, 2**300))


def random_numbers(rng):
    for _ in range(COUNT):
        whole = str(rng.randrange(10 ** rng.randrange(1, 40)))
        fraction = rng.choice(["", ".", f".{rng.randrange(10 ** rng.randrange(1, 30))}", ".000000" + whole])
        exponent = rng.choice(["", f"e{rng.randrange(-340, 310)}", f"E+{rng.randrange(40)}"])
        yield rng.choice(["", "-", "+"]) + whole + fraction + exponent


def bit_patterns(rng):
    values = np.array([rng.getrandbits(64) for _ in range(COUNT)], np.uint64).view(np.float64)
    return [repr(value) for value in values.tolist() if np.isfinite(value)]


ENDS = """0 -0 0.0 1e-400 4.9e-324 2.4e-324 2.2250738585072011e-308 1e309 1e999999999 1.7976931348623157e308
    1.7976931348623159e308 9007199254740993 18446744073709551615 18446744073709551616 9999999999999999999
    00000000000000000001.5""".split()
ENDS += ["0" * 400 + "1", "0." + "0" * 400 + "1", "1" + "0" * 300]
MAKERS = {
    "half-way": halves,
    "random": random_numbers,
    "bits": bit_patterns,
    "short": lambda rng: [f"{rng.gauss(0, 1):.6g}" for _ in range(COUNT)],
    "savetxt": lambda rng: [f"{rng.gauss(0, 1):.18e}" for _ in range(COUNT)],
    "repr": lambda rng: [repr(rng.gauss(0, 1)) for _ in range(COUNT)],
    "float32": lambda rng: [str(np.float32(rng.gauss(0, 1))) for _ in range(COUNT)],
    "integers": lambda rng: [str(rng.getrandbits(rng.randrange(1, 130))) for _ in range(COUNT)],
    "ends": lambda rng: ENDS,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_bits_are_those_of_float(kind):
    tokens = list(MAKERS[kind](random.Random(kind)))
    values, taken, states = read(tokens)
    expected = np.array([float(token) for token in tokens])
    assert taken.all()
    assert not (states == WRONG).any()
    done = states == DONE
    assert np.array_equal(values[done].view(np.int64), expected[done].view(np.int64))
    if kind in ("short", "savetxt", "repr", "float32"):
        assert done.all(), "common numbers need no help"
    if kind == "bits":
        assert done.mean() > 0.99


def test_hard_numbers_are_those_that_are_left_to_python():
    _, taken, states = read(["1e-320", "1e400", decimal(Fraction(2**53 + 1))])
    assert taken.all()
    assert (states[:2] == HARD).all()


@pytest.mark.parametrize(
    "token", ["", "-", "+", ".", "e5", "1e", "1e+", "-.e1", "nan", "inf", "-inf", "x", "1e-", "'1'"]
)
def test_no_numbers(token):
    assert read([token])[2][0] == WRONG


@pytest.mark.parametrize("token", ["1x", "1.2.3", "1_000", "1e5e5", "0x10", "1-", "1,5", "1e5.5", "12:30"])
def test_numbers_that_go_on_wrongly(token):
    _, taken, states = read([token])
    assert states[0] == DONE
    assert not taken[0]
