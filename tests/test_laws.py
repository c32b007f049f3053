"""The laws against numbers worked out by hand, their inverses and their limits."""

import math

import pytest

from distai_mpi.perf import laws

COUNTS, FRACTIONS = (2, 3, 8, 1000), (0.0, 0.25, 0.9, 1.0)


def test_nodes_side_by_side_and_in_a_row():
    assert laws.throughput(4, 250.0) == 1000.0


def test_values_worked_out_by_hand():
    assert laws.amdahl(4, 0.5) == pytest.approx(1.6)
    assert laws.amdahl(10, 0.9) == pytest.approx(1 / 0.19)
    assert laws.amdahl_limit(0.95) == pytest.approx(20)
    assert laws.amdahl_limit(1.0) == math.inf
    assert laws.gustafson(4, 0.5) == pytest.approx(2.5)
    assert laws.efficiency(8, 6.0) == pytest.approx(0.75)


@pytest.mark.parametrize("p", FRACTIONS)
@pytest.mark.parametrize("n", COUNTS)
def test_inverses_give_the_fraction_back(n, p):
    assert laws.amdahl_fraction(n, laws.amdahl(n, p)) == pytest.approx(p, abs=1e-12)
    assert laws.gustafson_fraction(n, laws.gustafson(n, p)) == pytest.approx(p, abs=1e-12)
    assert laws.amdahl(1, p) == laws.gustafson(1, p) == pytest.approx(1)


@pytest.mark.parametrize("p", FRACTIONS)
def test_fits_find_the_fraction_that_made_the_measurements(p):
    counts = (1, *COUNTS)
    assert laws.fit_amdahl(counts, [laws.amdahl(n, p) for n in counts]) == pytest.approx(p, abs=1e-9)
    assert laws.fit_gustafson(counts, [laws.gustafson(n, p) for n in counts]) == pytest.approx(p, abs=1e-9)


def test_a_fit_weighs_measurements_and_stays_a_fraction():
    noisy = [laws.amdahl(n, 0.9) * factor for n, factor in zip((2, 4, 8), (1.02, 0.97, 1.01), strict=True)]
    assert laws.fit_amdahl((2, 4, 8), noisy) == pytest.approx(0.9, abs=0.03)
    assert laws.fit_amdahl((2, 4), (2.5, 5.0)) == 1.0
    assert laws.fit_gustafson((2, 4), (0.5, 0.4)) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: laws.amdahl(0, 0.5),
        lambda: laws.amdahl(2, 1.5),
        lambda: laws.gustafson(2, -0.1),
        lambda: laws.amdahl_fraction(1, 1.0),
        lambda: laws.gustafson_fraction(2, math.nan),
        lambda: laws.throughput(2, math.inf),
        lambda: laws.fit_amdahl((1,), (1.0,)),
        lambda: laws.fit_amdahl((1, 2), (1.0,)),
    ],
)
def test_numbers_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="."):
        call()
