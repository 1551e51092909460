"""Which stream work goes to now, in this thread or task. Backends know streams by number; 0 is the default one."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .base import Backend


class Entered(Protocol):
    """A stream whose `with` block is open."""

    handle: int
    _backend: Backend


ENTERED: ContextVar[tuple[Entered, ...] | None] = ContextVar("flame_numba_stream", default=None)
_get_entered = ENTERED.get


def current_stream(backend: Backend) -> int:
    """The number of the stream that work of this machine goes to now, in this thread or task."""
    entered = _get_entered()
    if entered is None:
        return 0
    for stream in reversed(entered):
        if stream._backend is backend:
            return stream.handle
    return 0
