"""The books of a pool as values: counted, listed, and told when memory ran out. Called under the pool's lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .report import OutOfMemoryFacts, holders, out_of_memory_text
from .stats import PoolStats, TagStats
from .views import BlockView, SegmentView

if TYPE_CHECKING:
    from ..devices import Device
    from .accounts import Account
    from .blocks import Span
    from .ladder import Ladder


def pool_stats(ladder: Ladder, accounts: Mapping[str, Account]) -> PoolStats:
    """All numbers. Freed blocks that wait for a request of their size count as free, merged with their neighbours."""
    total, reserve = ladder.total, ladder.reserve
    total.settle()
    requested = pending = pinned = live = largest = run = 0
    for span in ladder.spans():
        if span.prev is None:
            run = 0  # a new segment
        if span.live:
            assert span.block is not None
            requested += span.block.nbytes
            pinned += span.size if span.pins else 0
            live += 1
        pending += span.size if span.pending else 0
        run = run + span.size if span.mapped and not span.pending and not span.live else 0
        largest = max(largest, run)
    arenas = list(ladder.arenas())
    return PoolStats(
        allocated_bytes=total.current,
        requested_bytes=requested,
        reserved_bytes=reserve.nbytes,
        peak_allocated_bytes=total.peak,
        peak_reserved_bytes=reserve.peak_nbytes,
        total_allocated_bytes=total.total,
        pending_bytes=pending,
        pinned_bytes=pinned,
        live_blocks=live,
        segments=sum(bool(segment.pages) for arena in arenas for segment in arena.segments.values()),
        largest_free_bytes=largest,
        allocations=total.allocations,
        frees=total.frees,
        hits=total.allocations - reserve.grown,
        misses=reserve.grown,
        splits=sum(arena.splits for arena in arenas),
        merges=sum(arena.merges for arena in arenas),
        moves=ladder.moves,
        bytes_moved=ladder.bytes_moved,
        driver_calls=reserve.driver_calls,
        tags=_tags(ladder, accounts),
    )


def _tags(ladder: Ladder, accounts: Mapping[str, Account]) -> dict[str, TagStats]:
    tags = {}
    for name, account in list(accounts.items()):
        account.settle()
        tags[name] = TagStats(account.current, account.peak, account.allocations - account.frees)
    total = ladder.total
    rest = total.current - sum(tag.allocated_bytes for tag in tags.values())
    blocks = total.allocations - total.frees - sum(tag.live_blocks for tag in tags.values())
    # what has no tag is the difference, so its peak is known only while nothing has one
    return {**tags, "user": TagStats(rest, rest if tags else total.peak, blocks)}


def pool_segments(ladder: Ladder) -> list[SegmentView]:
    """Every segment, and every block in it."""
    return [
        SegmentView(
            segment.address, segment.size, arena.kind, arena.stream, arena.scope, ladder.reserve.backend,
            tuple(_view(span) for span in segment),
        )
        for arena in ladder.arenas()
        for segment in arena.segments.values()
    ]  # fmt: skip


def _view(span: Span) -> BlockView:
    if span.live and span.block is not None:
        tag = span.account.name if span.account is not None else "user"
        return BlockView(span.address, span.size, span.block.nbytes, "live", tag, span.stream, span.pins, span.site)
    state = "pending" if span.pending else "free" if span.mapped else "unmapped"
    return BlockView(span.address, span.size, 0, state, "", span.stream, 0, ())


def explain_failure(
    device: Device, ladder: Ladder, accounts: Mapping[str, Account], nbytes: int, tried: tuple[str, ...]
) -> str:
    """The message of OutOfMemory."""
    stats = pool_stats(ladder, accounts)
    free, total = ladder.machine.memory_info()
    facts = OutOfMemoryFacts(
        device=str(device),
        requested=nbytes,
        allocated=stats.allocated_bytes,
        reserved=stats.reserved_bytes,
        limit=ladder.reserve.limit,
        by_tag={tag: of.allocated_bytes for tag, of in stats.tags.items() if of.allocated_bytes},
        largest_free=stats.largest_free_bytes,
        free=stats.free_bytes,
        internal_waste=stats.allocated_bytes - stats.requested_bytes,
        pinned=stats.pinned_bytes,
        device_free=free,
        device_total=total,
        holders=tuple(holders(pool_segments(ladder))),
        tried=tried,
        blocks=stats.live_blocks,
        segments=stats.segments,
    )
    return out_of_memory_text(facts)
