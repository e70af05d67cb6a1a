"""Votes over packed signs, without unpacking them.

One byte per client holds the votes for eight coordinates. Carry-save adders, the binary full adder
in bitwise operations on whole vectors, count them into bit planes: plane k holds bit k of each
coordinate's count, packed like the votes. A bitwise comparison of the planes gives the majority,
and only the result is unpacked. (Bytes are as fast here as 64-bit words, which NumPy would have to
copy where a vector is not aligned.)
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.programs import Program, ProgramBuilder, Row
from fedmedian.kernels.signs import SIGNS_OF_BYTE, Float32, PackedSigns, count_ones, require_packed

Weights = NDArray[np.float64]

# A chunk of votes, the adders' scratch and the results fit the L2 cache. Smaller ones would have
# threads wait for Python's lock more often.
_CHUNK_BYTES = 1 << 17
_WEIGHTED_CHUNK_BYTES = 1 << 15

# More votes are counted in groups: a longer program would take longer to build than to run.
_GROUP = 1024


def count_votes(packed_vectors: Sequence[PackedSigns], dim: int) -> NDArray[np.int32]:
    """Count the positive votes for each coordinate.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1; need not be contiguous.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (d,) int32
        The number of clients that voted +1, 0..M.

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of that length.
    """
    require_packed(packed_vectors, dim)
    counts = np.empty(dim, dtype=np.int32)
    counter = _Counter(len(packed_vectors))
    for chunk in _chunks(0, dim, _CHUNK_BYTES):
        counts[chunk.coordinates] = counter.count(packed_vectors, chunk)
    return counts


def sum_numbers(planes: Sequence[NDArray[np.uint8]], dim: int) -> NDArray[Any]:
    """Sum numbers of k bits modulo 2^k, without unpacking them.

    Parameters
    ----------
    planes : sequence of M (k, ⌈d/8⌉) uint8
        The bit planes of each vector of numbers, least significant first; M >= 1, k >= 1.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (d,) uint8 or int32
        The sums, as bytes if they fit.
    """
    bits = len(planes[0])
    most = max(_GROUP // bits, 1)
    total: NDArray[Any] = np.zeros(dim, dtype=np.uint8 if bits <= 8 else np.int32)
    for group in (planes[start : start + most] for start in range(0, len(planes), most)):
        adder = _Adder(summing_program(len(group), bits))
        rows = [plane for one in group for plane in one]
        for chunk in _chunks(0, dim, _CHUNK_BYTES):
            total[chunk.coordinates] += _number(adder.run(rows, chunk))[chunk.inside]
    total &= total.dtype.type((1 << bits) - 1)
    return total


def majority_vote(packed_vectors: Sequence[PackedSigns], dim: int) -> NDArray[np.int8]:
    """Return the majority vote, per coordinate.

    The server's rule in Algorithms 1 and 3 of arXiv 1906.01736.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1; need not be contiguous.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (d,) int8
        +1, −1, or 0 for a tie (even M only).

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of that length.
    """
    require_packed(packed_vectors, dim)
    majority = np.empty(dim, dtype=np.int8)
    for chunk, (at_least_half, over_half) in _majorities(packed_vectors, dim):
        least = np.unpackbits(at_least_half).view(np.int8)
        # Without ties both are the same bits.
        is_same = over_half is at_least_half
        least += least if is_same else np.unpackbits(over_half).view(np.int8)
        np.subtract(least[chunk.inside], 1, out=majority[chunk.coordinates])
    return majority


def count_against_majority(packed_vectors: Sequence[PackedSigns], values: Float32) -> int:
    """Return the number of coordinates where majority and value have opposite signs.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1; need not be contiguous.
    values : (d,) float32
        The values.

    Returns
    -------
    int
        The number; ties and zeros do not count.

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of that length.
    """
    require_packed(packed_vectors, values.size)
    opposite = 0
    for chunk, (least, most) in _majorities(packed_vectors, values.size):
        own = values[chunk.coordinates]
        against = (most & np.packbits(own < 0)) | (~least & np.packbits(own > 0))
        opposite += int(count_ones(against).sum())
    return opposite


def weighted_votes(
    packed_vectors: Sequence[PackedSigns],
    sizes: Sequence[int],
    weights: Weights,
    out: Float32 | None = None,
) -> Float32:
    """Return the weighted sum of the clients' signs, with one weight per client and block.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1; need not be contiguous.
    sizes : sequence of L int
        The number of coordinates of each block, in order; they add up to d.
    weights : (M, L) float64
        The weight of each client's votes on each block, finite and >= 0.
    out : (d,) float32, optional
        Where the result goes.

    Returns
    -------
    (d,) float32
        Σ_i w_{i,l(k)}·s_{i,k}; exact up to one rounding where all weights are equal.

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of length ⌈d/8⌉.
    """
    dim = sum(sizes)
    require_packed(packed_vectors, dim)
    votes = np.empty(dim, dtype=np.float32) if out is None else out
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    largest = weights.max(axis=0)
    shares = np.divide(weights, largest, out=np.ones_like(weights), where=largest > 0)
    for first, last in _runs_of_equal_columns(shares):
        start, end = ends[first] - sizes[first], ends[last]
        if np.all(shares[:, first] == 1):
            _sum_equal(packed_vectors, votes, start, end)
        else:
            _sum_weighted(packed_vectors, shares[:, first], votes, start, end)
        for block in range(first, last + 1):
            votes[ends[block] - sizes[block] : ends[block]] *= np.float32(largest[block])
    return votes


@lru_cache(maxsize=16)
def counting_program(num_votes: int) -> Program:
    """Return the program that counts M packed votes.

    Parameters
    ----------
    num_votes : int
        M, >= 1.

    Returns
    -------
    Program
        Its outputs are the bit planes of the count, least significant first, as many as M has
        bits.
    """
    builder = ProgramBuilder(num_votes)
    return builder.compile(_add(builder, [range(num_votes)], num_votes.bit_length()))


@lru_cache(maxsize=16)
def summing_program(numbers: int, bits: int) -> Program:
    """Return the program that adds M numbers of k bits each modulo 2^k.

    Parameters
    ----------
    numbers : int
        M, >= 1.
    bits : int
        k, >= 1.

    Returns
    -------
    Program
        Its inputs are the bit planes of each number, least significant first, one number after
        another. Its outputs are the k bit planes of the sum.
    """
    builder = ProgramBuilder(numbers * bits)
    planes = [range(bit, numbers * bits, bits) for bit in range(bits)]
    return builder.compile(_add(builder, planes, bits))


@lru_cache(maxsize=16)
def majority_program(num_votes: int) -> Program:
    """Return the program that finds the majority of M packed votes.

    Parameters
    ----------
    num_votes : int
        M, >= 1.

    Returns
    -------
    Program
        Its outputs say where at least half of the votes are +1 and, for even M, where more than
        half are.
    """
    builder = ProgramBuilder(num_votes)
    planes = _add(builder, [range(num_votes)], num_votes.bit_length())
    limits = sorted({(num_votes + 1) // 2, num_votes // 2 + 1})
    return builder.compile([_at_least(builder, planes, limit) for limit in limits])


def _add(builder: ProgramBuilder, planes: Sequence[Iterable[Row]], most: int) -> list[Row]:
    """Return the first `most` bit planes of a sum, of summands that are planes of bits, too."""
    # A row at level k counts 2^k; three rows of a level become one, and one of the next level.
    waiting: list[list[Row]] = [[] for _ in range(most)]

    def put(level: int, row: Row) -> None:
        if level == most:
            return
        waiting[level].append(row)
        if len(waiting[level]) == 3:
            first, second, third = waiting[level]
            partial = builder.apply(np.bitwise_xor, first, second)
            carry = builder.apply(np.bitwise_and, first, second)
            second_carry = builder.apply(np.bitwise_and, partial, third)
            waiting[level] = [builder.apply(np.bitwise_xor, partial, third)]
            put(level + 1, builder.apply(np.bitwise_or, carry, second_carry))

    for level, rows in enumerate(planes):
        for row in rows:
            put(level, row)
    for level, rows in enumerate(waiting):
        if len(rows) == 2:
            waiting[level] = [builder.apply(np.bitwise_xor, *rows)]
            put(level + 1, builder.apply(np.bitwise_and, *rows))
    return [rows[0] for rows in waiting if rows]


def _at_least(builder: ProgramBuilder, planes: Sequence[Row], limit: int) -> Row:
    """Return packed bits that say where the sums are >= `limit` > 0."""
    least = limit & -limit
    first = least.bit_length() - 1
    answer = planes[first]
    for position in range(first + 1, len(planes)):
        needed = limit >> position & 1
        operation = np.bitwise_and if needed else np.bitwise_or
        answer = builder.apply(operation, planes[position], answer)
    return answer


class _Chunk(NamedTuple):
    """Some bytes of packed votes, and the coordinates that they hold."""

    packed: slice
    coordinates: slice
    inside: slice  # the same coordinates among the bytes' bits


def _chunks(start: int, end: int, num_bytes: int) -> Iterator[_Chunk]:
    for first in range(start // 8, -(-end // 8), num_bytes):
        low, high = max(start, 8 * first), min(end, 8 * (first + num_bytes))
        yield _Chunk(
            slice(first, -(-high // 8)), slice(low, high), slice(low - 8 * first, high - 8 * first)
        )


def _majorities(
    packed_vectors: Sequence[PackedSigns], dim: int
) -> Iterator[tuple[_Chunk, tuple[PackedSigns, PackedSigns]]]:
    """Yield, chunk by chunk, where at least half and where more than half of the votes are +1."""
    num_votes = len(packed_vectors)
    if num_votes > _GROUP:
        counter = _Counter(num_votes)
        for chunk in _chunks(0, dim, _CHUNK_BYTES):
            counts = 2 * counter.count(packed_vectors, chunk)
            yield chunk, (np.packbits(counts >= num_votes), np.packbits(counts > num_votes))
        return
    adder = _Adder(majority_program(num_votes))
    for chunk in _chunks(0, dim, _CHUNK_BYTES):
        bits = adder.run(packed_vectors, chunk)
        yield chunk, (bits[0], bits[-1])


class _Adder:
    """A program with its scratch rows."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._scratch = np.empty((program.num_scratch, _CHUNK_BYTES), dtype=np.uint8)

    def run(self, packed_vectors: Sequence[PackedSigns], chunk: _Chunk) -> list[PackedSigns]:
        rows = [packed[chunk.packed] for packed in packed_vectors]
        return self._program.run(rows, list(self._scratch[:, : rows[0].size]))


