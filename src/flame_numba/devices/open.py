"""From the kind of a device to its machine, opened once a process. The one table of machines that there are."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import DeviceError
from .base import Backend
from .native import keep_for_ever


class Place(Protocol):
    """What of a device says which machine it is."""

    kind: str
    ordinal: int
    memory: int

    def _key(self) -> tuple[Any, ...]: ...


_BACKENDS: dict[tuple[Any, ...], Backend] = {}
_LOCK = threading.RLock()  # re-entrant: opening page-locked memory opens its device


def open_backend(place: Place) -> Backend:
    """The machine of a device. Raises DeviceError with what to install if it is absent."""
    with _LOCK:
        key = place._key()
        if key not in _BACKENDS:
            # its memory too: a daemon thread may use it while Python ends
            _BACKENDS[key] = keep_for_ever(OPENERS[place.kind](place))
        return _BACKENDS[key]


def _cuda(place: Place) -> Backend:
    missing = explain_missing_cuda()
    if missing:
        raise DeviceError(f"{place}: {missing}")
    from .cuda.backend import CudaBackend

    return CudaBackend(place.ordinal)


def _cpu(place: Place) -> Backend:
    from .host import HostBackend

    return HostBackend()


def _simulated(place: Place) -> Backend:
    from .simulated import SimulatedBackend

    return SimulatedBackend(place.memory)


def _pinned(place: Any) -> Backend:
    from .pinned import PinnedBackend

    return PinnedBackend(place.owner.backend)


OPENERS: dict[str, Callable[[Any], Backend]] = {
    "cuda": _cuda,
    "cpu": _cpu,
    "simulated": _simulated,
    "pinned": _pinned,
}


@functools.cache
def explain_missing_cuda() -> str:
    """Why there is no CUDA here, in one sentence that says what to install; '' if there is."""
    try:
        from .cuda.calls import count_devices
    except ImportError as error:
        return f"the package cuda-bindings cannot be imported ({error}); install flame-numba[cu13] or [cu12]"
    try:
        found = count_devices()
    except DeviceError as error:
        return str(error)
    return "" if found else "the NVIDIA driver shows no GPU; check `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def cuda_device_count() -> int:
    """How many GPUs there are; 0 without a driver."""
    if explain_missing_cuda():
        return 0
    from .cuda.calls import count_devices

    return count_devices()
