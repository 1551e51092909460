"""A tensor's elements on the host: NumPy arrays of them, and the Python number that a tensor of one element is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .devices import Device, current_stream
from .dtypes import DType
from .errors import DTypeError, ShapeError, ShareError
from .faults import raise_fault
from .memory.staying import staying
from .pinned import HostCopy, hold, pinned_empty
from .shapes import Shape, span
from .storage import Storage

MAX_NUMPY_AXES = 64


class HostValues:
    """The part of `Tensor` that brings elements to the host."""

    __slots__ = ()
    storage: Storage
    dtype: DType
    shape: Shape
    strides: Shape
    offset: int
    requires_grad: bool

    if TYPE_CHECKING:

        @property
        def device(self) -> Device: ...
        @property
        def ndim(self) -> int: ...
        @property
        def numel(self) -> int: ...
        @property
        def is_contiguous(self) -> bool: ...
        def detach(self) -> Any: ...

    def numpy(self, copy: bool = True) -> npt.NDArray[Any]:
        """A copy on the host, bfloat16 as `ml_dtypes.bfloat16`. Waits for the current stream.

        copy=False: the memory itself, which stays where it is as long as the array lives. Raises ShareError unless
        that is the CPU device's and no gradient is required. Raises IndexOutOfRange if a kernel before it met an index
        out of range. No gradient flows through it.
        """
        if not copy:
            return self._shared()
        if len(self.shape) > MAX_NUMPY_AXES:
            raise ShapeError(
                f"numpy: arrays have at most {MAX_NUMPY_AXES} axes, the tensor has {self.ndim}; reshape it"
            )
        if self.numel == 0:
            raise_fault(self.device)
            return np.empty(self.shape, self.dtype.numpy)
        # one transfer of the span that the view covers, then the same strides on the host
        low, high = span(self.shape, self.strides)
        host = np.empty(high - low + 1, self.dtype.numpy)
        backend = self.device.backend
        with staying(self.storage.block, backend) as start:
            start += (self.offset + low) * self.dtype.itemsize
            backend.download(host.ctypes.data, start, host.nbytes, current_stream(backend))
        raise_fault(self.device)
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        view = np.lib.stride_tricks.as_strided(host[-low:], self.shape, strides)
        return view if self.is_contiguous else view.copy()

    def _shared(self) -> npt.NDArray[Any]:
        if self.requires_grad:
            raise ShareError("numpy: the tensor requires a gradient, so NumPy must not change it: detach() it first")
        elements = self.storage.window()
        raise_fault(self.device)
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        start, writeable = elements[self.offset :], elements.flags.writeable
        return np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=writeable)

    def numpy_async(self, out: npt.NDArray[Any] | None = None) -> HostCopy:
        """Queue a copy to the host on the current stream, into `out` or a new page-locked array; `wait()` gives it.

        If `out` is not page-locked, the copy has ended on return. Raises ShapeError or DTypeError unless `out` has
        the tensor's shape and dtype and lies in row-major order.
        """
        array = pinned_empty(self.shape, self.dtype, self.device) if out is None else out
        if not isinstance(array, np.ndarray):
            raise DTypeError(f"numpy_async: out must be a NumPy array, got {type(array).__name__}")
        if array.shape != self.shape or not array.flags.c_contiguous or not array.flags.writeable:
            raise ShapeError(f"numpy_async: out must be row-major and writeable of {self.shape}, it is {array.shape}")
        if array.dtype != self.dtype.numpy:
            raise DTypeError(f"numpy_async: out must be {self.dtype.name}, it is {array.dtype}")
        if self.numel == 0:
            return HostCopy(array, None, partial(raise_fault, self.device))
        source, backend = self.detach().contiguous(), self.device.backend
        stream = self.device.current_stream()
        source.record_stream(stream)
        with staying(source.storage.block, backend) as start:
            start += source.offset * self.dtype.itemsize
            backend.download_async(array.ctypes.data, start, array.nbytes, stream.handle)
        return HostCopy(array, hold(stream, array), partial(raise_fault, self.device))

    def item(self) -> bool | int | float:
        """The only element as a Python number. Raises ShapeError if there is not exactly one."""
        if self.numel != 1:
            raise ShapeError(f"item: needs exactly one element, the shape is {self.shape}")
        return self.numpy().reshape(()).astype(object if not self.dtype.is_floating else float).item()  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        host = self.numpy()
        return (host.astype(float) if self.dtype.is_floating else host).tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if not self.dtype.is_integer:
            raise DTypeError(f"__index__: only integer tensors are indices, this one is {self.dtype.name}")
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False and dtype is not None and np.dtype(dtype) != self.dtype.numpy:
            raise ShareError(f"__array__: {self.dtype.name} cannot be shown as {np.dtype(dtype)} without a copy")
        host = self.numpy(copy=copy is not False)
        return host if dtype is None else host.astype(dtype, copy=False)
