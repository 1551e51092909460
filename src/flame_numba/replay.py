"""What the pool would do with a recorded program: its trace, event by event, on a fresh pool."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from .devices import Device
from .errors import OutOfMemory
from .memory.blocks import ALIGNMENT, Block, round_up
from .memory.config import PoolConfig
from .memory.traces import Trace, read_trace
from .pool import MemoryPool


@dataclass(frozen=True)
class ReplayResult:
    """Sizes in bytes. Of a replay that ran out of memory: what was so until then."""

    peak_live: int  # of the trace: the most that the program asked for at a time
    peak_reserved: int  # what the pool took from the driver for it
    ratio: float  # peak_reserved / peak_live
    ratio_after_defragment: float | None  # reserved / live at the peak, after moving and trimming; None: not reached
    driver_calls: int
    out_of_memory: bool
    allocations: int
    bytes_moved: int  # by the defragment at the peak
    seconds: float  # of the host, for the replay without it
    failed_at: int | None = None  # the event that got no memory, counted from 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name.replace('_', ' '):<24}{_shown(value):>18}" for name, value in asdict(self).items())


def _shown(value: float | bool | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def replay(
    trace: Trace | str | os.PathLike[str], device: Device | None = None, config: PoolConfig | None = None
) -> ReplayResult:
    """Run a trace (or its file) against a new pool, on a simulated device unless another is given.

    A second run stops at the last peak of live bytes, moves the blocks together and trims.
    Raises TraceError for a file that is no trace.
    """
    trace = trace if isinstance(trace, Trace) else read_trace(trace)
    device = device or Device.simulated()
    run = _Run(trace, device, config)
    try:
        start = perf_counter()
        failed_at = run.play(len(trace.steps))
        seconds = perf_counter() - start
        stats = run.pool.stats()
    finally:
        run.close()
    after, moved = _after_defragment(trace, device, config)
    return ReplayResult(
        peak_live=trace.peak_live, peak_reserved=stats.peak_reserved_bytes,
        ratio=_ratio(stats.peak_reserved_bytes, trace.peak_live), ratio_after_defragment=after,
        driver_calls=stats.driver_calls, out_of_memory=failed_at is not None, allocations=stats.allocations,
        bytes_moved=moved, seconds=seconds, failed_at=failed_at,
    )  # fmt: skip


def _ratio(reserved: int, live: int) -> float:
    return reserved / live if live else 1.0


def _after_defragment(trace: Trace, device: Device, config: PoolConfig | None) -> tuple[float | None, int]:
    """(reserved / live at the peak after moving and trimming, bytes moved for it)."""
    run = _Run(trace, device, config)
    try:
        if run.play(trace.peak_step + 1) is not None:
            return None, 0
        report = run.pool.defragment()
        run.pool.trim()
        return _ratio(run.pool.stats().reserved_bytes, trace.peak_live), report.bytes_moved
    finally:
        run.close()


class _Run:
    """A trace on a pool of its own."""

    def __init__(self, trace: Trace, device: Device, config: PoolConfig | None) -> None:
        self.trace = trace
        self.pool = MemoryPool(device, config)
        self.blocks: list[Block | None] = []  # by allocation number
        backend = device.backend
        self.streams = {0: 0} | {number: backend.new_stream() for number in set(trace.streams) - {0}}

    def play(self, stop: int) -> int | None:
        """Do the first `stop` steps. Returns the one that ran out of memory, or None."""
        blocks, allocate = self.blocks, self.pool.allocate
        for position, step in enumerate(self.trace.steps[:stop]):
            if step < 0:
                block = blocks[~step]
                assert block is not None  # the reader has checked it
                block.free()
                blocks[~step] = None
                continue
            stream = self.streams[self.trace.streams[len(blocks)]]
            try:
                blocks.append(allocate(step, stream) if stream else allocate(step))
            except OutOfMemory:
                return position
        return None

    def close(self) -> None:
        """Give everything back, so that the next run finds the device as this one did."""
        for block in self.blocks:
            if block is not None:
                block.free()
        self.blocks.clear()
        self.pool.trim()
        destroy = getattr(self.pool.backend, "destroy_stream", None)
        for stream in self.streams.values():
            if stream and destroy is not None:
                destroy(stream)


def smallest_limit(
    trace: Trace | str | os.PathLike[str],
    device: Device | None = None,
    config: PoolConfig | None = None,
    max_replays: int = 40,
) -> int:
    """The smallest limit, in bytes, under which a trace replays: by bisection, so a limit between may also do.

    Stops early after `max_replays`, with the smallest that was seen to do.
    """
    trace = trace if isinstance(trace, Trace) else read_trace(trace)
    device = device or Device.simulated()
    config = config or PoolConfig()
    too_small = _least(trace) - ALIGNMENT  # below it, live blocks alone are more
    step = ALIGNMENT
    replays = 0
    while True:  # upward until one does
        enough = too_small + step
        replays += 1
        if _fits(trace, device, replace(config, limit=enough)):
            break
        too_small, step = enough, 2 * step
    while enough - too_small > ALIGNMENT and replays < max_replays:
        middle = round_up((too_small + enough) // 2)
        replays += 1
        if _fits(trace, device, replace(config, limit=middle)):
            enough = middle
        else:
            too_small = middle
    return enough


def _least(trace: Trace) -> int:
    """The peak of live bytes, each block rounded up as the pool does."""
    sizes = [round_up(step) for step in trace.steps if step >= 0]
    live = peak = allocated = 0
    for step in trace.steps:
        if step >= 0:
            live += sizes[allocated]
            allocated += 1
            peak = max(peak, live)
        else:
            live -= sizes[~step]
    return max(peak, ALIGNMENT)


def _fits(trace: Trace, device: Device, config: PoolConfig) -> bool:
    run = _Run(trace, device, config)
    try:
        return run.play(len(trace.steps)) is None
    finally:
        run.close()
