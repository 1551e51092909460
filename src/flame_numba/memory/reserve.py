"""What a pool holds from the driver, and its limit. The two ways to hold it are `growth.py`'s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .growth import Allocations, Growth, Pages

if TYPE_CHECKING:
    from ..devices import Backend, Device
    from .arena import Arena
    from .blocks import Segment
    from .config import PoolConfig

_LEAST_VIRTUAL = 64 << 20  # a limit below it is too near the size of a page


class Reserve:
    """The driver memory of one pool, in bytes."""

    def __init__(self, device: Device, config: PoolConfig) -> None:
        self.machine = device.backend
        total = device.memory_info().total
        self.limit = config.limit_bytes(total)
        self.most = total if self.limit is None else min(self.limit, total)  # no request can be larger
        self.backend = _choose(config.backend, self.machine, self.most)
        self.growth: Growth
        if self.backend == "virtual":
            self.growth = Pages(self.machine)
        else:
            small, large = config.segment_bytes()
            self.growth = Allocations(self.machine, small, large, caching=self.backend != "direct")
        self.peak_nbytes = self.grown = 0

    @property
    def nbytes(self) -> int:
        return self.growth.held.nbytes

    @property
    def driver_calls(self) -> int:
        return self.growth.held.driver_calls

    def room(self) -> int:
        """Bytes that the limit still allows."""
        return 1 << 62 if self.limit is None else self.limit - self.nbytes

    def headroom(self) -> int:
        """Bytes that could still be reserved."""
        return min(self.machine.memory_info().free, self.room())

    def grow(self, arena: Arena, size: int, extra: int = 0) -> bool:
        """Make a free span of `size` bytes, and `extra` if it goes; False if the limit or the device is in the way."""
        try:
            return self.growth.grow(arena, size, extra, self.nbytes, self.room()) > 0
        finally:
            self.peak_nbytes = max(self.peak_nbytes, self.nbytes)

    def price(self, arena: Arena, size: int) -> int:
        """Bytes that `grow` would add at least."""
        return self.growth.price(arena, size)

    def free(self, segment: Segment) -> None:
        """Give back one allocation of the driver's that is free as a whole. Waits for queued work."""
        assert isinstance(self.growth, Allocations)
        self.machine.synchronize()
        self.growth.free(segment)

    def release(self, arenas: Iterable[Arena], keep: int = 0) -> int:
        """Give back free memory until `keep` bytes are left; the bytes given back. Waits for queued work."""
        if self.nbytes <= keep:
            return 0
        arenas = list(arenas)
        released = self.growth.release(arenas, self.nbytes - keep)
        self.growth.tidy(arenas)
        return released

    def tidy(self, arenas: Iterable[Arena]) -> None:
        """Give back addresses that no memory is mapped under, if an arena has others."""
        self.growth.tidy(arenas)


def _choose(wanted: str, machine: Backend, most: int) -> str:
    """How to hold memory; `most` bytes of it are to be had."""
    if wanted == "auto":
        return "virtual" if machine.page_nbytes and most >= _LEAST_VIRTUAL else "segments"
    if wanted == "virtual":
        if not machine.page_nbytes:
            raise ConfigError(f"backend='virtual': {machine.name} has no virtual memory; use 'segments'")
        if most < machine.page_nbytes:
            raise ConfigError(f"limit={most}: less than a page of virtual memory ({machine.page_nbytes} bytes)")
    return wanted
