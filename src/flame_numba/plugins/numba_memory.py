"""Numba's device memory from a pool: an External Memory Management plugin of numba-cuda.

Set the environment variable `NUMBA_CUDA_MEMORY_MANAGER=flame_numba.plugins.numba_memory`, or call
`flame_numba.plugins.install()`.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from numba import cuda
from numba.cuda.cudadrv import driver as numba_driver

from ..devices import Device
from ..errors import OutOfMemory
from . import core_memory
from .lender import Lender, lender_for

if TYPE_CHECKING:
    from ..storage import Pin

_Code = numba_driver.binding.CUresult
_VIRTUAL = (
    "memory of this pool cannot be opened by other processes. Let Numba use a pool that takes it from the driver in "
    "segments: flame_numba.plugins.use_pool(MemoryPool.with_config(device, PoolConfig(backend='segments')))"
)


class _Returns:
    """Takes blocks back: at once, or when the last `deferred()` is left."""

    def __init__(self) -> None:
        self._deferrals = 0
        self._waiting: list[tuple[Lender, Pin]] = []

    def take_back(self, lender: Lender, pin: Pin) -> None:
        if self._deferrals:
            self._waiting.append((lender, pin))
        else:
            lender.take_back(pin)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
            if self._deferrals == 0:
                self.flush()

    def flush(self) -> None:
        while self._waiting:
            lender, pin = self._waiting.pop()
            lender.take_back(pin)


class PoolMemoryManager(cuda.GetIpcHandleMixin, cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc]
    """Serves one context of Numba's. Page-locked and managed memory are left to Numba.

    It also makes the device's `cuda.core` memory resource one of the same pool: Numba takes its temporaries for host
    arrays from there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ordinal = -1  # not known before the context is current
        self._initialized = False
        self._returns = _Returns()

    def initialize(self) -> None:
        """Called whenever the context becomes current."""
        if self._initialized:
            return
        self._initialized = True
        device = self._device()
        if self.deallocations.memory_capacity == 0:  # of page-locked memory that waits to be freed, as Numba sets it
            self.deallocations.memory_capacity = device.memory_info().total
        core_device = getattr(self.context.device, "_dev", None)
        if core_device is not None:
            core_memory.register(core_device, device)

    def memalloc(self, size: int) -> Any:
        """Bytes that stay where they are until the last reference is gone. Raises CudaAPIError as `cuMemAlloc` does."""
        lender = lender_for(self._device())
        pin = self._attempt_allocation(lambda: _borrow(lender, size))
        pointer = numba_driver.AutoFreePointer(
            weakref.proxy(self.context), ctypes.c_void_p(pin.start), size, finalizer=self._finalizer(lender, pin)
        )
        self.allocations[pin.start] = pointer
        return pointer.own()

    def get_memory_info(self) -> Any:
        """Bytes that can still be allocated, and in all."""
        pool = lender_for(self._device()).pool
        free, total = pool.device.memory_info()
        stats = pool.stats()
        free += stats.free_bytes
        limit = pool.config.limit_bytes(total)
        if limit is not None:
            free, total = max(min(free, limit - stats.allocated_bytes), 0), min(total, limit)
        return cuda.MemoryInfo(free=free, total=total)

    def get_ipc_handle(self, memory: Any) -> Any:
        """A handle by which another process can open the memory. Raises CudaAPIError if the pool's kind has none."""
        try:
            return super().get_ipc_handle(memory)
        except numba_driver.CudaAPIError as error:
            raise numba_driver.CudaAPIError(error.code, f"{error.msg}: {_VIRTUAL}") from error

    def reset(self) -> None:
        """Free all memory of this context, and give what is free in the pool back to the driver."""
        super().reset()  # drops the pointers, whose finalizers return the blocks
        self._returns.flush()
        with self._context_current():
            lender_for(self._device()).pool.trim()

    @contextmanager
    def defer_cleanup(self) -> Iterator[None]:
        """Inside, nothing that Numba frees is used again."""
        with super().defer_cleanup(), self._returns.deferred():
            yield

    @property
    def interface_version(self) -> int:
        return 1

    def _device(self) -> Device:
        if self._ordinal < 0:
            self._ordinal = _current_ordinal()
        return Device.cuda(self._ordinal)

    def _finalizer(self, lender: Lender, pin: Pin) -> Callable[[], None]:
        # runs in any thread, in the middle of anything; must not refer to `self`, which the context owns
        allocations, returns = self.allocations, self._returns

        def finalize() -> None:
            allocations.pop(pin.start, None)  # first: the address may be handed out again at once
            returns.take_back(lender, pin)

        return finalize

    @contextmanager
    def _context_current(self) -> Iterator[None]:
        """Numba resets a device when it has already taken the context off the thread."""
        numba_driver.driver.cuCtxPushCurrent(self.context.handle)
        try:
            yield
        finally:
            numba_driver.driver.cuCtxPopCurrent()


def _borrow(lender: Lender, size: int) -> Pin:
    if size <= 0:
        raise numba_driver.CudaAPIError(_Code.CUDA_ERROR_INVALID_VALUE, f"memalloc of {size} bytes")
    try:
        return lender.lend(size, tag="numba")
    except OutOfMemory as error:
        raise numba_driver.CudaAPIError(_Code.CUDA_ERROR_OUT_OF_MEMORY, str(error)) from error


def _current_ordinal() -> int:
    return int(numba_driver.driver.cuCtxGetDevice())


_numba_memory_manager = PoolMemoryManager  # the name that NUMBA_CUDA_MEMORY_MANAGER asks for

_replaced: list[tuple[Any, Any]] = []  # (context, its manager before `install`), and (None, the class) first


def install() -> None:
    """Make it the manager of all contexts, also of those that exist."""
    if _replaced:
        return
    _replaced.append((None, numba_driver._memory_manager))
    cuda.set_memory_manager(PoolMemoryManager)
    for device in numba_driver.driver.list_devices():
        context = device.primary_context
        if context is not None and not isinstance(context.memory_manager, PoolMemoryManager):
            _replaced.append((context, context.memory_manager))
            context.memory_manager = PoolMemoryManager(context=context)  # initialised when it is next current


def uninstall() -> None:
    """Undo `install`."""
    if not _replaced:
        return
    _, numba_driver._memory_manager = _replaced.pop(0)
    for device in numba_driver.driver.list_devices():
        context = device.primary_context
        if context is not None and isinstance(context.memory_manager, PoolMemoryManager):
            before = [manager for other, manager in _replaced if other is context]
            make = numba_driver._memory_manager or numba_driver.NumbaCUDAMemoryManager
            context.memory_manager = before[0] if before else make(context=context)
    _replaced.clear()
