"""What kernels found wrong: they leave a code in a cell, and the host raises its error when it next waits for them."""

from __future__ import annotations

from .devices import Device
from .errors import FlameError, IndexOutOfRange

FAULTS: list[tuple[type[FlameError], str]] = [(IndexOutOfRange, "no fault")]  # code → what a kernel found wrong


def raise_fault(device: Device) -> None:
    """Raise the error that a kernel has left on the device, if one has."""
    code = device.backend.take_fault()
    if code:
        raise fault_error(code)


def fault_error(code: int) -> FlameError:
    """The error of a code that a kernel left."""
    kind, text = FAULTS[code]
    return kind(text)
