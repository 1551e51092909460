"""Time of one allocation and its free: the pool alone, on a simulated device, and beside CuPy and PyTorch on a GPU.

    PYTHONPATH=src python benchmarks/pool_latency.py

`repeat`: one size again and again. `mixed`: 64 sizes, as a training step has them. `split`: a size that was never
seen, cut out of a larger span and merged back. Each with 1,000 and 100,000 other blocks live, between as many holes.
Then, beside peers: a block allocated and freed, and a small tensor made and dropped.

Each pair is timed by itself; what reading the clock takes is subtracted. Reported: the median and the 99th percentile
of the round with the smallest median. The time of an empty Python call stands beside them, as a measure of the machine.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from itertools import count, cycle
from statistics import median, quantiles
from time import perf_counter_ns

import flame_numba as fn
from flame_numba.devices import Device, default_device
from flame_numba.pool import MemoryPool

PAIRS = 20_000
ROUNDS = 5


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
    pool.trim(keep=1 << 60)  # merges what is free
    return pool


def measure(pool: MemoryPool, sizes: Iterator[int], overhead: float) -> tuple[float, float]:
    """Median and 99th percentile in µs, of the round with the smallest median."""
    rounds = []
    for _ in range(ROUNDS):
        gc.collect()
        times = [(t - overhead) / 1e3 for t in pair_ns(pool, sizes)]
        rounds.append((median(times), quantiles(times, n=100)[98]))
    return min(rounds)


def pairs_beside_peers() -> Iterator[tuple[str, Callable[[], object], Callable[[object], object]]]:
    """(name, allocate, free) of a block of 4 KiB, and of a tensor that size."""
    device = default_device()
    pool = MemoryPool(device)
    yield f"flame_numba block, {device}", lambda: pool.allocate(4096), pool.free  # type: ignore[arg-type]
    yield f"flame_numba tensor, {device}", lambda: fn.empty((1024,)), lambda x: None
    if device.kind != "cuda":
        return
    try:
        import cupy

        yield "cupy block", lambda: cupy.cuda.alloc(4096), lambda x: None
        yield "cupy array", lambda: cupy.empty((1024,), cupy.float32), lambda x: None
    except ImportError:
        print("cupy is not installed")
    try:
        import torch

        yield "torch tensor", lambda: torch.empty((1024,), device="cuda"), lambda x: None
    except ImportError:
        print("torch is not installed")


def peer_ns(allocate: Callable[[], object], free: Callable[[object], object]) -> list[int]:
    times = []
    for _ in range(PAIRS):
        start = perf_counter_ns()
        x = allocate()
        free(x)
        del x
        times.append(perf_counter_ns() - start)
    return times


def beside_peers(overhead: float) -> None:
    contenders = {name: (allocate, free) for name, allocate, free in pairs_beside_peers()}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):  # in turns
        for name, (allocate, free) in contenders.items():
            gc.collect()
            times = [(t - overhead) / 1e3 for t in peer_ns(allocate, free)]
            rounds[name].append((median(times), quantiles(times, n=100)[98]))
    print(f"{'made and dropped':<32} {'median':>10} {'p99':>10}   (with two Python calls more than the above)")
    for name, found in rounds.items():
        middle, p99 = min(found)
        print(f"{name:<32} {middle:>7.2f} µs {p99:>7.2f} µs")


def main() -> None:
    overhead = min(clock_ns() for _ in range(ROUNDS))
    call = min(clock_ns(nothing) for _ in range(ROUNDS)) - overhead
    print(f"an empty Python call takes {call:.0f} ns")
    beside_peers(overhead)
    print(f"\n{'live blocks':>12} {'sizes':>8} {'median':>10} {'p99':>10}")
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
