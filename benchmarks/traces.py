"""Recorded programs replayed on the pool, beside PyTorch's policy: how much each reserves for what is live.

    PYTHONPATH=src python benchmarks/traces.py FOLDER_OR_TRACE … [--device cuda] [--smallest-limit] [--json FILE]

A trace is CSV or CSV.gz with the columns op, id, bytes, stream; `write_trace` makes one of a pool's history.
`reserved` is peak reserved / peak live, `defragmented` the same at the peak after `defragment()` and `trim()`.
`PyTorch` is a simulation of its allocator's policy, for the ratio alone: see `TorchPolicy`.
Traces of under 8 MiB say nothing by their ratio, as the driver's pages are 2 MiB: for them the smallest limit is
looked for under which they replay.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flame_numba.devices import Device
from flame_numba.errors import FlameError
from flame_numba.memory.traces import Trace, read_trace
from flame_numba.replay import ReplayResult, replay, smallest_limit

MIB = 1 << 20
TINY = 8 * MIB  # of a whole trace


# --- PyTorch's policy -------------------------------------------------------------------------------------------------
class Chunk:
    """A run of bytes in a segment, linked to its neighbours."""

    __slots__ = ("address", "free", "next", "previous", "size")

    def __init__(self, address: int, size: int, previous: Chunk | None = None, next: Chunk | None = None) -> None:
        self.address, self.size, self.previous, self.next = address, size, previous, next
        self.free = False


class TorchPolicy:
    """What PyTorch's CUDA allocator reserves, by default: it neither moves blocks nor gives segments back.

    Sizes are rounded up to 512 bytes. Up to 1 MiB, blocks are cut from segments of 2 MiB; below 10 MiB, from segments
    of 20 MiB; larger ones get a segment of their size in steps of 2 MiB. The best-fitting free chunk of the stream
    serves; what is left of it is split off if it is at least 512 bytes (small), or more than 1 MiB (large).
    """

    def __init__(self) -> None:
        self.reserved = 0
        self._free: defaultdict[tuple[bool, int], list[tuple[int, int, Chunk]]] = defaultdict(list)
        self._address = 0

    def allocate(self, nbytes: int, stream: int) -> Chunk | None:
        if nbytes == 0:
            return None
        size = max(-(-nbytes // 512) * 512, 512)
        small = size <= MIB
        free = self._free[small, stream]
        position = bisect_left(free, (size,))
        chunk = free.pop(position)[2] if position < len(free) else self._segment(size)
        chunk.free = False
        rest = chunk.size - size
        if rest >= 512 if small else rest > MIB:
            chunk.next = Chunk(chunk.address + size, rest, chunk, chunk.next)
            if chunk.next.next is not None:
                chunk.next.next.previous = chunk.next
            chunk.size = size
            self._put(chunk.next, free)
        return chunk

    def release(self, chunk: Chunk | None, nbytes: int, stream: int) -> None:
        if chunk is None:
            return
        free = self._free[max(-(-nbytes // 512) * 512, 512) <= MIB, stream]
        if (after := chunk.next) is not None and after.free:
            self._take(after, free)
            chunk.size, chunk.next = chunk.size + after.size, after.next
            if chunk.next is not None:
                chunk.next.previous = chunk
        if (before := chunk.previous) is not None and before.free:
            self._take(before, free)
            before.size, before.next = before.size + chunk.size, chunk.next
            if before.next is not None:
                before.next.previous = before
            chunk = before
        self._put(chunk, free)

    def _segment(self, size: int) -> Chunk:
        nbytes = 2 * MIB if size <= MIB else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        self.reserved += nbytes
        self._address += nbytes + 2 * MIB
        return Chunk(self._address, nbytes)

    @staticmethod
    def _put(chunk: Chunk, free: list[tuple[int, int, Chunk]]) -> None:
        chunk.free = True
        insort(free, (chunk.size, chunk.address, chunk))

    @staticmethod
    def _take(chunk: Chunk, free: list[tuple[int, int, Chunk]]) -> None:
        del free[bisect_left(free, (chunk.size, chunk.address))]


def torch_ratio(trace: Trace) -> float:
    """Peak reserved / peak live under PyTorch's policy."""
    policy = TorchPolicy()
    blocks: list[tuple[Chunk | None, int, int]] = []
    for step in trace.steps:
        if step >= 0:
            stream = trace.streams[len(blocks)]
            blocks.append((policy.allocate(step, stream), step, stream))
        else:
            policy.release(*blocks[~step])
    return policy.reserved / trace.peak_live if trace.peak_live else 1.0


# --- the table --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    trace: str
    replay: ReplayResult
    torch: float
    smallest_limit: int | None  # bytes; None: not looked for


def rows(paths: Sequence[Path], device: Device, limits: bool) -> Iterator[Row]:
    for path in paths:
        trace = read_trace(path)
        result = replay(trace, device)
        tiny = trace.peak_live < TINY
        limit = smallest_limit(trace, device) if limits or tiny else None
        yield Row(path.name.partition(".csv")[0], result, torch_ratio(trace), limit)


def traces(given: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named."""
    found: list[Path] = []
    for path in given:
        found += sorted(path.glob("*.csv*")) if path.is_dir() else [path]
    return found


HEAD = (
    "| trace | allocations | peak live, MiB | PyTorch | reserved | defragmented | moved, MiB | driver calls | seconds "
    "| smallest limit / peak live |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def line(row: Row) -> str:
    result, live = row.replay, row.replay.peak_live
    after = "–" if result.ratio_after_defragment is None else f"{result.ratio_after_defragment:.3f}"
    limit = "" if row.smallest_limit is None else f"{row.smallest_limit / live if live else 1:.4f}"
    cells = (
        row.trace, f"{result.allocations:,}", f"{live / MIB:,.1f}", f"{row.torch:.3f}", f"{result.ratio:.3f}", after,
        f"{result.bytes_moved / MIB:,.0f}", f"{result.driver_calls:,}", f"{result.seconds:.2f}", limit,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Recorded programs on the pool, beside PyTorch's policy.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER_OR_TRACE")
    parser.add_argument("--device", default="simulated", help="simulated, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--smallest-limit", action="store_true", help="look for it for large traces, too: slow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers; sizes in bytes")
    given = parser.parse_args(argv)
    device = Device.simulated() if given.device == "simulated" else Device.parse(given.device)
    done = []
    print(HEAD)
    try:
        for row in rows(traces(given.paths), device, given.smallest_limit):
            done.append(row)
            print(line(row), flush=True)
    except (FlameError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in done], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
