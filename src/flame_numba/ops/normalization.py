"""Softmax and norms: fused row kernels, differentiable twice through the ops they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtypes import DType
from ..errors import DTypeError, ShapeError
from ..grad import enable_grad, grad, is_recording
from ..kernels import rows as kernels
from ..shapes import axis_index
from ..tensor import Tensor, new
from .elementwise import exp, rsqrt
from .formula_op import fuse
from .kernel_op import primitive
from .launch import run
from .movement import contiguous, to_dtype, transpose
from .reductions import mean, sum
from .table import case


def _floating(x: Tensor, op: str) -> None:
    if not x.dtype.is_floating:
        raise DTypeError(f"{op}: needs a floating tensor, got {x.dtype.name}")


def _rows(x: Tensor, axis: int, op: str) -> tuple[Tensor, int]:
    """x as contiguous rows along its last axis, and which axis that was. Outside the graph."""
    _floating(x, op)
    at = axis_index(axis, x.ndim, op)
    return contiguous(transpose(x.detach(), at, -1)), at


def _softmax(x: Tensor, axis: int, logarithm: bool) -> Tensor:
    flat, at = _rows(x, axis, "log_softmax" if logarithm else "softmax")
    n = flat.shape[-1]
    y = new(x.device, x.dtype, flat.shape)
    if y.numel:
        rows, threads = y.numel // n, kernels.row_threads(n)
        run(x.device, kernels.softmax_program, (x.dtype, logarithm, threads), (y, flat, rows, n), rows, threads)
    return transpose(y, at, -1)


def _softmax_gradient(g: Tensor, y: Tensor, axis: int, logarithm: bool) -> Tensor:
    if is_recording():
        if logarithm:
            return g - exp(y) * sum(g, axis=axis, keepdims=True)
        return y * (g - sum(g * y, axis=axis, keepdims=True))
    flat_y, at = _rows(y, axis, "softmax")
    flat_g, _ = _rows(g, axis, "softmax")
    n = flat_y.shape[-1]
    dx = new(y.device, y.dtype, flat_y.shape)
    if dx.numel:
        rows, threads = dx.numel // n, kernels.row_threads(n)
        run(
            y.device, kernels.softmax_gradient_program, (y.dtype, logarithm, threads), (dx, flat_y, flat_g, rows, n),
            rows, threads,
        )  # fmt: skip
    return transpose(dx, at, -1)


def _softmax_reference(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


_SOFTMAX_CASES = [case((3, 7)), case((2, 5, 3), axis=1), case((4, 300)), case((3, 1)), case((5,), axis=0)]


@primitive(
    _softmax_reference, _SOFTMAX_CASES, autocast="high", ulps=8,
    gradient=lambda g, y, axis: _softmax_gradient(g, y, axis, False),
)  # fmt: skip
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / Σ exp(x) along an axis, shifted so that nothing overflows. (Milakov and Gimelshein 2018)"""
    return _softmax(x, axis, False)


