"""Activation functions, each a formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS
from ...errors import DTypeError, ShapeError
from ...grad import is_recording
from ...kernels.elementwise import formula as f
from ...shapes import axis_index
from ...tensor import Tensor, new
from ..core.formula_op import Elementwise, elementwise, fuse
from ..core.kernel_op import Primitive
from ..core.launch import MapKernel
from ..core.table import NONZERO, REALS, Domain, case, composite
from ..shape.joining import concat
from ..shape.movement import narrow, reshape

NUMBERS = FLOATS + INTEGERS


@elementwise(lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)), domain=NONZERO, accepts=NUMBERS)
def relu(x):
    """max(x, 0). The derivative at 0 is 0."""
    return f.where(x <= 0, 0, x)


@elementwise(lambda x: np.where(np.isnan(x), x, np.clip(x, 0, 6)), domain=Domain(excluded=(0.0, 6.0)), accepts=NUMBERS)
def relu6(x):
    """min(max(x, 0), 6). The derivative at both ends is 0. (Howard et al. 2017)"""
    return f.where(x <= 0, 0, f.where(x >= 6, 6, x))


@elementwise(
    lambda x, low, high: np.where(np.isnan(x), x, np.minimum(np.maximum(x, low), high)),
    domain=(Domain(excluded=(-1.0, 1.0)), Domain(-1.001, -0.999, special=False), Domain(0.999, 1.001, special=False)),
    accepts=FLOATS,
)  # fmt: skip
def hardtanh(x, low=-1.0, high=1.0):
    """x held between low and high (low ≤ high); the derivative of x at both ends is 0."""
    return f.where(x <= low, low, f.where(x >= high, high, x))


@elementwise(
    lambda x, threshold, value: np.where(x <= threshold, value, x),
    domain=(Domain(2.0, 10.0), Domain(-1.0, 1.0, special=False), REALS), accepts=FLOATS,
)  # fmt: skip
def threshold(x, threshold, value):
    """x above a threshold, else the value."""
    return f.where(x <= threshold, value, x)


def _between(x: Any, bound: float) -> Any:
    """x where |x| ≤ bound: the branch that is not taken must not overflow, nor its derivatives."""
    return f.where(x < -bound, 0, f.where(x > bound, 0, x))


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


@elementwise(
    lambda x: -np.logaddexp(-x, 0), result="float", accepts=NUMBERS, ulps=8, partials=lambda y, x: (f.sigmoid(-x),)
)
def logsigmoid(x):
    """log σ(x), without overflow."""
    return f.minimum(x, 0) - f.log1p(f.exp(-f.apply("abs", x)))


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

    Written with (1 + tanh u) / 2 = σ(2u), which keeps the small values below 0; it is 0 or 1 to the last bit at ±30.
    """
    v = _between(x, 30)
    inner = 2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v * v * v)
    return f.where(x < -30, 0, f.where(x > 30, x, v * f.sigmoid(inner)))


@elementwise(
    lambda x: np.logaddexp(x, 0), result="float", accepts=NUMBERS, ulps=8, partials=lambda y, x: (f.sigmoid(x),)
)
def softplus(x):
    """log(1 + eˣ), without overflow."""
    return f.maximum(x, 0) + f.log1p(f.exp(-f.apply("abs", x)))


def _mish(x: Any) -> Any:
    e = np.exp(np.minimum(x, 20))
    return np.where(x == -np.inf, 0, x * (e * (e + 2) / (e * (e + 2) + 2)))


@elementwise(_mish, result="float", accepts=NUMBERS, ulps=16)
def mish(x):
    """x·tanh(log(1 + eˣ)). (Misra 2019)

    Written with tanh(log(1 + e)) = n / (n + 2), n = e² + 2e, which keeps small values; it is 1 to the last bit at 20.
    """
    e = f.exp(f.minimum(x, 20))
    n = e * (e + 2)
    return f.where(x < -1e4, 0, x * (n / (n + 2)))


@elementwise(lambda x: x / (1 + np.abs(x)), domain=NONZERO, result="float", accepts=NUMBERS)
def softsign(x):
    """x / (1 + |x|); NaN at ±∞."""
    return x / (1 + f.apply("abs", x))


_SLOPE = Domain(0.1, 4, special=False)


