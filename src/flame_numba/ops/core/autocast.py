"""The switch of mixed precision: which dtype matrix products run in, in this thread or task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...dtypes import DType, as_dtype, bfloat16, float16, float32
from ...errors import DTypeError

_DTYPE: ContextVar[DType | None] = ContextVar("flame_numba_autocast", default=None)


@contextmanager
def autocast(dtype: Any = bfloat16, enabled: bool = True) -> Iterator[None]:
    """`with autocast(bfloat16):` matrix products and convolutions take their operands in bf16 (or f16).

    Losses, softmax and norms take f32; other ops keep their inputs' dtype. Parameters stay as they are: the cast is
    an op of the graph, so their gradients come back in their own dtype. Raises DTypeError for other dtypes.
    """
    low = as_dtype(dtype)
    if low not in (bfloat16, float16):
        raise DTypeError(f"autocast: dtype must be bfloat16 or float16, got {low.name}")
    with autocast_to(low if enabled else None):
        yield


def autocast_dtype() -> DType | None:
    """What `autocast` lowers to here, if it is on."""
    return _DTYPE.get()


@contextmanager
def autocast_to(low: DType | None) -> Iterator[None]:
    """Set what `autocast_dtype` gives: a saved state."""
    token = _DTYPE.set(low)
    try:
        yield
    finally:
        _DTYPE.reset(token)


def cast_target(policy: str | None) -> DType | None:
    """The dtype that an op with this policy ("low", "high" or None) wants its floating inputs in, if any."""
    if policy is None:
        return None
    low = _DTYPE.get()
    if low is None:
        return None
    return low if policy == "low" else float32
