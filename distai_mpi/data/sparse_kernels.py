"""Numba kernels of sparse rows; importing this module loads Numba.

Rows are in compressed form: row r has the entries ``starts[r]`` to ``starts[r + 1] - 1`` of ``indices`` (uint32 or
uint64, of features, each once in a row) and of ``values``.  Where all are 1, ``values`` has eight of them, which stand
for those of any entries.  Unsigned indices are what an address takes as they are: with signed ones a pass takes twice
as long.

`dot` and `t_dot` take four entries at a time, and do not know bounds: indices have to be below the features.  The last
ones of a row without branches, by masks, were no faster; nor were products of all entries before the sums of rows.
"""

from __future__ import annotations

import numba
import numpy as np

from ..jit import kernel, specialise
from ..vectors import LINE_BYTES, address, fma, increase, length, load, prefetch, spread
from .row_kernels import PART, copy, fold

AHEAD = 1024  # entries after those at hand for which memory is asked: dots then take up to a tenth less time
ROWS_AHEAD, MOST_AHEAD = 8, 256  # in `gather`: rows after the one at hand whose first entries are asked for
NEXT = 8  # entries after the one at hand whose rows of parameters are asked for


@numba.njit(forceinline=True)
def places(indices, values):
    """Bits that take an entry's number to where its value is: all of them, or none where every value is 1."""
    return ~np.uintp(0) if values.size == indices.size else np.uintp(0)


@numba.njit(forceinline=True)
def whole_vectors(matrix, filled):
    """Of how many features vectors of a row of ``matrix``, as long as ``filled``, stay inside it."""
    return np.uintp((matrix.size - filled.size) // matrix.shape[1] + 1 if matrix.size >= filled.size else 0)


@kernel()
def dot(starts, indices, values, w, out):
    """out ← X w for one output: ``w`` has shape (features,), ``out`` (rows,), both the dtype of ``values``.

    In four sums, because each product would wait for the one before it.
    """
    first, index, value = address(starts), address(indices), address(values)
    parameter, to, mask, zero = address(w), address(out), places(indices, values), values.dtype.type(0)
    one, two, three, four, ahead = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4), np.uintp(AHEAD)
    e = np.uintp(first[0])
    for r in range(np.uintp(out.size)):
        stop, s0, s1, s2, s3 = np.uintp(first[r + one]), zero, zero, zero, zero
        while e + four <= stop:
            i = e & mask
            prefetch(index, e + ahead)
            prefetch(value, i + ahead)
            s0 = fma(value[i], parameter[index[e]], s0)
            s1 = fma(value[i + one], parameter[index[e + one]], s1)
            s2 = fma(value[i + two], parameter[index[e + two]], s2)
            s3 = fma(value[i + three], parameter[index[e + three]], s3)
            e += four
        i = e & mask
        if e < stop:  # not a loop: the compiler would take it eight at a time
            s0 = fma(value[i], parameter[index[e]], s0)
            if e + one < stop:
                s1 = fma(value[i + one], parameter[index[e + one]], s1)
                if e + two < stop:
                    s2 = fma(value[i + two], parameter[index[e + two]], s2)
        e = stop
        to[r] = (s0 + s1) + (s2 + s3)


@numba.njit(forceinline=True)
def _term(value, factor):
    return value * factor


@numba.njit(forceinline=True)
def _square(value, factor):
    return np.float64(factor) * (np.float64(value) * np.float64(value))


