"""Calls of the CUDA driver through `cuda.bindings`: every result is checked."""

from __future__ import annotations

import functools
from typing import Any

from cuda.bindings import driver

from ...errors import DeviceError
from ..base import DeviceOutOfMemory

SUCCESS = driver.CUresult.CUDA_SUCCESS
_NO_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY


def describe(code: Any) -> str:
    """A result code by name and in words."""
    _, text = driver.cuGetErrorString(code)
    return f"{getattr(code, 'name', code)}: {text.decode() if text else 'unknown error'}"


def check(result: tuple[Any, ...], what: str) -> Any:
    """What a call returned besides its code. Raises DeviceOutOfMemory or DeviceError, saying `what` failed."""
    code, *values = result
    if code is not SUCCESS and code != SUCCESS:
        if code == _NO_MEMORY:
            raise DeviceOutOfMemory(what)
        raise DeviceError(f"{what}: {describe(code)}")
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
    if code != SUCCESS:
        raise DeviceError(f"the NVIDIA driver does not start ({describe(code)}); check `nvidia-smi`")
    return int(check(driver.cuDeviceGetCount(), "count GPUs"))


def device_of(address: int) -> int:
    """The ordinal of the GPU whose memory an address is. Raises DeviceError if the driver does not know it."""
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(check(driver.cuPointerGetAttribute(kind, address), f"ask whose memory {address:#x} is"))
