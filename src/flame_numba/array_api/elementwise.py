"""The elementwise functions of the standard: the ops of the same names, with its signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ops import public as fn
from ..ops.elementwise.arithmetic import where as _where
from ..tensor import Tensor

_UNARY = """
    abs acos acosh asin asinh atan atanh bitwise_invert ceil cos cosh exp expm1 floor isfinite isinf isnan log log1p
    log2 log10 logical_not negative positive reciprocal round sign signbit sin sinh square sqrt tan tanh trunc
""".split()  # noqa: SIM905 - a list of bare names reads best as a sentence
_BINARY = """
    add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign divide equal
    floor_divide greater greater_equal hypot less less_equal logaddexp logical_and logical_or logical_xor maximum
    minimum multiply nextafter not_equal pow remainder subtract
""".split()  # noqa: SIM905


def _unary(name: str) -> Callable[..., Any]:
    def function(x: Any, /) -> Any:
        return getattr(fn, name)(x)

    return function


def _binary(name: str) -> Callable[..., Any]:
    def function(x1: Any, x2: Any, /) -> Any:
        return getattr(fn, name)(x1, x2)

    return function


for _names, _make in ((_UNARY, _unary), (_BINARY, _binary)):
    for _name in _names:
        _function = _make(_name)
        _function.__name__ = _function.__qualname__ = _name
        _function.__doc__ = f"`flame_numba.{_name}`."
        globals()[_name] = _function


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """`flame_numba.clip`."""
    return fn.clip(x, min, max)


def conj(x: Tensor, /) -> Tensor:
    """x: there are no complex numbers."""
    return x


def real(x: Tensor, /) -> Tensor:
    """x: there are no complex numbers."""
    return x


def imag(x: Tensor, /) -> Tensor:
    """Zeros: there are no complex numbers."""
    return fn.zeros_like(x)


def where(condition: Tensor, x1: Any, x2: Any, /) -> Any:
    """`flame_numba.where`."""
    return _where(condition, x1, x2)


__all__ = [*_UNARY, *_BINARY, "clip", "conj", "imag", "real", "where"]
