"""Reductions: sum, mean, product, extremes, truth, variance, log-sum-exp, argmax."""

from __future__ import annotations

import builtins
from math import prod as product
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, DType, as_dtype, bfloat16, bool_, default_float, int64
from ...errors import DTypeError, ShapeError
from ...kernels.elementwise import formula as f
from ...kernels.reduce.associative import ALL, ANY, MAXIMUM, MINIMUM, SUM, Associative
from ...kernels.reduce.reduce import arg_program, reduce_program
from ...scalars import is_number
from ...shapes import Shape, axes_tuple, axis_index, collapse, permute
from ...tensor import Tensor, new
from ..core.copies import copied
from ..core.formula_op import Elementwise, fuse
from ..core.kernel_op import primitive
from ..core.launch import run
from ..core.table import case, composite
from ..elementwise.arithmetic import exp, isfinite, log, where
from ..shape.movement import broadcast_to, reshape, to_dtype

Axis = int | tuple[int, ...] | None

_LANES = 32  # neighbouring outputs that a block of the column kernel takes together
_HOST_CHUNK = 4096  # one thread: chunks keep the rounding error of very long sums small
NUMBERS = FLOATS + INTEGERS


def _kept_shape(shape: Shape, axes: Shape, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if a in axes else n for a, n in enumerate(shape))
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def _axes_last(x: Tensor, axes: Shape) -> tuple[Tensor, Shape, Shape, Shape, Shape]:
    """x with at most two kept axes and one reduced axis to walk: a view where strides allow, else a copy."""
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    outer, (outer_strides,) = collapse(permute(x.shape, kept), [permute(x.strides, kept)])
    inner, (inner_strides,) = collapse(permute(x.shape, axes), [permute(x.strides, axes)])
    if len(outer) > 2 or len(inner) > 1:
        order = kept + axes
        x = copied(x.alias(permute(x.shape, order), permute(x.strides, order), x.offset))
        n = product(inner)
        return x, (1, product(outer)), (0, n), (n,), (1,)
    lead = 2 - len(outer)
    return x, (1,) * lead + outer, (0,) * lead + outer_strides, inner, inner_strides


