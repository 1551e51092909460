"""Which tile, which element: divisions with their remainders."""

from __future__ import annotations

from ..language import udiv


def divide(a: int, b: int) -> tuple[int, int]:
    """(a // b, a % b) for a ≥ 0, b > 0."""
    quotient = udiv(a, b)
    return quotient, a - quotient * b


def ceiling(a: int, b: int) -> int:
    """a / b rounded up: how many parts of b cover a."""
    return udiv(a + b - 1, b)