class _Counter:
    """Counts a fixed number of votes, group by group."""

    def __init__(self, num_votes: int) -> None:
        sizes = {min(_GROUP, num_votes - start) for start in range(0, num_votes, _GROUP)}
        self._adders = {size: _Adder(counting_program(size)) for size in sizes}

    def count(self, packed_vectors: Sequence[PackedSigns], chunk: _Chunk) -> NDArray[Any]:
        """Return the number of positive votes for each of a chunk's coordinates."""
        firsts = range(0, len(packed_vectors), _GROUP)
        groups = (packed_vectors[first : first + _GROUP] for first in firsts)
        counts = (_number(self._adders[len(group)].run(group, chunk)) for group in groups)
        total = next(counts)
        for more in counts:
            total = np.add(total, more, dtype=np.int32)
        return total[chunk.inside]


def _number(planes: Sequence[PackedSigns]) -> NDArray[Any]:
    """Return the numbers that bit planes encode, as bytes if they fit."""
    numbers: NDArray[Any] = np.unpackbits(planes[0])
    for position, plane in enumerate(planes[1:], start=1):
        if position == 8:
            numbers = numbers.astype(np.int32)
        bits: NDArray[Any] = np.unpackbits(plane).astype(numbers.dtype, copy=False)
        bits <<= position
        numbers |= bits
    return numbers


