"""`Storage`: a run of elements of one dtype in a block of a pool. Tensors are views of it."""

from __future__ import annotations

from typing import Any

from .devices import Device
from .dtypes import DType
from .pool import current_pool


class Storage:
    """`numel` elements of `dtype` on `device`, uninitialised. Shared by all views; freed with the last of them.

    The block is a handle: its address is looked up at each launch, since the pool may move it.
    `version` counts writes in place; a backward pass that would use changed data raises instead.
    """

    __slots__ = ("__weakref__", "block", "device", "dtype", "numel", "version")

    def __init__(self, device: Device, dtype: DType, numel: int) -> None:
        self.block: Any = current_pool(device).allocate(numel * dtype.itemsize)
        self.device = device
        self.dtype = dtype
        self.numel = numel
        self.version = 0

    @property
    def nbytes(self) -> int:
        """Bytes asked of the pool."""
        return self.numel * self.dtype.itemsize

    def __del__(self) -> None:
        try:
            block = self.block
        except AttributeError:
            return  # the pool had no memory for it
        block.pool.free(block)

    def __repr__(self) -> str:
        return f"Storage({self.numel} × {self.dtype.name} on {self.device}, {self.nbytes} bytes)"
