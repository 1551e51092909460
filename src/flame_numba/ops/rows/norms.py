"""Norms over trailing axes: fused row kernels, differentiable twice through the ops they are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...dtypes import DType
from ...errors import ConfigError, ShapeError
from ...grad import is_recording
from ...kernels.reduce.associative import SUM
from ...kernels.rows import norms as kernels
from ...kernels.rows.blocks import row_threads
from ...shapes import Shape, as_shape, numel
from ...tensor import Tensor, new
from ..core.copies import fill_
from ..core.kernel_op import primitive
from ..core.launch import run
from ..core.operands import check_floating
from ..core.table import case, composite
from ..elementwise.arithmetic import abs, maximum, rsqrt, where
from ..reduce.reductions import Axis, mean, reduce_axes, sum
from ..reduce.reductions import max as largest
from ..shape.movement import Sizes, contiguous, to_dtype
from .second_order import again


def _trailing(x: Tensor, weight: Tensor | None, bias: Tensor | None, given: Any, op: str) -> Shape:
    """The sizes of the axes to normalise over: as given, else those of the weight, else that of the last axis."""
    check_floating(x, op)
    if given is None:
        like = bias if weight is None else weight
        sizes = x.shape[-1:] if like is None else like.shape
    else:
        sizes = as_shape(given)
    if not sizes or x.ndim < len(sizes) or x.shape[x.ndim - len(sizes) :] != sizes:
        raise ShapeError(f"{op}: the normalised axes {sizes} must be the last of x, and at least one (x: {x.shape})")
    for name, p in (("weight", weight), ("bias", bias)):
        if p is not None and p.shape != sizes:
            raise ShapeError(f"{op}: {name}.shape={p.shape} must equal the normalised axes {sizes}")
        if p is not None:
            check_floating(p, f"{op}: {name}")
    return sizes


def run_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, n: int, period: int, kind: int, centered: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Norm of the rows of n elements; each `period` of them share a row of weight and bias."""
    source, compute = contiguous(x.detach()), x.dtype.accumulator
    rows = x.numel // n if n else 0
    y = new(x.device, x.dtype, x.shape)
    center, scale = new(x.device, compute, (rows,)), new(x.device, compute, (rows,))
    if y.numel:
        threads = row_threads(n)
        given = weight if weight is not None else bias
        dtype: DType = x.dtype if given is None else given.dtype
        w = source if weight is None else contiguous(weight.detach())
        b = source if bias is None else contiguous(to_dtype(bias.detach(), dtype))
        run(
            x.device, kernels.norm_program, (x.dtype, dtype, kind, bias is not None, centered, threads),
            (y, center, scale, source, w, b, float(eps), rows, n, period), rows, threads,
        )  # fmt: skip
    return y, {"center": center, "scale": scale}


def run_norm_gradient(
    g: Tensor, x: Tensor, weight: Tensor | None, center: Tensor, scale: Tensor, period: int, kind: int, centered: bool
) -> Tensor:
    """The gradient of `run_norm` for x."""
    source, given = contiguous(x.detach()), contiguous(to_dtype(g.detach(), x.dtype))
    dx = new(x.device, x.dtype, x.shape)
    if dx.numel:
        rows = center.numel
        n = dx.numel // rows
        threads = row_threads(n)
        w = source if weight is None else contiguous(weight.detach())
        dtype = x.dtype if weight is None else weight.dtype
        run(
            x.device, kernels.norm_gradient_program, (x.dtype, dtype, kind, centered, threads),
            (dx, center, scale, source, w, given, rows, n, period), rows, threads,
        )  # fmt: skip
    return dx


