"""What it costs a pool to take memory from the driver and to give it back: virtual memory beside driver allocations.

    PYTHONPATH=src python benchmarks/growth.py [--gib 8]

The pool grows by blocks of one size until it holds so much, frees them and trims. Milliseconds of the host for each
GiB; the median of five rounds that take turns. The first line is one driver allocation of all of it.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from time import perf_counter

from flame_numba.devices import Device, default_device
from flame_numba.pool import MemoryPool, PoolConfig

MIB, GIB = 1 << 20, 1 << 30
ROUNDS = 5


def raw(device: Device, nbytes: int) -> tuple[float, float]:
    """Seconds to allocate and to free."""
    backend = device.backend
    start = perf_counter()
    address = backend.allocate(nbytes)
    middle = perf_counter()
    backend.free(address)
    return middle - start, perf_counter() - middle


def pooled(device: Device, backend: str, nbytes: int, size: int) -> tuple[float, float, int]:
    """Seconds to grow and to trim, and the driver calls of both."""
    pool = MemoryPool(device, PoolConfig(backend=backend))
    device.synchronize()
    start = perf_counter()
    blocks = [pool.allocate(size) for _ in range(nbytes // size)]
    middle = perf_counter()
    for block in blocks:
        block.free()
    again = perf_counter()
    pool.trim()
    return middle - start, perf_counter() - again, pool.stats().driver_calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=int, default=8, help="how much to grow to (default: %(default)s)")
    given = parser.parse_args()
    device = default_device()
    nbytes = given.gib * GIB
    print(f"{device.name}: growing to {given.gib} GiB\n")
    print("| way | blocks | grow ms/GiB | trim ms/GiB | driver calls |")
    print("|---|---|---|---|---|")
    rounds = [raw(device, nbytes) for _ in range(ROUNDS)]
    cells = [f"{1e3 * median(of) / given.gib:.2f}" for of in zip(*rounds, strict=True)]
    print(f"| one driver allocation | {given.gib} GiB | {cells[0]} | {cells[1]} | 2 |")
    for size in (4 * MIB, 64 * MIB, 512 * MIB):
        found: dict[str, list[tuple[float, float, int]]] = {"segments": [], "virtual": []}
        for _ in range(ROUNDS):
            for backend, rounds_of in found.items():
                rounds_of.append(pooled(device, backend, nbytes, size))
        for backend, rounds_of in found.items():
            grow, trim, calls = (median(of) for of in zip(*rounds_of, strict=True))
            print(
                f"| {backend} | {size // MIB} MiB | {1e3 * grow / given.gib:.2f} | {1e3 * trim / given.gib:.2f} "
                f"| {calls:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
