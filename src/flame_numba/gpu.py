"""`fn.cuda`: what GPUs there are, and a debug switch."""

from __future__ import annotations

from .devices import Device, cuda_device_count, explain_missing_cuda


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
