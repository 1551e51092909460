"""Memory of other libraries as tensors: who owns it is held until nothing of ours uses it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy.typing as npt

from ..devices import Device, current_stream
from ..dtypes import DType, as_dtype
from ..errors import DeviceError, ShareError
from ..memory.blocks import ALIGNMENT
from ..shapes import Shape, numel, span
from ..storage import ReadOnlyStorage, Storage
from ..tensor import Tensor, new

_LEAVING: deque[tuple[Any, list[Any], Any]] = deque()  # (machine, events, owner): until the events are done


class _Outside:
    """Where foreign blocks come from: not a pool."""

    lock = nullcontext()

    def free(self, block: ForeignBlock, _at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        """Let go of the owner, now or when the work that uses its memory is done. Any finalizer may call it."""
        owner, block.owner = block.owner, None
        if block.device.kind == "cuda" and owner is not None and not _at_exit():
            _let_go_later(block, owner)


OUTSIDE = _Outside()


class ForeignBlock:
    """Bytes of another library, for a Storage. Nothing moves them and no pool counts them."""

    __slots__ = ("address", "device", "nbytes", "owner", "stream", "streams")
    pool = OUTSIDE
    pins = 1

    def __init__(self, device: Device, address: int, nbytes: int, owner: Any) -> None:
        self.device = device
        self.address = address
        self.nbytes = nbytes
        self.owner = owner
        self.stream = current_stream(device.backend)  # the one that was made to wait for the owner's work
        self.streams = {self.stream}

    def record_stream(self, stream: Any) -> None:
        """Say that work queued on `stream` uses the bytes: the owner is held until it is done."""
        self.streams.add(int(stream))

    def pin(self) -> int:
        """The address: it never changes."""
        return self.address

    def unpin(self) -> None:
        """There is nothing to undo."""

    def retag(self, tag: str | None) -> None:
        """No pool counts these bytes."""

    def __repr__(self) -> str:
        return f"ForeignBlock({self.nbytes} bytes at {self.address:#x})"


def _let_go_later(block: ForeignBlock, owner: Any) -> None:
    machine, events = block.device.backend, []
    try:
        for stream in block.streams:
            events.append(machine.record_event(stream))
    except DeviceError:
        machine.synchronize()  # a stream was destroyed, but its work may still run
    _LEAVING.append((machine, events, owner))
    settle()


def settle() -> None:
    """Let go of owners whose memory no queued work uses any more. Called whenever memory comes in or is let go of."""
    for _ in range(len(_LEAVING)):
        try:
            machine, events, owner = _LEAVING.popleft()
        except IndexError:
            return  # another thread was faster
        if all(machine.event_done(event) for event in events):
            for event in events:
                machine.destroy_event(event)
        else:
            _LEAVING.append((machine, events, owner))


def adopt(
    device: Device, dtype: DType, address: int, shape: Shape, strides: Shape, owner: Any, read_only: bool = False
) -> Tensor:
    """A tensor over memory of another library; `owner` is held as long as it is used. Strides in elements.

    The memory must be ready for the device's current stream. Raises ShareError if elements are not aligned.
    """
    settle()
    if not numel(shape):
        return new(device, dtype, shape)
    low, high = span(shape, strides)
    first = address + low * dtype.itemsize
    if first % dtype.itemsize:
        raise ShareError(f"elements of {dtype.name} must be aligned to {dtype.itemsize} bytes, these lie at {first:#x}")
    base = first - first % ALIGNMENT  # as in a pool's block: kernels see by the offset how elements are aligned
    offset = (address - base) // dtype.itemsize
    count = offset + high + 1
    block = ForeignBlock(device, base, count * dtype.itemsize, owner)
    storage = (ReadOnlyStorage if read_only else Storage).over(block, device, dtype, count)
    return Tensor(storage, shape, strides, offset)


def adopt_array(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of the CPU device over a NumPy array's memory. Raises DTypeError or ShareError where it cannot be."""
    dtype = as_dtype(array.dtype)
    if not array.dtype.isnative or any(s % dtype.itemsize for s in array.strides):
        raise ShareError(f"a NumPy array of {array.dtype} with strides of {array.strides} bytes cannot be shared")
    strides = tuple(s // dtype.itemsize for s in array.strides)
    address = array.ctypes.data if array.size else 0
    return adopt(Device.cpu(), dtype, address, array.shape, strides, array, not array.flags.writeable)
