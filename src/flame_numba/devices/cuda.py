"""An NVIDIA GPU, through the driver API of `cuda.bindings`. Every call is checked."""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from typing import Any

from cuda.bindings import driver

from ..errors import DeviceError, KernelError
from .base import Address, DeviceOutOfMemory, Event, LaunchConfig, MemoryInfo, Stream

_SUCCESS = driver.CUresult.CUDA_SUCCESS
_NO_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
_Attribute = driver.CUdevice_attribute
_STAGING_NBYTES = 16 << 20
_SLOTS = {"p": "q", "q": "q", "f": "f4x", "d": "d"}  # a kernel argument in eight bytes


def _describe(code: Any) -> str:
    _, text = driver.cuGetErrorString(code)
    return f"{getattr(code, 'name', code)}: {text.decode() if text else 'unknown error'}"


def _check(result: tuple[Any, ...], what: str) -> Any:
    code, *values = result
    if code is not _SUCCESS and code != _SUCCESS:
        if code == _NO_MEMORY:
            raise DeviceOutOfMemory(what)
        raise DeviceError(f"{what}: {_describe(code)}")
    return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def count_devices() -> int:
    """GPUs that the driver shows. Raises DeviceError, saying what to install, if there is no driver."""
    try:
        (code,) = driver.cuInit(0)
    except RuntimeError as error:  # cuda.bindings found no libcuda
        raise DeviceError("no NVIDIA driver is installed; install one to use a GPU") from error
    if code == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        return 0
    if code != _SUCCESS:
        raise DeviceError(f"the NVIDIA driver does not start ({_describe(code)}); check `nvidia-smi`")
    return int(_check(driver.cuDeviceGetCount(), "count GPUs"))


class CudaExecutable:
    """A loaded kernel, with a buffer for its arguments: packing and launching take no other memory."""

    def __init__(self, backend: CudaBackend, image: bytes, entry: str, signature: str) -> None:
        self.name = entry
        self._backend = backend
        backend.activate()
        try:
            self._module = _check(driver.cuModuleLoadData(image), f"load {entry}")
            self._function = _check(driver.cuModuleGetFunction(self._module, entry.encode()), f"find {entry}")
        except DeviceError as error:
            raise KernelError(str(error)) from None
        self._pack = struct.Struct("=" + "".join(_SLOTS[letter] for letter in signature)).pack_into
        self._values = ctypes.create_string_buffer(8 * max(len(signature), 1))
        start = ctypes.addressof(self._values)
        self._slots = (ctypes.c_void_p * max(len(signature), 1))(*(start + 8 * i for i in range(len(signature))))
        self._slots_address = ctypes.addressof(self._slots)
        self._lock = threading.Lock()

    def launch(self, config: LaunchConfig, args: tuple[int | float, ...], stream: Stream = 0) -> None:
        self._backend.activate()
        with self._lock:  # the driver copies the arguments before it returns
            self._pack(self._values, 0, *args)
            (code,) = driver.cuLaunchKernel(
                self._function,
                config[0], config[1], 1,
                config[2], 1, 1,
                config[3], stream, self._slots_address, 0,
            )  # fmt: skip
        if code is not _SUCCESS and code != _SUCCESS:
            raise KernelError(f"launch {self.name} {config}: {_describe(code)}")
        if self._backend.debug:
            self._finish()

    def _finish(self) -> None:
        try:
            self._backend.synchronize()
        except DeviceError as error:
            raise KernelError(f"{self.name}: {error}") from None


