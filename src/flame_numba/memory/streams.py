"""Blocks that several streams use: when their memory may go to somebody else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .blocks import Span

if TYPE_CHECKING:
    from ..devices import Backend

_UNKNOWN = object()  # in place of an event that could not be recorded: only waiting for the device tells


class Streams:
    """The streams that a pool knows, and the freed spans that wait for some of them."""

    def __init__(self, machine: Backend) -> None:
        self.machine = machine
        self.known: set[int] = set()
        self.pending: deque[tuple[list[Any], Span]] = deque()  # oldest first

    def wait(self, stream: int, other: int) -> None:
        """Let later work of `stream` wait for what `other` holds now. Blocks nobody on the host."""
        event = self.machine.record_event(other)
        try:
            self.machine.wait_event(stream, event)
        finally:
            self.machine.destroy_event(event)

    def know(self, stream: int) -> None:
        """Heed a stream from now on. What it is given next comes after all moves until now: their blocks may be its."""
        if stream not in self.known:
            if stream:
                self.wait(stream, 0)
            self.known.add(stream)

    def gather(self) -> None:
        """Let later work of the default stream, where blocks are moved, wait for all other streams."""
        for stream in self.known - {0}:
            self.wait(0, stream)

    def scatter(self) -> None:
        """Let all other streams wait for what was queued on the default stream."""
        for stream in self.known - {0}:
            self.wait(stream, 0)

    def defer(self, span: Span) -> None:
        """Keep a freed span until the streams that used it are done with what they hold now."""
        events: list[Any] = []
        span.block = span.home = None
        span.pending = True
        self.pending.append((events, span))
        try:
            for stream in span.streams:
                events.append(self.machine.record_event(stream))
        except BaseException:
            events.append(_UNKNOWN)
            raise

    def finished(self) -> Iterator[Span]:
        """Take out the spans that every stream is done with, one by one."""
        for _ in range(len(self.pending)):
            events, _ = self.pending[0]
            if all(event is not _UNKNOWN and self.machine.event_done(event) for event in events):
                yield from self._next()
            else:
                self.pending.rotate(-1)

    def all_finished(self) -> Iterator[Span]:
        """Take out all spans, where the caller has seen to it that no stream uses them."""
        while self.pending:
            yield from self._next()

    def _next(self) -> Iterator[Span]:
        events, span = self.pending.popleft()
        span.pending = span.held = span.watched = False
        span.streams = ()
        yield span  # whatever a driver says to the rest, it has a place again
        for event in events:
            if event is not _UNKNOWN:
                self.machine.destroy_event(event)