def _t_dot(starts, indices, values, v, out):
    """out ← out + Σ _term(x[r], v[r]) over rows r, of one output: ``v`` has shape (rows,), ``out`` (features,).

    Four sums are read before the first of them is written: else some would wait for a feature of the row before it.
    """
    first, index, value = address(starts), address(indices), address(values)
    factors, to, mask = address(v), address(out), places(indices, values)
    one, two, three, four, ahead = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4), np.uintp(AHEAD)
    e = np.uintp(first[0])
    for r in range(np.uintp(v.size)):
        stop, factor = np.uintp(first[r + one]), factors[r]
        while e + four <= stop:
            i, j0, j1, j2, j3 = e & mask, index[e], index[e + one], index[e + two], index[e + three]
            prefetch(index, e + ahead)
            prefetch(value, i + ahead)
            s0 = to[j0] + _term(value[i], factor)
            s1 = to[j1] + _term(value[i + one], factor)
            s2 = to[j2] + _term(value[i + two], factor)
            s3 = to[j3] + _term(value[i + three], factor)
            to[j0] = s0
            to[j1] = s1
            to[j2] = s2
            to[j3] = s3
            e += four
        i = e & mask
        if e < stop:
            j0 = index[e]
            to[j0] += _term(value[i], factor)
            if e + one < stop:
                j1 = index[e + one]
                to[j1] += _term(value[i + one], factor)
                if e + two < stop:
                    j2 = index[e + two]
                    to[j2] += _term(value[i + two], factor)
        e = stop


# out ← out + Xᵀ v, where all are of one dtype, and out ← out + Σ v · x² in float64
t_dot = kernel()(_t_dot)
squares_of_one = specialise(_t_dot, "squares", {"_term": _square})


@kernel()
def dot_outputs(starts, indices, values, w, sums, out):
    """out ← X w for several outputs: ``w`` has shape (features, outputs), ``out`` (rows, outputs).

    ``sums``, shape (outputs,), filled up to whole vectors, is working space.  Vectors of the last features' rows of
    ``w`` would reach beyond its end: these go one number after another.
    """
    first, index, value, parameters = address(starts), address(indices), address(values), address(w)
    total, mask, lanes, zero = address(sums), places(indices, values), length(address(w)), spread(w.dtype.type(0))
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    outputs, limit = np.uintp(w.shape[1]), np.uintp(indices.size)
    safe = whole_vectors(w, sums)
    e = np.uintp(first[0])
    for r in range(out.shape[0]):
        stop = np.uintp(first[r + 1])
        sums[:] = 0
        while e < stop:
            i = e & mask
            if e + four <= stop and index[e + three] < safe:
                ahead = e + np.uintp(NEXT) if e + np.uintp(NEXT) + four <= limit else e
                j0, j1 = index[e] * outputs, index[e + one] * outputs
                j2, j3 = index[e + two] * outputs, index[e + three] * outputs
                n0, n1 = index[ahead] * outputs, index[ahead + one] * outputs
                n2, n3 = index[ahead + two] * outputs, index[ahead + three] * outputs
                v0, v1 = spread(value[i]), spread(value[i + one])
                v2, v3 = spread(value[i + two]), spread(value[i + three])
                k = np.uintp(0)
                while k < outputs:
                    prefetch(parameters, n0 + k)
                    prefetch(parameters, n1 + k)
                    prefetch(parameters, n2 + k)
                    prefetch(parameters, n3 + k)
                    s = fma(load(parameters, j0 + k, lanes), v0, fma(load(parameters, j1 + k, lanes), v1, zero))
                    s = fma(load(parameters, j2 + k, lanes), v2, fma(load(parameters, j3 + k, lanes), v3, s))
                    increase(total, k, s)
                    k += lanes
                e += four
                continue
            at = index[e] * outputs
            for column in range(outputs):
                total[column] += value[i] * parameters[at + column]
            e += one
        copy(sums[: out.shape[1]], out[r])


