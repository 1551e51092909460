"""DLPack: tensors handed to other libraries, and theirs taken in, without a copy.

https://data-apis.org/array-api/latest/design_topics/data_interchange.html
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
from typing import Any

from ..devices import Device, current_stream
from ..devices.streams import stays, stream_number
from ..errors import DeviceError, ShareError
from ..shapes import Shape, numel, row_major
from ..storage import Pin
from ..tensor import Tensor
from . import abi
from .foreign import adopt

NO_STREAM, LEGACY_STREAM = -1, 1  # what DLPack calls no order, and the default stream


def dlpack_device(x: Tensor) -> tuple[int, int]:
    """(type, ordinal), as DLPack numbers devices."""
    return _place(x.device)


def _place(device: Device) -> tuple[int, int]:
    if device.kind == "simulated":
        raise ShareError("DLPack: a simulated device has addresses, but no memory")
    return (abi.CUDA, device.ordinal) if device.kind == "cuda" else (abi.CPU, 0)


# --- out ----------------------------------------------------------------------------------------------------------
def dlpack_capsule(
    x: Tensor,
    *,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[Any, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """A capsule for `from_dlpack` of another library. The memory is pinned until that library lets go of it.

    stream: where the consumer will use it: work there waits for what our current stream holds. None: the legacy
    default stream; -1: no order is wanted. Raises ShareError (a BufferError) for a tensor that requires a gradient,
    for a copy that copy=False forbids, and for what the consumer's DLPack cannot say.
    """
    if x.requires_grad:
        raise ShareError(
            "__dlpack__: the tensor requires a gradient, which no other library would compute: detach() it"
        )
    source, copied = _at(x, None if dl_device is None else _pair("dl_device", dl_device), copy)
    theirs = _consumers_stream(source, stream)
    versioned = max_version is not None and _pair("max_version", max_version)[0] >= 1
    if x.storage.read_only and not copied and not versioned:
        raise ShareError("__dlpack__: the memory may not be written to, which this version of DLPack cannot say")
    managed: Any = abi.ManagedVersioned() if versioned else abi.Managed()
    if versioned:
        managed.major, managed.minor = abi.VERSION
        managed.flags = abi.COPIED * copied + abi.READ_ONLY * source.storage.read_only
    storage = source.storage
    pin = Pin(storage.block)  # first: moves that it waits for are work that the consumer's stream has to wait for

    def done() -> None:
        try:
            _make_reuse_wait(storage.device, storage.block, theirs)
        finally:
            pin.release()

    try:
        _make_wait(source.device, storage.block, theirs)
        return abi.export(managed, _describe(source, pin, managed.view), done)
    except BaseException:
        pin.release()
        raise


def _pair(name: str, given: Any) -> tuple[int, int]:
    """Two integers; the first may be a member of an enumeration. Raises ShareError."""
    try:
        first, second = given
        return operator.index(getattr(first, "value", first)), operator.index(second)
    except (TypeError, ValueError):
        raise ShareError(f"__dlpack__: {name} must be a tuple of two integers, it is {given!r}") from None


def _at(x: Tensor, wanted: tuple[int, int] | None, copy: bool | None) -> tuple[Tensor, bool]:
    """The tensor on the device asked for, and whether it is a copy."""
    if wanted is None or wanted == _place(x.device):
        return (x.clone(), True) if copy else (x.detach(), False)
    if copy is False:
        raise ShareError(f"__dlpack__: a tensor of {x.device} cannot be at DLPack's device {wanted} without a copy")
    return x.to_device(_device(wanted)), True


def _device(place: tuple[int, int]) -> Device:
    kind, ordinal = place
    if kind in (abi.CPU, abi.CUDA_HOST):
        return Device.cpu()
    if kind in (abi.CUDA, abi.CUDA_MANAGED):
        return Device.cuda(ordinal)
    raise ShareError(f"DLPack's device type {kind} is neither the CPU nor CUDA")


def _consumers_stream(x: Tensor, stream: Any) -> int:
    """The number of the stream that the consumer names; NO_STREAM if it wants no order. Raises ShareError."""
    if stream is None:
        return LEGACY_STREAM
    if x.device.kind != "cuda":
        raise ShareError(f"__dlpack__: stream={stream!r}: a device without streams takes None only")
    try:
        number = operator.index(stream) if hasattr(stream, "__index__") else stream_number(stream)
    except DeviceError as error:
        raise ShareError(f"__dlpack__: stream={stream!r}: {error}") from None
    if number < NO_STREAM or number == 0:
        raise ShareError(
            f"__dlpack__: stream={stream!r}: expected None, -1, 1, 2 or a stream's handle (0 is ambiguous)"
        )
    return number


def _make_wait(device: Device, block: Any, theirs: int) -> None:
    """Let the consumer's stream wait for what our current stream holds."""
    if device.kind != "cuda" or theirs == NO_STREAM:
        return
    ours = current_stream(device.backend)
    if block.stream != ours:
        block.record_stream(ours)  # as a launch does: our stream waits for the moves until now
    if theirs != (ours or LEGACY_STREAM):
        _order(device, theirs, device.backend.record_event(ours))


