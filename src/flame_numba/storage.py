"""`Storage`: a run of elements of one dtype in a block of a pool. Tensors are views of it. `Pin`: where it stays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from .devices import Device
from .devices.contexts import Contexts
from .dtypes import DType
from .errors import PoolError, ShareError
from .pool import current_pool

INFERENCE = Contexts()  # how many `inference_mode` blocks are open anywhere: asked at every allocation
inference_here: ContextVar[bool] = ContextVar("flame_numba_inference", default=False)
FIRST_INFERENCE_VERSION = -(1 << 62)  # versions below 0: made in inference mode, never to be saved for a gradient


class Pin:
    """Where a block starts, and that it stays there until `release()`: the one way in which an address leaves.

    Pinning may have to wait until a whole pass of moves is done, so an address that was read before is another
    tensor's by then. Kernels and copies of our own do without: they read it and queue their work under `backend.lock`.
    """

    __slots__ = ("block", "start")

    def __init__(self, block: Any) -> None:
        self.block = block
        self.start: int = block.pin()  # the pool reads it behind the pin, under one lock

    def release(self) -> None:
        """Undo it; once."""
        self.block.unpin()


class Storage:
    """`numel` elements of `dtype` on `device`, uninitialised. Shared by all views; freed with the last of them.

    The block is a handle: its address is looked up at each launch, since the pool may move it.
    `version` counts writes in place; a backward pass that would use changed data raises instead.
    """

    __slots__ = ("__weakref__", "block", "device", "dtype", "numel", "version")
    read_only = False

    def __init__(self, device: Device, dtype: DType, numel: int) -> None:
        self.block: Any = current_pool(device).allocate(numel * dtype.itemsize)
        self.device = device
        self.dtype = dtype
        self.numel = numel
        self.version = FIRST_INFERENCE_VERSION if INFERENCE.open and inference_here.get() else 0

    @classmethod
    def over(cls, block: Any, device: Device, dtype: DType, numel: int) -> Storage:
        """Elements in a block that is there already: memory of another library."""
        self = cls.__new__(cls)
        self.block, self.device, self.dtype, self.numel = block, device, dtype, numel
        self.version = 0
        return self

    @property
    def nbytes(self) -> int:
        """Bytes asked of the pool."""
        return self.numel * self.dtype.itemsize

    def window(self) -> npt.NDArray[Any]:
        """The elements themselves as a NumPy array. The block is pinned as long as a view of the array lives.

        Raises ShareError unless they are in host memory.
        """
        if self.device.kind != "cpu":
            raise ShareError(f"numpy: memory of {self.device} cannot be shown to NumPy without a copy")
        if not self.numel:
            return np.empty(0, self.dtype.numpy)
        return np.asarray(_Window(self)).view(self.dtype.numpy)

    def __reduce__(self) -> Any:  # what copy, deepcopy and pickle ask: a second owner would free the block too
        raise PoolError("storage: it owns a block of a pool, so it is not copied or pickled; copy a tensor over it")

    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing) -> None:  # then names of modules are gone
        try:
            block = self.block
        except AttributeError:
            return  # the pool had no memory for it
        try:
            block.pool.free(block)
        except Exception:
            if not _at_exit():  # then another library may still hold pinned memory, and the pool may be half gone
                raise

    def __repr__(self) -> str:
        return f"Storage({self.numel} × {self.dtype.name} on {self.device}, {self.nbytes} bytes)"


class ReadOnlyStorage(Storage):
    """Memory of a library that does not want it changed. Who writes counts it first, and that raises ShareError."""

    __slots__ = ()
    read_only = True

    @property
    def version(self) -> int:
        """Always 0."""
        return 0

    @version.setter
    def version(self, value: int) -> None:
        if value:
            raise ShareError("the memory belongs to another library, which lends it for reading only; clone() it first")


class _Window:
    """A storage shown to NumPy as bytes. Arrays hold it, so it ends with the last of them."""

    __slots__ = ("__array_interface__", "pin", "storage")

    def __init__(self, storage: Storage) -> None:
        self.pin = Pin(storage.block)
        self.storage = storage  # freed after it was unpinned
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (storage.nbytes,), "data": (self.pin.start, storage.read_only),
        }  # fmt: skip

    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        pin = getattr(self, "pin", None)
        if pin is not None and not _at_exit():
            pin.release()
