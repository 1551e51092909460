"""`Device`: a small value that names a machine, and the context variable that says which one is the default."""

from __future__ import annotations

import functools
import operator
import re
from contextvars import ContextVar
from typing import Any

from ..errors import DeviceError
from .base import Backend, MemoryInfo
from .open import cuda_device_count, explain_missing_cuda, open_backend
from .streams import Stream

_NAME = re.compile(r"(cpu|cuda)(?::([0-9]+))?")
_ENTERED: ContextVar[tuple[Device, ...]] = ContextVar("flame_numba_device", default=())


class Device:
    """A machine: `Device.cuda(n)`, `Device.cpu()` or `Device.simulated(nbytes)`.

    Two devices are equal if they name the same machine. `with device:` makes it the default for
    new tensors in this thread or task. Creating one touches no driver; using it does.
    """

    __slots__ = ("_backend", "kind", "memory", "ordinal")

    def __init__(self, kind: str, ordinal: int = 0, memory: int = 0) -> None:
        if kind not in ("cuda", "cpu", "simulated"):
            raise DeviceError(f"device: kind must be 'cuda', 'cpu' or 'simulated', got {kind!r}")
        self.kind = kind
        self.ordinal = _count("ordinal", ordinal)
        self.memory = _count("memory", memory)
        if ordinal and kind == "cpu":
            raise DeviceError(f"device: there is one CPU device, of ordinal 0, got {ordinal}")
        self._backend: Backend | None = None

    @classmethod
    def cuda(cls, ordinal: int = 0) -> Device:
        """The n-th NVIDIA GPU that the driver shows."""
        return cls("cuda", ordinal)

    @classmethod
    def cpu(cls) -> Device:
        """The host: the same kernels, compiled for its processor."""
        return cls("cpu")

    @classmethod
    def simulated(cls, memory: int = 1 << 40) -> Device:
        """Addresses without memory, `memory` bytes of them, for work on the allocator. Runs no kernel."""
        return cls("simulated", 0, memory)

    @classmethod
    def parse(cls, value: Device | str) -> Device:
        """A Device from a Device, PyTorch's device, or a name: 'cpu', 'cuda', 'cuda:1'."""
        if isinstance(value, Device):
            return value
        if type(value).__name__ == "device" and hasattr(value, "type"):  # PyTorch's
            value = str(value)
        found = _NAME.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise DeviceError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {value!r}")
        return cls(found[1], int(found[2] or 0))

    @property
    def backend(self) -> Backend:
        """The machine itself, opened at first use. Raises DeviceError with what to install if it is absent."""
        if self._backend is None:
            self._backend = open_backend(self)
        return self._backend

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def capability(self) -> tuple[int, int] | None:
        """CUDA compute capability, such as (9, 0); None off CUDA."""
        return getattr(self.backend, "capability", None)

    def memory_info(self) -> MemoryInfo:
        """Free and total bytes, as the driver reports them."""
        return self.backend.memory_info()

    def synchronize(self) -> None:
        """Wait for all queued work of this device."""
        self.backend.synchronize()

    def new_stream(self) -> Stream:
        """A stream: work on it runs beside that of other streams."""
        return Stream.new(self)

    def current_stream(self) -> Stream:
        """The stream that work of this device goes to now, in this thread or task."""
        return Stream.current(self)

    @property
    def pinned(self) -> Device:
        """This device's page-locked host memory, as a place for a pool: `MemoryPool(device.pinned, …)`."""
        return PinnedDevice(self)

    def __enter__(self) -> Device:
        _ENTERED.set((*_ENTERED.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        _ENTERED.set(_ENTERED.get()[:-1])

    def _key(self) -> tuple[Any, ...]:
        return (self.kind, self.ordinal, self.memory)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Device) and self._key() == other._key())

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> Any:
        return Device, (self.kind, self.ordinal, self.memory)  # which machine, not its backend

    def __repr__(self) -> str:
        return f"Device.cuda({self.ordinal})" if self.kind == "cuda" else f"Device.{self.kind}()"

    def __str__(self) -> str:
        return f"cuda:{self.ordinal}" if self.kind == "cuda" else self.kind


def _count(name: str, value: Any) -> int:
    """The value as an int ≥ 0. Raises DeviceError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise DeviceError(f"device: {name} must be an integer ≥ 0, got {value!r}")
    return number


class PinnedDevice(Device):
    """The page-locked host memory of `owner`, as a place for pools: `device.pinned`. Holds no tensors."""

    __slots__ = ("owner",)

    def __init__(self, owner: Device) -> None:
        self.kind = "pinned"
        self.ordinal = owner.ordinal
        self.memory = owner.memory
        self.owner = owner
        self._backend = None

    def _key(self) -> tuple[Any, ...]:
        return ("pinned", *self.owner._key())

    def __reduce__(self) -> Any:
        return PinnedDevice, (self.owner,)

    def __repr__(self) -> str:
        return f"{self.owner!r}.pinned"

    def __str__(self) -> str:
        return f"{self.owner} (page-locked)"


def cuda_device_of(address: int) -> Device:
    """The GPU that an address belongs to. Raises DeviceError without a GPU, or for memory unknown to the driver."""
    missing = explain_missing_cuda()
    if missing:
        raise DeviceError(f"cuda: {missing}")
    if cuda_device_count() == 1:
        return Device.cuda(0)
    from .cuda.calls import device_of

    return Device.cuda(device_of(address))


@functools.cache
def _first_choice() -> Device:
    return Device.cpu() if explain_missing_cuda() else Device.cuda(0)


def current_device() -> Device:
    """The device of the innermost `with device:`, else `cuda:0` if there is a GPU, else the CPU."""
    entered = _ENTERED.get()
    return entered[-1] if entered else _first_choice()


default_device = current_device
