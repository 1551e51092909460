"""Page-locked host memory: NumPy arrays that a GPU copies to and from while the program goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .devices import Device, Event, Stream, current_device
from .dtypes import DType, as_dtype
from .errors import DeviceError, OutOfMemory
from .pool import MemoryPool, current_pool
from .shapes import as_shape, numel
from .storage import Pin


def pinned_pool(device: Device | str | None = None) -> MemoryPool:
    """The pool that `pinned_empty` takes from: the one in `use()` on `device.pinned`, else its default pool."""
    return current_pool(_place(device).pinned)


def pinned_empty(shape: Any, dtype: DType | str | None = None, device: Device | str | None = None) -> npt.NDArray[Any]:
    """An uninitialised NumPy array in page-locked memory, float32 by default; plain memory on the CPU device.

    The memory goes back to its pool with the last view of the array. Raises OutOfMemory, as any pool.
    """
    where, kind, sizes = _place(device), as_dtype(float if dtype is None else dtype), as_shape(shape)
    if where.kind == "simulated":
        raise DeviceError("pinned_empty: a simulated device has addresses, but no memory")
    count = numel(sizes)
    if not count:
        return np.empty(sizes, kind.numpy)
    _IN_FLIGHT.release()
    memory = np.asarray(_Memory(pinned_pool(where), count * kind.itemsize))
    return memory.view(kind.numpy).reshape(sizes)


def _place(device: Device | str | None) -> Device:
    return current_device() if device is None else Device.parse(device)


class _Memory:
    """A block shown to NumPy as bytes. Arrays hold it, so it ends with the last of them."""

    __slots__ = ("__array_interface__", "pin")

    def __init__(self, pool: MemoryPool, nbytes: int) -> None:
        try:
            block = pool.allocate(nbytes)
        except OutOfMemory:
            if not _IN_FLIGHT.wait():  # copies hold arrays that nobody else does
                raise
            block = pool.allocate(nbytes)
        self.pin = Pin(block)
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (self.pin.start, False)}

    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        pin = getattr(self, "pin", None)
        if pin is not None and not _at_exit():
            pin.release()
            pin.block.free()


class _InFlight:
    """Arrays that a queued copy reads or writes: held until its event is done, whatever the program drops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[Event, Any]] = []

    def hold(self, event: Event, array: Any) -> None:
        self.release()
        with self._lock:
            self._held.append((event, array))

    def release(self) -> None:
        """Let go of what is done."""
        with self._lock:
            held, self._held = self._held, []
        if held:
            waiting = [pair for pair in held if not pair[0].done]
            with self._lock:
                self._held += waiting

    def wait(self) -> bool:
        """Wait for all copies and let go of their arrays; False if there were none."""
        with self._lock:
            held, self._held = self._held, []
        for event, _ in held:
            event.synchronize()
        return bool(held)


_IN_FLIGHT = _InFlight()


def hold(stream: Stream, array: Any) -> Event:
    """Keep `array` until what is queued on `stream` now is done; the event that says so."""
    event = stream.record()
    _IN_FLIGHT.hold(event, array)
    return event


class HostCopy:
    """A copy to the host that may be under way. Made by `Tensor.numpy_async`."""

    __slots__ = ("_array", "_event", "_raise_fault")

    def __init__(self, array: npt.NDArray[Any], event: Event | None, raise_fault: Callable[[], None]) -> None:
        self._array = array
        self._event = event
        self._raise_fault = raise_fault

    @property
    def done(self) -> bool:
        """Whether the elements are there."""
        return self._event is None or self._event.done

    def wait(self) -> npt.NDArray[Any]:
        """The array, once its elements are there. Raises as `Tensor.numpy` does."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        self._raise_fault()
        return self._array

    def __repr__(self) -> str:
        return f"HostCopy({self._array.shape} {self._array.dtype}, {'done' if self.done else 'under way'})"
