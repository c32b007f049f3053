"""Orders that are computed point by point: bijections, and as random as chance."""

import numpy as np
import pytest

from distai_mpi.data import Permutation


@pytest.mark.parametrize("n", [*range(70), 100, 255, 256, 257, 511, 513, 1000, 1023, 1024, 1025, 4097, 60000, 65536])
def test_it_is_a_bijection_with_an_inverse(n):
    order = Permutation(n, 3, "bijection", n)
    images = order.positions(0, n)
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), np.arange(n))
    assert np.array_equal(order.inverse(images), np.arange(n))


@pytest.mark.parametrize("n", [2**31 + 11, 2**45 - 1])
def test_more_rows_than_fit_32_bits(n):
    order = Permutation(n, 1)
    positions = np.array([0, 1, n // 2, n - 2, n - 1])
    images = order.apply(positions)
    assert images.min() >= 0
    assert images.max() < n
    assert images.max() > n // 2
    assert np.array_equal(order.inverse(images), positions)


def test_any_range_can_be_computed_alone():
    order = Permutation(1000, "range")
    whole = order.positions(0, 1000)
    assert np.array_equal(order.positions(123, 456), whole[123:456])
    assert np.array_equal(order.apply(np.array([7, 999, 0])), whole[[7, 999, 0]])
    assert np.array_equal(order.apply(np.arange(5), shift=40), whole[40:45])
    positions = np.arange(1000)
    assert order.apply(positions, out=positions) is positions
    assert np.array_equal(positions, whole)


def test_orders_depend_on_the_whole_key_and_on_nothing_else():
    orders = [Permutation(100, *key).positions(0, 100) for key in [(0,), (1,), (0, 0), (0, "a"), (0, "b"), ("a", 0)]]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert np.array_equal(orders[3], Permutation(100, 0, "a").positions(0, 100))


def sigmas(counts, freedom=None, fractions=1.0):
    """Chi-square of counts that should be in proportion to ``fractions``, in standard deviations from its mean."""
    freedom = counts.size - 1 if freedom is None else freedom
    expected = fractions * counts.sum() / np.sum(fractions * np.ones_like(counts))
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.fixture(scope="module")
def sample():
    """``sample(n, m)``: the first m orders of n rows, shape (m, n)."""
    return lambda n, m: np.stack([Permutation(n, 5, "sample", i).positions(0, n) for i in range(m)])


@pytest.mark.parametrize(("n", "m"), [(3, 6000), (7, 7000), (64, 6400), (100, 6000)])
def test_every_row_is_equally_likely_at_every_position(sample, n, m):
    orders = sample(n, m)
    table = np.stack([np.bincount(column, minlength=n) for column in orders.T])
    assert abs(sigmas(table, freedom=(n - 1) ** 2)) < 5


def test_all_orders_of_four_rows_are_equally_likely(sample):
    orders = sample(4, 12000)
    _, counts = np.unique(orders @ 4 ** np.arange(4), return_counts=True)
    assert counts.size == 24
    assert abs(sigmas(counts)) < 5


@pytest.mark.parametrize("n", [64, 1000, 1024, 4096, 60000])
def test_neighbours_are_independent(n):
    """Steps between neighbours modulo n, and the upper bits of both, are spread evenly."""
    steps, pairs = [], np.zeros((8, 8))
    for i in range(max(2, 200_000 // n)):
        order = Permutation(n, "neighbours", i).positions(0, n)
        steps.append(np.diff(order) % n)
        np.add.at(pairs, (order[:-1] * 8 // n, order[1:] * 8 // n), 1)
    counts = np.bincount(np.concatenate(steps), minlength=n)[1:]
    assert abs(sigmas(counts)) < 5
    both_alike = np.full((8, 8), n / 8) - np.eye(8)  # a row cannot follow itself
    assert abs(sigmas(pairs, fractions=both_alike)) < 5


@pytest.mark.parametrize("n", [1000, 1024])
def test_few_points_stay_where_they_are(n):
    """A random order has one fixed point on average, with variance one."""
    fixed = [(Permutation(n, "fixed", i).positions(0, n) == np.arange(n)).sum() for i in range(400)]
    assert abs(np.mean(fixed) - 1) < 5 / np.sqrt(400)
