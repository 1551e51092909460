"""Inspection: what `__array_namespace_info__()` tells."""

from __future__ import annotations

from typing import Any

from ..devices import Device, cuda_device_count, current_device
from ..dtypes import INTEGERS, DType, bool_, default_float, default_int, float32, float64
from ..host_values import MAX_NUMPY_AXES
from .data_types import isdtype

_DTYPES = (bool_, *INTEGERS, float32, float64)  # those that the standard names


class Info:
    """What this namespace can do, its devices and dtypes."""

    def capabilities(self) -> dict[str, Any]:
        """Boolean masks and shapes that depend on data work; beyond 64 axes, NumPy could not show a tensor."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": MAX_NUMPY_AXES}

    def default_device(self) -> Device:
        """Where new tensors are made now: see `flame_numba.current_device`."""
        return current_device()

    def default_dtypes(self, *, device: Any = None) -> dict[str, DType]:
        """The dtypes of new tensors, by kind; the same on every device."""
        _check_device(device)
        return {"real floating": default_float, "integral": default_int, "indexing": default_int}

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, DType]:
        """The standard's dtypes that there are, by name, perhaps only those of a kind; the same on every device."""
        _check_device(device)
        return {d.name: d for d in _DTYPES if kind is None or isdtype(d, kind)}

    def devices(self) -> list[Device]:
        """The CPU device and all GPUs."""
        return [Device.cpu(), *(Device.cuda(n) for n in range(cuda_device_count()))]


def _check_device(device: Any) -> None:
    if device is not None:
        Device.parse(device)  # raises DeviceError for what is none


def __array_namespace_info__() -> Info:
    """An object that tells about this namespace."""
    return Info()
