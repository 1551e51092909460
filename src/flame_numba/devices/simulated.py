"""A machine of addresses without memory: for tests of the allocator and for replaying recorded programs."""

from __future__ import annotations

import threading
from typing import NoReturn

from ..errors import DeviceError, KernelError
from .base import Address, DeviceOutOfMemory, Event, LaunchLimits, MemoryInfo, Stream
from .numbered import NumberedStreams
from .ranges import Ranges, VirtualRanges

_ALIGNMENT = 256
_FIRST_ADDRESS = 1 << 21
_GUARD = 1 << 21  # no two allocations touch, so a copy that runs past its own is always caught


class SimulatedBackend(NumberedStreams):
    """`memory` bytes of addresses, never used twice, so that no stale one is ever taken for a live one.

    Copies and fills check that their range lies in one live allocation or in mapped memory, and move nothing.
    Host addresses are not checked.
    """

    kind = "simulated"
    architecture = "none"
    multiprocessors = 1
    fault_cell: Address = 0  # no kernel runs, so none fails
    debug = False
    copy_rate = 1_000_000_000_000
    limits = LaunchLimits()

    def __init__(self, memory: int, page_nbytes: int = 2 << 20) -> None:
        super().__init__()
        self.ordinal = 0
        self.memory = memory
        self.page_nbytes = page_nbytes
        self.name = f"simulated device of {memory} bytes"
        self.lock = threading.RLock()
        self.streams_used = False
        self._used = 0  # by `allocate`; the books of `map` know their own
        self._next = _FIRST_ADDRESS
        self._allocations = Ranges()
        self._host = Ranges()
        self._virtual = VirtualRanges(page_nbytes)

    def allocate(self, nbytes: int) -> Address:
        if nbytes <= 0:
            raise DeviceError(f"allocate: nbytes must be > 0, got {nbytes}")
        with self.lock:
            size = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
            self._check_free(size)
            address = self._new_addresses(size)
            self._allocations.add(address, size)
            self._used += size
            return address

    def free(self, address: Address) -> None:
        with self.lock:
            if address not in self._allocations.sizes:
                raise DeviceError(f"free: {address:#x} is not the address of a live allocation")
            self._used -= self._allocations.remove(address)

    def allocate_host(self, nbytes: int) -> Address:
        if nbytes <= 0:
            raise DeviceError(f"allocate_host: nbytes must be > 0, got {nbytes}")
        with self.lock:
            address = self._new_addresses(nbytes)
            self._host.add(address, nbytes)
            return address

    def free_host(self, address: Address) -> None:
        with self.lock:
            if address not in self._host.sizes:
                raise DeviceError(f"free_host: {address:#x} is not the address of a live allocation")
            self._host.remove(address)

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(self.memory - self._used - self._virtual.mapped_nbytes, self.memory)

    def reserve(self, nbytes: int) -> Address:
        with self.lock:
            self._virtual.check_pages("reserve", 0, nbytes)
            address = self._new_addresses(nbytes, self.page_nbytes)
            self._virtual.reserved.add(address, nbytes)
            return address

    def unreserve(self, address: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.unreserve(address, nbytes)

    def map(self, address: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.check_room("map", address, nbytes)
            self._check_free(nbytes)
            self._virtual.map(address, nbytes)

    def unmap(self, address: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.check_mapped("unmap", address, nbytes)
            self._virtual.unmap(address)

    def move_mapping(self, address: Address, target: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.check_mapped("move_mapping", address, nbytes)
            self._virtual.check_room("move_mapping", target, nbytes)
            self._virtual.unmap(address)
            self._virtual.map(target, nbytes)

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self._check("copy", source, nbytes)
        self._check("copy", target, nbytes)

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        self._check("upload", target, nbytes)

    upload_async = upload

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self._check("download", source, nbytes)

    download_async = download

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        self._check("fill", target, nbytes)

    def synchronize_stream(self, stream: Stream) -> None:
        return

    def record_event(self, stream: Stream = 0, timing: bool = False) -> Event:
        return object()

    def record_all(self) -> Event:
        return self.record_event()

    def destroy_event(self, event: Event) -> None:
        return

    def event_done(self, event: Event) -> bool:
        return True  # nothing is ever queued

    def synchronize_event(self, event: Event) -> None:
        return

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

    def _new_addresses(self, nbytes: int, alignment: int = _GUARD) -> Address:
        address = -(-self._next // alignment) * alignment
        self._next = address + -(-nbytes // _GUARD) * _GUARD + _GUARD
        return address

    def _check_free(self, nbytes: int) -> None:
        free = self.memory_info().free
        if nbytes > free:
            raise DeviceOutOfMemory(f"{nbytes} bytes asked of {free} free")

    def _check(self, op: str, address: Address, nbytes: int) -> None:
        """Raises DeviceError unless the range lies in one live allocation, or in mapped memory throughout."""
        if nbytes == 0:
            return
        with self.lock:
            start, size = self._allocations.find(address)
            if nbytes < 0 or (address + nbytes > start + size and not self._virtual.mapped.covers(address, nbytes)):
                raise DeviceError(f"{op}: {nbytes} bytes at {address:#x} do not lie in one live allocation")
