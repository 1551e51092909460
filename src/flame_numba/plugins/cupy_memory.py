"""CuPy's device memory from a pool: `cupy.cuda.set_allocator(flame_numba.plugins.cupy_memory.allocator)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..devices import Device
from ..errors import OutOfMemory
from .lender import borrow, give_back, pool_for

if TYPE_CHECKING:
    from ..storage import Pin

# A stream that had memory stays open: the pool may have to wait for it long after CuPy has forgotten it.
_STREAMS: dict[int, Any] = {}


class Loan:
    """Owns a block for as long as an array of CuPy's refers to its bytes."""

    __slots__ = ("pin",)

    def __init__(self, pin: Pin) -> None:
        self.pin = pin

    def __del__(
        self, _give_back: Callable[[Pin], None] = give_back, _at_exit: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        if not _at_exit():  # then names of modules are gone
            _give_back(self.pin)


def allocator(nbytes: int) -> Any:
    """Memory for CuPy, on its current device and stream. Raises cupy.cuda.memory.OutOfMemoryError."""
    import cupy  # only who calls this has it

    ordinal = cupy.cuda.device.get_device_id()
    if nbytes == 0:
        return _pointer(cupy, 0, 0, None, ordinal)
    pool = pool_for(Device.cuda(ordinal))
    stream = cupy.cuda.get_current_stream()
    _STREAMS.setdefault(stream.ptr, stream)
    try:
        loan = Loan(borrow(pool, nbytes, "cupy", stream.ptr))
    except OutOfMemory as error:
        raise cupy.cuda.memory.OutOfMemoryError(nbytes, pool.stats().allocated_bytes) from error
    return _pointer(cupy, loan.pin.start, nbytes, loan, ordinal)


def _pointer(cupy: Any, address: int, nbytes: int, owner: Any, ordinal: int) -> Any:
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, nbytes, owner, ordinal), 0)
