"""What `with pool.scope(name)` measures."""

from __future__ import annotations

from typing import Any, Protocol

from .accounts import Account
from .views import SegmentView


class Measured(Protocol):
    """What a scope knows of its pool."""

    lock: Any
    _total: Account

    def _scope_opened(self, name: str) -> None:
        """A scope of this name begins. Called under `lock`."""

    def _scope_closed(self, name: str) -> None:
        """One of this name ends. Called under `lock`."""

    def segments(self) -> list[SegmentView]:
        """What is where."""


class Scope:
    """A part of a program with memory of its own. Sizes in bytes.

    peak_bytes: by how much the pool's live blocks grew at most while the scope was open. left_bytes: of its blocks
    that outlived it (None while it is open). Blocks that had to be taken from outside the scope, as memory was short,
    are not among them.
    """

    def __init__(self, pool: Measured, name: str) -> None:
        self.name = name
        self._pool = pool
        self._total = pool._total
        with pool.lock:
            self._watch = self._total.watch()
            pool._scope_opened(name)
        self.left_bytes: int | None = None
        self._peak: int | None = None

    @property
    def allocated_bytes(self) -> int:
        """Of live blocks that were allocated in scopes of this name."""
        return sum(
            block.size
            for segment in self._pool.segments()
            if segment.scope == self.name
            for block in segment.blocks
            if block.state == "live"
        )

    @property
    def peak_bytes(self) -> int:
        if self._peak is not None:
            return self._peak
        with self._pool.lock:
            self._total.settle()
            return self._watch.peak - self._watch.start

    def close(self) -> None:
        """End the measurement."""
        self._peak = self.peak_bytes
        self.left_bytes = self.allocated_bytes
        with self._pool.lock:
            self._total.watches.remove(self._watch)
            self._pool._scope_closed(self.name)

    def __repr__(self) -> str:
        return f"Scope({self.name!r}, peak_bytes={self.peak_bytes}, left_bytes={self.left_bytes})"