@primitive(
    lambda x, axis=-1: np.log(_softmax_reference(x, axis)), _SOFTMAX_CASES, autocast="high", ulps=16,
    gradient=lambda g, y, axis: _softmax_gradient(g, y, axis, True),
)  # fmt: skip
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, without losing small probabilities."""
    return _softmax(x, axis, True)


# --- norms --------------------------------------------------------------------------------------------------------
_NORMAL = fuse(lambda g, x, center, scale: g * (x - center) * scale)


def _check_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, op: str) -> None:
    _floating(x, op)
    if x.ndim < 1:
        raise ShapeError(f"{op}: needs at least one axis")
    for name, p in (("weight", weight), ("bias", bias)):
        if p is not None and p.shape != x.shape[-1:]:
            raise ShapeError(f"{op}: {name}.shape={p.shape} must equal x.shape[-1:]={x.shape[-1:]}")
    if bias is not None and weight is None:
        raise ShapeError(f"{op}: a bias needs a weight")


def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> tuple[Tensor, dict[str, Any]]:
    _check_affine(x, weight, bias, "layer_norm" if centered else "rms_norm")
    source, n, compute = contiguous(x.detach()), x.shape[-1], x.dtype.accumulator
    y = new(x.device, x.dtype, x.shape)
    statistics = [new(x.device, compute, (*x.shape[:-1], 1)) for _ in range(2)]
    if y.numel:
        rows, threads = y.numel // n, kernels.row_threads(n)
        affine = (weight is not None) + (bias is not None)
        kind: DType = x.dtype if weight is None else weight.dtype
        w = source if weight is None else contiguous(weight.detach())
        b = w if bias is None else to_dtype(contiguous(bias.detach()), kind)
        run(
            x.device, kernels.norm_program, (x.dtype, kind, affine, centered, threads),
            (y, *statistics, source, w, b, float(eps), rows, n), rows, threads,
        )  # fmt: skip
    return y, {"center": statistics[0], "scale": statistics[1]}


def _norm_gradient(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, center: Tensor, scale: Tensor, centered: bool
) -> Tensor:
    kind = x.dtype if weight is None else weight.dtype
    source, given, n = contiguous(x.detach()), contiguous(to_dtype(g.detach(), x.dtype)), x.shape[-1]
    dx = new(x.device, x.dtype, x.shape)
    if dx.numel:
        rows, threads = dx.numel // n, kernels.row_threads(n)
        w = source if weight is None else contiguous(weight.detach())
        run(
            x.device, kernels.norm_gradient_program, (x.dtype, kind, int(weight is not None), centered, threads),
            (dx, center, scale, source, w, given, rows, n), rows, threads,
        )  # fmt: skip
    return dx


def _again(formula: Callable[..., Tensor], g: Tensor, inputs: list[Tensor | None], **keywords: Any) -> Any:
    """Gradients that can be differentiated again: through the ops that the fused kernel stands for."""
    with enable_grad():
        y = formula(*inputs, **keywords)
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        found = iter(grad(y, wanted, [g], create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in inputs if t is not None)


def _layer_norm_formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    distance = x - mean(x, axis=-1, keepdims=True)
    y = distance * rsqrt(mean(distance * distance, axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm_formula(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    y = x * rsqrt(mean(x * x, axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def _layer_norm_rule(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: Tensor, scale: Tensor
) -> Any:
    if is_recording():
        return _again(_layer_norm_formula, g, [x, weight, bias], eps=eps)
    parts: list[Tensor | None] = [_norm_gradient(g, x, weight, bias, center, scale, True)]
    if weight is not None:
        parts.append(_NORMAL(g, x, center, scale))
    if bias is not None:
        parts.append(g)
    return tuple(parts)


def _rms_norm_rule(g: Tensor, x: Tensor, weight: Tensor | None, eps: float, center: Tensor, scale: Tensor) -> Any:
    if is_recording():
        return _again(_rms_norm_formula, g, [x, weight], eps=eps)
    dx = _norm_gradient(g, x, weight, None, center, scale, False)
    return dx if weight is None else (dx, _NORMAL(g, x, center, scale))


def _layer_norm_reference(x: Any, w: Any = None, b: Any = None, eps: float = 1e-5) -> Any:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return y * (1 if w is None else w) + (0 if b is None else b)


@primitive(
    _layer_norm_reference, [case((3, 7)), case((2, 3, 300), (300,), (300,)), case((4, 5), (5,)), case((3, 1))],
    gradient=_layer_norm_rule, autocast="high", ulps=32,
)  # fmt: skip
def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Any:
    """(x − mean) / √(variance + eps)·weight + bias over the last axis. (Ba, Kiros and Hinton 2016)"""
    return _norm(x, weight, bias, eps, centered=True)


@primitive(
    lambda x, w=None, eps=1e-5: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (1 if w is None else w),
    [case((3, 7)), case((2, 3, 300), (300,)), case((4, 5), (5,))],
    gradient=_rms_norm_rule, autocast="high", ulps=32,
)  # fmt: skip
def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Any:
    """x / √(mean(x²) + eps)·weight over the last axis. (Zhang and Sennrich 2019)"""
    return _norm(x, weight, None, eps, centered=False)


__all__ = ["layer_norm", "log_softmax", "rms_norm", "softmax"]
