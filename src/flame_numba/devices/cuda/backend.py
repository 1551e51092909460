"""An NVIDIA GPU, through the driver API of `cuda.bindings`. Every call is checked."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
import threading
from typing import Any

from cuda.bindings import driver

from ...errors import DeviceError, KernelError
from ..base import Address, DeviceOutOfMemory, Event, LaunchConfig, LaunchLimits, MemoryInfo, Stream
from .calls import SUCCESS, check, count_devices, describe
from .virtual import CudaVirtualMemory

_Attribute = driver.CUdevice_attribute
_STAGING_NBYTES = 16 << 20
_HOST_FLAGS = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
_NON_BLOCKING = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
_NO_TIMING = int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
_SPARE_EVENTS = 1024
_TAKEN_AT_ONCE = 64 << 10  # bytes of plain memory that the driver copies aside instead of waiting for the stream
_BUFFER_ID = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_BUFFER_ID  # of memory that the driver knows
_WRONG_CONTEXT = (
    driver.CUresult.CUDA_ERROR_INVALID_CONTEXT,
    driver.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,
    driver.CUresult.CUDA_ERROR_INVALID_HANDLE,
)
_SLOTS = {"p": "q", "q": "q", "f": "f4x", "d": "d"}  # a kernel argument in eight bytes


class CudaExecutable:
    """A loaded kernel, with a buffer for its arguments: packing and launching take no other memory.

    The buffer is shared by all threads: who launches holds the backend's lock.
    """

    def __init__(self, backend: CudaBackend, image: bytes, entry: str, signature: str) -> None:
        self.name = entry
        self._backend = backend
        backend.activate()
        try:
            self._module = check(driver.cuModuleLoadData(image), f"load {entry}")
            self._function = check(driver.cuModuleGetFunction(self._module, entry.encode()), f"find {entry}")
        except (DeviceError, DeviceOutOfMemory) as error:
            raise KernelError(str(error)) from None
        self._pack = struct.Struct("=" + "".join(_SLOTS[letter] for letter in signature)).pack_into
        self._values = ctypes.create_string_buffer(8 * max(len(signature), 1))
        start = ctypes.addressof(self._values)
        self._slots = (ctypes.c_void_p * max(len(signature), 1))(*(start + 8 * i for i in range(len(signature))))
        self._slots_address = ctypes.addressof(self._slots)

    def launch(self, config: LaunchConfig, args: tuple[int | float, ...], stream: Stream = 0) -> None:
        self._backend.activate_once()
        self._pack(self._values, 0, *args)  # the driver copies them before it returns
        code = self._queue(config, stream)
        if code in _WRONG_CONTEXT:  # another library made its own current in this thread
            self._backend.activate()
            code = self._queue(config, stream)
        if code is not SUCCESS and code != SUCCESS:
            raise KernelError(f"launch {self.name} {config}: {describe(code)}")
        if self._backend.debug:
            self._finish()

    def _queue(self, config: LaunchConfig, stream: Stream) -> Any:
        return driver.cuLaunchKernel(
            self._function,
            config[0], config[1], config[4],
            config[2], config[5], config[6],
            config[3], stream, self._slots_address, 0,
        )[0]  # fmt: skip

    def allow_shared(self, nbytes: int) -> None:
        """Let launches ask for so much dynamic shared memory: beyond 48 KiB the driver wants to be told."""
        self._backend.activate()
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        try:
            check(driver.cuFuncSetAttribute(self._function, attribute, nbytes), f"{nbytes} bytes of shared memory")
        except (DeviceError, DeviceOutOfMemory) as error:
            raise KernelError(f"{self.name}: {error}") from None

    def _finish(self) -> None:
        try:
            self._backend.synchronize()
        except DeviceError as error:
            raise KernelError(f"{self.name}: {error}") from None


class _TimedEvent(driver.CUevent):  # type: ignore[misc]
    """An event that notes when it was reached; a class of its own tells it apart without asking the driver."""


class CudaBackend(CudaVirtualMemory):
    """See `Backend`. Uses the device's primary context, so that PyTorch, CuPy and Numba share it."""

    kind = "cuda"

    def __init__(self, ordinal: int) -> None:
        if ordinal >= count_devices():
            raise DeviceError(f"cuda:{ordinal} does not exist; the driver shows {count_devices()} GPU(s)")
        self.ordinal = ordinal
        self.debug = False
        self.lock = threading.RLock()
        self.streams_used = False
        self._device = check(driver.cuDeviceGet(ordinal), "open the GPU")
        self._context = check(driver.cuDevicePrimaryCtxRetain(self._device), "retain the primary context")
        self.activate()
        self.name: str = check(driver.cuDeviceGetName(128, self._device), "name").split(b"\0")[0].decode()
        self.capability = (
            self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        suffix = "a" if self.capability >= (9, 0) else ""
        self.architecture = f"sm_{self.capability[0]}{self.capability[1]}{suffix}"
        self.multiprocessors = self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.copy_rate = self._estimate_copy_rate()
        self._open_virtual(ordinal, self._device)
        self._spare_events: list[Event] = []
        self.spare_streams: list[Stream] = []
        self._own_streams: set[Stream] = set()  # all that were made: none is destroyed
        self._staging: Address = 0
        self._staging_free: Event = None  # its last use
        self._reserve_staging()
        # host memory that kernels can write: read without a copy or a synchronisation
        self.fault_cell: Address = self.allocate_host(64)
        self._fault = ctypes.c_int64.from_address(self.fault_cell)
        self._fault.value = 0

    @functools.cached_property
    def limits(self) -> LaunchLimits:
        """The largest launch, as the driver tells it."""
        axes = ("X", "Y", "Z")
        block = [self._attribute(getattr(_Attribute, f"CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_{a}")) for a in axes]
        grid = [self._attribute(getattr(_Attribute, f"CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_{a}")) for a in axes]
        threads = self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
        shared = self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        return LaunchLimits(threads, tuple(block), tuple(grid), shared)  # type: ignore[arg-type]

    def _attribute(self, attribute: Any) -> int:
        return int(check(driver.cuDeviceGetAttribute(attribute, self._device), "device attribute"))

    def _estimate_copy_rate(self) -> int:
        """Two transfers a clock, half of them reads, of which a copy reaches some 85 %."""
        clock_khz = self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
        bus_bits = self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)
        return int(0.85 * clock_khz * 1000 * bus_bits / 8) or 100_000_000_000  # some machines do not tell

    def activate(self) -> None:
        """Make this device's context current in the calling thread, whatever others made current there."""
        code, current = driver.cuCtxGetCurrent()
        if code != SUCCESS or int(current) != int(self._context):
            check(driver.cuCtxSetCurrent(self._context), "set the context")
        _ACTIVE.ordinal = self.ordinal

    def activate_once(self) -> None:
        """`activate` for launches, which are many: asks only what this library did in the calling thread."""
        if getattr(_ACTIVE, "ordinal", None) != self.ordinal:
            self.activate()

    def allocate(self, nbytes: int) -> Address:
        self.activate()
        return int(check(driver.cuMemAlloc(nbytes), f"cuMemAlloc of {nbytes} bytes"))

    def free(self, address: Address) -> None:
        self.activate()
        check(driver.cuMemFree(address), "cuMemFree")

    def allocate_host(self, nbytes: int) -> Address:
        self.activate()
        return int(check(driver.cuMemHostAlloc(nbytes, _HOST_FLAGS), f"cuMemHostAlloc of {nbytes} bytes"))

    def free_host(self, address: Address) -> None:
        self.activate()
        check(driver.cuMemFreeHost(address), "cuMemFreeHost")

    def memory_info(self) -> MemoryInfo:
        self.activate()
        free, total = check(driver.cuMemGetInfo(), "cuMemGetInfo")
        return MemoryInfo(int(free), int(total))

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        if abs(target - source) >= nbytes:
            check(driver.cuMemcpyDtoDAsync(target, source, nbytes, stream), "copy on the device")
        elif target != source:
            self._copy_overlapping(target, source, nbytes, stream)

    def _copy_overlapping(self, target: Address, source: Address, nbytes: int, stream: Stream) -> None:
        # the driver leaves overlapping copies undefined: go through a staging buffer, in the order that
        # reads each byte before it is written
        starts = range(0, nbytes, _STAGING_NBYTES)
        with self.lock:
            self._take_staging(stream)
            for start in starts if target < source else reversed(starts):
                size = min(_STAGING_NBYTES, nbytes - start)
                for to, of in ((self._staging, source + start), (target + start, self._staging)):
                    check(driver.cuMemcpyDtoDAsync(to, of, size, stream), "copy on the device")
            self._staging_free = self.record_event(stream)

    def _take_staging(self, stream: Stream) -> None:
        """Order the staging buffer's next use, on `stream`, behind its last one."""
        if not self._staging:
            self._staging = self.allocate(_STAGING_NBYTES)
        if self._staging_free is not None:
            self.wait_event(stream, self._staging_free)
            self.destroy_event(self._staging_free)
            self._staging_free = None

    def _reserve_staging(self) -> None:
        """Allocate the staging buffer while there is memory: moves are made when there is none."""
        with contextlib.suppress(DeviceOutOfMemory):  # if others fill this GPU, the first overlapping copy tries again
            self._staging = self.allocate(_STAGING_NBYTES)

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        locked = _is_page_locked(host)
        if not locked and nbytes > _TAKEN_AT_ONCE:
            self.synchronize_stream(stream)  # without the driver's lock, which it would hold while it waits to read
        self.upload_async(target, host, nbytes, stream)
        # the driver returns when it has read the bytes, but for page-locked memory: that it reads when it gets there
        if locked:
            check(driver.cuStreamSynchronize(stream), "copy to the device")

    def upload_async(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        check(driver.cuMemcpyHtoDAsync(target, host, nbytes, stream), "copy to the device")

    def download_async(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        if not _is_page_locked(host):
            self.synchronize_stream(stream)  # as above: other threads launch while this one waits
        check(driver.cuMemcpyDtoHAsync(host, source, nbytes, stream), "copy to the host")

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self.download_async(host, source, nbytes, stream)
        check(driver.cuStreamSynchronize(stream), "copy to the host")

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        check(driver.cuMemsetD8Async(target, byte, nbytes, stream), "fill")

    def new_stream(self) -> Stream:
        try:
            return self.spare_streams.pop()
        except IndexError:
            self.activate()
            stream = int(check(driver.cuStreamCreate(_NON_BLOCKING), "create a stream"))
            self._own_streams.add(stream)
            return stream

    def owns_stream(self, stream: Stream) -> bool:
        return stream in self._own_streams

    def destroy_stream(self, stream: Stream) -> None:
        # kept for the next `new_stream`: pools know streams by number, and asking for one that is gone is undefined
        self.spare_streams.append(stream)

    def synchronize_stream(self, stream: Stream) -> None:
        self.activate()
        check(driver.cuStreamSynchronize(stream), "a kernel or copy failed")

    def record_all(self) -> Event:
        event = self._new_event()
        try:
            (code,) = driver.cuCtxRecordEvent(self._context, event)
        except (AttributeError, RuntimeError):  # bindings or a driver before CUDA 12.5
            code = None
        if code != SUCCESS:
            self.synchronize()  # then all has happened, and the mark may stand in any stream
            check(driver.cuEventRecord(event, 0), "record an event")
        return event

    def record_event(self, stream: Stream = 0, timing: bool = False) -> Event:
        event = self._new_event(timing)
        check(driver.cuEventRecord(event, stream), "record an event")
        return event

    def _new_event(self, timing: bool = False) -> Event:
        self.activate()
        try:
            return self._spare_events.pop() if not timing else self._timed_event()
        except IndexError:
            return check(driver.cuEventCreate(_NO_TIMING), "create an event")

    def _timed_event(self) -> _TimedEvent:
        return _TimedEvent(int(check(driver.cuEventCreate(0), "create an event")))

    def destroy_event(self, event: Event) -> None:
        if event.__class__ is not _TimedEvent and len(self._spare_events) < _SPARE_EVENTS:
            self._spare_events.append(event)
        else:
            self.activate()
            check(driver.cuEventDestroy(event), "destroy an event")

    def event_done(self, event: Event) -> bool:
        self.activate()
        (code,) = driver.cuEventQuery(event)
        if code == driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        check((code,), "query an event")
        return True

    def synchronize_event(self, event: Event) -> None:
        self.activate()
        check(driver.cuEventSynchronize(event), "wait for an event")

    def wait_event(self, stream: Stream, event: Event) -> None:
        self.activate()
        check(driver.cuStreamWaitEvent(stream, event, 0), "wait for an event")

    def elapsed_ms(self, start: Event, end: Event) -> float:
        self.synchronize_event(end)
        return float(check(driver.cuEventElapsedTime(start, end), "time between events"))

    def synchronize(self) -> None:
        self.activate()
        check(driver.cuCtxSynchronize(), "a kernel or copy failed")

    def take_fault(self) -> int:
        code, self._fault.value = int(self._fault.value), 0
        return code

    def load(self, image: bytes, entry: str, signature: str) -> CudaExecutable:
        return CudaExecutable(self, image, entry, signature)


def _is_page_locked(host: Address) -> bool:
    return bool(driver.cuPointerGetAttribute(_BUFFER_ID, host)[0] == SUCCESS)


_ACTIVE = threading.local()  # which context is current: a property of the thread, not of a backend
