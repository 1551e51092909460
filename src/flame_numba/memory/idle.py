"""Lanes that nobody allocates in any more, and who takes over what they hold.

A lane is idle if its stream was given back, or if its scope was closed and nothing in it is live. Being wrong about
that costs a little memory and no more: a lane may be handed over at any time, also while another thread allocates or
frees in it. So nothing has to tell a pool when a stream ends; it looks when it is about to make a lane or to grow.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import TYPE_CHECKING

from ..references import ONE, references
from .blocks import Span
from .lanes import Lane
from .streams import Streams

if TYPE_CHECKING:
    from ..devices import Backend

FEW = 8  # idle lanes: a stream gets its number again, and a scope of the same name may come


class Idle:
    """Finds them among the lanes of a pool, and hands them over. All of it runs under the pool's lock.

    made: a lane for a stream and scope, among the others. merge: does that with a span that nobody holds.
    """

    def __init__(
        self,
        machine: Backend,
        lanes: dict[tuple[int, str], Lane],
        streams: Streams,
        made: Callable[[int, str], Lane],
        merge: Callable[[Span], None],
    ) -> None:
        self.machine = machine
        self.lanes = lanes
        self.streams = streams
        self.made = made
        self.merge = merge
        self.open: dict[str, int] = {}  # scopes → how often
        self._left: list[list[Span]] = []  # homes of lanes that are gone, to which another thread is about to free

    def opened(self, scope: str) -> None:
        """A scope begins: the lanes of that name are not idle."""
        self.open[scope] = self.open.get(scope, 0) + 1

    def closed(self, scope: str) -> None:
        """It ends."""
        self.open[scope] -= 1
        if not self.open[scope]:
            del self.open[scope]

    def retire(self, closed: bool, keep: Lane | None, few: int) -> bool:
        """Hand the lanes of streams that were given back to stream 0, and with `closed` those of scopes out of them.

        False if there was none. keep: a lane that is in use all the same. few: so many may as well stay.
        """
        heirs = self._heirs(closed, keep)
        if len(heirs) <= few:
            return False
        for lane, (stream, scope) in heirs:
            self._hand_over(lane, self.lanes.get((stream, scope)) or self.made(stream, scope))
        return True

    def unite(self, heir: Lane) -> None:
        """Hand over all other lanes, also those in use: when free bytes have to be joined wherever they are."""
        for lane in list(self.lanes.values()):
            if lane is not heir:
                self._hand_over(lane, heir)

    def give_spare(self, lane: Lane) -> None:
        """Let a new lane begin with what an idle one holds, if there are many of those.

        So there are about as many lanes as were in use at once, whatever came and went.
        """
        spare = set(self.machine.spare_streams)
        idle = [other for other in self.lanes.values() if other.stream in spare or self._is_closed(other)]
        if len(idle) > FEW:
            found = next((other for other in idle if other is not lane and not other.live), None)
            if found is not None:
                self._hand_over(found, lane)

    def late(self) -> None:
        """Merge what threads freed that had looked up a home before its lane was handed over."""
        for i in reversed(range(len(self._left))):
            alone = references(getitem, self._left, i) <= ONE
            while self._left[i]:
                self.merge(self._left[i].pop())
            if alone:
                del self._left[i]

    def _is_closed(self, lane: Lane) -> bool:
        return bool(lane.scope) and lane.scope not in self.open

    def _heirs(self, closed: bool, keep: Lane | None) -> list[tuple[Lane, tuple[int, str]]]:
        """Idle lanes, and the stream and scope that is to have what they hold. What is live stays in its scope."""
        if len(self.lanes) == 1:
            return []
        spare = set(self.machine.spare_streams)  # one step: streams are made and given back meanwhile
        found = []
        for key, lane in self.lanes.items():
            stream, scope = 0 if lane.stream in spare else lane.stream, lane.scope
            if (closed or stream != lane.stream) and self._is_closed(lane) and not lane.live:
                scope = ""
            if lane is not keep and (stream, scope) != key:
                found.append((lane, (stream, scope)))
        return sorted(found, key=lambda pair: pair[1][1] != "")  # who inherits in a scope must not go itself

    def _hand_over(self, lane: Lane, heir: Lane) -> None:
        """Make all that a lane holds its heir's.

        Work that the stream of `lane` was given stays in order: the heir's comes after it on the device, for what is
        free by now. What is live is noted as used by both. A thread that frees without the lock, and saw no note, had
        queued its work by then: so the notes come first, and what the heir waits for is read after them.
        """
        if lane.stream != heir.stream:
            for span in lane.spans():
                if span.block is not None and lane.stream not in span.streams:
                    span.streams += (lane.stream,)
                    span.held = True
            self.streams.wait(heir.stream, lane.stream)
        self._merge_waiting(lane)
        for span in lane.spans():
            if span.block is not None:
                span.home = heir.home(span.size)
                if span.stream == lane.stream:
                    span.stream = heir.stream
        self._merge_waiting(lane)  # what was freed to its old home meanwhile
        self._left += lane.forget_homes()
        for own, its in zip(heir.arenas, lane.arenas, strict=True):
            own.take_over(its)
        del self.lanes[lane.stream, lane.scope]

    def _merge_waiting(self, lane: Lane) -> None:
        for small in (True, False):
            for span in lane.waiting(small):
                self.merge(span)