def _runs_of_equal_columns(shares: Weights) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each run of columns that are equal up to rounding."""
    first, num_columns = 0, shares.shape[1]
    for column in range(1, num_columns + 1):
        if column == num_columns or not np.allclose(
            shares[:, column], shares[:, first], rtol=1e-12, atol=0
        ):
            yield first, column - 1
            first = column


def _sum_equal(packed_vectors: Sequence[PackedSigns], votes: Float32, start: int, end: int) -> None:
    """Write the sums of signs without weights."""
    num_votes = len(packed_vectors)
    counter = _Counter(num_votes)
    for chunk in _chunks(start, end, _CHUNK_BYTES):
        out = votes[chunk.coordinates]
        np.multiply(counter.count(packed_vectors, chunk), np.float32(2), out=out)
        out -= np.float32(num_votes)


def _sum_weighted(
    packed_vectors: Sequence[PackedSigns], weights: Weights, votes: Float32, start: int, end: int
) -> None:
    """Write the sums of signs times weights."""
    # Row b holds the eight weighted signs of byte b.
    table = np.empty_like(SIGNS_OF_BYTE)
    summand = np.empty((_WEIGHTED_CHUNK_BYTES, 8), dtype=np.float32)
    total = np.empty_like(summand)
    for chunk in _chunks(start, end, _WEIGHTED_CHUNK_BYTES):
        num_bytes = chunk.packed.stop - chunk.packed.start
        out = votes[chunk.coordinates]
        is_whole = out.size == 8 * num_bytes
        sums = out.reshape(-1, 8) if is_whole else total[:num_bytes]
        into = sums  # the first client's
        for packed, weight in zip(packed_vectors, weights.astype(np.float32), strict=True):
            np.multiply(SIGNS_OF_BYTE, weight, out=table)
            table.take(packed[chunk.packed], axis=0, out=into, mode="wrap")
            if into is not sums:
                sums += into
            into = summand[:num_bytes]
        if not is_whole:
            out[:] = sums.reshape(-1)[chunk.inside]
