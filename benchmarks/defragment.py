"""Speed of `defragment()` as users call it, beside one plain copy of as many bytes in the same run.

    PYTHONPATH=src python benchmarks/defragment.py [--gib 8]

A checkerboard: blocks of one size fill the pool, every second is freed, and the pool moves the rest together. So most
moves overlap what lies in front of them, and the first ones overlap themselves. Device time is between two events
around the call, and the plain copy's the same; host time is that of the call. Then passes of one millisecond each
(`max_pause`) over the same checkerboard: how long they took, of the device and of the host.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 removed it. Nothing is installed here
    np.row_stack = np.vstack  # type: ignore[attr-defined]

from flame_numba.devices import Device, default_device
from flame_numba.pool import DefragmentReport, MemoryPool, PoolConfig

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = {"64 KiB": 64 * KIB, "256 KiB": 256 * KIB, "1 MiB": MIB, "16 MiB": 16 * MIB, "64 MiB": 64 * MIB}
ROUNDS = 5
MOST_BLOCKS = 1 << 16


def timed(device: Device, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the device and of the host."""
    backend = device.backend
    backend.synchronize()
    before = backend.record_event(timing=True)
    start = perf_counter()
    work()
    host = perf_counter() - start
    after = backend.record_event(timing=True)
    return backend.elapsed_ms(before, after) / 1e3, host


def checkerboard(device: Device, size: int, nbytes: int) -> tuple[MemoryPool, list[object]]:
    pool = MemoryPool(device, PoolConfig(slack=None))
    blocks = [pool.allocate(size) for _ in range(min(nbytes // size, MOST_BLOCKS))]
    for block in blocks[::2]:
        block.free()
    kept: list[object] = list(blocks[1::2])
    return pool, kept


def plain_copy(device: Device, nbytes: int) -> float:
    """Bytes a second of one copy."""
    backend = device.backend
    source, target = backend.allocate(nbytes), backend.allocate(nbytes)
    rates = [nbytes / timed(device, lambda: backend.copy(target, source, nbytes))[0] for _ in range(ROUNDS)]
    backend.free(source)
    backend.free(target)
    return median(rates)


def whole(device: Device, size: int, nbytes: int) -> tuple[float, float, int]:
    """Bytes a second, of the device and of the host; blocks moved."""
    device_rates, host_rates, blocks = [], [], 0
    for _ in range(ROUNDS):
        pool, kept = checkerboard(device, size, nbytes)
        reports: list[DefragmentReport] = []
        seconds, host = timed(device, lambda: reports.append(pool.defragment()))  # noqa: B023
        device_rates.append(reports[0].bytes_moved / seconds)
        host_rates.append(reports[0].bytes_moved / host)
        blocks = reports[0].blocks_moved
        del kept
        pool.trim()
    return median(device_rates), median(host_rates), blocks


def passes(device: Device, size: int, nbytes: int) -> list[tuple[float, float, int]]:
    """(device seconds, host seconds, bytes moved) of each pass of a millisecond."""
    pool, kept = checkerboard(device, size, nbytes)
    found = []
    complete = False
    while not complete and len(found) < 10_000:
        reports: list[DefragmentReport] = []
        seconds, host = timed(device, lambda: reports.append(pool.defragment(max_pause=1e-3)))  # noqa: B023
        complete = reports[0].complete
        found.append((seconds, host, reports[0].bytes_moved))
    del kept
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=8, help="how much to fill (default: %(default)s)")
    given = parser.parse_args()
    device, nbytes = default_device(), int(given.gib * GIB)
    whole(device, MIB, 64 * MIB)  # compiles and loads
    copy = plain_copy(device, nbytes // 4)
    print(f"{device.name}; a plain copy moves {copy / 1e9:,.0f} GB/s\n")
    print("| blocks | moved | device GB/s | ÷ copy | host GB/s |")
    print("|---|---|---|---|---|")
    for name, size in SIZES.items():
        rate, host, blocks = whole(device, size, nbytes)
        print(f"| {name} | {blocks} | {rate / 1e9:,.0f} | {rate / copy:.2f} | {host / 1e9:,.0f} |", flush=True)
    print("\n| blocks | passes of 1 ms | device ms: median, most | host ms: median, most | GB/s of the longer |")
    print("|---|---|---|---|---|")
    for name, size in SIZES.items():
        found = passes(device, size, nbytes // 4)
        of_device, of_host = (sorted(1e3 * row[k] for row in found) for k in (0, 1))
        rate = sum(row[2] for row in found) / sum(max(row[:2]) for row in found)
        print(
            f"| {name} | {len(found)} | {median(of_device):.2f}, {of_device[-1]:.2f} "
            f"| {median(of_host):.2f}, {of_host[-1]:.2f} | {rate / 1e9:,.0f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
