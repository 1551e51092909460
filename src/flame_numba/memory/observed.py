"""What a pool shows: its books, its segments, its history, files and pictures of them."""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PoolError
from .books import pool_segments, pool_stats
from .report import LeakReport, Mark, leak_report, pool_mark
from .snapshot import write_snapshot
from .traces import write_trace
from .views import Event, SegmentView

if TYPE_CHECKING:
    from ..devices import Device
    from .accounts import Account
    from .guard import Guard
    from .ladder import Ladder
    from .recorder import Recorder
    from .stats import PoolStats


class Observed:
    """The part of `MemoryPool` that changes no memory: it has the ladder and the accounts from there."""

    device: Device
    lock: Any
    _ladder: Ladder
    _accounts: dict[str, Account]
    _guard: Guard | None
    _recorded: Recorder | None = None

    def _exclusive(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def stats(self) -> PoolStats:
        """The books. Looks at every block, some 0.2 µs each."""
        with self._exclusive():
            return pool_stats(self._ladder, self._accounts)

    def snapshot(self, path: str | os.PathLike[str]) -> Path:
        """Write what is where, and the recorded events, to a file that `flame-numba pool show` reads.

        By its ending: .pickle opens in PyTorch's memory viewer, .json has the same, .csv and .csv.gz only the events.
        Returns the path.
        """
        with self.lock:
            started = 0.0 if self._recorded is None else self._recorded.started
            return write_snapshot(path, self.segments(), self.history(), self.device.ordinal, started)

    def write_trace(self, path: str | os.PathLike[str]) -> int:
        """Write the recorded allocations to a .csv or .csv.gz, for `flame-numba pool replay`; how many they are."""
        with self.lock:
            return write_trace(path, self.history(), self.segments())

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the segments, and the memory over time if it was recorded, as .png or .html. Returns the path."""
        plots = importlib.import_module("flame_numba.plots")  # it is built on this one, and not needed before
        drawn: Path = plots.pool_picture(self.segments(), path, self.history())
        return drawn

    def reset_peaks(self) -> None:
        """Begin to look for the peaks again, from what is allocated and reserved now."""
        with self._exclusive():
            for account in (self._ladder.total, *self._accounts.values()):
                account.restart_peak()
            self._ladder.reserve.peak_nbytes = self._ladder.reserve.nbytes

    def segments(self) -> list[SegmentView]:
        """What is where: every segment and every block in it."""
        with self._exclusive():
            return pool_segments(self._ladder)

    def mark(self) -> Mark:
        """What is live now, for `leaks`."""
        return pool_mark(self.segments())

    def leaks(self, since: Mark | None = None) -> LeakReport:
        """What is live now and was not at the mark, by tag and, if recorded, by line of code."""
        return leak_report(self.segments(), since)

    def check(self) -> None:
        """Raise PoolError if a write out of bounds or after a free is found. Needs `PoolConfig(guard=True)`."""
        if self._guard is None:
            raise ConfigError("check: needs a pool with PoolConfig(guard=True)")
        with self._exclusive():
            damage = [text for span in self._ladder.spans() if (text := self._guard.damage_of(span))]
        if damage:
            raise PoolError("check: " + "; ".join(damage))

    def history(self) -> list[Event]:
        """The last events, oldest first; empty unless recorded."""
        with self.lock:
            return self._recorded.events() if self._recorded is not None else []
