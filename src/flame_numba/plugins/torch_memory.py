"""PyTorch's device memory from a pool: `flame_numba.plugins.torch_memory.install()`, before its first use of the GPU.

PyTorch takes an allocator as the addresses of two C functions. `ctypes` makes such functions of Python ones, so this
needs no compiled code.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
from typing import TYPE_CHECKING, Any

from ..devices import Device
from .lender import borrow, give_back, pool_for

if TYPE_CHECKING:
    from ..storage import Pin

_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_RecordStream = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)

_LOANS: dict[int, Pin] = {}  # by address


def _allocate(nbytes: int, ordinal: int, stream: int | None) -> int | None:
    if nbytes == 0:
        return None
    try:
        pin = borrow(pool_for(Device.cuda(ordinal)), nbytes, "torch", stream or 0)
        _LOANS[pin.start] = pin
        return pin.start
    except Exception as error:
        # an exception cannot cross PyTorch's code: say what it would have said
        print(f"flame_numba: PyTorch gets no memory: {error}", file=sys.stderr)
        return None


def _free(address: int | None, nbytes: int, ordinal: int, stream: int | None) -> None:
    pin = _LOANS.pop(address or 0, None)
    if pin is not None:
        give_back(pin)


def _record_stream(address: int | None, stream: int | None) -> None:
    pin = _LOANS.get(address or 0)
    if pin is not None:
        pin.block.record_stream(stream or 0)


# PyTorch calls these until the process ends
_FUNCTIONS = (_Allocate(_allocate), _Free(_free), _RecordStream(_record_stream))
_ADDRESSES = tuple(ctypes.cast(function, ctypes.c_void_p).value for function in _FUNCTIONS)


def allocator() -> Any:
    """An allocator for `torch.cuda.MemPool(allocator())` or `install()`."""
    import torch  # only who calls this has it

    made = torch._C._cuda_customAllocator(*_ADDRESSES[:2])
    if hasattr(made, "set_record_stream_fn"):
        made.set_record_stream_fn(_ADDRESSES[2])
    return made


def install() -> None:
    """Make a pool the source of all device memory of PyTorch.

    Raises RuntimeError, by PyTorch, if it has allocated device memory already. There is no way back in this process.
    """
    import torch  # only who calls this has it

    torch._C._cuda_changeCurrentAllocator(allocator())
    # PyTorch frees these when Python is gone, and with it the function that frees
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        atexit.register(clear)
