"""The small ops between the layers of a diffusion transformer: modulation and gates, a launch each."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import DTypeError, ShapeError
from ...grad import is_recording
from ...kernels.rows import norms
from ...shapes import broadcast
from ...tensor import Tensor
from ..core.formula_op import fuse
from ..core.kernel_op import primitive
from ..core.table import case, composite
from ..elementwise.arithmetic import rsqrt
from ..reduce.reductions import mean
from ..shape.movement import to_dtype, unsqueeze
from .norms import run_norm, run_norm_gradient, run_norm_parameters
from .second_order import again

_MODULATE = fuse(lambda x, shift, scale: x * (1 + scale) + shift)
_GATE = fuse(lambda x, gate, y: x + gate * y)


def _over_tokens(x: Tensor, p: Tensor, op: str, name: str) -> Tensor:
    """A vector an item, (B, C), for x (B, T, C): the same for all tokens. Else what broadcasts to x as it is."""
    for what, t in (("x", x), (name, p)):
        if not isinstance(t, Tensor) or not t.dtype.is_floating:
            raise DTypeError(f"{op}: {what} must be a floating tensor, got {getattr(t, 'dtype', type(t).__name__)}")
    if p.ndim == x.ndim - 1 and p.ndim > 0:
        p = unsqueeze(p, -2)
    if broadcast([x.shape, p.shape], op) != x.shape:
        raise ShapeError(f"{op}: {name} {p.shape} must broadcast to x {x.shape}")
    return p


def _tokens(x: Any, p: Any) -> Any:
    return np.expand_dims(p, -2) if p.ndim == x.ndim - 1 and p.ndim else p


_CASES = [
    case((2, 3, 4), (2, 4), (2, 4)), case((2, 3, 4), (2, 1, 4), (4,)), case((3, 4), (4,), (4,)),
    case((2, 3, 4), (2, 3, 4), (2, 3, 1)), case((1,), (1,), (1,)), case((0, 3, 2), (0, 2), (0, 2)),
    case((2, 3, 5, 4), (2, 1, 1, 4), (2, 1, 1, 4)),
]  # fmt: skip


@composite(lambda x, b, s: x * (1 + _tokens(x, s)) + _tokens(x, b), _CASES, ulps=8)
def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Any:
    """x·(1 + scale) + shift: x (B, T, C) with shift and scale (B, C), or any that broadcast to x.

    One with an axis fewer than x is the same for all tokens, the axis before the last. Computed in f32 (f64 for f64)
    and rounded once: 1 + scale keeps the digits of a small scale. (Perez et al. 2017; Peebles and Xie 2022)
    """
    b, s = _over_tokens(x, shift, "modulate", "shift"), _over_tokens(x, scale, "modulate", "scale")
    return _MODULATE(x, b, s)


def _gate_reference(x: Any, gate: Any, y: Any) -> Any:
    return x + _tokens(x, gate) * y


@composite(
    _gate_reference, [
        case((2, 3, 4), (2, 4), (2, 3, 4)), case((2, 3, 4), (4,), (2, 3, 4)), case((3, 4), (4,), (3, 4)),
        case((2, 3, 4), (2, 1, 1), (2, 3, 4)), case((1,), (1,), (1,)), case((0, 3, 2), (0, 2), (0, 3, 2)),
    ], ulps=8,
)  # fmt: skip
def gate_residual(x: Tensor, gate: Tensor, y: Tensor) -> Any:
    """x + gate·y: x, y (B, T, C) and a gate (B, C), or one that broadcasts to x. Rounded once, as in modulate."""
    g = _over_tokens(x, gate, "gate_residual", "gate")
    if not isinstance(y, Tensor) or y.shape != x.shape:
        raise ShapeError(f"gate_residual: y must be a tensor of x's shape {x.shape}, got {getattr(y, 'shape', y)}")
    return _GATE(x, g, y)


# --- layer norm and modulation in one -----------------------------------------------------------------------------
def _formula(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    distance = x - mean(x, axis=-1, keepdims=True)
    normal = distance * rsqrt(mean(distance * distance, axis=-1, keepdims=True) + eps)
    return normal * (1 + unsqueeze(scale, -2)) + unsqueeze(shift, -2)


def _rule(
    g: Tensor, x: Tensor, shift: Tensor, scale: Tensor, eps: float, center: Tensor, spread: Tensor,
    needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    if is_recording():
        return again(_formula, g, [x, shift, scale], eps=eps)
    period = x.shape[-2]
    dx = run_norm_gradient(g, x, scale, center, spread, period, norms.ONE_PLUS, True) if needs[0] else None
    if not (needs[1] or needs[2]):
        return dx, None, None
    found = run_norm_parameters(g, x, center, spread, scale.shape, period, scale.dtype, True)
    return dx, to_dtype(found[1], shift.dtype), found[0]


def _reference(x: Any, shift: Any, scale: Any, eps: float = 1e-6) -> Any:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return y * (1 + scale[..., None, :]) + shift[..., None, :]


@primitive(
    _reference, [
        case((2, 3, 8), (2, 8), (2, 8)), case((2, 70, 5), (2, 5), (2, 5)), case((3, 6), (6,), (6,)),
        case((2, 2, 3, 5), (2, 2, 5), (2, 2, 5)), case((0, 3, 4), (0, 4), (0, 4)), case((2, 0, 4), (2, 4), (2, 4)),
    ],
    gradient=_rule, autocast="high", ulps=64,
)  # fmt: skip
def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Any:
    """modulate(layer_norm(x), shift, scale) in one pass: x (…, T, C), shift and scale (…, C). (Peebles and Xie 2022)"""
    op = "layer_norm_modulate"
    for name, p in (("x", x), ("shift", shift), ("scale", scale)):
        if not p.dtype.is_floating:
            raise DTypeError(f"{op}: {name} must be floating, got {p.dtype.name}")
    if x.ndim < 2:
        raise ShapeError(f"{op}: x must be (…, tokens, channels), got {x.shape}")
    wanted = (*x.shape[:-2], x.shape[-1])
    for name, p in (("shift", shift), ("scale", scale)):
        if p.shape != wanted:
            raise ShapeError(f"{op}: {name} {p.shape} must be {wanted} (x: {x.shape})")
    y, saved = run_norm(x, scale, shift, float(eps), x.shape[-1], x.shape[-2], norms.ONE_PLUS, True)
    return y, {"center": saved["center"], "spread": saved["scale"]}


__all__ = ["gate_residual", "layer_norm_modulate", "modulate"]
