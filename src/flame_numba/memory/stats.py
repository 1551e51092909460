"""What a pool reports about itself: values, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

_MIB = 1 << 20


def format_bytes(nbytes: int) -> str:
    """Bytes in the unit that suits their size: '3.50 GiB'."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.2f} {unit}"
    return f"{nbytes} bytes"


class TagStats(NamedTuple):
    """The live blocks of one tag."""

    allocated_bytes: int
    peak_allocated_bytes: int
    live_blocks: int


@dataclass(frozen=True)
class PoolStats:
    """The books of a pool at one moment. Sizes in bytes; counts since the pool was made."""

    allocated_bytes: int  # of live blocks, rounded up as the pool does
    requested_bytes: int  # of live blocks, as asked for
    reserved_bytes: int  # held from the driver
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    total_allocated_bytes: int  # of all blocks that ever were
    pending_bytes: int  # freed, but a stream may still use them
    pinned_bytes: int  # of live blocks that nothing may move
    live_blocks: int
    segments: int
    largest_free_bytes: int
    allocations: int
    frees: int
    hits: int  # served from memory that the pool held already
    misses: int
    splits: int
    merges: int
    moves: int  # blocks that got a new address
    bytes_moved: int
    driver_calls: int  # allocations and frees asked of the driver
    tags: dict[str, TagStats] = field(default_factory=dict)  # all live bytes, by tag; "user" has those without one

    @property
    def free_bytes(self) -> int:
        """Reserved and not in use."""
        return self.reserved_bytes - self.allocated_bytes

    @property
    def fragmentation(self) -> float:
        """1 - largest free block / all free bytes: 0 is one hole, near 1 is dust."""
        return 1 - self.largest_free_bytes / self.free_bytes if self.free_bytes else 0.0

    @property
    def internal_fragmentation(self) -> float:
        """The part of the allocated bytes that nobody asked for."""
        return 1 - self.requested_bytes / self.allocated_bytes if self.allocated_bytes else 0.0

    @property
    def summary(self) -> str:
        """The books in a line."""
        return (
            f"allocated {format_bytes(self.allocated_bytes)} in {self.live_blocks} blocks, "
            f"reserved {format_bytes(self.reserved_bytes)} in {self.segments} segments, "
            f"largest free block {format_bytes(self.largest_free_bytes)}"
        )

    def __str__(self) -> str:
        sizes = ("allocated", "requested", "reserved", "peak_allocated", "peak_reserved", "largest_free",
                 "pending", "pinned")  # fmt: skip
        counts = ("live_blocks", "segments", "allocations", "frees", "hits", "misses",
                  "splits", "merges", "moves", "driver_calls")  # fmt: skip
        rows = [(name, f"{getattr(self, name + '_bytes') / _MIB:,.2f}", "MiB") for name in sizes]
        rows += [(name, f"{getattr(self, name):,}", "") for name in counts]
        rows.append(("fragmentation", f"{100 * self.fragmentation:.1f}", "%"))
        rows += [(f"{tag}", f"{of.allocated_bytes / _MIB:,.2f}", "MiB") for tag, of in self.tags.items() if of[0]]
        return "\n".join(f"{name.replace('_', ' '):<15}{value:>14} {unit}".rstrip() for name, value, unit in rows)


@dataclass(frozen=True)
class DefragmentReport:
    """What one `defragment()` did. Sizes in bytes."""

    bytes_moved: int
    blocks_moved: int
    largest_free_before: int
    largest_free_after: int
    segments_emptied: int  # now free as a whole: `trim()` can give them back to the driver
    pinned_bytes: int  # that had to stay where they are
    complete: bool  # False: `max_bytes` or `max_pause` ended it, and another call goes on
    seconds: float  # of the host; the copies are queued on the device's default stream

    @property
    def bytes_joined(self) -> int:
        """By how much the largest free block grew."""
        return self.largest_free_after - self.largest_free_before
