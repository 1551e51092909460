"""The CPU as a device: host memory, and kernels compiled for the host processor, run at once by the caller.

A kernel runs as one block of one thread (the launch shape is ignored), so streams and events have nothing to order.
Machine code is an object file, loaded through LLVM's linker: no Numba at run time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import platform
import threading
import time
from typing import Any

import numpy as np

from ..errors import KernelError
from .base import Address, DeviceOutOfMemory, Event, LaunchConfig, LaunchLimits, MemoryInfo, Stream
from .locks import LLVM, held_over_forks
from .native import keep_for_ever
from .numbered import NumberedStreams
from .ranges import VirtualRanges

ALIGNMENT = 256
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 names it
_RANGE_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
_C_TYPES = {"p": ctypes.c_void_p, "q": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
_LINKERS: list[_Linker] = []  # the one, once there is one


class _Linker:
    """LLVM's run-time linker. Objects stay loaded for the life of the process: LLVM cannot unload one safely."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
        self._read = llvm.ObjectFileRef.from_data
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._loaded: dict[str, tuple[int, Any]] = {}

    def load(self, image: bytes, entry: str) -> int:
        """The address of a function. Entries are unique: their names hold a digest of their source."""
        if entry not in self._loaded:
            objects = self._read(image)
            self._engine.add_object_file(objects)
            self._engine.finalize_object()
            self._loaded[entry] = (self._engine.get_function_address(entry), objects)
        address = self._loaded[entry][0]
        if not address:
            raise KernelError(f"{entry}: not found in the compiled object")
        return address


def _linked(image: bytes, entry: str) -> int:
    """The address of a function, by the linker of the process. A second one would unload its code when collected."""
    with LLVM:
        if not _LINKERS:
            _LINKERS.append(keep_for_ever(_Linker()))
        return _LINKERS[0].load(image, entry)


class HostExecutable:
    """A kernel in host memory, called as Numba's native functions are: (result*, error**, arguments) → status."""

    def __init__(self, image: bytes, entry: str, signature: str) -> None:
        self.name = entry
        types = [ctypes.c_void_p, ctypes.c_void_p, *(_C_TYPES[letter] for letter in signature)]
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32, *types)(_linked(image, entry))
        self._scratch = ctypes.create_string_buffer(64)  # our kernels return nothing and raise nothing
        self._scratch_address = ctypes.addressof(self._scratch)

    def launch(self, config: LaunchConfig, args: tuple[int | float, ...], stream: Stream = 0) -> None:
        status = self._function(self._scratch_address, self._scratch_address, *args)
        if status:
            raise KernelError(f"{self.name}: the kernel stopped with status {status}")