def reduce_axes(
    x: Tensor, what: Associative, axes: Shape, keepdims: bool, out: DType, compute: DType, scale: float = 1
) -> Tensor:
    """scale · the elements along `axes` combined, in dtype `out`; outside the graph."""
    y = new(x.device, out, _kept_shape(x.shape, axes, keepdims))
    outputs = y.numel
    if outputs == 0:
        return y
    n = product(permute(x.shape, axes))
    if n == 0:
        shape: tuple[Shape, Shape, Shape, Shape] = ((1, outputs), (0, 0), (0,), (0,))
        source = x
    else:
        source, *rest = _axes_last(x, axes)
        shape = tuple(rest)  # type: ignore[assignment]
    (_, inner), (s_outer, s_inner), _, (s_axis,) = shape
    columns = s_inner == 1 and s_axis != 1 and inner >= 16 and x.device.kind == "cuda"
    chunk, chunks = _chunks(x, outputs, n, columns)
    target = y if chunks == 1 else new(x.device, compute, (outputs, chunks))
    threads = 256 if columns or n > 128 else 32
    lanes = _LANES if columns else 0
    items = -(-outputs // _LANES) * chunks if columns else outputs * chunks
    run(
        x.device, reduce_program, (what, x.dtype, target.dtype, compute, threads, lanes),
        (target, source, scale if chunks == 1 else 1, outputs, inner, s_outer, s_axis, s_inner, n, chunk, chunks),
        items, threads,
    )  # fmt: skip
    if chunks > 1:
        threads = 256 if chunks > 128 else 32
        run(
            x.device, reduce_program, (what.of_results, compute, out, compute, threads, 0),
            (y, target, scale, outputs, outputs, 0, 1, chunks, chunks, chunks, 1),
            outputs, threads,
        )  # fmt: skip
    return y


def _chunks(x: Tensor, outputs: int, n: int, columns: bool) -> tuple[int, int]:
    """(length, number) of the pieces that the axis is cut in: enough work for every multiprocessor."""
    if x.device.kind == "cpu":
        return (n, 1) if n <= 2 * _HOST_CHUNK else (_HOST_CHUNK, -(-n // _HOST_CHUNK))
    blocks = -(-outputs // _LANES) if columns else outputs
    wanted = builtins.max(1, 8 * x.device.backend.multiprocessors // blocks)
    chunk = builtins.max(-(-n // wanted), 256 if columns else 4096)
    return (n, 1) if chunk >= n else (chunk, -(-n // chunk))


def with_axes(g: Tensor, x_shape: Shape, axis: Axis) -> Tensor:
    """A reduction's result, or its gradient, with the reduced axes as axes of size 1."""
    return reshape(g, _kept_shape(x_shape, axes_tuple(axis, len(x_shape), "sum"), True))


def _spread(g: Tensor, x_shape: Shape, axis: Axis) -> Tensor:
    return broadcast_to(with_axes(g, x_shape, axis), x_shape)


_CASES = [
    case((3, 5)), case((3, 5), axis=0), case((4, 3, 5), axis=1, keepdims=True), case((2, 3, 4), axis=(0, -1)),
    case((7, 33), axis=0), case((5, 300), axis=1), case(()), case((2, 1, 3), axis=(1,)),
]  # fmt: skip
_LONG = case(np.full((8192,), 0.1, np.float32))  # errors of the same sign


def total_dtype(x: Tensor, dtype: Any) -> DType:
    if dtype is not None:
        return as_dtype(dtype)
    return x.dtype if x.dtype.is_floating else x.dtype.accumulator


def total_over(x: Tensor, what: Associative, axis: Axis, keepdims: bool, dtype: Any, name: str) -> Tensor:
    out = total_dtype(x, dtype)
    x, compute = prepared(x, out)
    return reduce_axes(x, what, axes_tuple(axis, x.ndim, name), keepdims, out, compute)


def prepared(x: Tensor, out: DType) -> tuple[Tensor, DType]:
    """(operand, dtype to combine it in) for sums and products of dtype `out`; outside the graph.

    Elements are cast first, as NumPy does: fractions to integers, numbers to truth values. Between floating dtypes
    nothing is rounded before the end.
    """
    x = x.detach()
    if out.kind == "bool" or (x.dtype.is_floating and not out.is_floating):
        x = to_dtype(x, out)
    own, wide = x.dtype.accumulator, out.accumulator
    if not out.is_floating:
        return x, own
    return x, own if own.is_floating and own.itemsize > wide.itemsize else wide


@primitive(
    lambda x, axis=None, keepdims=False: x.sum(axis, keepdims=keepdims), [*_CASES, case((0, 3), axis=0), _LONG],
    gradient=lambda g, x_shape, axis: _spread(g, x_shape, axis),
    test_dtypes=NUMBERS, ulps=16,
)  # fmt: skip
def sum(x: Tensor, axis: Axis = None, keepdims: bool = False, dtype: Any = None) -> Tensor:
    """Sum over axes (default all), accumulated in f32 (f64 for f64, 64 bits for integers and bool). Empty: 0."""
    return total_over(x, SUM, axis, keepdims, dtype, "sum")


def _floating(x: Tensor) -> DType:
    """The dtype of means of x, and of the like."""
    return x.dtype if x.dtype.is_floating else default_float


def _mean_gradient(g: Tensor, x_shape: Shape, axis: Axis) -> Tensor:
    n = product(permute(x_shape, axes_tuple(axis, len(x_shape), "mean")))
    return _spread(g * (1 / n if n else float("nan")), x_shape, axis)


@primitive(
    lambda x, axis=None, keepdims=False: x.mean(axis, keepdims=keepdims), _CASES,
    gradient=_mean_gradient, ulps=8,
)  # fmt: skip
def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean over axes; divided before it is rounded to the dtype. Integers give float32. Empty: NaN."""
    axes = axes_tuple(axis, x.ndim, "mean")
    n = product(permute(x.shape, axes))
    out = _floating(x)
    return reduce_axes(x, SUM, axes, keepdims, out, out.accumulator, 1 / n if n else float("nan"))


def _extreme(x: Tensor, what: Associative, axis: Axis, keepdims: bool, name: str) -> Tensor:
    axes = axes_tuple(axis, x.ndim, name)
    if product(permute(x.shape, axes)) == 0:
        raise ShapeError(f"{name}: no elements along axis={axis} of shape {x.shape}")
    if x.dtype.kind == "bool":
        raise DTypeError(f"{name}: not defined for bool; use any() or all()")
    return reduce_axes(x, what, axes, keepdims, x.dtype, x.dtype.accumulator)


def _extreme_gradient(g: Tensor, y: Tensor, x: Tensor, axis: Axis) -> Tensor:
    return shared_gradient(with_axes(g, x.shape, axis), with_axes(y, x.shape, axis), x, axis)


_CHOSEN = fuse(lambda x, y: f.logical_or(f.equal(x, y), f.isnan(x)))


def shared_gradient(g: Tensor, y: Tensor, x: Tensor, axis: Axis) -> Tensor:
    """g in equal parts for the elements of x that are the extreme y, or NaN; the others get 0. y, g: axes kept."""
    chosen = _CHOSEN(x, y)
    return where(chosen, g / sum(chosen, axis=axis, keepdims=True), 0)  # counted in int64: more than f16 can hold


@primitive(
    lambda x, axis=None, keepdims=False: x.max(axis, keepdims=keepdims), _CASES,
    gradient=_extreme_gradient, test_dtypes=NUMBERS, ulps=0,
)  # fmt: skip
def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest element along axes; NaN if one is. Equal ones share the gradient. Raises ShapeError if empty."""
    return _extreme(x, MAXIMUM, axis, keepdims, "max")


@primitive(
    lambda x, axis=None, keepdims=False: x.min(axis, keepdims=keepdims), _CASES,
    gradient=_extreme_gradient, test_dtypes=NUMBERS, ulps=0,
)  # fmt: skip
def min(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Smallest element along axes; NaN if one is. Equal ones share the gradient. Raises ShapeError if empty."""
    return _extreme(x, MINIMUM, axis, keepdims, "min")


@primitive(
    lambda x, axis=None, keepdims=False: np.any(x, axis, keepdims=keepdims), _CASES,
    non_differentiable="its result is a truth value", test_dtypes=(*NUMBERS, bool_),
)  # fmt: skip
def any(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether an element along the axes is not 0. Empty: False."""
    return reduce_axes(x, ANY, axes_tuple(axis, x.ndim, "any"), keepdims, bool_, int64)


@primitive(
    lambda x, axis=None, keepdims=False: np.all(x, axis, keepdims=keepdims), _CASES,
    non_differentiable="its result is a truth value", test_dtypes=(*NUMBERS, bool_),
)  # fmt: skip
def all(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element along the axes is not 0. Empty: True."""
    return reduce_axes(x, ALL, axes_tuple(axis, x.ndim, "all"), keepdims, bool_, int64)


def _arg(x: Tensor, largest: bool, axis: int | None, keepdims: bool, name: str) -> Tensor:
    axes = axes_tuple(axis, x.ndim, name) if axis is None else (axis_index(axis, x.ndim, name),)
    if product(permute(x.shape, axes)) == 0:
        raise ShapeError(f"{name}: no elements along axis={axis} of shape {x.shape}")
    y = new(x.device, int64, _kept_shape(x.shape, axes, keepdims))
    if y.numel == 0:
        return y
    source, (_, inner), (s_outer, s_inner), (n,), (s_axis,) = _axes_last(x, axes)
    threads = 256 if n > 128 else 32
    run(
        x.device, arg_program, (largest, x.dtype, x.dtype.accumulator, threads),
        (y, source, y.numel, inner, s_outer, s_axis, s_inner, n), y.numel, threads,
    )  # fmt: skip
    return y


_ARG_CASES = [case((3, 5)), case((3, 5), axis=0), case((4, 300), axis=-1, keepdims=True), case((1,))]


@primitive(
    lambda x, axis=None, keepdims=False: np.argmax(x, axis, keepdims=keepdims), _ARG_CASES,
    non_differentiable="its result is an index", test_dtypes=NUMBERS,
)  # fmt: skip
def argmax(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the largest element (int64), the first of equals; a NaN counts as largest. None: of all elements."""
    return _arg(x, True, axis, keepdims, "argmax")


@primitive(
    lambda x, axis=None, keepdims=False: np.argmin(x, axis, keepdims=keepdims), _ARG_CASES,
    non_differentiable="its result is an index", test_dtypes=NUMBERS,
)  # fmt: skip
def argmin(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the smallest element (int64), the first of equals; a NaN counts as smallest. None: of all elements."""
    return _arg(x, False, axis, keepdims, "argmin")


_VAR_CASES = [
    case((3, 5)), case((3, 5), axis=0), case((4, 3, 5), axis=1, keepdims=True, correction=1),
    case(np.array([1000.0, 1004.0] * 4, bfloat16.numpy)), case(np.array([-250.0, 250.0], np.float16)),
]  # fmt: skip


def _root(x: f.Expr) -> f.Expr:
    zero = f.equal(x, 0)  # there the slope is taken as 0
    return f.where(zero, 0, f.sqrt(f.where(zero, 1, x)))


_ROOT = Elementwise("std", ["x"], _root(f.variable("x")))


def _squared_distance(x: Tensor, axis: Axis, keepdims: bool, correction: Any, op: str) -> Tensor:
    """The variance in f32 (f64 for f64): what is rounded to a 2-byte dtype on the way would show."""
    n = product(permute(x.shape, axes_tuple(axis, x.ndim, op)))
    if not is_number(correction):
        raise DTypeError(f"{op}: correction must be a number, got {correction!r}")
    wide = to_dtype(x, _floating(x).accumulator)
    distance = wide - mean(wide, axis=axis, keepdims=True)
    average = mean(distance * distance, axis=axis, keepdims=keepdims)
    if correction == 0:
        return average
    return average * (n / (n - correction) if n > correction else float("inf"))  # of a constant, 0 · ∞ is NaN


@composite(
    lambda x, axis=None, keepdims=False, correction=0: x.var(axis, keepdims=keepdims, ddof=correction), _VAR_CASES,
    ulps=16,
)  # fmt: skip
def var(x: Tensor, axis: Axis = None, keepdims: bool = False, correction: float = 0) -> Tensor:
    """Variance: the mean squared distance from the mean, with n − correction in the denominator. Rounded once.

    Where that is not above 0: ∞, or NaN if all elements are equal, as NumPy.
    """
    return to_dtype(_squared_distance(x, axis, keepdims, correction, "var"), _floating(x))


@composite(
    lambda x, axis=None, keepdims=False, correction=0: x.std(axis, keepdims=keepdims, ddof=correction), _VAR_CASES,
    ulps=16,
)  # fmt: skip
def std(x: Tensor, axis: Axis = None, keepdims: bool = False, correction: float = 0) -> Tensor:
    """Standard deviation, √var, rounded once. Its slope where all elements are equal is taken as 0."""
    return to_dtype(_ROOT(_squared_distance(x, axis, keepdims, correction, "std")), _floating(x))


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    import scipy.special

    return scipy.special.logsumexp(x, axis=axis, keepdims=keepdims)


@composite(
    _logsumexp, [
        case((3, 5), axis=1), case((3, 5)), case((2, 3, 4), axis=(0, 2), keepdims=True), case((2, 0), axis=1),
        case((70000,)), case(np.array([[1, 200], [255, 0]], np.uint8), axis=1),
    ],
    ulps=8,
)  # fmt: skip
def logsumexp(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log Σ exp(x) over axes, without overflow, in f32 or wider and rounded once. Empty: −∞."""
    axes = axes_tuple(axis, x.ndim, "logsumexp")
    x = to_dtype(x, _floating(x))  # differences of unsigned integers would wrap
    if product(permute(x.shape, axes)) == 0:
        total = log(sum(to_dtype(x, x.dtype.accumulator), axis=axes, keepdims=True))
    else:
        top = to_dtype(max(x.detach(), axis=axes, keepdims=True), x.dtype.accumulator)
        shift = where(isfinite(top), top, 0)
        total = log(sum(exp(x - shift), axis=axes, keepdims=True)) + shift
    total = to_dtype(total, x.dtype)
    return total if keepdims else reshape(total, _kept_shape(x.shape, axes, False))


__all__ = ["all", "any", "argmax", "argmin", "logsumexp", "max", "mean", "min", "std", "sum", "var"]
