"""How many bytes are in use, in all and by tag: noted without a lock, added up when somebody asks."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

ENOUGH = 4096  # notes that are added up in one go


@dataclass(eq=False)
class Watch:
    """The bytes in use when it began, and the most since."""

    start: int
    peak: int


class Account:
    """Signed sizes in the order of events: an allocation notes +size, a free -size.

    `log.append` is one atomic step, so allocations that hit need no lock for their books; `settle` runs under the
    pool's lock.
    """

    __slots__ = ("_settling", "allocations", "current", "frees", "log", "name", "peak", "total", "watches")

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: list[int] = []
        self.current = self.peak = self.total = 0  # bytes
        self.allocations = self.frees = 0
        self.watches: list[Watch] = []
        self._settling = False

    def settle(self) -> None:
        """Add up what was noted."""
        if self.log and not self._settling:  # a finalizer that frees may come by in the middle of it
            self._settling = True
            try:
                self._add_up()
            finally:
                self._settling = False

    def _add_up(self) -> None:
        log = self.log
        count = len(log)
        notes = log[:count]
        del log[:count]  # what other threads note meanwhile comes after these
        add_up = _few if count < 64 else _many
        last, highest, gained, total = add_up(notes)
        highest += self.current
        self.current += last
        self.total += total
        self.peak = max(self.peak, highest)
        for watch in self.watches:
            watch.peak = max(watch.peak, highest)
        self.allocations += gained
        self.frees += count - gained

    def watch(self) -> Watch:
        """Look for the peak from now on, beside whoever else does. `watches.remove()` ends it."""
        self.settle()
        watch = Watch(self.current, self.current)
        self.watches.append(watch)
        return watch

    def restart_peak(self) -> None:
        """Begin to look for the peak again."""
        self.settle()
        self.peak = self.current


def _few(notes: list[int]) -> tuple[int, int, int, int]:
    """The last and the highest of the running sums; how many notes are positive, and their sum."""
    running = highest = gained = total = 0
    for note in notes:
        running += note
        if note > 0:
            gained += 1
            total += note
            highest = max(highest, running)
    return running, highest, gained, total


def _many(notes: list[int]) -> tuple[int, int, int, int]:
    values = np.frombuffer(array("q", notes), np.int64)
    sums = np.cumsum(values)
    gains = values[values > 0]
    return int(sums[-1]), max(int(sums.max()), 0), len(gains), int(gains.sum())
