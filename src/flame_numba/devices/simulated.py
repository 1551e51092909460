"""A machine of addresses without memory: for tests of the allocator and for replaying recorded programs."""

from __future__ import annotations

import threading
from bisect import bisect_right
from itertools import count
from typing import NoReturn

from ..errors import DeviceError, KernelError
from .base import Address, DeviceOutOfMemory, Event, MemoryInfo, Stream

_ALIGNMENT = 256
_FIRST_ADDRESS = 1 << 21
_GUARD = 1 << 21  # no two allocations touch, so a copy that runs past its own is always caught


class SimulatedBackend:
    """`memory` bytes of addresses, never used twice, so that no stale one is ever taken for a live one.

    Copies and fills check that their range lies in one live allocation, and move nothing.
    """

    kind = "simulated"
    architecture = "none"
    multiprocessors = 1
    fault_cell: Address = 0  # no kernel runs, so none fails
    debug = False

    def __init__(self, memory: int) -> None:
        self.ordinal = 0
        self.memory = memory
        self.name = f"simulated device of {memory} bytes"
        self._used = 0
        self._next = _FIRST_ADDRESS
        self._starts: list[Address] = []  # sorted: addresses only ever grow
        self._sizes: dict[Address, int] = {}
        self._streams = count(1)
        self.lock = threading.RLock()

    def allocate(self, nbytes: int) -> Address:
        if nbytes <= 0:
            raise DeviceError(f"allocate: nbytes must be > 0, got {nbytes}")
        with self.lock:
            size = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
            if self._used + size > self.memory:
                raise DeviceOutOfMemory(f"{nbytes} bytes asked of {self.memory - self._used} free")
            address = self._next
            self._next += -(-size // _GUARD) * _GUARD + _GUARD
            self._starts.append(address)
            self._sizes[address] = size
            self._used += size
            return address

    def free(self, address: Address) -> None:
        with self.lock:
            if address not in self._sizes:
                raise DeviceError(f"free: {address:#x} is not the address of a live allocation")
            self._used -= self._sizes.pop(address)
            del self._starts[bisect_right(self._starts, address) - 1]

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(self.memory - self._used, self.memory)

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self._check("copy", source, nbytes)
        self._check("copy", target, nbytes)

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        self._check("upload", target, nbytes)

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self._check("download", source, nbytes)

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        self._check("fill", target, nbytes)

    def new_stream(self) -> Stream:
        return next(self._streams)

    def record_event(self, stream: Stream = 0) -> Event:
        return object()

    def event_done(self, event: Event) -> bool:
        return True  # nothing is ever queued

    def wait_event(self, stream: Stream, event: Event) -> None:
        return

    def elapsed_ms(self, start: Event, end: Event) -> float:
        return 0.0

    def synchronize(self) -> None:
        return

    def take_fault(self) -> int:
        return 0

    def load(self, image: bytes, entry: str, signature: str) -> NoReturn:
        raise KernelError(f"load: {entry}: a simulated device has no memory and runs no kernel")

    def _check(self, op: str, address: Address, nbytes: int) -> None:
        """Raises DeviceError unless the range lies in one live allocation."""
        if nbytes == 0:
            return
        with self.lock:
            i = bisect_right(self._starts, address) - 1
            start = self._starts[i] if i >= 0 else 0
            if i < 0 or nbytes < 0 or address + nbytes > start + self._sizes[start]:
                raise DeviceError(f"{op}: {nbytes} bytes at {address:#x} do not lie in one live allocation")
