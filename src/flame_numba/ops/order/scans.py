"""Running sums, products, extremes and log-sum-exps along an axis; linear recurrences; differences."""

from __future__ import annotations

from math import prod as product
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, bfloat16, bool_, float32, int64, promote, uint8
from ...errors import AxisError, ConfigError, DTypeError, ShapeError
from ...kernels.order.scan import recurrence_program
from ...kernels.reduce.associative import LOGSUMEXP, MAXIMUM, MINIMUM, PRODUCT, SUM, Associative
from ...shapes import Shape, axis_index
from ...tensor import Tensor, new
from ..core.copies import fill_
from ..core.kernel_op import primitive
from ..core.launch import run, spread
from ..core.operands import check_floating
from ..core.table import Domain, case, composite
from ..elementwise.arithmetic import equal, exp, logical_or, not_equal, where
from ..index.gather import take_along_axis
from ..index.orders import scan_axis, scan_chunks
from ..reduce.reductions import prepared, total_dtype
from ..shape.creation import arange
from ..shape.joining import concat
from ..shape.movement import contiguous, narrow, reshape

NUMBERS = FLOATS + INTEGERS
A_FEW = (float32, bfloat16, int64, uint8)  # for what is made of ops that are tested in all


def _running(x: Tensor, what: Associative, axis: int, reverse: bool, dtype: Any, op: str) -> Tensor:
    """The accumulation rules of `sum`: integers in 64 bits, floats in f32 (f64 for f64)."""
    out = total_dtype(x, dtype)
    x, compute = prepared(x, out)
    return scan_axis(x, what, axis_index(axis, x.ndim, op), reverse, out, compute)


def _turned(function: Any, x: Any, axis: int, reverse: bool) -> Any:
    return np.flip(function(np.flip(x, axis), axis=axis), axis) if reverse else function(x, axis=axis)


def _line(x: Tensor, axis: int | None) -> tuple[Tensor, int]:
    """x and the axis, or all elements as one line for None."""
    return (reshape(x, (-1,)), 0) if axis is None else (x, axis)


def _with_initial(y: Tensor, axis: int, value: int) -> Tensor:
    """y after one more element along the axis, the value of an empty scan."""
    first = new(y.device, y.dtype, _sized(y.shape, axis, 1))
    fill_(first, value)
    return concat([first, y], axis)


def _sized(shape: Shape, axis: int, n: int) -> Shape:
    at = axis % len(shape)
    return shape[:at] + (n,) + shape[at + 1 :]


def shifted(x: Tensor, axis: int, reverse: bool, value: float) -> Tensor:
    """y[j] = x[j − 1], or x[j + 1] if reverse; `value` where there is none. Not empty along the axis."""
    n = x.shape[axis]
    end = new(x.device, x.dtype, _sized(x.shape, axis, 1))
    fill_(end, value)
    rest = narrow(x, axis, 1 if reverse else 0, n - 1)
    return concat([rest, end] if reverse else [end, rest], axis)


# --- sums -----------------------------------------------------------------------------------------------------------
_CASES = [
    case((5,), axis=0), case((3, 7), axis=-1), case((4, 3, 5), axis=1), case((3, 4), axis=0, reverse=True),
    case((2, 0), axis=1), case((0, 3), axis=1, reverse=True), case((1, 1), axis=0),
    case((3, 2, 20), axis=1),
]  # fmt: skip


@primitive(
    lambda x, axis, reverse=False: _turned(np.cumsum, x, axis, reverse), _CASES,
    gradient=lambda g, axis, reverse: running_sum(g, axis, not reverse),  # type: ignore[has-type]
    test_dtypes=NUMBERS, ulps=64, method=False,
)  # fmt: skip
def running_sum(x: Tensor, axis: int, reverse: bool = False, dtype: Any = None) -> Tensor:
    """The sum of the elements up to each along an axis, or from each to the end. See `cumsum`."""
    return _running(x, SUM, axis, reverse, dtype, "cumsum")


_FLAT = [case((3, 4)), case((), axis=None), case((0,), axis=0), case((3, 4), axis=0), case((2, 5, 3), axis=-2)]