def run_norm_parameters(
    g: Tensor, x: Tensor, center: Tensor, scale: Tensor, shape: Shape, period: int, out: DType, bias: bool
) -> list[Tensor]:
    """The gradient of `run_norm` for its weight, of this shape, and (if `bias`) for its bias."""
    compute, n = x.dtype.accumulator, numel(shape)
    segments = center.numel // period if period else 0
    if not segments or not n:
        return [fill_(new(x.device, out, shape), 0) for _ in range(1 + bias)]
    n //= segments
    source, given = contiguous(x.detach()), contiguous(to_dtype(g.detach(), x.dtype))
    threads = row_threads(n)
    blocks = segments * -(-n // threads)
    wanted = max(1, 8 * x.device.backend.multiprocessors // blocks)
    chunk = 64 if x.device.kind == "cpu" else max(32, -(-period // wanted))
    chunks = -(-period // chunk)
    kept = out if chunks == 1 else compute
    sums = [new(x.device, kept, (segments, chunks, n)) for _ in range(1 + bias)]
    run(
        x.device, kernels.norm_parameters_program, (x.dtype, kept, bias, threads),
        (sums[0], sums[-1], center, scale, source, given, segments, n, period, chunk, chunks), blocks * chunks, threads,
    )  # fmt: skip
    if chunks > 1:
        sums = [reduce_axes(t, SUM, (1,), False, out, compute) for t in sums]
    return [t.reshape(shape) for t in sums]


def _layer_norm_formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axes: Shape) -> Tensor:
    distance = x - mean(x, axis=axes, keepdims=True)
    y = distance * rsqrt(mean(distance * distance, axis=axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm_formula(x: Tensor, weight: Tensor | None, eps: float, axes: Shape) -> Tensor:
    y = x * rsqrt(mean(x * x, axis=axes, keepdims=True) + eps)
    return y if weight is None else y * weight


def _norm_rule(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, center: Tensor, scale: Tensor, centered: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """One gradient for each of x, weight and bias that there is."""
    rows = center.numel
    kind = kernels.NO_WEIGHT if weight is None else kernels.FACTOR
    parts: list[Tensor | None] = [
        run_norm_gradient(g, x, weight, center, scale, rows, kind, centered) if needs[0] else None
    ]
    wants_bias = bias is not None and needs[-1]
    if weight is not None and needs[1]:
        found = run_norm_parameters(g, x, center, scale, weight.shape, rows, weight.dtype, wants_bias)
        parts += found if len(found) == (bias is not None) + 1 else [*found, None]
    else:
        parts += [None] * (weight is not None)
        parts += [g if wants_bias else None] * (bias is not None)
    return tuple(parts)


def _layer_norm_rule(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: Tensor, scale: Tensor,
    axes: Shape, needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    if is_recording():
        return again(_layer_norm_formula, g, [x, weight, bias], eps=eps, axes=axes)
    return _norm_rule(g, x, weight, bias, center, scale, True, needs)


def _rms_norm_rule(
    g: Tensor, x: Tensor, weight: Tensor | None, eps: float, center: Tensor, scale: Tensor, axes: Shape,
    needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    if is_recording():
        return again(_rms_norm_formula, g, [x, weight], eps=eps, axes=axes)
    return _norm_rule(g, x, weight, None, center, scale, False, needs)


def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, normalized_shape: Any, centered: bool
) -> tuple[Tensor, dict[str, Any]]:
    sizes = _trailing(x, weight, bias, normalized_shape, "layer_norm" if centered else "rms_norm")
    n = numel(sizes)
    kind = kernels.NO_WEIGHT if weight is None else kernels.FACTOR
    y, saved = run_norm(x, weight, bias, eps, n, x.numel // n if n else 0, kind, centered)
    return y, {**saved, "axes": tuple(range(-len(sizes), 0))}


def _axes(w: Any, b: Any, normalized_shape: Any) -> Shape:
    given = next((np.shape(p) for p in (w, b) if p is not None), (1,))
    count = len(given) if normalized_shape is None else len(tuple(normalized_shape))
    return tuple(range(-count, 0))


def _layer_norm_reference(x: Any, w: Any = None, b: Any = None, eps: float = 1e-5, normalized_shape: Any = None) -> Any:
    axes = _axes(w, b, normalized_shape)
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return y * (1 if w is None else w) + (0 if b is None else b)


@primitive(
    _layer_norm_reference, [
        case((3, 7)), case((2, 3, 300), (300,), (300,)), case((4, 5), (5,)), case((3, 1)), case((70, 5), (5,), (5,)),
        case((2, 3, 5), (3, 5), (3, 5)), case((2, 3, 5), normalized_shape=(3, 5)), case((4, 5), None, (5,)),
        case((0, 5), (5,), (5,)),
    ],
    gradient=_layer_norm_rule, autocast="high", ulps=32,
)  # fmt: skip
def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    normalized_shape: Sizes | None = None,
) -> Any:  # fmt: skip
    """(x − mean) / √(variance + eps)·weight + bias over the last axes. (Ba, Kiros and Hinton 2016)

    normalized_shape: the sizes of those axes; by default the weight's (or the bias's) shape, else the last axis.
    Raises ShapeError where they are not the last axes of x.
    """
    return _norm(x, weight, bias, eps, normalized_shape, centered=True)


def _rms_norm_reference(x: Any, w: Any = None, eps: float = 1e-5, normalized_shape: Any = None) -> Any:
    axes = _axes(w, None, normalized_shape)
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + eps) * (1 if w is None else w)


@primitive(
    _rms_norm_reference, [
        case((3, 7)), case((2, 3, 300), (300,)), case((4, 5), (5,)), case((2, 3, 5), (3, 5)), case((70, 3), (3,)),
        case((2, 3, 4), normalized_shape=(3, 4)),
    ],
    gradient=_rms_norm_rule, autocast="high", ulps=32,
)  # fmt: skip
def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5, normalized_shape: Sizes | None = None) -> Any:
    """x / √(mean(x²) + eps)·weight over the last axes, chosen as in layer_norm. (Zhang and Sennrich 2019)"""
    return _norm(x, weight, None, eps, normalized_shape, centered=False)


def _normalize_reference(x: Any, p: float = 2.0, axis: Any = -1, eps: float = 1e-12) -> Any:
    size = (
        np.max(np.abs(x), axis, keepdims=True) if p == np.inf else (np.abs(x) ** p).sum(axis, keepdims=True) ** (1 / p)
    )
    return x / np.maximum(size, eps)


@composite(
    _normalize_reference,
    [
        case((3, 5)), case((2, 3, 4), axis=(1, 2)), case((3, 5), p=1.0, axis=0), case((3, 5), p=3.0), case((0, 3)),
        case((3, 5), p=math.inf),
    ],
    ulps=16,
)  # fmt: skip
def normalize(x: Tensor, p: float = 2.0, axis: Axis = -1, eps: float = 1e-12) -> Any:
    """x / max(‖x‖ₚ, eps) along axes: p ≥ 1, or math.inf for the largest magnitude. A row of zeros stays 0.

    Computed in f32 (f64 for f64) and rounded once; a row of zeros gets the gradient g / eps.
    """
    check_floating(x, "normalize")
    if not p >= 1:
        raise ConfigError(f"normalize: p must be at least 1, got {p}")
    wide = to_dtype(x, x.dtype.accumulator)
    return to_dtype(_unit(wide, p, axis, eps), x.dtype)


def _unit(x: Tensor, p: float, axis: Any, eps: float) -> Tensor:
    if p == 2:
        return x * rsqrt(maximum(sum(x * x, axis=axis, keepdims=True), max(eps * eps, 1e-38)))
    size = abs(x)
    if math.isinf(p):
        total = largest(size, axis=axis, keepdims=True)
    elif p == 1:
        total = sum(size, axis=axis, keepdims=True)
    else:
        powers = sum(size**p, axis=axis, keepdims=True)
        total = where(powers > 0, where(powers > 0, powers, 1) ** (1 / p), 0)
    return x / maximum(total, eps)


__all__ = ["layer_norm", "normalize", "rms_norm"]
