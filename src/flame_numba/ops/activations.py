"""Activation functions, each a formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import FLOATS, INTEGERS
from ..kernels import formula as f
from .formula_op import elementwise
from .table import NONZERO, Domain

NUMBERS = FLOATS + INTEGERS


@elementwise(lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)), domain=NONZERO, accepts=NUMBERS)
def relu(x):
    """max(x, 0). The derivative at 0 is 0."""
    return f.where(x < 0, 0, x)


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))  # scipy's expit gives 0 where the result is still a subnormal number
    return np.where(x < 0, e, 1) / (1 + e)


@elementwise(_sigmoid, result="float", accepts=NUMBERS, partials=lambda y, x: (y * (1 - y),), ulps=8)
def sigmoid(x):
    """Logistic function, σ(x) = 1 / (1 + e⁻ˣ)."""
    return f.sigmoid(x)


def _times_sigmoid(x: Any) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(x == -np.inf, 0, x * _sigmoid(x))


@elementwise(_times_sigmoid, result="float", accepts=NUMBERS, ulps=8)
def silu(x):
    """Sigmoid-weighted linear unit, x·σ(x). (Elfwing et al. 2017)"""
    return f.where(x < -1e4, 0, x * f.sigmoid(x))


def _gelu(x: Any) -> Any:
    import scipy.special

    with np.errstate(invalid="ignore"):
        return np.where(x == -np.inf, 0, x * scipy.special.ndtr(x))


@elementwise(_gelu, result="float", accepts=NUMBERS, ulps=8, cancels=True)
def gelu(x):
    """Gaussian error linear unit, x·Φ(x). (Hendrycks and Gimpel 2016)"""
    return f.where(x < -1e4, 0, 0.5 * x * f.erfc(x * -math.sqrt(0.5)))


def _gelu_tanh(x: Any) -> Any:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(x == -np.inf, 0, x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@elementwise(_gelu_tanh, result="float", accepts=NUMBERS, ulps=8, cancels=True)
def gelu_tanh(x):
    """GELU by its tanh approximation, x/2·(1 + tanh(√(2/π)·(x + 0.044715 x³))). (Hendrycks and Gimpel 2016)

    Written with (1 + tanh u) / 2 = σ(2u), which keeps the small values below 0.
    """
    inner = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return f.where(x < -1e4, 0, x * f.sigmoid(inner))


@elementwise(
    lambda x: np.logaddexp(x, 0), result="float", accepts=NUMBERS, ulps=8, partials=lambda y, x: (f.sigmoid(x),)
)
def softplus(x):
    """log(1 + eˣ), without overflow."""
    return f.maximum(x, 0) + f.log1p(f.exp(-f.apply("abs", x)))


@elementwise(lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), domain=NONZERO, result="float", accepts=NUMBERS)
def elu(x):
    """x above 0, eˣ − 1 below. (Clevert et al. 2015)"""
    return f.where(x > 0, x, f.expm1(x))


@elementwise(lambda x, slope: np.where(x > 0, x, slope * x), domain=(NONZERO, Domain(0, 1)), accepts=FLOATS)
def leaky_relu(x, slope):
    """x above 0, slope·x below; the slope is a number or a tensor (then it is PReLU)."""
    return f.where(x > 0, x, slope * x)


@elementwise(
    lambda x: x * np.clip(x / 6 + 0.5, 0, 1), domain=Domain(excluded=(-3.0, 3.0)), result="float",
    accepts=NUMBERS, ulps=8,
)  # fmt: skip
def hardswish(x):
    """x·min(max(x + 3, 0), 6) / 6. (Howard et al. 2019)"""
    return f.where(x <= -3, x * 0, x * f.minimum(f.maximum(x / 6 + 0.5, 0), 1))


__all__ = [name for name, value in list(globals().items()) if hasattr(value, "vjp_formula")]
