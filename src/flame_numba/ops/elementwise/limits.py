"""Limits and comparisons with keywords: clip, nan_to_num, addcmul, isclose. Each is a formula behind a signature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ...dtypes import ALL, FLOATS, INTEGERS, DType, bool_, float64
from ...kernels.elementwise import formula as f
from ...tensor import Tensor
from ..core.formula_op import Elementwise
from ..core.launch import check_element, same_device
from ..core.table import case, composite
from ..shape.creation import full
from .arithmetic import equal, positive

_NUMBERS = FLOATS + INTEGERS
_TRUTH_VALUED = "its result is a truth value"


def _formula(
    name: str, names: str, function: Callable[..., Any], accepts: tuple[DType, ...] = _NUMBERS, result: str = "same"
) -> Elementwise:
    operands = names.split()
    return Elementwise(name, operands, f.trace(function, operands), accepts=accepts, result=result)


# --- limits -----------------------------------------------------------------------------------------------------------
def _above(x: Any, low: Any) -> Any:
    return f.where(f.logical_or(x < low, f.isnan(low)), low, x)


def _below(x: Any, high: Any) -> Any:
    return f.where(f.logical_or(x > high, f.isnan(high)), high, x)


_ABOVE = _formula("clip", "x min", _above)
_BELOW = _formula("clip", "x max", _below)
_BETWEEN = _formula("clip", "x min max", lambda x, low, high: _below(_above(x, low), high))


def _clip(x: Any, min: Any = None, max: Any = None) -> Any:
    return np.array(x) if min is None and max is None else np.clip(x, min, max)


@composite(
    _clip,
    [
        case((3, 4), -1, 1), case((2, 3), (3,), None), case((5,), max=0), case((), min=0), case((0,), 0, 1),
        case((3, 1), (1, 4), (3, 4)), case((4,)), case((4,), 1, 0),
    ],
    test_dtypes=(*FLOATS, *INTEGERS[:4]), ulps=0,
)  # fmt: skip
def clip(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    """x held between min and max, tensors (broadcast) or numbers; None is no limit. Where min > max the result is max.

    NaN stays NaN, and a NaN limit makes one. The gradient goes to x where x is within the limits or at one, else to
    the limit. One kernel.
    """
    if min is None:
        return positive(x) if max is None else _BELOW(x, max)
    return _ABOVE(x, min) if max is None else _BETWEEN(x, min, max)


clamp = clip


_NAN_TO_NUM = _formula(
    "nan_to_num",
    "x nan posinf neginf",
    lambda x, nan, high, low: f.where(
        f.isnan(x), nan, f.where(f.equal(x, math.inf), high, f.where(f.equal(x, -math.inf), low, x))
    ),
    FLOATS,
)
_STRANGE = np.array([np.nan, np.inf, -np.inf, 1.5, -0.0])


def _nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    return np.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


@composite(
    _nan_to_num,
    [case(_STRANGE, 2.0, 3.0, 4.0), case(_STRANGE, posinf=1.0, neginf=-1.0), case((2, 3)), case((0,)), case(())],
    ulps=0,
)
def nan_to_num(x: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """x with numbers for NaN and the infinities; by default 0 and the largest and smallest number of the dtype."""
    if not x.dtype.is_floating:
        return positive(x)
    limits = ml_dtypes.finfo(x.dtype.numpy)
    high = float(limits.max) if posinf is None else posinf
    low = float(limits.min) if neginf is None else neginf
    return _NAN_TO_NUM(x, nan, high, low)


# --- two products -----------------------------------------------------------------------------------------------------
_ADDCMUL = _formula("addcmul", "x a b value", lambda x, a, b, value: x + value * a * b)
_ADDCDIV = _formula("addcdiv", "x a b value", lambda x, a, b, value: x + value * a / b, FLOATS)


@composite(
    lambda x, a, b, value=1: x + value * a * b,
    [case((3, 4), (3, 4), (3, 4)), case((3, 4), (4,), (3, 1), value=2), case((), (2,), ()), case((0,), (0,), (1,))],
    test_dtypes=(*FLOATS, *INTEGERS[:4]),
)
def addcmul(x: Tensor, a: Tensor | float, b: Tensor | float, value: float = 1) -> Tensor:
    """x + value·a·b, broadcast, in one kernel and with one rounding to a 2-byte dtype."""
    return _ADDCMUL(x, a, b, value)


@composite(
    lambda x, a, b, value=1: x + value * a / b,
    [case((3, 4), (3, 4), np.full((3, 4), 1.5)), case((3, 4), (4,), np.array([-2.0]), value=0.5)],
)
def addcdiv(x: Tensor, a: Tensor | float, b: Tensor | float, value: float = 1) -> Tensor:
    """x + value·a / b, broadcast, in one kernel and with one rounding to a 2-byte dtype. Floating dtypes only."""
    return _ADDCDIV(x, a, b, value)


# --- comparisons ------------------------------------------------------------------------------------------------------
def _close(x: Any, y: Any, rtol: Any, atol: Any) -> Any:
    size = f.apply("abs", y)
    near = f.logical_and(size < math.inf, f.apply("abs", x - y) <= atol + rtol * size)
    return f.logical_or(f.equal(x, y), near)


def _close_or_nan(x: Any, y: Any, rtol: Any, atol: Any) -> Any:
    return f.logical_or(_close(x, y, rtol, atol), f.logical_and(f.isnan(x), f.isnan(y)))


_ISCLOSE = _formula("isclose", "x y rtol atol", _close, FLOATS, "bool")
_ISCLOSE_OR_NAN = _formula("isclose", "x y rtol atol", _close_or_nan, FLOATS, "bool")
_NEAR = np.array([1.0, 1.0, np.inf, np.inf, np.nan, 0.0, 2.0**20, 5.0])
_TO = np.array([1.0 + 2.0**-7, 1.5, np.inf, -np.inf, np.nan, -0.0, 2.0**20, np.inf])


@composite(
    np.isclose,
    [
        case(_NEAR, _TO, rtol=0.01), case(_NEAR, _TO, equal_nan=True), case(_NEAR, _TO, 0.0, 1.0), case((3, 4), (4,)),
        case((3,), 0.0, atol=1.0), case((), ()), case((0,), (1,)),
    ],
    non_differentiable=_TRUTH_VALUED, test_dtypes=(*FLOATS, *INTEGERS[:4]),
)  # fmt: skip
def isclose(
    x: Tensor | float, y: Tensor | float, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """Whether |x − y| ≤ atol + rtol·|y|, element by element; infinities are close to themselves alone.

    NaN is close to NaN if equal_nan. Integers are compared in f64.
    """
    x, y = (_floating(v) for v in (x, y))
    op = _ISCLOSE_OR_NAN if equal_nan else _ISCLOSE
    return op(x, y, *(check_element(v, float64, "isclose") for v in (rtol, atol)))


def _floating(value: Any) -> Any:
    return value.to_dtype(float64) if isinstance(value, Tensor) and not value.dtype.is_floating else value


@composite(
    np.allclose, [case((3, 4), (4,)), case(_NEAR, _NEAR, equal_nan=True), case(_NEAR, _TO), case((0,), ())],
    non_differentiable=_TRUTH_VALUED,
)  # fmt: skip
def allclose(
    x: Tensor | float, y: Tensor | float, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """Whether `isclose` holds everywhere: a 0-d truth value, on the device until somebody asks (`if allclose(…)`)."""
    return isclose(x, y, rtol, atol, equal_nan).all()


@composite(
    np.array_equal, [case((3, 4), (3, 4)), case(_NEAR, _NEAR), case(_NEAR, _NEAR, equal_nan=True), case((3,), (4,))],
    non_differentiable=_TRUTH_VALUED, test_dtypes=ALL,
)  # fmt: skip
def array_equal(x: Tensor, y: Tensor, equal_nan: bool = False) -> Tensor:
    """Whether shapes and all elements are equal: a 0-d truth value on the device. NaN equals NaN if equal_nan."""
    device = same_device([x, y], "array_equal")
    if x.shape != y.shape:
        return full((), False, dtype=bool_, device=device)
    if equal_nan and x.dtype.is_floating and y.dtype.is_floating:
        return isclose(x, y, 0.0, 0.0, equal_nan=True).all()
    return equal(x, y).all()


__all__ = ["addcdiv", "addcmul", "allclose", "array_equal", "clamp", "clip", "isclose", "nan_to_num"]
