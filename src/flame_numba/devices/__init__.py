"""Machines that hold memory and run kernels. The only code that touches a driver."""

from .base import Backend, DeviceOutOfMemory, Executable, LaunchConfig, MemoryInfo
from .device import Device, cuda_device_count, current_device, default_device, explain_missing_cuda

__all__ = [
    "Backend",
    "Device",
    "DeviceOutOfMemory",
    "Executable",
    "LaunchConfig",
    "MemoryInfo",
    "cuda_device_count",
    "current_device",
    "default_device",
    "explain_missing_cuda",
]
