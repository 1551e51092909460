"""What the kernels of rows share: the threads of a block that has a row, and a mean's correction."""

from __future__ import annotations

from ..language import C, Number


def row_threads(n: int) -> int:
    """Threads for a row: enough to keep the memory busy, no more than it has work for."""
    return 32 if n <= 256 else 256


def corrected(total: Number, rest: Number, n: Number) -> Number:
    """The squared distances from a mean that was rounded, and is off by `rest`: less n·rest², not below 0; NaN stays.

    A kernel adds `rest`, the mean of what is left, to the mean as well: equal elements become 0.
    """
    total -= rest * rest * n
    return total if total > C(0) or total != total else C(0)
