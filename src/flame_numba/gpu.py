"""`fn.cuda`: what GPUs there are, their streams, and a debug switch."""

from __future__ import annotations

from .devices import Device, Event, MemoryInfo, Stream, cuda_device_count, current_device, explain_missing_cuda

__all__ = [
    "Event",
    "Stream",
    "current_stream",
    "debug",
    "default_stream",
    "device_count",
    "is_available",
    "memory_info",
    "new_stream",
    "synchronize",
    "why_unavailable",
]


def is_available() -> bool:
    """Whether an NVIDIA GPU can be used."""
    return cuda_device_count() > 0


def device_count() -> int:
    """How many GPUs the driver shows; 0 without a driver."""
    return cuda_device_count()


def why_unavailable() -> str:
    """One sentence that says what is missing and what to install; '' if nothing is."""
    return explain_missing_cuda()


def debug(enabled: bool = True, device: Device | None = None) -> None:
    """Synchronise after each launch, so that a CUDA error is raised at the op that made it. Slow."""
    (device or Device.cuda(0)).backend.debug = enabled


def synchronize(device: Device | None = None) -> None:
    """Wait for all work queued on a GPU."""
    (device or Device.cuda(0)).synchronize()


def memory_info(device: Device | None = None) -> MemoryInfo:
    """Free and total bytes of a GPU, as the driver reports them."""
    return (device or Device.cuda(0)).memory_info()


def new_stream(device: Device | None = None) -> Stream:
    """A new stream of `device`, by default the current device."""
    return (device or current_device()).new_stream()


def current_stream(device: Device | None = None) -> Stream:
    """The stream that work of `device` (by default the current one) goes to now, in this thread or task."""
    return (device or current_device()).current_stream()


def default_stream(device: Device | None = None) -> Stream:
    """Stream 0 of `device`, by default the current device: where work goes unless `with stream:` says otherwise."""
    return Stream.from_handle(device or current_device(), 0)
