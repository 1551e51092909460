"""Softmax and norms over trailing axes: fused row kernels, differentiable twice through the ops they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...dtypes import DType
from ...errors import ConfigError, DTypeError, ShapeError
from ...grad import enable_grad, grad, is_recording
from ...kernels.reduce.associative import SUM
from ...kernels.rows import norms
from ...kernels.rows import softmax as kernels
from ...shapes import Shape, as_shape, axis_index, numel
from ...tensor import Tensor, new
from ..core.copies import fill_
from ..core.kernel_op import primitive
from ..core.launch import run
from ..core.table import case, composite
from ..elementwise.arithmetic import abs, exp, maximum, rsqrt, where
from ..reduce.reductions import Axis, mean, reduce_axes, sum
from ..reduce.reductions import max as largest
from ..shape.movement import Sizes, contiguous, reshape, to_dtype, transpose


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
    """exp(x) / Σ exp(x) along an axis, shifted so that nothing overflows. (Milakov and Gimelshein 2018)

    An element of −∞ (a mask) gives 0 and gets the gradient 0; a row of nothing else, or one with ∞, is all NaN.
    """
    return _softmax(x, axis, False)


@primitive(
    lambda x, axis=-1: np.log(_softmax_reference(x, axis)), _SOFTMAX_CASES, autocast="high", ulps=16,
    gradient=lambda g, y, axis: _softmax_gradient(g, y, axis, True),
)  # fmt: skip
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, without losing small probabilities; −∞ stays −∞. NaN where softmax is."""
    return _softmax(x, axis, True)


# --- norms --------------------------------------------------------------------------------------------------------
def _trailing(x: Tensor, weight: Tensor | None, bias: Tensor | None, given: Any, op: str) -> Shape:
    """The sizes of the axes to normalise over: as given, else those of the weight, else that of the last axis."""
    _floating(x, op)
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
            _floating(p, f"{op}: {name}")
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
        threads = kernels.row_threads(n)
        given = weight if weight is not None else bias
        dtype: DType = x.dtype if given is None else given.dtype
        w = source if weight is None else contiguous(weight.detach())
        b = source if bias is None else contiguous(to_dtype(bias.detach(), dtype))
        run(
            x.device, norms.norm_program, (x.dtype, dtype, kind, bias is not None, centered, threads),
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
        threads = kernels.row_threads(n)
        w = source if weight is None else contiguous(weight.detach())
        dtype = x.dtype if weight is None else weight.dtype
        run(
            x.device, norms.norm_gradient_program, (x.dtype, dtype, kind, centered, threads),
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
    threads = kernels.row_threads(n)
    blocks = segments * -(-n // threads)
    wanted = max(1, 8 * x.device.backend.multiprocessors // blocks)
    chunk = 64 if x.device.kind == "cpu" else max(32, -(-period // wanted))
    chunks = -(-period // chunk)
    kept = out if chunks == 1 else compute
    sums = [new(x.device, kept, (segments, chunks, n)) for _ in range(1 + bias)]
    run(
        x.device, norms.norm_parameters_program, (x.dtype, kept, bias, threads),
        (sums[0], sums[-1], center, scale, source, given, segments, n, period, chunk, chunks), blocks * chunks, threads,
    )  # fmt: skip
    if chunks > 1:
        sums = [reduce_axes(t, SUM, (1,), False, out, compute) for t in sums]
    return [t.reshape(shape) for t in sums]


def again(formula: Callable[..., Tensor], g: Tensor, inputs: list[Tensor | None], **keywords: Any) -> Any:
    """Gradients that can be differentiated again: through the ops that a fused kernel stands for.

    They are computed as in the kernel, in the accumulator of each operand's dtype: a square may be too much for f16.
    """
    with enable_grad():
        # each by itself: of two operands that are one tensor, or made from each other, each has its own part only
        operands = [None if t is None else to_dtype(reshape(t, t.shape), t.dtype.accumulator) for t in inputs]
        y = formula(*operands, **keywords)
        wanted = [t for t in operands if t is not None and t.requires_grad]
        found = iter(grad(y, wanted, [to_dtype(g, y.dtype)], create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in operands if t is not None)


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
    kind = norms.NO_WEIGHT if weight is None else norms.FACTOR
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
    kind = norms.NO_WEIGHT if weight is None else norms.FACTOR
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
    _floating(x, "normalize")
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


__all__ = ["layer_norm", "log_softmax", "normalize", "rms_norm", "softmax"]