def _below(x: Any) -> Any:
    """x where it is not above 0: the branch that is not taken must not overflow, nor its derivative."""
    return f.where(x > 0, 0, x)


def _elu(x: Any, alpha: Any, beta: Any = 1.0) -> Any:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / beta))


@elementwise(_elu, domain=(NONZERO, _SLOPE), result="float", accepts=NUMBERS)
def elu(x, alpha=1.0):
    """x above 0, α(eˣ − 1) below. (Clevert et al. 2015)"""
    return f.where(x > 0, x, alpha * f.expm1(_below(x)))


@elementwise(lambda x, a: _elu(x, a, a), domain=(NONZERO, _SLOPE), result="float", accepts=NUMBERS, ulps=8)
def celu(x, alpha=1.0):
    """x above 0, α(exp(x/α) − 1) below: elu with a continuous derivative for any α. (Barron 2017)"""
    return f.where(x > 0, x, alpha * f.expm1(_below(x) / alpha))


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@elementwise(lambda x: _SCALE * _elu(x, _ALPHA), domain=NONZERO, result="float", accepts=NUMBERS)
def selu(x):
    """elu with the α and the factor that keep mean 0 and variance 1. (Klambauer et al. 2017)"""
    return _SCALE * f.where(x > 0, x, _ALPHA * f.expm1(_below(x)))


@elementwise(lambda x, slope: np.where(x > 0, x, slope * x), domain=(NONZERO, Domain(0, 1)), accepts=FLOATS)
def leaky_relu(x, slope=0.01):
    """x above 0, slope·x below; the slope is a number, or a tensor that broadcasts."""
    return f.where(x > 0, x, slope * x)


@elementwise(
    lambda x: np.where(x < -3, 0, x * np.clip(x / 6 + 0.5, 0, 1)), domain=Domain(excluded=(-3.0, 3.0)), result="float",
    accepts=NUMBERS, ulps=8,
)  # fmt: skip
def hardswish(x):
    """x·min(max(x + 3, 0), 6) / 6. (Howard et al. 2019)"""
    inside = _between(x, 3)
    return f.where(x < -3, 0, f.where(x > 3, x, inside * (inside / 6 + 0.5)))


@elementwise(
    lambda x: np.clip(x / 6 + 0.5, 0, 1), domain=Domain(excluded=(-3.0, 3.0)), result="float", accepts=NUMBERS,
    cancels=True,
)  # fmt: skip
def hardsigmoid(x):
    """min(max(x + 3, 0), 6) / 6. (Courbariaux et al. 2015)"""
    return f.where(x <= -3, 0, f.where(x >= 3, 1, x / 6 + 0.5))


