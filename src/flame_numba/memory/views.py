"""What a pool shows of itself: pictures of its segments at one moment, and the events that led there. Plain values."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple


class Frame(NamedTuple):
    """One line of a Python stack."""

    filename: str
    line: int
    name: str  # of the function


class BlockView(NamedTuple):
    """A run of bytes of a segment."""

    address: int
    size: int  # bytes it takes up
    nbytes: int  # as requested; 0 unless live
    state: str  # "live", "free", "pending" (freed, a stream may still use it) or "unmapped" (addresses without memory)
    tag: str
    stream: int
    pins: int  # > 0: nothing may move it
    site: tuple[Frame, ...]  # who asked for it, innermost first; () if not recorded


class SegmentView(NamedTuple):
    """A run of addresses that the pool holds from the driver. Its blocks cover it, by address."""

    address: int
    size: int  # bytes of addresses; with backend "virtual", some may be without memory
    kind: str  # "small" or "large"
    stream: int
    scope: str  # "" outside `pool.scope(name)`
    backend: str  # "virtual", "segments" or "direct"
    blocks: tuple[BlockView, ...]


class Event(NamedTuple):
    """One change of a pool, and its books after it. Sizes in bytes."""

    seconds: float  # since recording began
    # "alloc", "free", "free_completed" (the streams are done with it), "segment_alloc", "segment_free", "move", "oom"
    action: str
    address: int
    nbytes: int  # of alloc and free: the block's size in the pool
    stream: int
    tag: str
    allocated_bytes: int
    reserved_bytes: int
    site: tuple[Frame, ...]  # innermost first; () if not recorded
    target: int  # of a move: the new address; of an oom: bytes that the device had free; else 0
    requested: int  # of alloc and oom: bytes as asked for; else 0


def with_memory(segments: Iterable[SegmentView]) -> list[SegmentView]:
    """The parts of segments that have memory, each as a segment: addresses without any are left out."""
    parts = []
    for segment in segments:
        for mapped, run in groupby(segment.blocks, key=lambda block: block.state != "unmapped"):
            blocks = tuple(run)
            if mapped:
                size = sum(block.size for block in blocks)
                parts.append(segment._replace(address=blocks[0].address, size=size, blocks=blocks))
    return parts
