"""Other libraries on the GPU take their memory from a pool of ours.

`install()` is for Numba: arrays by `numba_memory`, its temporaries for host arrays by `core_memory`. CuPy and PyTorch
take one line each: see `cupy_memory` and `torch_memory`. Importing this package imports none of the libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..devices import Device
from .lender import pool_for, use_pool

if TYPE_CHECKING:
    from ..pool import MemoryPool

__all__ = ["install", "pool_for", "uninstall", "use_pool"]


def install(pool: MemoryPool | None = None) -> MemoryPool:
    """Let all of Numba's device memory come from a pool: `pool`, for its GPU, or else one made for cuda:0.

    Also works when Numba is in use already: what it holds stays as it is, and new arrays come from the pool.
    Returns the pool.
    """
    from . import core_memory, numba_memory

    if pool is not None:
        use_pool(pool)
    device = Device.cuda(0) if pool is None else pool.device
    numba_memory.install()
    core_memory.install(device)
    return pool_for(device)


def uninstall() -> None:
    """Undo `install()`: new arrays come from where they came from before. Arrays that are alive keep their memory."""
    from . import core_memory, numba_memory

    numba_memory.uninstall()
    core_memory.uninstall()
