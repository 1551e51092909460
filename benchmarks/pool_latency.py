"""Time of an allocate + free pair that the pool serves from memory it holds, on a device of addresses only.

    PYTHONPATH=src python benchmarks/pool_latency.py

`repeat`: the same size again, as in training. `mixed`: sizes at random out of the 64 of a program.
`split`: a size that was never seen, cut out of a larger span and merged back.
Times are of the host, from the quietest of several rounds, without what reading the clock adds. An empty
Python call is timed beside them, as a measure of the machine.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from itertools import count, cycle
from statistics import median, quantiles
from time import perf_counter_ns

from flame_numba.devices import Device
from flame_numba.pool import MemoryPool

PAIRS = 20_000
ROUNDS = 9


def nothing(_: int) -> None:
    pass


def clock_ns(call: Callable[[int], None] | None = None) -> float:
    """What reading the clock adds to each time; with `call`, and what calling it adds."""
    times = []
    for i in range(PAIRS):
        start = perf_counter_ns()
        if call is not None:
            call(i)
        times.append(perf_counter_ns() - start)
    return median(times)


def pair_ns(pool: MemoryPool, sizes: Iterator[int]) -> list[int]:
    times = []
    for _, nbytes in zip(range(PAIRS), sizes, strict=False):
        start = perf_counter_ns()
        pool.free(pool.allocate(nbytes))
        times.append(perf_counter_ns() - start)
    return times


def filled_pool(live: int, rng: random.Random) -> MemoryPool:
    """A pool with `live` blocks and as many holes between them."""
    pool = MemoryPool(Device.simulated(1 << 50))
    blocks = [pool.allocate(rng.randint(1, 1 << 16)) for _ in range(2 * live)]
    for block in blocks[::2]:
        block.free()
    pool.stats()  # merges what is free
    return pool


def measure(pool: MemoryPool, sizes: Iterator[int], overhead: float) -> tuple[float, float]:
    """Median and 99th percentile in µs, of the round with the smallest median."""
    rounds = []
    for _ in range(ROUNDS):
        gc.collect()
        times = [(t - overhead) / 1e3 for t in pair_ns(pool, sizes)]
        rounds.append((median(times), quantiles(times, n=100)[98]))
    return min(rounds)


def main() -> None:
    overhead = min(clock_ns() for _ in range(ROUNDS))
    call = min(clock_ns(nothing) for _ in range(ROUNDS)) - overhead
    print(f"an empty Python call takes {call:.0f} ns")
    print(f"{'live blocks':>12} {'sizes':>8} {'median':>10} {'p99':>10}")
    for live in (1_000, 100_000):
        rng = random.Random(0)
        pool = filled_pool(live, rng)
        program = [rng.randint(1, 1 << 16) for _ in range(64)]
        kinds: dict[str, Iterator[int]] = {
            "repeat": cycle([4096]),
            "mixed": cycle(rng.choices(program, k=PAIRS)),
            "split": count(1 << 16, 256),
        }
        for name, sizes in kinds.items():
            middle, p99 = measure(pool, sizes, overhead)
            print(f"{live:>12,} {name:>8} {middle:>7.2f} µs {p99:>7.2f} µs")


if __name__ == "__main__":
    main()
