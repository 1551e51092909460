"""Speed of moving blocks within the device, beside one plain copy of as many bytes.

    PYTHONPATH=src python benchmarks/moves.py [--shapes 256x8,128x8,…] [--json FILE]

`scattered`: blocks to places in another region, in random order. `slide, half`: blocks move to lower addresses over a
hole of half a block before each, as when a checkerboard closes up. `slide, 256 B`: all by 256 bytes, onto themselves.

Columns, all GB/s of bytes moved (read and written once each) and the ratio to the plain copy of the same rounds:
`kernel`: the launches, planned before; `move()`: the whole call, from an array of moves; `call by call`: one
`backend.copy` a block, of as many blocks as some milliseconds take. Times are between events on the stream, medians
of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 removed it. Nothing is installed here
    np.row_stack = np.vstack  # type: ignore[attr-defined]

from flame_numba.devices import Device, default_device
from flame_numba.kernels.moves.mover import Mover
from flame_numba.kernels.moves.plan import as_table, plan

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = {"4 KiB": 4 * KIB, "64 KiB": 64 * KIB, "1 MiB": MIB, "16 MiB": 16 * MIB, "64 MiB": 64 * MIB}
MOST_MOVES = 65_536
MOST_CALLS = 1_000
ROUNDS = 11

Table = np.ndarray[Any, Any]


def scattered(size: int, count: int, low: int, high: int) -> Table:
    places = np.random.default_rng(0).permutation(count)
    return _table(high + places * size, low + np.arange(count) * size, size)


def slide_half(size: int, count: int, low: int, high: int) -> Table:
    i = np.arange(count)
    return _table(low + i * size, low + i * size + (i + 1) * (size // 2), size)


def slide_little(size: int, count: int, low: int, high: int) -> Table:
    i = np.arange(count)
    return _table(low + i * size, low + i * size + 256, size)


PATTERNS = {"scattered": scattered, "slide, half": slide_half, "slide, 256 B": slide_little}


def _table(target: Table, source: Table, size: int) -> Table:
    return np.stack([target, source, np.full(len(target), size)], axis=1).astype(np.int64)


class Clock:
    """Times calls that queue work, on a device with two regions of `nbytes`."""

    def __init__(self, device: Device, nbytes: int, rounds: int) -> None:
        self.backend = device.backend
        self.nbytes = nbytes
        self.rounds = rounds
        self.low = self.backend.allocate(3 * nbytes)  # a slide's blocks and their holes take 1.5 × the bytes
        self.high = self.low + 2 * nbytes
        self.backend.fill(self.low, 1, 3 * nbytes)

    def seconds(self, call: Callable[[], object]) -> float:
        backend = self.backend
        backend.synchronize()
        start = backend.record_event(timing=True)
        call()
        end = backend.record_event(timing=True)
        result = backend.elapsed_ms(start, end) / 1e3
        backend.destroy_event(start)
        backend.destroy_event(end)
        return result

    def in_turns(self, calls: dict[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
        """Bytes a second of each (call, bytes), by the median of its rounds."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(self.rounds + 1):
            for name, (call, _) in calls.items():
                seconds = self.seconds(call)
                if turn:  # the first is for warming up
                    times[name].append(seconds)
        return {name: calls[name][1] / median(values) for name, values in times.items()}


def measure(clock: Clock, mover: Mover, pattern: str, size: int) -> dict[str, float]:
    count = max(1, min(MOST_MOVES, clock.nbytes // size))
    table = PATTERNS[pattern](size, count, clock.low, clock.high)
    batches = list(plan(as_table(table), mover.chunk, mover.limits))
    few = table[:MOST_CALLS].tolist()

    def call_by_call() -> None:
        for target, source, nbytes in few:
            clock.backend.copy(target, source, nbytes)

    rates = clock.in_turns(
        {
            "copy": (lambda: clock.backend.copy(clock.high, clock.low, clock.nbytes), clock.nbytes),
            "kernel": (lambda: mover.run(batches), count * size),
            "move()": (lambda: mover.move(table), count * size),
            "call by call": (call_by_call, len(few) * size),
        }
    )
    return {"moves": count, "launches": len(batches), **rates}


def lines(results: Sequence[dict[str, Any]]) -> list[str]:
    names = ("kernel", "move()", "call by call")
    text = [
        "| moves of | pattern | shape | moves | launches | copy | " + " | ".join(f"{n} | ÷ copy" for n in names) + " |"
    ]
    text.append("|---" * (6 + 2 * len(names)) + "|")
    for r in results:
        cells = [r["size"], r["pattern"], r["shape"], f"{r['moves']:,}", str(r["launches"]), f"{r['copy'] / 1e9:,.0f}"]
        for name in names:
            cells += [f"{r[name] / 1e9:,.0f}", f"{r[name] / r['copy']:.2f}"]
        text.append("| " + " | ".join(cells) + " |")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of moving blocks within the device.")
    parser.add_argument("--device", default=None, help="cuda, cuda:N or cpu (default: the first GPU, else cpu)")
    parser.add_argument("--shapes", default="256x8", help="threads x vectors of 16 bytes a thread, of the kernel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers, in bytes a second")
    given = parser.parse_args(argv)
    device = Device.parse(given.device) if given.device else default_device()
    gpu = device.kind == "cuda"
    clock = Clock(device, 4 * GIB if gpu else 64 * MIB, ROUNDS if gpu else 1)
    results: list[dict[str, Any]] = []
    for shape in given.shapes.split(","):
        threads, vectors = map(int, shape.split("x"))
        mover = Mover(device.backend, threads, vectors, by_kernel=True)
        for pattern in PATTERNS:
            for name, size in SIZES.items():
                row = {"size": name, "pattern": pattern, "shape": shape, **measure(clock, mover, pattern, size)}
                results.append(row)
        mover.close()
    print(f"{device.name}\n")
    print("\n".join(lines(results)))
    if given.json:
        given.json.write_text(json.dumps({"device": device.name, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
