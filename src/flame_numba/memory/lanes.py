"""The blocks of one stream and scope: what was freed there is reused there at once."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem

from ..references import ONE, references
from .arena import Arena
from .blocks import Span


class Lane:
    """Work on a stream runs in order, so a block that was freed on it can be used on it again without waiting.

    A freed block first waits in `ready` for a request of exactly its size, as training repeats its sizes; it merges
    with its neighbours when memory is short. Small blocks have an arena of their own, so that they do not break up
    the memory of the large ones.
    """

    __slots__ = ("_small", "arenas", "hits", "homes", "large", "ready", "scope", "small", "stream")

    def __init__(self, stream: int, scope: str, small: int, watched: bool) -> None:
        self.stream = stream
        self.scope = scope
        self.small = Arena(stream, scope, "small", self.home)
        self.large = Arena(stream, scope, "large", self.home)
        self.arenas = (self.small, self.large)
        self._small = small  # blocks below this size are small
        self.ready: dict[int, list[Span]] = {}  # by size
        self.homes: tuple[dict[int, list[Span]], ...] = ({}, {})  # the same, those of large blocks and of small ones
        # where `allocate` looks first; empty while every allocation and free is to be watched
        self.hits = {} if watched else self.ready

    def arena(self, small: bool) -> Arena:
        return self.small if small else self.large

    def home(self, size: int) -> list[Span]:
        """Where spans of a size wait. Called under the pool's lock."""
        found = self.ready.get(size)
        if found is None:
            found = self.ready[size] = self.homes[size < self._small][size] = []
        return found

    def spans(self) -> Iterator[Span]:
        """Every span of its segments."""
        for arena in self.arenas:
            for segment in arena.segments.values():
                yield from segment

    @property
    def live(self) -> bool:
        """Whether somebody holds a block of it."""
        return any(span.live for span in self.spans())

    def waiting(self, small: bool) -> Iterator[Span]:
        """Take out the spans that wait for a request of their size, one by one, and forget sizes that nobody has."""
        homes = self.homes[small]
        for size in list(homes):
            spans = homes[size]
            while spans:
                yield spans.pop()
            del spans
            if references(getitem, homes, size) <= _NOBODY:  # a live span that would come back to the list is one more
                del homes[size], self.ready[size]

    def forget_homes(self) -> list[list[Span]]:
        """The homes that are left, which somebody still looks into."""
        left = list(self.ready.values())
        for homes in (self.ready, *self.homes):
            homes.clear()
        return left


_NOBODY = ONE + 1  # the count of a list that only the two dicts of a lane hold
