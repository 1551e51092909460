"""What a machine must offer. `cuda/backend.py`, `host.py` and `simulated.py` are the three that do."""

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
    """How a kernel is spread out: blocks in the grid, threads in a block, bytes of dynamic shared memory."""

    blocks: int
    blocks_y: int = 1
    threads: int = 1
    shared_nbytes: int = 0
    blocks_z: int = 1
    threads_y: int = 1
    threads_z: int = 1


class LaunchLimits(NamedTuple):
    """The largest launch. The defaults hold on every NVIDIA GPU; the CPU takes no more, so that programs carry over."""

    threads: int = 1024
    block: tuple[int, int, int] = (1024, 1024, 64)
    grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    shared_nbytes: int = 48 << 10


class Executable(Protocol):
    """A loaded kernel, ready to be launched."""

    name: str

    def launch(self, config: LaunchConfig, args: tuple[int | float, ...], stream: Stream) -> None:
        """Queue the kernel. The caller holds the backend's `lock`. Raises KernelError if the driver refuses it."""


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
    streams_used: bool  # some stream but 0 was current once: before, no launch needs to look whose blocks it uses
    copy_rate: int  # bytes a second that `copy` moves within the device, about
    page_nbytes: int  # granularity of virtual memory in bytes; 0: this machine has none
    spare_streams: list[Stream]  # given back, and kept for `new_stream`

    @property
    def name(self) -> str:
        """As the vendor calls it."""

    @property
    def limits(self) -> LaunchLimits:
        """The largest launch."""

    @property
    def architecture(self) -> str:
        """Names the machine code that this backend loads: "sm_90a", or the host's CPU and features."""

    def allocate(self, nbytes: int) -> Address:
        """Memory aligned to 256 bytes. Raises DeviceOutOfMemory."""

    def free(self, address: Address) -> None: ...

    def memory_info(self) -> MemoryInfo: ...

    # virtual memory: addresses and sizes are multiples of `page_nbytes`. A refused call changes nothing

    def reserve(self, nbytes: int) -> Address:
        """An address range without memory. Raises DeviceOutOfMemory if no range is that long."""

    def unreserve(self, address: Address, nbytes: int) -> None:
        """Give back exactly what one `reserve` made; nothing may be mapped in it."""

    def map(self, address: Address, nbytes: int) -> None:
        """Put memory under part of a reserved range, its contents undefined. Raises DeviceOutOfMemory."""

    def unmap(self, address: Address, nbytes: int) -> None:
        """Take the memory back from exactly a range that one `map` made. No queued work may use it."""

    def move_mapping(self, address: Address, target: Address, nbytes: int) -> None:
        """Take the memory of one `map` to another part of a reserved range, its contents kept.

        The two must not overlap, nothing may be mapped at `target`, and no queued work may use the memory.
        """

    # page-locked host memory: copies to and from it run while the host goes on

    def allocate_host(self, nbytes: int) -> Address:
        """Host memory, which the device reads and writes by the same address. Raises DeviceOutOfMemory."""

    def free_host(self, address: Address) -> None:
        """Give back what `allocate_host` made. No queued work may use it."""

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        """Copy within the device; the ranges may overlap (as `memmove`)."""

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        """Copy from host memory; the host bytes may be changed when this returns."""

    def upload_async(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        """As `upload`, but only queued if the host memory is page-locked: an event says when it may be changed."""

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        """Copy to host memory, after all that the stream holds; returns when the bytes are there."""

    def download_async(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        """As `download`, but only queued if the host memory is page-locked: an event says when the bytes are there."""

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        """Set every byte."""

    def new_stream(self) -> Stream:
        """A stream that runs beside all others, also beside stream 0: one that was given back, if there is any."""

    def synchronize_stream(self, stream: Stream) -> None:
        """Wait for all that is queued on one stream."""

    def destroy_stream(self, stream: Stream) -> None:
        """Give back what `new_stream` made; what is queued on it still runs. Any finalizer may call it.

        The queue is kept for the next `new_stream`: pools know streams by number, so a number never ends.
        """

    def owns_stream(self, stream: Stream) -> bool:
        """Whether `new_stream` made it, so that it is never destroyed."""

    def record_all(self) -> Event:
        """A mark behind all that any stream of the device holds now, those of other libraries and dead ones too."""

    def record_event(self, stream: Stream = 0, timing: bool = False) -> Event:
        """A mark behind all that the stream holds now. `timing`: for `elapsed_ms`; slower to make."""

    def destroy_event(self, event: Event) -> None:
        """Give the event back, done or not: it must not be used afterwards, but who waits for it still does."""

    def event_done(self, event: Event) -> bool: ...

    def synchronize_event(self, event: Event) -> None:
        """Wait until the event is done."""

    def wait_event(self, stream: Stream, event: Event) -> None:
        """Make later work of `stream` wait for `event`, without blocking the caller."""

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds of device time between two events made with `timing`; waits for `end`."""

    def synchronize(self) -> None:
        """Wait for all queued work. Raises the error of a kernel that failed."""

    def take_fault(self) -> int:
        """The code that a kernel left in the fault cell since the last call, else 0."""

    def load(self, image: bytes, entry: str, signature: str) -> Executable:
        """Load compiled code. `signature`: a letter an argument, p address, q int64, f float32, d float64."""


class DeviceOutOfMemory(Exception):
    """The driver has no such memory left. The pool turns it into OutOfMemory, with its books in the message."""