@kernel()
def t_dot_outputs(starts, indices, values, v, factors, before, frequent, reach, totals, out):
    """out ← out + Xᵀ v for several outputs; ``factors`` is working space like the ``sums`` of `dot_outputs`.

    For what follows ``before``, the number of rows that ``out`` has had already, see `t_dot_many`.
    """
    first, index, value, to = address(starts), address(indices), address(values), address(out)
    factor, mask, lanes, zero = address(factors), places(indices, values), length(address(out)), spread(v.dtype.type(0))
    outputs, limit, one = np.uintp(out.shape[1]), np.uintp(indices.size), np.uintp(1)
    safe = whole_vectors(out, factors)
    e = np.uintp(first[0])
    for r in range(v.shape[0]):
        stop = np.uintp(first[r + 1])
        copy(v[r], factors)
        while e < stop:
            feature, number = index[e], value[e & mask]
            at = feature * outputs
            if feature < safe and number - number == 0:  # beyond the outputs 0 is added, which takes finite numbers
                ahead = index[e + np.uintp(NEXT) if e + np.uintp(NEXT) < limit else e] * outputs
                times, k = spread(number), np.uintp(0)
                while k < outputs:
                    prefetch(to, ahead + k)
                    increase(to, at + k, fma(load(factor, k, lanes), times, zero))
                    k += lanes
            else:
                for column in range(outputs):
                    to[at + column] += number * factor[column]
            e += one
        done = before + r + 1
        if done % PART == 0 and frequent.size:
            for i in range(reach[level_of(done // PART)]):
                fold(out[frequent[i]], totals[i])


@numba.njit
def level_of(turn):
    """How often 2 divides ``turn``, which is not 0."""
    level = 0
    while turn % 2 == 0:
        turn //= 2
        level += 1
    return level


@kernel()
def carry(turn, frequent, reach, sums, totals):
    """totals[i] ← totals[i] + sums[frequent[i]], and that sum ← 0, for the features whose ``turn`` it is."""
    if frequent.size:
        for i in range(reach[level_of(turn)]):
            totals[i] += sums[frequent[i]]
            sums[frequent[i]] = 0


@kernel()
def t_dot_many(starts, indices, values, v, before, frequent, reach, totals, out):
    """As `t_dot`, of rows that follow ``before`` others; sums of ``frequent`` features go to ``totals``, float64.

    See `Frequent`, of which ``reach`` is an attribute, too.
    """
    start = 0
    while start < v.size:
        stop = min(v.size, start + PART - (before + start) % PART)
        t_dot(starts[start : stop + 1], indices, values, v[start:stop], out)
        if (before + stop) % PART == 0:
            carry((before + stop) // PART, frequent, reach, out, totals)
        start = stop


@kernel()
def collect(starts, indices, values, v, columns, sums, slots):
    """Xᵀ v as index-value pairs: the sums of each feature that the rows meet; returns how many these are.

    Feature columns[p] has the sums sums[p], for p below that number, in the order in which features are met.

    Args:
        starts, indices, values: X.
        v: shape (rows, outputs), in the dtype of ``values``.
        columns, sums: shape (n,), like ``indices``, and (n, outputs): as many features at least as are met.
        slots: working space, shape (features,), uint32; whatever it holds, see Briggs & Torczon 1993, "An efficient
            representation for sparse sets": a feature has been met where its slot names it.
    """
    mask, found, outputs = places(indices, values), np.uintp(0), v.shape[1]
    single = v.shape[0] == 1  # in one row none is met twice
    for r in range(v.shape[0]):
        for entry in range(np.uintp(starts[r]), np.uintp(starts[r + 1])):
            feature, value = indices[entry], values[entry & mask]
            p = found if single else np.uintp(slots[feature])
            if p < found and columns[p] == feature:
                for k in range(outputs):
                    sums[p, k] += value * v[r, k]
                continue
            if not single:
                slots[feature] = found
            columns[found] = feature
            for k in range(outputs):
                sums[found, k] = value * v[r, k]
            found += np.uintp(1)
    return np.int64(found)


@kernel()
def count(indices, counts):
    """Add how often each feature is among ``indices`` to ``counts``."""
    index, to = address(indices), address(counts)
    for e in range(np.uintp(indices.size)):
        to[index[e]] += 1


@kernel()
def squares(starts, indices, values, scale, out):
    """out ← out + Σ scale[r, k] · x² over rows; ``scale`` has shape (rows, outputs), ``out`` (features, outputs)."""
    mask = places(indices, values)
    for r in range(scale.shape[0]):
        for entry in range(np.uintp(starts[r]), np.uintp(starts[r + 1])):
            value, feature = np.float64(values[entry & mask]), indices[entry]
            for k in range(scale.shape[1]):
                out[feature, k] += np.float64(scale[r, k]) * (value * value)


@kernel()
def gather(starts, indices, values, rows, factors, new_starts, new_indices, new_values):
    """Copy ``rows``, values multiplied by ``factors`` of their features, where there are any.

    ``new_starts`` says where; ``new_values`` may have another dtype than ``values``, and be empty where all are 1.
    Memory of rows that come later is asked for: rows in random order took 26 ns an entry without, 9 with it.
    """
    mask, index, value = places(indices, values), address(indices), address(values)
    step = np.uintp(LINE_BYTES // indices.itemsize)
    for r in range(rows.size):
        if r + ROWS_AHEAD < rows.size:
            later = rows[r + ROWS_AHEAD]
            e, end = np.uintp(starts[later]), np.uintp(min(starts[later + 1], starts[later] + MOST_AHEAD))
            while e < end:
                prefetch(index, e)
                prefetch(value, e & mask)
                e += step
        first, at = np.uintp(starts[rows[r]]), np.uintp(new_starts[r])
        count = np.uintp(new_starts[r + 1]) - at
        for i in range(count):
            new_indices[at + i] = indices[first + i]
        if not new_values.size:
            continue
        if not factors.size:
            for i in range(count):
                new_values[at + i] = values[(first + i) & mask]
            continue
        for i in range(count):
            new_values[at + i] = np.float64(values[(first + i) & mask]) * factors[indices[first + i]]


@kernel()
def select(starts, indices, values, place, new_starts, new_indices, new_values):
    """Copy the entries of features whose ``place`` among those chosen is below the number of all features.

    Writes ``new_starts``, shape (rows + 1,), and the entries where there is room: empty arrays take none, so that a
    first call counts.  ``place`` has shape (features,) and the type of indices.
    """
    mask, at = places(indices, values), 0
    new_starts[0] = 0
    for r in range(starts.size - 1):
        for entry in range(np.uintp(starts[r]), np.uintp(starts[r + 1])):
            to = place[indices[entry]]
            if to < place.size:
                if new_indices.size:
                    new_indices[at] = to
                    if new_values.size:
                        new_values[at] = values[entry & mask]
                at += 1
        new_starts[r + 1] = at


@kernel()
def fill(starts, indices, values, rows, factors, out):
    """Write ``rows`` densely into ``out``, shape (rows, features), values multiplied as by `gather`."""
    mask = places(indices, values)
    for r in range(rows.size):
        for j in range(out.shape[1]):
            out[r, j] = 0
        for entry in range(np.uintp(starts[rows[r]]), np.uintp(starts[rows[r] + 1])):
            value, feature = np.float64(values[entry & mask]), indices[entry]
            if factors.size:
                value *= factors[feature]
            out[r, feature] = value


@kernel(fastmath=False)
def moments(starts, indices, values, weight, sums):
    """Add Σ weight · x and Σ weight · x² over rows to ``sums``, float64, shape (2, features).

    ``weight``, float64, has shape (rows,), or (0,) where all are 1.
    """
    mask = places(indices, values)
    for r in range(starts.size - 1):
        each = weight[r] if weight.size else 1.0
        for entry in range(np.uintp(starts[r]), np.uintp(starts[r + 1])):
            value, feature = np.float64(values[entry & mask]), indices[entry]
            sums[0, feature] += each * value
            sums[1, feature] += each * value * value
