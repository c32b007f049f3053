"""float16 messages: rounded as NumPy rounds, safe at both ends of float32's range, and half the traffic."""

import numpy as np
import pytest
from simulated import simulate, tables

from distai_mpi.comm import compression, compression_kernels
from distai_mpi.comm.compression import compressed_allgather, compressed_reduce_scatter
from distai_mpi.comm.workspace import Workspace
from distai_mpi.optim import SGD
from distai_mpi.params import Ownership
from distai_mpi.perf import costs

SIZES = range(1, 6)
SEGMENTS = [64, 1 << 15, 1 << 20]  # bytes: 15 elements a message, one block, many
BLOCK = compression_kernels.BLOCK
ROUNDING = 2.0**-11  # relative, of what is within 2**-28 of its block's largest
FLOAT32 = np.finfo(np.float32)


def pack(x):
    message = np.empty(compression.words(x.size), np.uint16)
    compression_kernels.pack(x, message)
    return message


def received(x):
    """What the message for ``x`` stands for."""
    out = np.full(x.size, -0.0, np.float32)
    compression_kernels.add(pack(x), out)
    return out


def lengths(size):
    return sorted({0, 1, size - 1, size, 1000, 3 * BLOCK + 17})


def inputs(size, length):
    """Vectors whose magnitudes reach over 40 powers of two, in stretches as long as layers."""
    rng = np.random.default_rng([size, length])
    x = rng.standard_normal((size, length)) * 2.0 ** rng.integers(-6, 6, (size, length))
    return (x * 2.0 ** -(np.arange(length) // 500 % 30)).astype(np.float32)


# --- messages


def test_numbers_are_rounded_as_numpy_rounds_them():
    """All float16 numbers below 2**15, the middles between them, and the float32 numbers next to those."""
    exact = np.arange(0x7800, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (exact[:-1] + exact[1:]) / 2
    x = np.concatenate([exact, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, FLOAT32.max)])
    x = np.concatenate([x, -x])
    x = np.concatenate([x, np.zeros(-x.size % (BLOCK - 1), np.float32)]).reshape(-1, BLOCK - 1)
    x = np.column_stack([np.full(len(x), 2.0**14, np.float32), x]).ravel()  # so that every block has the scale 1
    message = pack(x)
    assert set(message[: x.size // BLOCK]) == {127 + 14}
    np.testing.assert_array_equal(message[x.size // BLOCK :], x.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("power", [*range(-149, 128, 3), 126, 127])
def test_blocks_of_any_magnitude_are_numpys_float16_at_a_scale(power):
    x = np.random.default_rng(power + 200).uniform(-1, 1, BLOCK)
    x = np.append(x, 1).astype(np.float64) * 2.0**power
    x = x[1:].astype(np.float32)
    largest = np.abs(x).max()
    np.testing.assert_allclose(received(x), x, rtol=ROUNDING, atol=largest * 2.0**-39)
    scale = np.ldexp(1.0, min(14 - int(np.frexp(largest)[1] - 1), 126))
    if power < 127:
        np.testing.assert_array_equal(received(x), ((x * scale).astype(np.float16) / scale).astype(np.float32))


def test_all_words_are_read_as_numpy_reads_them():
    words = np.arange(1 << 16, dtype=np.uint16)
    message = np.concatenate([np.full(words.size // BLOCK, 127 + 14, np.uint16), words])
    out = np.full(words.size, -0.0, np.float32)
    compression_kernels.add(message, out)
    expected = words.view(np.float16).astype(np.float32)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(out[number].view(np.uint32), expected[number].view(np.uint32))
    assert np.isnan(out[~number]).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("position", [0, 16, BLOCK - 1, BLOCK, BLOCK + 6])
def test_what_is_not_finite_arrives_so(value, position):
    x = np.ones(BLOCK + 7, np.float32)
    x[position] = value
    arrived = received(x)
    np.testing.assert_equal(arrived[position], np.float32(value))
    elsewhere = np.arange(x.size) // BLOCK != position // BLOCK
    np.testing.assert_array_equal(arrived[elsewhere], 1)


def test_a_nan_of_low_bits_stays_one():
    assert np.isnan(received(np.array([0x7F800001, 0xFFC00000], np.uint32).view(np.float32))).all()


def test_the_ends_of_float32():
    near = np.array([FLOAT32.max, -FLOAT32.max, 1.9999 * 2.0**127, 1.5 * 2.0**127, 2.0**100], np.float32)
    np.testing.assert_allclose(received(near), near, rtol=2.0**-10)  # the largest are cut, not rounded up
    small = np.array([0.0, -0.0, FLOAT32.smallest_subnormal, -5 * FLOAT32.smallest_subnormal], np.float32)
    np.testing.assert_array_equal(received(small).view(np.uint32), small.view(np.uint32))
    assert received(np.zeros(0, np.float32)).size == 0


def test_blocks_do_not_disturb_each_other():
    x = np.concatenate([np.full(BLOCK, 1e-30), np.full(BLOCK, 1e30), np.zeros(5)]).astype(np.float32)
    np.testing.assert_allclose(received(x), x, rtol=ROUNDING)


# --- on simulated ranks


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("size", SIZES)
def test_reduce_scatter(size, segment):
    for length in lengths(size) if segment > 64 else lengths(size)[:-1]:
        for owners in tables(size, length, 4):
            x = inputs(size, length)
            before = x.copy()
            wires, _ = simulate(
                size,
                lambda wire, x=x, t=owners: compressed_reduce_scatter(wire, x[wire.rank], t.slices, Workspace(segment)),
            )
            assert_sums(x, before, owners)
            counted = [costs.Traffic(wire.messages, wire.bytes) for wire in wires]
            sizes = [4 * (s.stop - s.start) for s in owners.slices]
            assert counted == costs.sent("reduce_scatter", "compressed", size, 4 * length, sizes, segment)


def assert_sums(x, before, owners):
    """Owned slices are sums to what rounding allows, the others are as before."""
    exact, magnitudes = before.sum(axis=0, dtype=np.float64), np.abs(before).sum(axis=0, dtype=np.float64)
    largest = np.abs(before).max(initial=0)
    for rank, part in enumerate(owners.slices):
        others = magnitudes[part] - np.abs(before[rank, part])
        error = np.abs(x[rank, part] - exact[part])
        bound = ROUNDING * others + len(x) * (FLOAT32.eps * magnitudes[part] + 2.0**-39 * largest)
        assert (error <= bound).all()
        x[rank, part] = before[rank, part]
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_do_not_depend_on_the_segments(size):
    sums = []
    for segment in SEGMENTS[1:]:
        x = inputs(size, 9 * BLOCK + 5)
        slices = Ownership.sharded(x.shape[1], size, 4).slices
        simulate(
            size, lambda wire, x=x, s=slices, n=segment: compressed_reduce_scatter(wire, x[wire.rank], s, Workspace(n))
        )
        sums.append([x[rank, part].tobytes() for rank, part in enumerate(slices)])
    assert sums[0] == sums[1]


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("size", SIZES)
def test_allgather(size, segment):
    for length in lengths(size) if segment > 64 else lengths(size)[:-1]:
        for owners in tables(size, length, 4):
            base = np.random.default_rng(length).standard_normal(length).astype(np.float32)
            target = base + np.float32(0.01) * inputs(1, length)[0]
            lacked = inputs(2, length)[1] * np.float32(1e-5)
            x, residual = np.full((size, length), np.nan, np.float32), lacked.copy()
            for rank, part in enumerate(owners.slices):
                x[rank, part] = target[part]
            wires, _ = simulate(
                size,
                lambda wire, x=x, b=base, r=residual, t=owners: compressed_allgather(
                    wire, x[wire.rank], b, r[t.slices[wire.rank]], t.slices, Workspace(segment)
                ),
            )
            assert all(row.tobytes() == x[0].tobytes() for row in x)
            change = target.astype(np.float64) - base + lacked
            bound = ROUNDING * np.abs(change) + 2.0**-39 * np.abs(change).max(initial=0)
            assert (np.abs(x[0] - (base + change)) <= bound + FLOAT32.eps * np.abs(base)).all()
            kept = x[0].astype(np.float64) + residual  # nothing is lost between the two
            np.testing.assert_allclose(
                kept, base + change, rtol=0, atol=4 * FLOAT32.eps * np.abs(change).max(initial=0)
            )
            counted = [costs.Traffic(wire.messages, wire.bytes) for wire in wires]
            sizes = [4 * (s.stop - s.start) for s in owners.slices]
            assert counted == costs.sent("allgather", "compressed", size, 4 * length, sizes, segment)


def walk(size, steps, feedback):
    """Take equal steps, all multiples of 2**-22 so that float32 sums are exact; return the error, in steps' length.

    Returns how far the vector is from where it should be, without and with the residual.
    """
    rng, length = np.random.default_rng(1), 500
    slices = Ownership.sharded(length, size, 4).slices
    start, step = (rng.integers(1 << 12, 1 << 13, (2, length)) * 2.0**-22).astype(np.float32)
    x, residual = start, np.zeros(length, np.float32)
    for _ in range(steps):
        residual *= feedback
        base, copies = x, np.tile(x + step, (size, 1))

        def publish(wire, base=base, copies=copies, residual=residual):
            mine = slices[wire.rank]
            compressed_allgather(wire, copies[wire.rank], base, residual[mine], slices, Workspace(1 << 12))

        simulate(size, publish)
        x = copies[-1]
    error = x - (start + steps * step)
    return np.abs(error).max() / step.max(), np.abs(error + residual).max() / step.max()


@pytest.mark.parametrize("size", [1, 3])
def test_what_rounding_takes_is_sent_later(size):
    """Equal steps are rounded the same way every time: without feedback the errors add up."""
    left, lost = walk(size, 200, feedback=True)
    assert (left < 2.0**-10, lost) == (True, 0)
    assert walk(size, 200, feedback=False)[0] > 0.01


def test_the_carry_of_an_optimizer_is_a_residual():
    """Plain SGD on a quadratic, its carry handed in: as float64 does it, up to the last change's rounding."""
    size, length, slices = 2, 400, Ownership.sharded(400, 2, 4).slices
    rng = np.random.default_rng(3)
    w = rng.standard_normal(length).astype(np.float32)
    goal, exact, sgd = rng.standard_normal(length).astype(np.float32), w.astype(np.float64), SGD(lr=0.01)
    states = [sgd.init(w[part]) for part in slices]
    for _ in range(200):
        exact -= 0.01 * (exact - goal)
        copies = np.empty((size, length), np.float32)
        grad = w - goal
        for rank, part in enumerate(slices):
            sgd.step(w[part], grad[part], states[rank], copies[rank, part])
        simulate(
            size,
            lambda wire, c=copies, b=w: compressed_allgather(
                wire, c[wire.rank], b, states[wire.rank]["carry"], slices, Workspace()
            ),
        )
        assert copies[0].tobytes() == copies[1].tobytes()
        w = copies[0]
    whole = w.astype(np.float64) + np.concatenate([state["carry"] for state in states])
    np.testing.assert_allclose(whole, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(w, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("value", [np.inf, np.nan, FLOAT32.max])
def test_extremes_through_both_phases(value):
    size, length = 3, BLOCK + 50
    slices = Ownership.sharded(length, size, 4).slices
    x = np.ones((size, length), np.float32)
    x[1, [5, -1]] = value  # in slices of rank 0 and rank 2
    base, residual = np.zeros(length, np.float32), np.zeros(length, np.float32)

    def step(wire):
        work, mine = Workspace(), slices[wire.rank]
        compressed_reduce_scatter(wire, x[wire.rank], slices, work)
        x[wire.rank, mine] *= np.float32(0.25)
        compressed_allgather(wire, x[wire.rank], base, residual[mine], slices, work)

    simulate(size, step)
    assert all(row.tobytes() == x[0].tobytes() for row in x)
    reached = x[0, [5, -1]]
    if np.isfinite(value):
        np.testing.assert_allclose(reached, value / 4, rtol=2.0**-10)
    else:
        assert not np.isfinite(reached).any()


def test_other_types_are_refused():
    wire = simulate(1, lambda wire: None)[0][0]
    x = np.zeros(8)
    with pytest.raises(ValueError, match="float32"):
        compressed_reduce_scatter(wire, x, [slice(0, 8)], Workspace())
    with pytest.raises(ValueError, match="float64"):
        compressed_allgather(wire, np.zeros(8, np.float32), x, x, [slice(0, 8)], Workspace())


def test_half_the_bytes_of_a_ring():
    assert costs.HALF_BLOCK == BLOCK
    for collective in costs.COLLECTIVES:
        exact, halves = (costs.path(collective, name, 4, 1 << 24) for name in ("ring", "compressed"))
        assert (halves.messages, halves.sent, halves.summed) == (exact.messages, exact.sent / 2, exact.summed)
        names = ("ring", "compressed")
        ring, half_ = (max(each.bytes for each in costs.sent(collective, name, 4, 1 << 24)) for name in names)
        assert 0.5 < half_ / ring < 0.5002
    assert costs.path("allreduce", "compressed", 1, 8) == costs.Path(0, 0, 0)


# --- over real messages


@pytest.mark.mpi
@pytest.mark.parametrize("length", [0, 1, 5, 70_001, 1_100_000])
def test_over_mpi(length):
    """Slices longer than a message, lopsided ones and empty ones, twice, so that buffers are used again."""
    from mpi4py import MPI

    from distai_mpi.comm.wire import MPIWire

    comm = MPI.COMM_WORLD.Dup()
    wire, work = MPIWire(comm, chunk_bytes=1 << 18), Workspace()
    cuts = [length * max(rank - 1, 0) // (2 * comm.size) for rank in range(comm.size)]
    lopsided = Ownership(length, tuple(map(slice, [0, *cuts[1:]], [*cuts[1:], length])))
    x = inputs(comm.size, length)
    exact, magnitudes = x.sum(axis=0, dtype=np.float64), np.abs(x).sum(axis=0, dtype=np.float64)
    bound = (ROUNDING + FLOAT32.eps * comm.size) * magnitudes + 2.0**-38 * np.abs(x).max(initial=0)
    for owners in (Ownership.sharded(length, comm.size, 4), lopsided) * 2:
        mine = owners.slices[comm.rank]
        grad, w = x[comm.rank].copy(), np.full(length, np.nan, np.float32)
        compressed_reduce_scatter(wire, grad, owners.slices, work)
        assert (np.abs(grad - exact)[mine] <= bound[mine]).all()
        w[mine] = grad[mine]
        base, residual = np.zeros(length, np.float32), np.zeros(mine.stop - mine.start, np.float32)
        compressed_allgather(wire, w, base, residual, owners.slices, work)
        assert len(set(comm.allgather(w.tobytes()))) == 1
        assert (np.abs(w - exact) <= 2.1 * bound).all()
        np.testing.assert_allclose(w[mine] + residual, grad[mine], rtol=0, atol=1e-6 * np.abs(w).max(initial=0))
    comm.Free()
