"""What happened to a pool, the last events of it, and who asked for memory: its lines of Python."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from time import perf_counter, time
from types import CodeType, FrameType

from ..errors import ConfigError
from .views import Event, Frame

_PACKAGE = str(Path(__file__).resolve().parents[1])
_FRAMES = 12  # of a call site
_WALKED = 64  # frames looked at for them
_CACHED = 1 << 16  # a notebook makes new code at every run of a cell

Site = tuple[Frame, ...]


class Recorder:
    """The last `max_events` events of a pool. Raises ConfigError if that is < 1.

    `note` and `site` are called at every allocation, so they keep plain tuples and remember the frames they saw.
    """

    __slots__ = ("_events", "_frames", "_start", "max_events", "sites", "started")

    def __init__(self, max_events: int = 100_000, sites: bool = False) -> None:
        if isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1:
            raise ConfigError(f"max_events={max_events!r}: must be an int ≥ 1")
        self.max_events = max_events
        self.sites = sites
        self._events: deque[tuple[object, ...]] = deque(maxlen=max_events)
        self.started = time()  # seconds, as `memory_viz` wants them
        self._start = perf_counter()
        # by code and position in it. The code is kept as its id names it only while it lives
        self._frames: dict[tuple[int, int], tuple[Frame, bool, CodeType]] = {}

    def note(
        self, action: str, address: int, nbytes: int, stream: int, tag: str, allocated: int, reserved: int,
        site: Site = (), target: int = 0, requested: int = 0,
    ) -> None:  # fmt: skip
        """Add an event, now. Arguments as the fields of `Event`."""
        seconds = perf_counter() - self._start
        self._events.append(
            (seconds, action, address, nbytes, stream, tag, allocated, reserved, site, target, requested)
        )

    def events(self) -> list[Event]:
        """Oldest first."""
        return [Event._make(event) for event in list(self._events)]

    def site(self) -> Site:
        """The lines that led here, innermost first, without this package's own; () unless `sites`.

        Where a whole program is this package's, as with the command `flame-numba`, its own lines are given.
        """
        if not self.sites:
            return ()
        others: list[Frame] = []
        own: list[Frame] = []
        caller: FrameType | None = sys._getframe(1)
        for _ in range(_WALKED):
            if caller is None or len(others) == _FRAMES:
                break
            seen = self._frames.get((id(caller.f_code), caller.f_lasti)) or self._remember(caller)
            (own if seen[1] else others).append(seen[0])
            caller = caller.f_back
        return tuple(others or own[:_FRAMES])

    def _remember(self, caller: FrameType) -> tuple[Frame, bool, CodeType]:
        if len(self._frames) >= _CACHED:
            self._frames.clear()
        code = caller.f_code
        frame = Frame(code.co_filename, caller.f_lineno, code.co_qualname)
        seen = self._frames[id(code), caller.f_lasti] = frame, is_own(code.co_filename), code
        return seen


def is_own(filename: str) -> bool:
    """Is it a file of this package, or of what Python starts programs with?"""
    return filename.startswith((_PACKAGE, "<frozen "))