def _make_reuse_wait(device: Device, block: Any, theirs: int) -> None:
    """Let the stream that gets the memory next wait for what the consumer has queued.

    Its stream is asked only if it cannot be gone by now. Another library destroys its own when it likes, and the
    driver crashes when it is asked about a handle that is dead; so then all that the device was given is waited for.
    """
    if device.kind != "cuda":
        return
    machine = device.backend
    if theirs == (block.stream or LEGACY_STREAM):
        return
    try:
        known = theirs == LEGACY_STREAM or stays(machine, theirs)
        _order(device, block.stream, machine.record_event(theirs) if known else machine.record_all())
    except DeviceError:
        device.synchronize()  # waits for all as well, or says what is wrong with the device


def _order(device: Device, later: int, event: Any) -> None:
    machine = device.backend
    try:
        machine.wait_event(later, event)
    finally:
        machine.destroy_event(event)  # the driver keeps it until it has happened


def _describe(x: Tensor, pin: Pin, view: Any) -> Any:
    """Fill a DLTensor; what it points to."""
    n = max(1, x.ndim)
    sizes, strides = (ctypes.c_int64 * n)(*x.shape), (ctypes.c_int64 * n)(*x.strides)
    view.data = pin.start + x.offset * x.dtype.itemsize if x.numel else None
    view.place = abi.Place(*_place(x.device))
    view.ndim = x.ndim
    view.dtype = abi.element_type(x.dtype)
    view.shape, view.strides = sizes, strides
    view.byte_offset = 0
    return sizes, strides


# --- in -----------------------------------------------------------------------------------------------------------
def from_dlpack(x: Any, /, *, device: Device | str | None = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of another library's array, which has `__dlpack__`; a tensor is only detached.

    device: where it shall be, by default where it is. copy: None copies only where it must, False never, True always.
    Raises ShareError (a BufferError and a ValueError) if copy=False forbids what is needed, DTypeError for complex
    and vector types. Memory that is lent for reading only raises ShareError when it is written to.
    """
    result = x.detach() if isinstance(x, Tensor) else _take(x)
    target = result.device if device is None else Device.parse(device)
    if target != result.device:
        if copy is False:
            raise ShareError(f"from_dlpack: memory of {result.device} cannot be on {target} without a copy")
        moved: Tensor = result.to_device(target)
        return moved
    return result.clone() if copy else result


def _take(x: Any) -> Tensor:
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise AttributeError(f"from_dlpack: {type(x).__name__} has no __dlpack__ and __dlpack_device__")
    kind, ordinal = x.__dlpack_device__()
    device = _device((int(kind), int(ordinal)))
    keywords: dict[str, Any] = {}
    if device.kind == "cuda":
        keywords["stream"] = current_stream(device.backend) or LEGACY_STREAM
    capsule = _ask(x, keywords)
    managed = abi.look_into(capsule)
    view = managed.view
    dtype = abi.as_our_dtype(view.dtype)
    device = _device((view.place.kind, view.place.ordinal))
    shape: Shape = tuple(view.shape[i] for i in range(view.ndim))
    if any(n < 0 for n in shape) or (not view.data and numel(shape) > 0):
        raise ShareError(f"from_dlpack: the exporter describes no memory: shape {shape} at address {view.data or 0:#x}")
    strides = tuple(view.strides[i] for i in range(view.ndim)) if view.strides else row_major(shape)
    owner = abi.take_over(capsule, managed)
    return adopt(device, dtype, (view.data or 0) + view.byte_offset, shape, strides, owner, owner.read_only)


def _ask(x: Any, keywords: dict[str, Any]) -> Any:
    try:
        with contextlib.suppress(TypeError):  # a producer of before 2023 does not know max_version
            return x.__dlpack__(max_version=abi.VERSION, **keywords)
        return x.__dlpack__(**keywords)
    except (BufferError, RuntimeError) as error:  # what the standard asks of a producer that cannot, and PyTorch's
        raise ShareError(f"from_dlpack: {type(x).__name__} does not share its memory: {error}") from error
