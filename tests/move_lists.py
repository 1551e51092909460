"""Lists of moves to try, as compaction makes them and as nobody would, and what they must come to.

A move is (target, source, nbytes), from the begin of an arena of `ARENA` bytes.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence

import numpy as np

Move = tuple[int, int, int]
UNIT = 256
ARENA = 256 * UNIT


def expected(memory: np.ndarray, moves: Sequence[Move]) -> np.ndarray:
    result = memory.copy()
    for target, source, nbytes in moves:
        ctypes.memmove(result.ctypes.data + target, result.ctypes.data + source, nbytes)
    return result


def contents(nbytes: int = ARENA) -> np.ndarray:
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)


def slide(sizes: Sequence[int], holes: Sequence[int], begin: int = 0) -> list[Move]:
    """Blocks with a hole before each, moved together at `begin`."""
    moves, target, source = [], begin, begin
    for size, hole in zip(sizes, holes, strict=True):
        source += hole
        moves.append((target, source, size))
        target, source = target + size, source + size
    return moves


def random_slide(rng: random.Random) -> list[Move]:
    count = rng.randint(1, 12)
    sizes = [UNIT * rng.randint(1, 12) for _ in range(count)]
    return slide(sizes, [UNIT * rng.choice([0, 1, 1, 2, 9]) for _ in range(count)], UNIT * rng.randint(0, 3))


def raised(moves: Sequence[Move]) -> list[Move]:
    """The same turned round: every block moves upwards, the highest first."""
    return [(ARENA - t - n, ARENA - s - n, n) for t, s, n in moves]


def scattered(rng: random.Random) -> list[Move]:
    """Blocks of the lower half to places of the upper, in any order and place."""
    half, size = ARENA // UNIT // 2, rng.randint(1, 5)
    places = [range(0, half - size, size), range(half, 2 * half - size, size)]
    sources, targets = (rng.sample(p, len(p)) for p in places)
    return [(UNIT * t, UNIT * s, UNIT * rng.randint(1, size)) for t, s in zip(targets, sources, strict=False)]


def anything(rng: random.Random, unit: int = UNIT) -> list[Move]:
    """Moves that know nothing of each other: moved twice, written twice, chains, all overlaps, nothing at all."""
    moves = []
    for _ in range(rng.randint(0, 20)):
        size = rng.choice([0, 1, 1, 2, 3, 8, 20])
        room = ARENA // unit - size
        moves.append((unit * rng.randint(0, room), unit * rng.randint(0, room), unit * size))
    return moves


def chain(rng: random.Random) -> list[Move]:
    """Every place moves on by one, from the free end (all may be read at once) or from the other (none may)."""
    size = rng.randint(1, 4)
    steps = [(UNIT * size * i, UNIT * size * (i + 1), UNIT * size) for i in range(rng.randint(1, 10))]
    return steps if rng.random() < 0.5 else steps[::-1]


def emptied_then_slid(rng: random.Random) -> list[Move]:
    half = ARENA // 2
    evacuated = [(t - half, s + half, n) for t, s, n in scattered(rng)]
    return evacuated + random_slide(rng)


MAKERS = {
    "slide": random_slide, "raised": lambda rng: raised(random_slide(rng)), "scattered": scattered, "chain": chain,
    "anything": anything, "unaligned": lambda rng: anything(rng, rng.choice([1, 8, 16, 48])),
    "emptied then slid": emptied_then_slid,
}  # fmt: skip
