"""`__cuda_array_interface__`, version 3, both ways. https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..devices import Device, cuda_device_of
from ..devices.current import current_stream
from ..devices.streams import Stream
from ..dtypes import DType, as_dtype, bfloat16
from ..errors import DeviceError, DTypeError, ShareError
from ..shapes import Shape, numel, row_major
from ..storage import Pin
from ..tensor import Tensor
from .foreign import adopt

_SHOWN: dict[int, Pin] = {}  # by the ids of tensors whose block is pinned as long as they live


def cuda_array_interface(x: Tensor) -> dict[str, Any]:
    """How other libraries see a CUDA tensor. Its memory is pinned as long as the tensor lives, since who asks keeps it.

    Raises AttributeError for a tensor elsewhere, as if it had none, and for one that requires a gradient.
    """
    if x.device.kind != "cuda":
        raise AttributeError(f"__cuda_array_interface__: the tensor is on {x.device}")
    if x.requires_grad:
        raise AttributeError("__cuda_array_interface__: the tensor requires a gradient: detach() it")
    start, ours = _keep_in_place(x).start, current_stream(x.device.backend)
    if x.storage.block.stream != ours:
        x.storage.block.record_stream(ours)  # as a launch does: our stream waits for the moves until now
    return {
        "version": 3,
        "shape": x.shape,
        "typestr": x.dtype.numpy.str,
        "data": (start + x.offset * x.dtype.itemsize if x.numel else 0, x.storage.read_only),
        "strides": None if x.is_contiguous else tuple(s * x.dtype.itemsize for s in x.strides),
        # consumers wait for it; 1 is the legacy default stream, which 0 would leave open
        "stream": ours or 1,
    }


def _keep_in_place(x: Tensor) -> Pin:
    found = _SHOWN.get(id(x))
    if found is not None:
        return found
    pin = Pin(x.storage.block)
    # the finalizer holds the storage, so it is freed after its block was unpinned
    weakref.finalize(x, _let_go, id(x), pin, x.storage).atexit = False
    return _SHOWN.setdefault(id(x), pin)  # two threads may both pin it, and both are undone


def _let_go(key: int, pin: Pin, storage: Any) -> None:
    _SHOWN.pop(key, None)
    pin.release()


def from_cuda_array(x: Any) -> Tensor:
    """A tensor over the memory of an object that has `__cuda_array_interface__`, which is held as long as it is used.

    Our current stream waits for the stream that the object names. Raises ShareError for masked arrays, strides that
    are no multiples of the element and what is no such interface, DTypeError for a dtype that we do not have,
    DeviceError where there is no GPU.
    """
    interface = x.__cuda_array_interface__
    if not isinstance(interface, Mapping):
        raise ShareError(f"from_cuda_array: the interface must be a dict, it is a {type(interface).__name__}")
    version = interface.get("version")
    if version not in (0, 1, 2, 3):
        raise ShareError(f"from_cuda_array: version {version!r} of the interface is not one of 0 to 3")
    if interface.get("mask") is not None:
        raise ShareError("from_cuda_array: masked arrays cannot be shared")
    dtype = _dtype(interface.get("typestr"))
    shape = _sizes("shape", interface.get("shape"))
    if any(n < 0 for n in shape):
        raise ShareError(f"from_cuda_array: shape {shape} has a negative size")
    strides = _strides(interface.get("strides"), shape, dtype)
    address, read_only = _data(interface.get("data"), shape)
    stream = _stream(interface.get("stream"))
    device = _device(x, address)
    if stream and stream != (current_stream(device.backend) or 1):
        device.current_stream().wait(Stream.from_handle(device, stream))
    return adopt(device, dtype, address, shape, strides, x, read_only)


def _sizes(name: str, given: Any) -> Shape:
    try:
        return tuple(operator.index(n) for n in given)
    except TypeError:
        raise ShareError(f"from_cuda_array: {name} must be a tuple of integers, it is {given!r}") from None


def _data(given: Any, shape: Shape) -> tuple[int, bool]:
    try:
        address, read_only = given
        start = 0 if address is None else operator.index(address)
    except (TypeError, ValueError):
        raise ShareError(f"from_cuda_array: data must be (address, read only), it is {given!r}") from None
    if not start and numel(shape) > 0:
        raise ShareError(f"from_cuda_array: there is no memory (data is {given!r}) for elements of shape {shape}")
    return start, bool(read_only)


def _stream(given: Any) -> int:
    """0 for none."""
    if given is None:
        return 0
    if not hasattr(given, "__index__") or operator.index(given) <= 0:
        raise ShareError(
            f"from_cuda_array: stream {given!r} is not allowed: 1 or 2 name the default streams (0 is ambiguous), "
            "greater numbers are handles"
        )
    return operator.index(given)


def _dtype(typestr: Any) -> DType:
    if not isinstance(typestr, str) or not typestr:
        raise ShareError(f"from_cuda_array: typestr must be a string such as '<f4', it is {typestr!r}")
    if typestr.lstrip("<|=") == "V2":
        return bfloat16  # what ml_dtypes, and who follows it, call it: NumPy's types have no letter for it
    if typestr[0] == ">":
        raise DTypeError(f"from_cuda_array: {typestr} has the other byte order")
    return as_dtype(np.dtype(typestr))


def _strides(given: Any, shape: Shape, dtype: DType) -> Shape:
    if given is None:
        return row_major(shape)
    strides = _sizes("strides", given)
    if len(strides) != len(shape):
        raise ShareError(f"from_cuda_array: strides {strides} and shape {shape} must have as many axes")
    if any(s % dtype.itemsize for s in strides):
        raise ShareError(f"from_cuda_array: strides {strides} are no multiples of {dtype.itemsize} bytes")
    return tuple(s // dtype.itemsize for s in strides)


def _device(x: Any, address: int) -> Device:
    if address:
        return cuda_device_of(address)
    if hasattr(x, "__dlpack_device__"):
        return Device.cuda(int(x.__dlpack_device__()[1]))
    try:
        return cuda_device_of(0)
    except DeviceError:
        return Device.cuda(0)