@composite(lambda x, axis=None: np.cumsum(x, axis), _FLAT, test_dtypes=(*A_FEW, bool_), ulps=64)
def cumsum(x: Tensor, axis: int | None = None, dtype: Any = None) -> Tensor:
    """Running sum along an axis, of all elements in row-major order if it is None; dtypes as in `sum`.

    A line is summed in a fixed order, tile by tile; the gradient is the running sum from the other end.
    """
    line, at = _line(x, axis)
    return running_sum(line, at, dtype=dtype)


def _standard_axis(x: Tensor, axis: int | None, op: str) -> int:
    if axis is None and x.ndim != 1:
        raise AxisError(f"{op}: axis=None needs one axis, the shape is {x.shape}")
    return axis_index(0 if axis is None else axis, x.ndim, op)


def _cumulative_reference(function: Any, start: int) -> Any:
    def reference(x: Any, axis: int = 0, include_initial: bool = False) -> Any:
        y = function(x, axis)
        if not include_initial:
            return y
        return np.concatenate([np.full_like(np.take(y, [], axis), start, shape=_sized(y.shape, axis, 1)), y], axis)

    return reference


_INITIAL = [case((4,)), case((3, 4), axis=1, include_initial=True), case((0,), include_initial=True)]


@composite(_cumulative_reference(np.cumsum, 0), _INITIAL, test_dtypes=(*A_FEW, bool_), ulps=64)
def cumulative_sum(x: Tensor, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running sum along an axis, which only a 1-d tensor may leave out; with `include_initial` after a first 0."""
    at = _standard_axis(x, axis, "cumulative_sum")
    y = running_sum(x, at, dtype=dtype)
    return _with_initial(y, at, 0) if include_initial else y


# --- linear recurrences, of which running products have their gradient ------------------------------------------------
def _recurrence_reference(a: Any, b: Any, axis: int = -1, reverse: bool = False) -> Any:
    a, b = np.broadcast_arrays(a, b)
    a, b = (np.moveaxis(np.flip(v, axis) if reverse else v, axis, 0) for v in (a, b))
    y = np.zeros(b.shape)
    for j in range(len(b)):
        y[j] = b[j] + (a[j] * y[j - 1] if j else 0)
    y = np.moveaxis(y, 0, axis)
    return np.flip(y, axis) if reverse else y


def _recurrence_gradient(
    g: Tensor, a: Tensor, y: Tensor, axis: int, reverse: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    if y.numel == 0:
        return g, g
    # what a value adds to all after it: the same recurrence from the other end, by the factor of the next
    effect = linear_recurrence(shifted(a, axis, not reverse, 0), g, axis, not reverse)
    return (effect * shifted(y, axis, reverse, 0) if needs[0] else None), effect


@primitive(
    _recurrence_reference, [
        case((5,), (5,)), case((3, 4), (3, 4), axis=0), case((3, 4), (3, 4), axis=1, reverse=True), case((0,), (0,)),
        case((2, 3, 5), (2, 3, 5), axis=1),
    ],
    gradient=_recurrence_gradient, ulps=64, method=False,
)  # fmt: skip
def linear_recurrence(a: Tensor, b: Tensor, axis: int = -1, reverse: bool = False) -> Tensor:
    """y[j] = a[j]·y[j−1] + b[j] along an axis, from 0 (from its end if reverse): a, b and y of one shape.

    Computed in f32 (f64 for f64). Long lines are cut in chunks, which act as v → A·v + B. (Blelloch 1990)
    """
    if a.shape != b.shape or not (a.dtype.is_floating and b.dtype.is_floating):
        raise ShapeError(
            f"linear_recurrence: needs two floating tensors of one shape, got {a.dtype.name} {a.shape} and "
            f"{b.dtype.name} {b.shape}"
        )
    at = axis_index(axis, a.ndim, "linear_recurrence")
    dtype = promote(a.dtype, b.dtype)
    y = new(b.device, dtype, b.shape)
    if y.numel:
        inner = product(y.shape[at + 1 :])
        _recur(y, contiguous(a.detach()), contiguous(b.detach()), y.shape[at], inner, reverse)
    return y


def _recur(y: Tensor, a: Tensor, b: Tensor, n: int, inner: int, reverse: bool) -> None:
    rows, compute = y.numel // n, y.dtype.accumulator
    chunk, chunks = scan_chunks(y, -(-rows // 256), n, 64)
    numbers = (rows, n, inner, chunk, chunks, -1 if reverse else 1)
    blocks = spread(y.device.backend, rows * chunks)
    choices = (a.dtype, b.dtype, y.dtype, compute)
    starts = y  # not read if there is one chunk
    if chunks > 1:
        factors, ends, starts = (new(y.device, compute, (rows, chunks)) for _ in range(3))
        run(y.device, recurrence_program, (*choices, True), (y, a, b, factors, ends, *numbers), blocks)
        _recur(starts, factors, ends, chunks, 1, False)
    run(y.device, recurrence_program, (*choices, False), (y, a, b, starts, starts, *numbers), blocks)


# --- products -------------------------------------------------------------------------------------------------------
def _product_gradient(g: Tensor, x: Tensor, y: Tensor, axis: int) -> Tensor:
    # dx[k] = (product before k) · Σ_{j ≥ k} g[j] · (product of k+1 … j): no division, so right at zeros too
    if y.numel == 0:
        return g
    after = linear_recurrence(shifted(x, axis, True, 0), g, axis, True)
    return shifted(y, axis, False, 1) * after


@primitive(
    lambda x, axis: np.cumprod(x, axis), [
        case((5,), axis=0), case((3, 4), axis=-1), case((4, 2, 3), axis=1), case((2, 0), axis=1),
        case(np.array([2.0, 0.0, -3.0, 0.0, 1.5]), axis=0),
    ],
    gradient=_product_gradient, test_dtypes=NUMBERS, ulps=32, method=False, domain=Domain(-1.5, 1.5, special=False),
)  # fmt: skip
def running_product(x: Tensor, axis: int, dtype: Any = None) -> Tensor:
    """The product of the elements up to each along an axis. See `cumprod`."""
    return _running(x, PRODUCT, axis, False, dtype, "cumprod")


@composite(lambda x, axis=None: np.cumprod(x, axis), _FLAT, test_dtypes=A_FEW, ulps=32)
def cumprod(x: Tensor, axis: int | None = None, dtype: Any = None) -> Tensor:
    """Running product along an axis, of all elements in row-major order if it is None; dtypes as in `prod`.

    Its gradient holds at zeros too: it is a linear recurrence, and divides by nothing.
    """
    line, at = _line(x, axis)
    return running_product(line, at, dtype=dtype)


@composite(_cumulative_reference(np.cumprod, 1), _INITIAL, test_dtypes=A_FEW, ulps=32)
def cumulative_prod(x: Tensor, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running product along an axis, which only a 1-d tensor may leave out; with `include_initial` after a first 1."""
    at = _standard_axis(x, axis, "cumulative_prod")
    y = running_product(x, at, dtype=dtype)
    return _with_initial(y, at, 1) if include_initial else y


# --- log-sum-exp ----------------------------------------------------------------------------------------------------
def _logcumsumexp_gradient(g: Tensor, x: Tensor, y: Tensor, axis: int) -> Tensor:
    # Σ_{j ≥ k} g[j]·exp(y[k] − y[j]) is a recurrence by exp(y[k] − y[k+1]) ≤ 1: nothing overflows
    if y.numel == 0:
        return g
    empty = equal(y, float("-inf"))  # nothing but −∞ so far: what comes later does not depend on it
    level = where(empty, 0.0, y)
    n = x.shape[axis]
    following = concat([narrow(level, axis, 1, n - 1), narrow(level, axis, n - 1, 1)], axis)
    after = linear_recurrence(where(empty, 0.0, exp(level - following)), g, axis, True)
    return where(empty, 0.0, exp(where(empty, 0.0, x - level))) * after


@primitive(
    lambda x, axis=-1: np.logaddexp.accumulate(x, axis), [
        case((5,)), case((3, 4), axis=0), case((2, 3, 4), axis=1), case((0, 3)), case((2, 0), axis=1),
    ],
    gradient=_logcumsumexp_gradient, ulps=32,
)  # fmt: skip
def logcumsumexp(x: Tensor, axis: int = -1) -> Tensor:
    """log Σ exp of the elements up to each along an axis, without overflow. Needs a floating tensor."""
    check_floating(x, "logcumsumexp")
    at = axis_index(axis, x.ndim, "logcumsumexp")
    return scan_axis(x, LOGSUMEXP, at, False, x.dtype, x.dtype.accumulator)


# --- extremes ---------------------------------------------------------------------------------------------------------
def _extremes(x: Tensor, what: Associative, axis: int | None, op: str) -> tuple[Tensor, Tensor]:
    """Values so far, and where the latest of them is: one scan of values, one of the places that hold a new one."""
    line, at = _line(x, axis)
    at = axis_index(at, line.ndim, op)
    if line.dtype.kind == "bool":
        raise DTypeError(f"{op}: not defined for bool; use any() or all() of slices")
    plain = line.detach()
    top = scan_axis(plain, what, at, False, line.dtype, line.dtype.accumulator)
    holds = logical_or(equal(plain, top), not_equal(plain, plain))
    column = reshape(arange(line.shape[at], device=line.device), (-1,) + (1,) * (line.ndim - at - 1))
    places = scan_axis(where(holds, column, 0), MAXIMUM, at, False, int64, int64)
    return (take_along_axis(line, places, at) if line.requires_grad else top), places


def _extreme_reference(function: Any, better: Any) -> Any:
    def reference(x: Any, axis: int = -1) -> Any:
        lines = np.moveaxis(x, axis, -1)
        places = np.zeros(lines.shape, np.int64)
        for at in np.ndindex(lines.shape[:-1]):
            best = 0
            for j, value in enumerate(lines[at]):
                best = j if better(value, lines[at][best]) or np.isnan(value) else best
                places[at][j] = best
        return function.accumulate(x, axis), np.moveaxis(places, -1, axis)

    return reference


_EXTREME_CASES = [
    case((6,)), case((3, 4), axis=0), case((2, 3, 4), axis=1), case((0, 3)), case((2, 0), axis=1),
]  # fmt: skip


@composite(_extreme_reference(np.maximum, lambda a, b: a >= b), _EXTREME_CASES, test_dtypes=A_FEW, ulps=0)
def cummax(x: Tensor, axis: int | None = -1) -> tuple[Tensor, Tensor]:
    """(values, indices): the largest element so far along an axis, and where it is (int64), the last of equals.

    From the first NaN on all are NaN. axis=None: of all elements in row-major order.
    """
    return _extremes(x, MAXIMUM, axis, "cummax")


@composite(_extreme_reference(np.minimum, lambda a, b: a <= b), _EXTREME_CASES, test_dtypes=A_FEW, ulps=0)
def cummin(x: Tensor, axis: int | None = -1) -> tuple[Tensor, Tensor]:
    """(values, indices): the smallest element so far along an axis, and where it is (int64), the last of equals.

    From the first NaN on all are NaN. axis=None: of all elements in row-major order.
    """
    return _extremes(x, MINIMUM, axis, "cummin")


# --- differences ----------------------------------------------------------------------------------------------------
def _diff_reference(x: Any, axis: int = -1, n: int = 1, *ends: Any) -> Any:
    return np.diff(np.concatenate([ends[0], x, ends[1]], axis) if ends else x, n, axis)


@composite(
    _diff_reference, [
        case((5,)), case((3, 4), axis=0), case((2, 6), n=2), case((3, 2), n=0), case((3, 2), n=5), case((1,)),
        case((3, 4), 1, 1, (3, 1), (3, 2)),
    ],
    test_dtypes=A_FEW,
)  # fmt: skip
def diff(x: Tensor, axis: int = -1, n: int = 1, prepend: Tensor | None = None, append: Tensor | None = None) -> Tensor:
    """x[j+1] − x[j] along an axis, n times; of bools whether they differ. prepend, append: joined to x first."""
    at = axis_index(axis, x.ndim, "diff")
    if n < 0:
        raise ConfigError(f"diff: n must be ≥ 0, got {n}")
    parts = [part for part in (prepend, x, append) if part is not None]
    y = concat(parts, at) if len(parts) > 1 else x
    for _ in range(n):
        length = max(0, y.shape[at] - 1)
        after, before = narrow(y, at, y.shape[at] - length, length), narrow(y, at, 0, length)
        y = not_equal(after, before) if y.dtype is bool_ else after - before
    return y


__all__ = [
    "cummax", "cummin", "cumprod", "cumsum", "cumulative_prod", "cumulative_sum", "diff", "linear_recurrence",
    "logcumsumexp",
]  # fmt: skip