class CudaBackend:
    """See `Backend`. Uses the device's primary context, so that PyTorch, CuPy and Numba share it."""

    kind = "cuda"

    def __init__(self, ordinal: int) -> None:
        if ordinal >= count_devices():
            raise DeviceError(f"cuda:{ordinal} does not exist; the driver shows {count_devices()} GPU(s)")
        self.ordinal = ordinal
        self.debug = False
        self.lock = threading.RLock()
        self._device = _check(driver.cuDeviceGet(ordinal), "open the GPU")
        self._context = _check(driver.cuDevicePrimaryCtxRetain(self._device), "retain the primary context")
        self.activate()
        self.name: str = _check(driver.cuDeviceGetName(128, self._device), "name").split(b"\0")[0].decode()
        self.capability = (
            self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        suffix = "a" if self.capability >= (9, 0) else ""
        self.architecture = f"sm_{self.capability[0]}{self.capability[1]}{suffix}"
        self.multiprocessors = self._attribute(_Attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self._staging: Address = 0
        # host memory that kernels can write: read without a copy or a synchronisation
        self.fault_cell: Address = int(_check(driver.cuMemHostAlloc(64, 3), "allocate the fault cell"))
        self._fault = ctypes.c_int64.from_address(self.fault_cell)
        self._fault.value = 0

    def _attribute(self, attribute: Any) -> int:
        return int(_check(driver.cuDeviceGetAttribute(attribute, self._device), "device attribute"))

    def activate(self) -> None:
        """Make this device's context current in the calling thread."""
        if getattr(_ACTIVE, "ordinal", None) != self.ordinal:
            _check(driver.cuCtxSetCurrent(self._context), "set the context")
            _ACTIVE.ordinal = self.ordinal

    def allocate(self, nbytes: int) -> Address:
        self.activate()
        return int(_check(driver.cuMemAlloc(nbytes), f"cuMemAlloc of {nbytes} bytes"))

    def free(self, address: Address) -> None:
        self.activate()
        _check(driver.cuMemFree(address), "cuMemFree")

    def memory_info(self) -> MemoryInfo:
        self.activate()
        free, total = _check(driver.cuMemGetInfo(), "cuMemGetInfo")
        return MemoryInfo(int(free), int(total))

    def copy(self, target: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        if abs(target - source) >= nbytes:
            _check(driver.cuMemcpyDtoDAsync(target, source, nbytes, stream), "copy on the device")
        elif target != source:
            self._copy_overlapping(target, source, nbytes, stream)

    def _copy_overlapping(self, target: Address, source: Address, nbytes: int, stream: Stream) -> None:
        # the driver leaves overlapping copies undefined: go through a staging buffer, in the order that
        # reads each byte before it is written
        if not self._staging:
            self._staging = self.allocate(_STAGING_NBYTES)
        starts = range(0, nbytes, _STAGING_NBYTES)
        for start in starts if target < source else reversed(starts):
            size = min(_STAGING_NBYTES, nbytes - start)
            for to, of in ((self._staging, source + start), (target + start, self._staging)):
                _check(driver.cuMemcpyDtoDAsync(to, of, size, stream), "copy on the device")

    def upload(self, target: Address, host: Address, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        _check(driver.cuMemcpyHtoDAsync(target, host, nbytes, stream), "copy to the device")

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        _check(driver.cuMemcpyDtoHAsync(host, source, nbytes, stream), "copy to the host")
        _check(driver.cuStreamSynchronize(stream), "copy to the host")

    def fill(self, target: Address, byte: int, nbytes: int, stream: Stream = 0) -> None:
        self.activate()
        _check(driver.cuMemsetD8Async(target, byte, nbytes, stream), "fill")

    def new_stream(self) -> Stream:
        self.activate()
        return int(_check(driver.cuStreamCreate(0), "create a stream"))

    def record_event(self, stream: Stream = 0) -> Event:
        self.activate()
        event = _check(driver.cuEventCreate(0), "create an event")
        _check(driver.cuEventRecord(event, stream), "record an event")
        return event

    def event_done(self, event: Event) -> bool:
        (code,) = driver.cuEventQuery(event)
        if code == driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        _check((code,), "query an event")
        return True

    def wait_event(self, stream: Stream, event: Event) -> None:
        self.activate()
        _check(driver.cuStreamWaitEvent(stream, event, 0), "wait for an event")

    def elapsed_ms(self, start: Event, end: Event) -> float:
        _check(driver.cuEventSynchronize(end), "wait for an event")
        return float(_check(driver.cuEventElapsedTime(start, end), "time between events"))

    def synchronize(self) -> None:
        self.activate()
        _check(driver.cuCtxSynchronize(), "a kernel or copy failed")

    def take_fault(self) -> int:
        code, self._fault.value = int(self._fault.value), 0
        return code

    def load(self, image: bytes, entry: str, signature: str) -> CudaExecutable:
        return CudaExecutable(self, image, entry, signature)


_ACTIVE = threading.local()  # which context is current: a property of the thread, not of a backend
