"""Whether free bytes that lie apart can be made one hole: by moving blocks out of one run into holes elsewhere."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from .arena import Arena
from .blocks import Segment, Span


@dataclass
class Run:
    """Neighbours that are free or may move: what lies between two pinned blocks, or the ends of a segment."""

    spans: list[Span]
    behind: int  # bytes of addresses after it that have no memory

    @property
    def free(self) -> int:
        return sum(span.size for span in self.spans if span.binned)

    @property
    def nbytes(self) -> int:
        return sum(span.size for span in self.spans)

    def lacking(self, size: int, mappable: int) -> int:
        """Bytes of blocks that have to leave before it can hold `size` more, with what can be mapped behind it."""
        return size - self.free - min(mappable, self.behind)

    def by_size(self) -> list[Span]:
        """Its blocks, the largest first."""
        return sorted((span for span in self.spans if not span.binned), key=lambda span: span.size, reverse=True)


def joinable(arena: Arena, size: int, mappable: int, spare: int = 0) -> Run | None:
    """The run that has to lose the fewest bytes for a hole of `size`; None if none can lose enough.

    mappable: bytes that can still be mapped behind a run. spare: bytes of one more hole, in a segment of its own.
    """
    runs = [run for segment in arena.segments.values() for run in _runs(segment)]
    holes = list(arena.bins)
    for run in sorted(runs, key=lambda run: run.lacking(size, mappable)):
        lacking = run.lacking(size, mappable)
        if lacking > run.nbytes - run.free:
            continue
        own = set(map(id, run.spans))
        room = sorted([span.size for span in holes if id(span) not in own] + [spare] * bool(spare))
        if sum(room) >= lacking and _leaves(run, lacking, room):
            return run
    return None


def can_join(arena: Arena, size: int, mappable: int, spare: int) -> bool:
    """Whether one more hole of `spare` bytes is what it takes."""
    return joinable(arena, size, mappable) is None and joinable(arena, size, mappable, spare) is not None


def _leaves(run: Run, lacking: int, room: list[int]) -> bool:
    """Whether blocks of so many bytes find holes, each the best fit, the largest first. room: sizes, in order."""
    for span in run.by_size() if lacking > 0 else ():
        i = bisect_left(room, span.size)
        if i == len(room):
            continue
        rest = room.pop(i) - span.size
        if rest:
            insort(room, rest)
        lacking -= span.size
        if lacking <= 0:
            break
    return lacking <= 0


def _runs(segment: Segment) -> Iterator[Run]:
    spans: list[Span] = []
    for span in segment:
        if span.binned or (span.mapped and span.movable):
            spans.append(span)
            continue
        if spans:
            yield Run(spans, 0 if span.mapped else span.size)
        spans = []
    if spans:
        yield Run(spans, 0)
