"""Page-locked host memory of a device, as a machine of its own: so that a pool can hold it."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError
from .base import Address, Backend, Stream
from .host import HostBackend
from .numbered import NumberedStreams
from .ranges import VirtualRanges


class PinnedBackend(HostBackend):
    """Host memory that the device reads and writes by the same address. Copies first wait for the device."""

    kind = "pinned"
    page_nbytes = 0

    def __init__(self, owner: Backend) -> None:
        NumberedStreams.__init__(self)
        self.owner = owner
        self.ordinal = owner.ordinal
        self.lock = threading.RLock()
        self.debug = False
        self.streams_used = False
        self.fault_cell = 0  # no kernel runs here
        self._virtual = VirtualRanges(0)
        self._copies = owner.kind != "simulated"

    if not TYPE_CHECKING:

        @property
        def name(self) -> str:
            return f"page-locked memory for {self.owner.name}"

    def allocate(self, nbytes: int) -> Address:
        return self.owner.allocate_host(nbytes)

    def free(self, address: Address) -> None:
        self.owner.free_host(address)

    allocate_host = allocate
    free_host = free

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self.owner.synchronize()
        if self._copies:
            ctypes.memmove(target, source, nbytes)

    upload = upload_async = download = download_async = copy  # type: ignore[assignment]

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        self.owner.synchronize()
        if self._copies:
            ctypes.memset(target, byte, nbytes)

    def synchronize(self) -> None:
        self.owner.synchronize()

    def take_fault(self) -> int:
        return 0

    def load(self, image: bytes, entry: str, signature: str) -> Any:
        raise DeviceError(f"load: {entry}: kernels run on {self.owner.name}, not in its page-locked memory")
