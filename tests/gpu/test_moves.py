"""Moving bytes on the GPU: every kind of list, slides of hundreds of megabytes, and a hunt for races."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from flame_numba.devices import Device
from flame_numba.kernels.moves.mover import Mover
from move_lists import ARENA, MAKERS, Move, contents, expected, slide

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def mover(gpu: Device) -> Iterator[Mover]:
    made = Mover(gpu.backend, by_kernel=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def large(gpu: Device) -> np.ndarray:
    return contents((256 if gpu.kind == "cuda" else 2) * MIB)


def after(mover: Mover, memory: np.ndarray, moves: Sequence[Move], stream: int = 0) -> np.ndarray:
    """What the device's memory holds after the moves."""
    backend, result = mover.backend, np.empty_like(memory)
    address = backend.allocate(memory.nbytes)
    try:
        backend.upload(address, memory.ctypes.data, memory.nbytes, stream)
        mover.move([(address + t, address + s, n) for t, s, n in moves], stream)
        backend.download(result.ctypes.data, address, memory.nbytes, stream)
    finally:
        backend.free(address)
    return result


def turned(moves: Sequence[Move], nbytes: int) -> list[Move]:
    """Upwards instead of downwards."""
    return [(nbytes - t - n, nbytes - s - n, n) for t, s, n in moves]


@pytest.mark.parametrize("scale", [1, 32])  # blocks of less than a chunk of the kernel, and of some chunks
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_moves_are_as_memmove(make, scale: int, mover: Mover) -> None:
    memory = contents(ARENA * scale)
    for seed in range(40):
        moves = [(t * scale, s * scale, n * scale) for t, s, n in make(random.Random(seed))]
        assert np.array_equal(after(mover, memory, moves), expected(memory, moves)), moves


@pytest.mark.parametrize("upwards", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("delta", [256, 64 * KIB, MIB])
@pytest.mark.parametrize("size", [64 * KIB, MIB + 256, 16 * MIB, 64 * MIB])
def test_slides_by_one_distance(size: int, delta: int, upwards: bool, mover: Mover, large: np.ndarray) -> None:
    size = min(size, (large.nbytes - delta) // 2)
    count = (large.nbytes - delta) // size
    moves = slide([size] * count, [delta] + [0] * (count - 1))
    if upwards:
        moves = turned(moves, large.nbytes)
    assert np.array_equal(after(mover, large, moves), expected(large, moves))


@pytest.mark.parametrize("hole", [256, 48 * KIB, MIB])
@pytest.mark.parametrize("size", [4 * KIB, 64 * KIB, 5 * MIB])
def test_a_checkerboard_closes_up(size: int, hole: int, mover: Mover, large: np.ndarray) -> None:
    count = min(20_000, large.nbytes // (size + hole))
    moves = slide([size] * count, [hole] * count)
    assert np.array_equal(after(mover, large, moves), expected(large, moves))


def test_blocks_change_places_through_the_other_half(mover: Mover, large: np.ndarray) -> None:
    size, half = 64 * KIB, large.nbytes // 2
    order = np.random.default_rng(1).permutation(half // size)
    out = [(half + int(place) * size, i * size, size) for i, place in enumerate(order)]
    back = [(i * size, half + i * size, size) for i in range(len(order))]
    assert np.array_equal(after(mover, large, out + back), expected(large, out + back))


def test_moves_keep_to_their_stream(mover: Mover, large: np.ndarray) -> None:
    stream = mover.backend.new_stream()
    moves = slide([MIB // 2] * 3, [KIB] * 3)
    assert np.array_equal(after(mover, large, moves, stream), expected(large, moves))
    assert np.array_equal(after(mover, large, moves), expected(large, moves))
    mover.backend.destroy_stream(stream)


@pytest.mark.parametrize("delta", [256, 32 * KIB - 256, 32 * KIB, 80 * KIB])
def test_a_hunt_for_races(delta: int, mover: Mover, large: np.ndarray) -> None:
    """Down and up again, many times, beside other work: one chunk written too early and the bytes are not as before."""
    backend = mover.backend
    memory = large[: 64 * MIB]
    rounds = 500 if backend.kind == "cuda" else 3
    size = memory.nbytes - delta
    address, other = backend.allocate(memory.nbytes), backend.allocate(memory.nbytes)
    beside = backend.new_stream()
    result = np.empty_like(memory)
    try:
        backend.upload(address, memory.ctypes.data, memory.nbytes)
        for i in range(rounds):
            backend.fill(other, i % 256, memory.nbytes, beside)
            mover.move([(address, address + delta, size)])
            mover.move([(address + delta, address, size)])
        backend.download(result.ctypes.data, address, memory.nbytes)
        backend.synchronize_stream(beside)
    finally:
        backend.free(address)
        backend.free(other)
        backend.destroy_stream(beside)
    assert np.array_equal(result[delta:], memory[delta:])


def test_each_batch_reads_what_the_last_one_wrote(mover: Mover) -> None:
    """Many more batches than there is room for tables, queued right after one another."""
    memory = contents(8 * MIB)
    moves = [(64 * KIB * (i + 1), 64 * KIB * i, 64 * KIB) for i in range(127)]
    assert np.array_equal(after(mover, memory, moves), expected(memory, moves))
