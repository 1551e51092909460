"""Streams and events for users: which stream work goes to, and how streams wait for each other.

Which one is the current one is a context variable (`current.py`), so each thread and each task has its own.
"""

from __future__ import annotations

import ctypes
import operator
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import DeviceError
from .base import Backend
from .contexts import CONTEXTS
from .current import ENTERED

# of foreign streams, by their type too: pools know a stream by number as long as they live, so it must not end before
_OWNERS: dict[tuple[Backend, int], dict[type, Any]] = {}
_ATTRIBUTES = ("cuda_stream", "ptr", "handle")  # what PyTorch, CuPy and Numba call the driver's handle


def stream_number(stream: Any) -> int:
    """The driver's handle of a stream: a number, a stream of ours, or one of another library's.

    Of those, what has `__cuda_stream__` is asked by that protocol; else PyTorch's `cuda_stream`, CuPy's `ptr` and
    Numba's `handle` are known. Raises DeviceError for anything else.
    """
    if isinstance(stream, Stream):
        return stream.handle
    number = None
    if hasattr(stream, "__cuda_stream__"):
        said = stream.__cuda_stream__
        said = said() if callable(said) else said
        if isinstance(said, tuple) and len(said) == 2 and said[0] == 0:
            number = _handle(said[1])
    elif hasattr(stream, "synchronize"):  # else `ptr` and `handle` may be anything's
        name = next((name for name in _ATTRIBUTES if hasattr(stream, name)), "handle")
        number = _handle(getattr(stream, name, None))
    else:
        number = _handle(stream)
    if number is None or number < 0:
        kind = "a bool" if isinstance(stream, bool) else f"a {type(stream).__module__}.{type(stream).__qualname__}"
        raise DeviceError(
            "stream: expected a Stream, a handle, or another library's stream, which has __cuda_stream__ (version 0), "
            f"cuda_stream, ptr or handle, got {kind}: {stream!r}"
        )
    return number


def _handle(value: Any) -> int | None:
    """A handle as a number: an integer, a pointer of ctypes, or a `CUstream` of cuda.bindings."""
    if isinstance(value, bool):
        return None
    if isinstance(value, ctypes.c_void_p):
        return value.value or 0
    if hasattr(value, "getPtr"):
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        return None


def remembered(backend: Backend, stream: Any, owner: Any = None) -> int:
    """The number of a stream that pools will remember. An object of another library is kept, so that it never ends."""
    number = stream_number(stream)
    if owner is None and not isinstance(stream, (int, Stream)):
        owner = stream
    if owner is not None:
        _OWNERS.setdefault((backend, number), {})[type(owner)] = owner
    return number


def stays(backend: Backend, number: int) -> bool:
    """Whether the stream cannot have been destroyed: one of this library's, or one whose owner is kept."""
    return backend.owns_stream(number) or (backend, number) in _OWNERS


class Machine(Protocol):
    """What a stream has to know of its device."""

    @property
    def backend(self) -> Backend: ...


class Stream:
    """A queue of work of one device: in order within itself, beside other streams. Made by `device.new_stream()`.

    `with stream:` makes it the current stream of its device in this thread or task: ops and copies go there. What
    one stream wrote and another reads is put in order by `wait`; that memory is not reused too early is the
    pool's care. On the CPU work runs at once, so all is in order.
    """

    __slots__ = ("__weakref__", "_backend", "device", "handle")

    def __init__(self, device: Machine, handle: int) -> None:
        self.device = device
        self.handle = handle  # the driver's, for other libraries; 0 for the default stream
        self._backend = device.backend

    @classmethod
    def new(cls, device: Machine) -> Stream:
        """A stream of its own, given back when it is no longer used; what is queued on it still runs."""
        stream = cls(device, device.backend.new_stream())
        weakref.finalize(stream, stream._backend.destroy_stream, stream.handle).atexit = False
        return stream

    @classmethod
    def from_handle(cls, device: Machine, handle: Any, owner: Any = None) -> Stream:
        """The stream of another library, by its handle or as an object with `__cuda_stream__` or the like.

        Pools remember a stream that used their blocks, so it has to live as long as they do: the object, or the
        `owner` of a mere handle, is kept for that. Raises DeviceError for what is no stream.
        """
        return cls(device, remembered(device.backend, handle, owner))

    @classmethod
    def current(cls, device: Machine) -> Stream:
        """The stream that work of `device` goes to now, in this thread or task."""
        backend = device.backend
        for stream in reversed(ENTERED.get() or ()):
            if stream._backend is backend and isinstance(stream, Stream):
                return stream
        return cls(device, 0)

    def __enter__(self) -> Stream:
        if self.handle:
            self._backend.streams_used = True
        CONTEXTS.enter()
        ENTERED.set((*(ENTERED.get() or ()), self))
        return self

    def __exit__(self, *exc: object) -> None:
        ENTERED.set((ENTERED.get() or ())[:-1] or None)
        CONTEXTS.leave()

    def synchronize(self) -> None:
        """Wait for all that is queued here. Raises the error of a kernel that failed."""
        self._backend.synchronize_stream(self.handle)

    def record(self, timing: bool = False) -> Event:
        """A mark behind all that is queued here now; `timing` for `elapsed_ms`."""
        return Event(self._backend, self._backend.record_event(self.handle, timing), timing)

    def wait(self, other: Stream | Event | Any) -> None:
        """Make later work here wait for all that `other` holds now, or for an event. The caller does not wait.

        `other` may be the stream of another library. Raises DeviceError for what is no stream.
        """
        if isinstance(other, Event):
            event = other
        else:
            event = (other if isinstance(other, Stream) else Stream(self.device, stream_number(other))).record()
        self._backend.wait_event(self.handle, event._event)

    def __int__(self) -> int:
        return self.handle

    def __reduce__(self) -> Any:  # what copy and pickle ask
        raise DeviceError("stream: it is a queue of its device, so it is not copied or pickled")

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.handle)

    def __repr__(self) -> str:
        return f"Stream({self.handle:#x} on {self.device})"


class Event:
    """A mark in a stream. Made by `stream.record()`."""

    __slots__ = ("__weakref__", "_backend", "_event", "timing")

    def __init__(self, backend: Backend, event: Any, timing: bool = False) -> None:
        self._backend = backend
        self._event = event
        self.timing = timing

    @property
    def done(self) -> bool:
        """Whether all work before it has ended."""
        return self._backend.event_done(self._event)

    def synchronize(self) -> None:
        """Wait until all work before it has ended."""
        self._backend.synchronize_event(self._event)

    def elapsed_ms(self, later: Event) -> float:
        """Milliseconds of device time from this event to a later one; waits for both.

        Raises DeviceError unless both were recorded with `timing=True`.
        """
        if not (self.timing and later.timing):
            raise DeviceError("elapsed_ms: both events must be recorded with timing=True")
        self.synchronize()
        return self._backend.elapsed_ms(self._event, later._event)

    def __reduce__(self) -> Any:  # what copy and pickle ask: a second owner would give it back too
        raise DeviceError("event: it is a mark in a stream, so it is not copied or pickled")

    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _at_exit():  # then names of modules are gone
            self._backend.destroy_event(self._event)

    def __repr__(self) -> str:
        return f"Event({'done' if self.done else 'not done'})"
