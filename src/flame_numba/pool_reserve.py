"""What a pool holds from the driver: growing it by segments within the limit, and giving them back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .devices import DeviceOutOfMemory
from .pool_blocks import ALIGNMENT, round_up

if TYPE_CHECKING:
    from .devices import Device
    from .pool_arena import Arena
    from .pool_blocks import Segment
    from .pool_config import PoolConfig

_DRIVER_PAGE = 2 << 20  # drivers hand out memory in such pages anyway


class Reserve:
    """The driver memory of one pool, in bytes."""

    def __init__(self, device: Device, config: PoolConfig) -> None:
        self.backend = device.backend
        self.limit = config.limit_bytes(device.memory_info().total if isinstance(config.limit, float) else 0)
        self.caching = config.caching
        self.nbytes = self.peak_nbytes = 0
        self.driver_calls = self.grown = 0
        self.held: set[int] = set()  # addresses of all segments

    def grow(self, arena: Arena, size: int) -> bool:
        """Add a segment that holds `size` bytes; False if the limit or the device is in the way."""
        for nbytes in self._sizes(arena.segment_nbytes, size):
            self.driver_calls += 1
            try:
                address = self.backend.allocate(nbytes)
            except DeviceOutOfMemory:
                continue
            self.held.add(address)
            self.grown += 1
            self.nbytes += nbytes
            self.peak_nbytes = max(self.peak_nbytes, self.nbytes)
            arena.add_segment(address, nbytes)
            return True
        return False

    def release(self, segments: list[Segment], keep: int = 0) -> int:
        """Give back free segments, the largest first, until `keep` bytes are left; the bytes given back."""
        if not segments or self.nbytes <= keep:
            return 0
        self.backend.synchronize()  # queued work may still read what was freed
        before = self.nbytes
        for segment in sorted(segments, key=lambda segment: segment.size, reverse=True):
            if self.nbytes <= keep:
                break
            if segment.address in self.held:  # else `give_back` was here, as the pool is being collected
                self.driver_calls += 1
                self.backend.free(segment.address)
                self.held.remove(segment.address)
            self.nbytes -= segment.size
            segment.arena.drop_segment(segment)
        return before - self.nbytes

    def headroom(self) -> int:
        """Bytes that could still be reserved."""
        free = self.backend.memory_info().free
        return free if self.limit is None else min(free, self.limit - self.nbytes)

    def _sizes(self, segment_nbytes: int, size: int) -> Iterable[int]:
        """What to ask of the driver, in this order. A large request gets a segment that leaves no odd rest."""
        if not self.caching:
            wanted = size
        elif size <= segment_nbytes // 2:
            wanted = segment_nbytes
        else:
            wanted = round_up(size, _DRIVER_PAGE)
        if self.limit is not None:
            wanted = min(wanted, (self.limit - self.nbytes) & -ALIGNMENT)
        return () if wanted < size else dict.fromkeys((wanted, size))


def give_back(reserve: Reserve) -> None:
    """Return all memory of a pool that nobody refers to any more."""
    if reserve.held:
        reserve.backend.synchronize()
    while reserve.held:
        reserve.backend.free(reserve.held.pop())
