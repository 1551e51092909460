"""What a machine must offer. `cuda.py`, `host.py` and `simulated.py` are the three that do."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

Address = int  # a byte address on the device; 0 is no memory
Stream = int  # 0 is the device's default stream
Event = Any


class MemoryInfo(NamedTuple):
    """Bytes, as the driver reports them."""

    free: int
    total: int


class LaunchConfig(NamedTuple):
    """How a kernel is spread out: blocks in the grid (x, y), threads in a block, bytes of dynamic shared memory."""

    blocks: int
    blocks_y: int = 1
    threads: int = 1
    shared_nbytes: int = 0


class Executable(Protocol):
    """A loaded kernel, ready to be launched."""

    name: str

    def launch(self, config: LaunchConfig, args: tuple[int | float, ...], stream: Stream) -> None:
        """Queue the kernel. Raises KernelError if the driver refuses it."""


class Backend(Protocol):
    """One machine: memory, copies, streams, events, kernels. Knows nothing of pools, dtypes or tensors.

    Work on one stream runs in order. `allocate` and `free` are the slow calls that a pool avoids;
    `free` may only be called when no queued work uses the memory (call `synchronize` first).
    """

    kind: str  # "cuda", "cpu" or "simulated"
    ordinal: int
    multiprocessors: int  # how many blocks run at once, at least
    fault_cell: Address  # eight bytes that kernels write a fault code to and the host can read at any time
    lock: Any  # re-entrant; held from looking up addresses to launching, so that no pool moves a block in between
    debug: bool  # synchronise after each launch, so that an error is raised at the op that made it

    @property
    def name(self) -> str:
        """As the vendor calls it."""

    @property
    def architecture(self) -> str:
        """Names the machine code that this backend loads: "sm_90a", or the host's CPU and features."""

    def allocate(self, nbytes: int) -> Address:
        """Memory aligned to 256 bytes. Raises DeviceOutOfMemory."""

    def free(self, address: Address) -> None: ...

    def memory_info(self) -> MemoryInfo: ...

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        """Copy within the device; the ranges may overlap (as `memmove`)."""

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        """Copy from host memory; the host bytes may be reused when this returns."""

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        """Copy to host memory, after all that the stream holds; returns when the bytes are there."""

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        """Set every byte."""

    def new_stream(self) -> Stream: ...

    def record_event(self, stream: Stream = 0) -> Event: ...

    def event_done(self, event: Event) -> bool: ...

    def wait_event(self, stream: Stream, event: Event) -> None:
        """Make later work of `stream` wait for `event`, without blocking the caller."""

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds of device time between two events; waits for `end`."""

    def synchronize(self) -> None:
        """Wait for all queued work. Raises the error of a kernel that failed."""

    def take_fault(self) -> int:
        """The code that a kernel left in the fault cell since the last call, else 0."""

    def load(self, image: bytes, entry: str, signature: str) -> Executable:
        """Load compiled code. `signature`: a letter an argument, p address, q int64, f float32, d float64."""


class DeviceOutOfMemory(Exception):
    """The driver has no such memory left. The pool turns it into OutOfMemory, with its books in the message."""
