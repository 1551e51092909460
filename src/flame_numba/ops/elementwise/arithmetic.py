"""Elementwise ops: one formula each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, bool_
from ...kernels.elementwise import formula as f
from ..core.formula_op import Elementwise, elementwise
from ..core.table import NONZERO, POSITIVE, REALS, Domain

NUMBERS = FLOATS + INTEGERS
BITS = (*INTEGERS, bool_)


def _scipy(name: str) -> Any:
    def reference(*args: Any) -> Any:
        import scipy.special

        return getattr(scipy.special, name)(*args)

    return reference


# --- arithmetic ---------------------------------------------------------------------------------------------------
@elementwise(np.add, accepts=NUMBERS)
def add(x, y):
    """x + y."""
    return x + y


@elementwise(np.subtract, accepts=NUMBERS)
def subtract(x, y):
    """x − y."""
    return x - y


@elementwise(np.multiply, accepts=NUMBERS)
def multiply(x, y):
    """x · y."""
    return x * y


@elementwise(np.true_divide, domain=(REALS, NONZERO), result="float", accepts=NUMBERS)
def divide(x, y):
    """x / y; integers give a floating result."""
    return x / y


def _floor_divide(x: Any, y: Any) -> Any:
    return np.floor_divide(x, y)


@elementwise(
    _floor_divide, domain=(Domain(-1e4, 1e4, special=False), Domain(0.5, 1e3, special=False)), accepts=NUMBERS,
    non_differentiable="its derivative is zero wherever it exists",
)  # fmt: skip
def floor_divide(x, y):
    """⌊x / y⌋, by the remainder as NumPy does; an integer divided by 0 gives 0."""
    return x // y


@elementwise(
    np.remainder, domain=(Domain(-1e4, 1e4, special=False), Domain(0.5, 1e3, special=False)), accepts=NUMBERS,
    non_differentiable="it jumps; write x - y * floor(x / y) where its slope is wanted",
)  # fmt: skip
def remainder(x, y):
    """x − y·⌊x / y⌋: the remainder with the sign of y; an integer modulo 0 gives 0."""
    return x % y


@elementwise(np.power, domain=(POSITIVE, Domain(-4, 4, special=False)), accepts=NUMBERS, ulps=16)
def pow(x, y):
    """x to the power y. Negative integer powers of integers give 0, unless |x| = 1."""
    return x**y


@elementwise(np.negative, accepts=NUMBERS)
def negative(x):
    """−x; unsigned integers wrap."""
    return -x


@elementwise(np.positive, accepts=NUMBERS)
def positive(x):
    """+x: a copy."""
    return x


@elementwise(np.abs, domain=NONZERO, accepts=NUMBERS)
def abs(x):
    """|x|. The derivative at 0 is 0."""
    return f.apply("abs", x)


@elementwise(np.square, accepts=NUMBERS)
def square(x):
    """x²."""
    return x * x


@elementwise(np.reciprocal, domain=NONZERO, result="float", accepts=NUMBERS, partials=lambda y, x: (-(y * y),))
def reciprocal(x):
    """1 / x."""
    return 1 / x


@elementwise(np.sign, domain=NONZERO, accepts=NUMBERS)
def sign(x):
    """−1, 0 or 1; NaN stays NaN."""
    return f.where(x > 0, 1, f.where(x < 0, -1, f.apply("abs", x) * 0))  # of -0: 0


@elementwise(np.minimum, accepts=NUMBERS)
def minimum(x, y):
    """The smaller; NaN if either is. At a tie each gets half of the gradient."""
    return f.minimum(x, y)


@elementwise(np.maximum, accepts=NUMBERS)
def maximum(x, y):
    """The larger; NaN if either is. At a tie each gets half of the gradient."""
    return f.maximum(x, y)


@elementwise(lambda c, x, y: np.where(c != 0, x, y), truths=("condition",))
def where(condition, x, y):
    """x where the condition holds (is not 0), else y."""
    return f.where(condition, x, y)


@elementwise(np.copysign, domain=NONZERO, accepts=FLOATS)
def copysign(x, y):
    """|x| with the sign of y, also of a zero."""
    return f.copysign(x, y)


@elementwise(np.hypot, domain=NONZERO, accepts=FLOATS, ulps=8)
def hypot(x, y):
    """√(x² + y²), without overflow on the way. The derivative at the origin is 0."""
    return f.hypot(x, y)


# --- powers, exponentials, logarithms -----------------------------------------------------------------------------
@elementwise(np.sqrt, domain=POSITIVE, result="float", accepts=NUMBERS, partials=lambda y, x: (0.5 / y,))
def sqrt(x):
    """√x; NaN below 0."""
    return f.sqrt(x)


@elementwise(lambda x: 1 / np.sqrt(x), domain=POSITIVE, result="float", accepts=NUMBERS)
def rsqrt(x):
    """1 / √x."""
    return f.rsqrt(x)


@elementwise(np.exp, result="float", accepts=NUMBERS, partials=lambda y, x: (y,))
def exp(x):
    """eˣ."""
    return f.exp(x)


@elementwise(np.expm1, result="float", accepts=NUMBERS, partials=lambda y, x: (y + 1,))
def expm1(x):
    """eˣ − 1, exact near 0."""
    return f.expm1(x)


@elementwise(np.log, domain=POSITIVE, result="float", accepts=NUMBERS)
def log(x):
    """Natural logarithm; −∞ at 0, NaN below."""
    return f.log(x)


@elementwise(np.log1p, domain=Domain(low=-1.0), result="float", accepts=NUMBERS)
def log1p(x):
    """log(1 + x), exact near 0."""
    return f.log1p(x)


@elementwise(np.exp2, domain=Domain(-300, 300), result="float", accepts=NUMBERS, ulps=8)
def exp2(x):
    """2ˣ."""
    return f.exp2(x)


@elementwise(np.log2, domain=POSITIVE, result="float", accepts=NUMBERS)
def log2(x):
    """Logarithm to the base 2."""
    return f.log2(x)


@elementwise(np.log10, domain=POSITIVE, result="float", accepts=NUMBERS)
def log10(x):
    """Logarithm to the base 10."""
    return f.log10(x)


def _softer(x: Any, y: Any) -> Any:
    return f.where(f.equal(x, y), 0.5, f.sigmoid(x - y))


@elementwise(
    np.logaddexp, accepts=FLOATS, ulps=8, cancels=True, partials=lambda z, x, y: (_softer(x, y), _softer(y, x))
)
def logaddexp(x, y):
    """log(eˣ + eʸ), without overflow."""
    larger = f.maximum(x, y)
    return f.where(f.equal(x, y), x + math.log(2), larger + f.log1p(f.exp(-f.apply("abs", x - y))))


@elementwise(_scipy("erf"), result="float", accepts=NUMBERS)
def erf(x):
    """The error function, 2/√π ∫₀ˣ exp(−t²) dt."""
    return f.erf(x)


@elementwise(_scipy("erfc"), domain=Domain(-5, 5), result="float", accepts=NUMBERS, ulps=64)
def erfc(x):
    """1 − erf(x), exact where that is small."""
    return f.erfc(x)


@elementwise(_scipy("gammaln"), domain=POSITIVE, result="float", accepts=NUMBERS, ulps=8, cancels=True)
def lgamma(x):
    """log |Γ(x)|."""
    return f.lgamma(x)


@elementwise(_scipy("digamma"), domain=POSITIVE, result="float", accepts=NUMBERS, ulps=16, cancels=True)
def digamma(x):
    """The derivative of log Γ(x). Its own second derivative is known for x > 0 only."""
    return f.digamma(x)


# --- rounding -----------------------------------------------------------------------------------------------------
@elementwise(np.floor, accepts=NUMBERS)
def floor(x):
    """The largest whole number ≤ x. The derivative is 0."""
    return f.floor(x)


@elementwise(np.ceil, accepts=NUMBERS)
def ceil(x):
    """The smallest whole number ≥ x. The derivative is 0."""
    return f.ceil(x)


@elementwise(np.trunc, accepts=NUMBERS)
def trunc(x):
    """x without its fraction. The derivative is 0."""
    return f.trunc(x)


@elementwise(lambda x: np.rint(x).astype(x.dtype) if x.dtype.kind == "f" else x, accepts=NUMBERS)
def round(x):
    """The nearest whole number, halves to even. The derivative is 0."""
    return f.rint(x)


# --- comparisons and logic ----------------------------------------------------------------------------------------
_TRUTH_VALUED = "its result is a truth value"


@elementwise(np.equal, result="bool", non_differentiable=_TRUTH_VALUED)
def equal(x, y):
    """x = y; NaN equals nothing."""
    return f.equal(x, y)


@elementwise(np.not_equal, result="bool", non_differentiable=_TRUTH_VALUED)
def not_equal(x, y):
    """x ≠ y."""
    return f.not_equal(x, y)


@elementwise(np.less, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def less(x, y):
    """x < y."""
    return x < y


@elementwise(np.less_equal, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def less_equal(x, y):
    """x ≤ y."""
    return x <= y


@elementwise(np.greater, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def greater(x, y):
    """x > y."""
    return x > y


@elementwise(np.greater_equal, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def greater_equal(x, y):
    """x ≥ y."""
    return x >= y


@elementwise(np.logical_and, result="bool", truths=("x", "y"), non_differentiable=_TRUTH_VALUED)
def logical_and(x, y):
    """Both are true (not 0)."""
    return f.logical_and(x, y)


@elementwise(np.logical_or, result="bool", truths=("x", "y"), non_differentiable=_TRUTH_VALUED)
def logical_or(x, y):
    """One is true (not 0)."""
    return f.logical_or(x, y)


@elementwise(np.logical_xor, result="bool", truths=("x", "y"), non_differentiable=_TRUTH_VALUED)
def logical_xor(x, y):
    """One alone is true (not 0)."""
    return f.not_equal(x, y)


@elementwise(np.logical_not, result="bool", truths=("x",), non_differentiable=_TRUTH_VALUED)
def logical_not(x):
    """x is false (0)."""
    return f.logical_not(x)


@elementwise(np.isnan, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def isnan(x):
    """x is not a number."""
    return f.isnan(x)


# ∞ − ∞ is a NaN. An integer cannot be compared with ∞
@elementwise(np.isfinite, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def isfinite(x):
    """x is neither infinite nor NaN."""
    return f.equal(x - x, 0)


@elementwise(np.isinf, result="bool", accepts=NUMBERS, non_differentiable=_TRUTH_VALUED)
def isinf(x):
    """x is +∞ or −∞."""
    return f.logical_and(f.equal(x, x), f.not_equal(x - x, 0))


def between(a, b, t):
    """From a at t = 0 to b at t = 1, both exactly, without a step beyond b before, and without overflow on the way."""
    distance = b - a
    line = a + t * distance
    beyond = f.where(distance > 0, line > b, line < b)
    line = f.where(f.logical_and(t <= 1, beyond), b, line)
    # of infinities, and of numbers whose distance overflows, each has its share
    value = f.where(abs(distance) < float("inf"), line, (1 - t) * a + t * b)
    return f.where(f.equal(t, 0), a, f.where(f.equal(t, 1), b, value))


def between_partials(a, b, t):
    """The derivatives of `between`, as if nothing were rounded."""
    return 1 - t, t, b - a


def _between_reference(a, b, t):
    with np.errstate(invalid="ignore", over="ignore"):
        mixed = (1 - t) * a + t * b
        value = np.where(np.isfinite(b - a), a + t * (b - a), mixed)
    return np.where(t == 0, a, np.where(t == 1, b, value))


@elementwise(
    _between_reference, accepts=FLOATS, domain=Domain(-1e3, 1e3, special=False), ulps=8, cancels=True,
    partials=lambda y, a, b, t: between_partials(a, b, t),
)  # fmt: skip
def lerp(a, b, t):
    """a + t·(b − a): from a at t = 0 to b at t = 1, exactly; also between infinities and where b − a would overflow."""
    return between(a, b, t)


__all__ = [name for name, value in list(globals().items()) if isinstance(value, Elementwise)]
