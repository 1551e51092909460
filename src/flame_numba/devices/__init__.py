"""Machines that hold memory and run kernels. The only code that touches a driver."""

from .base import Backend, DeviceOutOfMemory, Executable, LaunchConfig, LaunchLimits, MemoryInfo
from .current import current_stream
from .device import Device, cuda_device_of, current_device, default_device
from .open import cuda_device_count, explain_missing_cuda
from .streams import Event, Stream

__all__ = [
    "Backend",
    "Device",
    "DeviceOutOfMemory",
    "Event",
    "Executable",
    "LaunchConfig",
    "LaunchLimits",
    "MemoryInfo",
    "Stream",
    "cuda_device_count",
    "cuda_device_of",
    "current_device",
    "current_stream",
    "default_device",
    "explain_missing_cuda",
]
