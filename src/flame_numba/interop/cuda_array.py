"""`__cuda_array_interface__`, version 3, both ways. https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..devices import Device, cuda_device_of
from ..devices.streams import Stream, current_stream
from ..dtypes import DType, as_dtype, bfloat16
from ..errors import DeviceError, DTypeError, ShareError
from ..shapes import Shape, row_major
from ..tensor import Tensor
from .foreign import adopt

_SHOWN: set[int] = set()  # ids of tensors whose block is pinned as long as they live


def cuda_array_interface(x: Tensor) -> dict[str, Any]:
    """How other libraries see a CUDA tensor. Its memory is pinned as long as the tensor lives, since who asks keeps it.

    Raises AttributeError for a tensor elsewhere, as if it had none, and for one that requires a gradient.
    """
    if x.device.kind != "cuda":
        raise AttributeError(f"__cuda_array_interface__: the tensor is on {x.device}")
    if x.requires_grad:
        raise AttributeError("__cuda_array_interface__: the tensor requires a gradient: detach() it")
    _keep_in_place(x)
    return {
        "version": 3,
        "shape": x.shape,
        "typestr": x.dtype.numpy.str,
        "data": (x.address if x.numel else 0, x.storage.read_only),
        "strides": None if x.is_contiguous else tuple(s * x.dtype.itemsize for s in x.strides),
        # consumers wait for it; 1 is the legacy default stream, which 0 would leave open
        "stream": current_stream(x.device.backend) or 1,
    }


def _keep_in_place(x: Tensor) -> None:
    if id(x) in _SHOWN:
        return
    block = x.storage.block
    block.pin()
    _SHOWN.add(id(x))
    # the finalizer holds the storage, so it is freed after its block was unpinned
    weakref.finalize(x, _let_go, id(x), x.storage).atexit = False


def _let_go(key: int, storage: Any) -> None:
    _SHOWN.discard(key)
    storage.block.unpin()


def from_cuda_array(x: Any) -> Tensor:
    """A tensor over the memory of an object that has `__cuda_array_interface__`, which is held as long as it is used.

    Our current stream waits for the stream that the object names. Raises ShareError for masked arrays and strides that
    are no multiples of the element, DTypeError for a dtype that we do not have.
    """
    interface = x.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ShareError("from_cuda_array: masked arrays cannot be shared")
    dtype = _dtype(interface["typestr"])
    shape: Shape = tuple(int(n) for n in interface["shape"])
    address, read_only = interface["data"]
    device = _device(x, address)
    strides = _strides(interface.get("strides"), shape, dtype)
    stream = interface.get("stream")
    if stream is not None:
        if stream == 0:
            raise ShareError("from_cuda_array: stream 0 is ambiguous and not allowed: 1 or 2 name the default streams")
        if int(stream) != (current_stream(device.backend) or 1):
            device.current_stream().wait(Stream.from_handle(device, int(stream)))
    return adopt(device, dtype, address or 0, shape, strides, x, bool(read_only))


def _dtype(typestr: str) -> DType:
    if typestr.lstrip("<|=") == "V2":
        return bfloat16  # what ml_dtypes, and who follows it, call it: NumPy's types have no letter for it
    if typestr[0] == ">":
        raise DTypeError(f"from_cuda_array: {typestr} has the other byte order")
    return as_dtype(np.dtype(typestr))


def _strides(given: Any, shape: Shape, dtype: DType) -> Shape:
    if given is None:
        return row_major(shape)
    if any(s % dtype.itemsize for s in given):
        raise ShareError(f"from_cuda_array: strides {tuple(given)} are no multiples of {dtype.itemsize} bytes")
    return tuple(int(s) // dtype.itemsize for s in given)


def _device(x: Any, address: int) -> Device:
    if address:
        return cuda_device_of(address)
    if hasattr(x, "__dlpack_device__"):
        return Device.cuda(int(x.__dlpack_device__()[1]))
    try:
        return cuda_device_of(0)
    except DeviceError:
        return Device.cuda(0)
