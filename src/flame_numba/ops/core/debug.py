"""Debug mode: a synchronisation and a check after each launch, so that an error is raised by the op that made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ...devices import Backend
from ...errors import DeviceError, KernelError
from ...faults import fault_error

_DEBUG: ContextVar[bool] = ContextVar("flame_numba_debug", default=False)


@contextmanager
def debug_mode(enabled: bool = True) -> Iterator[None]:
    """`with debug_mode():` every launch of this thread or task is waited for, and checked. Also a decorator.

    An index out of range then raises at the op, and the message names the op, the index and its place. Without it the
    error comes when a value next reaches the host (on the CPU device always at once). It is slow: for finding errors.
    """
    token = _DEBUG.set(enabled)
    try:
        yield
    finally:
        _DEBUG.reset(token)


def is_debugging() -> bool:
    return _DEBUG.get()


def settle(backend: Backend, name: str) -> None:
    """Wait for the launch just made, and raise what it did wrong."""
    try:
        backend.synchronize()
    except (DeviceError, KernelError) as error:
        raise type(error)(f"{name}: {error}") from error
    code = backend.take_fault()
    if code:
        raise fault_error(code)


__all__ = ["debug_mode"]
