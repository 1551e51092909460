"""Memory of `cuda.core` from a pool. Numba takes its temporaries for host arrays from there."""

from __future__ import annotations

from typing import Any, NamedTuple

from cuda.core import Buffer, MemoryResource, Stream
from cuda.core import Device as CoreDevice

from ..devices import Device
from ..devices.streams import stream_number
from ..errors import DeviceError
from ..storage import Pin
from .lender import DEFAULT_STREAMS, Lender, lender_for


class _Loan(NamedTuple):
    lender: Lender
    pin: Pin
    stream: int
    joins: bool
    owner: Any  # of the stream, which is asked when the loan ends, and must not be gone by then


class PoolMemoryResource(MemoryResource):  # type: ignore[misc]
    """Buffers from the pool that the plugins use on a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._loans: dict[int, _Loan] = {}  # by address

    def allocate(self, size: int, *, stream: Any = None) -> Any:
        """A buffer for work on `stream`. Raises OutOfMemory; DeviceError while a graph is being captured."""
        if getattr(stream, "is_building", False):
            raise DeviceError(f"allocate: {size} bytes asked for while capturing a graph; allocate before the capture")
        owner, stream = stream, _core_stream(stream)
        if size == 0:
            return Buffer.from_handle(0, 0, mr=self, **_freed_on(stream))
        handle = int(stream.handle)
        lender, joins = lender_for(self._device), _joins(stream, handle)
        pin = lender.lend(size, "cuda.core", handle, joins)
        self._loans[pin.start] = _Loan(lender, pin, handle, joins, owner)
        try:
            return Buffer.from_handle(pin.start, size, mr=self, **_freed_on(stream))
        except BaseException:
            self.deallocate(pin.start, size)  # does nothing if the half-made buffer did so
            raise

    def deallocate(self, ptr: Any, size: int, *, stream: Any = None) -> None:
        """Called by a buffer that is closed or collected; its last work was queued on `stream`."""
        loan = self._loans.pop(int(ptr), None)
        if loan is None:
            return  # a buffer of no bytes
        handle, joins = loan.stream, loan.joins
        # only a stream that we have not seen is asked for its kind: this one may be gone by now
        if stream is not None and int(stream.handle) != handle:
            handle = int(stream.handle)
            joins = _joins(stream, handle)
        loan.lender.take_back(loan.pin, handle, joins)

    @property
    def is_device_accessible(self) -> bool:
        return True

    @property
    def is_host_accessible(self) -> bool:
        return False

    @property
    def is_managed(self) -> bool:
        return False

    @property
    def device_id(self) -> int:
        return self._device.ordinal


def _core_stream(stream: Any) -> Any:
    """A `cuda.core` stream, from what Numba and others pass for one."""
    if isinstance(stream, Stream):
        return stream
    if hasattr(stream, "stream") and not hasattr(stream, "__cuda_stream__"):  # a graph builder that builds nothing now
        return stream.stream
    return Stream.from_handle(0 if stream is None else stream_number(stream))


def _joins(stream: Any, handle: int) -> bool:
    """Whether the stream synchronises with the legacy default stream."""
    return handle in DEFAULT_STREAMS or not stream.is_nonblocking


def _freed_on(stream: Any) -> dict[str, Any]:
    """How to tell a buffer on which stream it will be freed: before cuda.core 1.2 there is no way."""
    return {"stream": stream} if "stream" in (Buffer.from_handle.__doc__ or "").partition("\n")[0] else {}


_replaced: dict[int, tuple[Any, Any]] = {}  # by the id of a device object: it, and the resource that it had


def register(core_device: Any, device: Device) -> None:
    """Make a pool the source of memory of a `cuda.core` device object."""
    before = core_device.memory_resource
    if not isinstance(before, PoolMemoryResource):
        _replaced[id(core_device)] = core_device, before
        core_device.memory_resource = PoolMemoryResource(device)


def install(device: Device) -> None:
    """Make a pool the source of memory of a GPU, for `cuda.core` in this thread and for Numba."""
    core_device = CoreDevice(device.ordinal)
    core_device.set_current()
    register(core_device, device)


def uninstall() -> None:
    """Undo `install` and `register`."""
    while _replaced:
        core_device, before = _replaced.popitem()[1]
        core_device.memory_resource = before
