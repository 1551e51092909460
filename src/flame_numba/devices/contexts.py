"""Whether any `with` block is open that says where work or memory goes. Checked at every allocation, so it is a number.

Context variables say which one is meant, in this thread or task; looking them up takes ten times as long.
"""

from __future__ import annotations

import threading

from .locks import held_over_forks


class Contexts:
    """How many are open, in any thread. One that is never closed only makes allocations a little slower."""

    __slots__ = ("_lock", "open")

    def __init__(self) -> None:
        self.open = 0
        self._lock = held_over_forks(threading.Lock())

    def enter(self) -> None:
        with self._lock:
            self.open += 1

    def leave(self) -> None:
        with self._lock:
            self.open -= 1


CONTEXTS = Contexts()
