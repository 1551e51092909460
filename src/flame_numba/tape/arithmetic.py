"""The arithmetic that differentiation needs of the ops. They are built upon it, so they hand it down as one value."""

from __future__ import annotations

from typing import Protocol

from ..errors import GradientError
from ..tensor import Tensor


class Arithmetic(Protocol):
    """What is done with gradients beside the rules. Results are recorded where `is_recording` says so."""

    def ones_like(self, x: Tensor) -> Tensor:
        """The gradient that a backward pass begins with."""

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of two gradients of one tensor."""

    def add_into(self, total: Tensor, part: Tensor) -> bool:
        """total += part, rounded as `add` is; False where that cannot be done in place."""

    def clone(self, x: Tensor) -> Tensor:
        """The same elements in memory of their own."""

    def has_nan(self, x: Tensor) -> bool:
        """Whether some element is a NaN. Waits for the device."""

    def has_infinity(self, x: Tensor) -> bool:
        """Whether some element is infinite. Waits for the device."""


_SUPPLIED: list[Arithmetic] = []


def supply(arithmetic: Arithmetic) -> None:
    """Hand down the arithmetic, once, by whoever has the ops."""
    _SUPPLIED[:] = [arithmetic]


def supplied() -> Arithmetic:
    """What was handed down. Raises GradientError before any op was imported."""
    if not _SUPPLIED:
        raise GradientError("gradients need the ops: import flame_numba before its parts")
    return _SUPPLIED[0]
