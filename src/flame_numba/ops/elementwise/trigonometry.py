"""Trigonometric and hyperbolic functions and their inverses: one formula each."""

from __future__ import annotations

import numpy as np

from ...dtypes import FLOATS, INTEGERS
from ...kernels.elementwise import formula as f
from ..core.formula_op import Elementwise, elementwise
from ..core.table import NONZERO, Domain

NUMBERS = FLOATS + INTEGERS


@elementwise(np.sin, domain=Domain(-100, 100), result="float", accepts=NUMBERS, ulps=8)
def sin(x):
    """Sine of x in radians."""
    return f.sin(x)


@elementwise(np.cos, domain=Domain(-100, 100), result="float", accepts=NUMBERS, ulps=8)
def cos(x):
    """Cosine of x in radians."""
    return f.cos(x)


@elementwise(np.tan, domain=Domain(-1.5, 1.5), result="float", accepts=NUMBERS, ulps=8)
def tan(x):
    """Tangent of x in radians."""
    return f.tan(x)


@elementwise(np.arcsin, domain=Domain(-1, 1), result="float", accepts=NUMBERS, ulps=8)
def asin(x):
    """Inverse sine, in −π/2 … π/2."""
    return f.asin(x)


@elementwise(np.arccos, domain=Domain(-1, 1), result="float", accepts=NUMBERS, ulps=8)
def acos(x):
    """Inverse cosine, in 0 … π."""
    return f.acos(x)


@elementwise(np.arctan, result="float", accepts=NUMBERS, ulps=8)
def atan(x):
    """Inverse tangent, in −π/2 … π/2."""
    return f.atan(x)


@elementwise(np.arctan2, domain=NONZERO, result="float", accepts=NUMBERS, ulps=8)
def atan2(y, x):
    """Angle of the point (x, y), in −π … π."""
    return f.atan2(y, x)


@elementwise(np.sinh, domain=Domain(-80, 80), result="float", accepts=NUMBERS, ulps=8)
def sinh(x):
    """Hyperbolic sine."""
    return f.sinh(x)


@elementwise(np.cosh, domain=Domain(-80, 80), result="float", accepts=NUMBERS, ulps=8)
def cosh(x):
    """Hyperbolic cosine."""
    return f.cosh(x)


@elementwise(np.tanh, result="float", accepts=NUMBERS, partials=lambda y, x: (1 - y * y,), ulps=8)
def tanh(x):
    """Hyperbolic tangent."""
    return f.tanh(x)


@elementwise(np.arcsinh, result="float", accepts=NUMBERS, ulps=8)
def asinh(x):
    """Inverse hyperbolic sine."""
    return f.asinh(x)


@elementwise(np.arccosh, domain=Domain(low=1.0), result="float", accepts=NUMBERS, ulps=8)
def acosh(x):
    """Inverse hyperbolic cosine; NaN below 1."""
    return f.acosh(x)


@elementwise(np.arctanh, domain=Domain(-1, 1), result="float", accepts=NUMBERS, ulps=8)
def atanh(x):
    """Inverse hyperbolic tangent; NaN outside −1 … 1."""
    return f.atanh(x)


__all__ = [name for name, value in list(globals().items()) if isinstance(value, Elementwise)]
