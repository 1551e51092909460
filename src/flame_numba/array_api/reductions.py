"""Statistics, running sums and truth over axes, with the standard's signatures."""

from __future__ import annotations

from typing import Any

from ..ops import public as fn
from ..tensor import Tensor

Axis = int | tuple[int, ...] | None


def all(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.all`."""
    return fn.all(x, axis=axis, keepdims=keepdims)


def any(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.any`."""
    return fn.any(x, axis=axis, keepdims=keepdims)


def count_nonzero(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.count_nonzero`."""
    return fn.count_nonzero(x, axis=axis, keepdims=keepdims)


def cumulative_prod(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """`flame_numba.cumulative_prod`; the axis may be left out of a 1-d tensor."""
    return fn.cumulative_prod(x, axis=axis, dtype=dtype, include_initial=include_initial)


def cumulative_sum(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """`flame_numba.cumulative_sum`; the axis may be left out of a 1-d tensor."""
    return fn.cumulative_sum(x, axis=axis, dtype=dtype, include_initial=include_initial)


def diff(x: Tensor, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Tensor:
    """`flame_numba.diff`."""
    return fn.diff(x, axis=axis, n=n, prepend=prepend, append=append)


def max(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.max`."""
    return fn.max(x, axis=axis, keepdims=keepdims)


def mean(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.mean`."""
    return fn.mean(x, axis=axis, keepdims=keepdims)


def min(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.min`."""
    return fn.min(x, axis=axis, keepdims=keepdims)


def prod(x: Tensor, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.prod`."""
    return fn.prod(x, axis=axis, keepdims=keepdims, dtype=dtype)


def std(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """`flame_numba.std`."""
    return fn.std(x, axis=axis, keepdims=keepdims, correction=correction)


def sum(x: Tensor, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.sum`."""
    return fn.sum(x, axis=axis, keepdims=keepdims, dtype=dtype)


def var(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """`flame_numba.var`."""
    return fn.var(x, axis=axis, keepdims=keepdims, correction=correction)


__all__ = [
    "all", "any", "count_nonzero", "cumulative_prod", "cumulative_sum", "diff", "max", "mean", "min", "prod", "std",
    "sum", "var",
]  # fmt: skip