class HostBackend(NumberedStreams):
    """See `Backend`. Memory is NumPy's, so the operating system commits pages only when they are touched.

    A reserved range is an anonymous mapping of the operating system. It would commit all of it when touched:
    that only what is mapped is used, and no more than there is, are the books of `VirtualRanges`.
    """

    kind = "cpu"
    ordinal = 0
    multiprocessors = 1
    page_nbytes = 2 << 20
    copy_rate = 5_000_000_000
    limits = LaunchLimits()

    def __init__(self) -> None:
        super().__init__()
        self.debug = False
        self._virtual = VirtualRanges(self.page_nbytes)
        self._reserved: dict[Address, mmap.mmap] = {}
        self.lock = held_over_forks(threading.RLock())
        self.streams_used = False
        self._arrays: dict[Address, np.ndarray] = {}
        self.fault_cell = self.allocate(8)
        self.fill(self.fault_cell, 0, 8)
        self._fault = ctypes.c_int64.from_address(self.fault_cell)

    @functools.cached_property
    def name(self) -> str:
        import llvmlite.binding as llvm

        return f"{platform.machine()} {llvm.get_host_cpu_name()}"

    @functools.cached_property
    def architecture(self) -> str:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features().flatten()
        digest = hashlib.sha256(features.encode()).hexdigest()[:8]
        return f"{llvm.get_process_triple()}-{llvm.get_host_cpu_name()}-{digest}"

    def allocate(self, nbytes: int) -> Address:
        try:
            array = np.empty(nbytes + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:
            raise DeviceOutOfMemory(f"the host has no {nbytes} bytes: {error}") from None
        address = -(-array.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._arrays[address] = array
        return address

    def free(self, address: Address) -> None:
        del self._arrays[address]

    allocate_host = allocate
    free_host = free

    def reserve(self, nbytes: int) -> Address:
        self._virtual.check_pages("reserve", 0, nbytes)
        try:
            area = mmap.mmap(-1, nbytes + self.page_nbytes, flags=_RANGE_FLAGS)
        except (OSError, OverflowError) as error:
            raise DeviceOutOfMemory(f"the host has no {nbytes} bytes of addresses: {error}") from None
        address = -(-_start(area) // self.page_nbytes) * self.page_nbytes
        with self.lock:
            self._virtual.reserved.add(address, nbytes)
            self._reserved[address] = area
        return address

    def unreserve(self, address: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.unreserve(address, nbytes)
            self._reserved.pop(address).close()

    def map(self, address: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.check_room("map", address, nbytes)
            free = self.memory_info().total - self._virtual.mapped_nbytes
            if nbytes > free:
                raise DeviceOutOfMemory(f"{nbytes} bytes asked of {free} not yet mapped")
            self._virtual.map(address, nbytes)

    def unmap(self, address: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.check_mapped("unmap", address, nbytes)
            self._give_back(address, nbytes)

    def move_mapping(self, address: Address, target: Address, nbytes: int) -> None:
        with self.lock:
            self._virtual.check_mapped("move_mapping", address, nbytes)
            self._virtual.check_room("move_mapping", target, nbytes)
            self._virtual.map(target, nbytes)
            ctypes.memmove(target, address, nbytes)
            self._give_back(address, nbytes)

    def _give_back(self, address: Address, nbytes: int) -> None:
        """Return the pages of a mapped range to the operating system."""
        area = self._reserved[self._virtual.reserved.find(address)[0]]
        area.madvise(mmap.MADV_DONTNEED, address - _start(area), nbytes)
        self._virtual.unmap(address)

    def memory_info(self) -> MemoryInfo:
        page = os.sysconf("SC_PAGE_SIZE")
        return MemoryInfo(os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page)

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        ctypes.memmove(target, source, nbytes)

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        ctypes.memmove(target, host, nbytes)

    upload_async = upload

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        ctypes.memmove(host, source, nbytes)

    download_async = download

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        ctypes.memset(target, byte, nbytes)

    def synchronize_stream(self, stream: Stream) -> None:
        """Everything has run already."""

    def record_event(self, stream: Stream = 0, timing: bool = False) -> Event:
        return time.perf_counter()

    def record_all(self) -> Event:
        return self.record_event()

    def destroy_event(self, event: Event) -> None:
        """An event is but a time here."""

    def event_done(self, event: Event) -> bool:
        return True

    def synchronize_event(self, event: Event) -> None:
        """Everything before the event has run already."""

    def wait_event(self, stream: Stream, event: Event) -> None:
        """Everything before the event has run already."""

    def elapsed_ms(self, start: Event, end: Event) -> float:
        return float(end - start) * 1e3

    def synchronize(self) -> None:
        """Everything has run already."""

    def take_fault(self) -> int:
        if not self._fault.value:
            return 0
        with self.lock:  # another thread's kernel may be running: it takes its fault itself, before the lock is free
            code, self._fault.value = int(self._fault.value), 0
        return code

    def load(self, image: bytes, entry: str, signature: str) -> HostExecutable:
        return HostExecutable(image, entry, signature)


def _start(area: mmap.mmap) -> Address:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