# --- with a weight a channel, or a gate ---------------------------------------------------------------------------
@composite(
    lambda x, w: np.where(x > 0, x, x * (w.reshape(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else w)),
    [case((3, 4), (4,)), case((2, 3, 5), (3,)), case((2, 3, 5), (1,)), case((4,), (1,)), case((0, 2), (2,))],
    domain=Domain(0.1, 2, special=False),
)  # fmt: skip
def prelu(x: Tensor, weight: Tensor) -> Any:
    """x above 0, weight·x below: x (N, C, …), weight (C,) or (1,); raises ShapeError for others. (He et al. 2015)"""
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.shape not in ((channels,), (1,)):
        raise ShapeError(f"prelu: weight.shape={weight.shape} must be ({channels},) or (1,) (x: {x.shape})")
    return leaky_relu(x, reshape(weight, (-1, *(1,) * (x.ndim - 2))) if x.ndim > 1 else weight)


class _Gated(Primitive):
    """x → a·act(b), with a and b the halves of x along an axis, read and (in the gradient) written where they lie."""

    def __init__(self, pair: Elementwise) -> None:
        self._pair = pair
        exprs = [pair.vjp_formula(i)[1] for i in (0, 1)]
        self._both = MapKernel(f"{pair.name}_halves_vjp", ("g", *pair.names), exprs)

        def gated(x: Tensor, axis: int) -> Tensor:
            return pair(*self._halves(x.detach(), axis))

        def gradient(g: Tensor, x: Tensor, axis: int) -> Tensor:
            return self._gradient_of(g, x, axis)

        gated.__name__ = pair.name
        super().__init__(gated, gradient, None)

    def _halves(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        half = x.shape[axis] // 2
        return narrow(x, axis, 0, half), narrow(x, axis, half, half)

    def _gradient_of(self, g: Tensor, x: Tensor, axis: int) -> Tensor:
        if is_recording():
            a, b = self._halves(x, axis)
            parts = [self._pair.vjp(i)(*self._given(i, g, a, b)) for i in (0, 1)]
            return concat(parts, axis)
        dx = new(x.device, x.dtype, x.shape)
        self._both(
            [g.detach(), *self._halves(x.detach(), axis)], (x.dtype, x.dtype), x.dtype.accumulator,
            into=self._halves(dx, axis),
        )  # fmt: skip
        return dx

    def _given(self, i: int, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        known = {"g": g, self._pair.names[0]: a, self._pair.names[1]: b}
        return [known[name] for name in self._pair.vjp_formula(i)[0]]


def _gate(name: str, activation: Any) -> tuple[Elementwise, _Gated]:
    pair = fuse(lambda x, gate: x * activation(gate))
    pair.name = pair.__name__ = name
    return pair, _Gated(pair)


def _apply_gate(pair: Elementwise, halves: _Gated, x: Tensor, gate: Tensor | None, axis: int) -> Any:
    for t in (x,) if gate is None else (x, gate):
        if not t.dtype.is_floating:
            raise DTypeError(f"{pair.name}: needs floating tensors, got {t.dtype.name}")
    at = axis_index(axis, x.ndim, pair.name) if x.ndim or gate is None else 0
    if gate is not None:
        return pair(x, gate)
    if x.shape[at] % 2:
        raise ShapeError(f"{pair.name}: x.shape[{at}]={x.shape[at]} must be even, to be halved (x: {x.shape})")
    return halves(x, at)


def _gated_reference(activation: Any) -> Any:
    def reference(x: Any, gate: Any = None, axis: int = -1) -> Any:
        a, b = np.split(x, 2, axis) if gate is None else (x, gate)
        return a * activation(b)

    return reference


_GATED_CASES = [
    case((3, 8)), case((2, 6, 3), axis=1), case((3, 4), (3, 4)), case((2, 1, 4), (3, 1)), case((2,)), case((0, 2)),
]  # fmt: skip

_GLU, _SWIGLU, _GEGLU, _REGLU = (
    _gate(name, act) for name, act in (("glu", sigmoid), ("swiglu", silu), ("geglu", gelu), ("reglu", relu))
)


@composite(_gated_reference(_sigmoid), _GATED_CASES, ulps=8)
def glu(x: Tensor, gate: Tensor | None = None, axis: int = -1) -> Any:
    """x·σ(gate); without a gate it is the second half of x along the axis: (…, 2n) → (…, n). (Dauphin et al. 2016)"""
    return _apply_gate(*_GLU, x, gate, axis)


@composite(_gated_reference(_times_sigmoid), _GATED_CASES, ulps=8)
def swiglu(x: Tensor, gate: Tensor | None = None, axis: int = -1) -> Any:
    """x·silu(gate); without a gate it is the second half of x along the axis: (…, 2n) → (…, n). (Shazeer 2020)"""
    return _apply_gate(*_SWIGLU, x, gate, axis)


@composite(_gated_reference(_gelu), _GATED_CASES, ulps=8)
def geglu(x: Tensor, gate: Tensor | None = None, axis: int = -1) -> Any:
    """x·gelu(gate); without a gate it is the second half of x along the axis: (…, 2n) → (…, n). (Shazeer 2020)"""
    return _apply_gate(*_GEGLU, x, gate, axis)


@composite(_gated_reference(lambda b: np.maximum(b, 0)), _GATED_CASES, domain=Domain(0.1, 2, special=False))
def reglu(x: Tensor, gate: Tensor | None = None, axis: int = -1) -> Any:
    """x·relu(gate); without a gate it is the second half of x along the axis: (…, 2n) → (…, n). (Shazeer 2020)"""
    return _apply_gate(*_REGLU, x, gate, axis)


swish = silu  # its other name

__all__ = [name for name, value in list(globals().items()) if isinstance(value, Elementwise)]
__all__ += ["geglu", "glu", "prelu", "reglu", "swiglu"]
