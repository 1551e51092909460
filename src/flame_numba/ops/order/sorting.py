"""Sorting: stable, by radix or by merging, and what follows from a sorted order."""

from __future__ import annotations

from math import prod as product
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, bfloat16, bool_, default_float, float32, float64, int64, uint8
from ...errors import ConfigError, DTypeError, ShapeError
from ...kernels.elementwise import formula as f
from ...shapes import axes_tuple, axis_index
from ...tensor import Tensor
from ..core.formula_op import Elementwise
from ..core.kernel_op import primitive
from ..core.table import case, composite
from ..elementwise.arithmetic import between, between_partials, ceil, floor, isnan, maximum, minimum, where
from ..elementwise.arithmetic import round as round_even
from ..index.gather import take, take_along_axis
from ..index.orders import order_rows
from ..reduce.reductions import Axis
from ..shape.creation import asarray
from ..shape.movement import contiguous, narrow, permute, reshape, squeeze, to_dtype, transpose

NUMBERS = (*FLOATS, *INTEGERS)
A_FEW = (float32, bfloat16, int64, uint8)  # for what is made of ops that are tested in all


def _argsort_reference(x: Any, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    if not descending:
        return np.argsort(x, axis, kind="stable")
    back = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    return x.shape[axis] - 1 - back


_CASES = [
    case((7,)), case((3, 5), axis=0), case((2, 3, 4), axis=1, descending=True), case((0,)), case((3, 0)), case((1, 1)),
    case((150, 2), axis=0, descending=True),
]  # fmt: skip


@primitive(
    _argsort_reference, _CASES, non_differentiable="its result is an index", test_dtypes=(*NUMBERS, bool_)
)  # fmt: skip
def argsort(x: Tensor, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """Indices that sort x along an axis, int64. Equal elements keep their order, in both directions.

    −0 equals +0. NaN counts as the largest: last if ascending, first if descending, as in `argmax`. Rows that fit in
    shared memory are merged, others sorted by digits: O(n) passes, one for 4 bits (8 on a host) of the dtype.
    `stable=False` permits no less.
    """
    at = axis_index(axis, x.ndim, "argsort")
    rows = contiguous(transpose(x.detach(), at, -1))
    return transpose(order_rows(rows, descending), at, -1)


def _sort_reference(x: Any, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    return np.take_along_axis(x, _argsort_reference(x, axis, descending), axis)


@composite(_sort_reference, _CASES, test_dtypes=(*NUMBERS, bool_), ulps=0)
def sort(x: Tensor, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The elements in order along an axis; see `argsort`, which also gives where they come from."""
    return take_along_axis(x, argsort(x, axis, descending), axis)


def _first(x: Tensor, order: Tensor, axis: int, start: int, k: int) -> tuple[Tensor, Tensor]:
    chosen = narrow(order, axis, start, k)
    return take_along_axis(x, chosen, axis), chosen


def _topk_reference(x: Any, k: int, axis: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    order = np.take(_argsort_reference(x, axis, largest), np.arange(k), axis)
    return np.take_along_axis(x, order, axis), order


@composite(
    _topk_reference, [
        case((7,), 3), case((3, 5), 2, axis=0, largest=False), case((2, 150), 4), case((3, 4), 0), case((2, 3), 3),
        case((4, 0, 3), 2),
    ],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def topk(x: Tensor, k: int, axis: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """(values, indices): the k largest elements along an axis, or the smallest, in order; the first of equals.

    NaN counts as the largest. Raises ShapeError unless 0 ≤ k ≤ size. They are in order also if not `sorted`.
    """
    at = axis_index(axis, x.ndim, "topk")
    if not 0 <= k <= x.shape[at]:
        raise ShapeError(f"topk: k={k} must be in 0 … {x.shape[at]}, the size of axis {at} of shape {x.shape}")
    return _first(x, argsort(x, at, descending=largest), at, 0, k)


def _kth_reference(x: Any, k: int, axis: int = -1, keepdims: bool = False) -> Any:
    values, order = (np.take(v, [k - 1], axis) for v in _topk_reference(x, k, axis, False))
    return (values, order) if keepdims else (values.squeeze(axis), order.squeeze(axis))


@composite(
    _kth_reference, [case((7,), 3), case((3, 5), 1, axis=0), case((2, 6), 6, keepdims=True)],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def kthvalue(x: Tensor, k: int, axis: int = -1, keepdims: bool = False) -> tuple[Tensor, Tensor]:
    """(value, index) of the k-th smallest element along an axis, k from 1; the k-th of the stable order."""
    at = axis_index(axis, x.ndim, "kthvalue")
    if not 1 <= k <= x.shape[at]:
        raise ShapeError(f"kthvalue: k={k} must be in 1 … {x.shape[at]}, the size of axis {at} of shape {x.shape}")
    values, order = _first(x, argsort(x, at), at, k - 1, 1)
    return (values, order) if keepdims else (squeeze(values, at), squeeze(order, at))


# --- quantiles ------------------------------------------------------------------------------------------------------
_BETWEEN = Elementwise(
    "quantile", ["low", "high", "t"], f.trace(between, ["low", "high", "t"]),
    partials=lambda y, low, high, t: between_partials(low, high, t),
)  # fmt: skip
METHODS = ("linear", "lower", "higher", "midpoint", "nearest")


def _weights(q: Any, n: int, method: str, device: Any) -> tuple[Tensor, Tensor]:
    """Where the quantiles lie among n elements in order: the place below, and how far to the next, in 0 … 1."""
    at = asarray(q, dtype=float64, device=device).detach() * (n - 1)
    if method == "nearest":
        at = round_even(at)
    below = floor(at)
    further = at - below
    if method == "lower":
        further = further * 0
    elif method == "higher":
        further = ceil(further)
    elif method == "midpoint":
        further = ceil(further) * 0.5
    return to_dtype(where(isnan(below), 0, below), int64), further  # of a NaN the place is any, the distance NaN


def _shares(q: Any) -> Any:
    """q as an array of numbers in 0 … 1."""
    try:
        shares = np.asarray(q)
    except ValueError:  # rows of different lengths
        shares = np.asarray(None)
    if shares.dtype.kind not in "biufV":  # V: bfloat16
        raise DTypeError(f"quantile: q must be a number, numbers in rows of one length or a tensor, got {q!r}")
    if not np.all((shares >= 0) & (shares <= 1)):
        raise ConfigError(f"quantile: q={q} must be in 0 … 1")
    return shares


@composite(
    lambda x, q, axis=None, keepdims=False, method="linear": np.quantile(x, q, axis, keepdims=keepdims, method=method),
    [
        case((7,), 0.3), case((3, 5), 0.5, axis=0), case((2, 3, 4), 0.25, axis=(0, 2), keepdims=True),
        case((3, 4), [0.0, 0.4, 1.0], axis=1), case((5,), 0.6, method="lower"), case((5,), 0.6, method="higher"),
        case((6,), 0.5, method="midpoint"), case((6,), 0.31, method="nearest"),
    ],
    ulps=16,
)  # fmt: skip
def quantile(x: Tensor, q: Any, axis: Axis = None, keepdims: bool = False, method: str = "linear") -> Tensor:
    """The value below which a share q of the elements lies, along axes (default all): q.shape + the axes kept.

    Between two elements as `method` says: linear, lower, higher, midpoint, nearest. NaN if an element is NaN;
    integers give float32. Raises ShapeError if there are no elements. A q outside 0 … 1 is a ConfigError if q is a
    number or a list; if it is a tensor, it means 0 or 1, and a NaN gives NaN. (Hyndman and Fan 1996, type 7)
    """
    axes = axes_tuple(axis, x.ndim, "quantile")
    n = product(x.shape[a] for a in axes)
    if n == 0:
        raise ShapeError(f"quantile: no elements along axis={axis} of shape {x.shape}")
    if method not in METHODS:
        raise ConfigError(f"quantile: method={method!r} must be one of {', '.join(METHODS)}")
    if isinstance(q, Tensor):
        q = minimum(maximum(to_dtype(q.detach(), float64), 0.0), 1.0)
    else:
        q = _shares(q)
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    out = x.dtype if x.dtype.is_floating else default_float
    lines = reshape(permute(to_dtype(x, out.accumulator), kept + axes), (*(x.shape[a] for a in kept), n))
    ordered = sort(lines)
    below, further = _weights(q, n, method, x.device)
    low = take(ordered, below, -1)
    high = take(ordered, minimum(below + 1, n - 1), -1)
    y = _BETWEEN(low, high, to_dtype(further, out.accumulator))
    last = reshape(narrow(ordered, -1, n - 1, 1), (*lines.shape[:-1], *(1,) * below.ndim))
    y = where(isnan(last), last, y)
    y = permute(y, (*range(len(kept), y.ndim), *range(len(kept))))
    if keepdims:
        y = reshape(y, below.shape + tuple(1 if a in axes else s for a, s in enumerate(x.shape)))
    return to_dtype(y, out)


@composite(
    lambda x, axis=None, keepdims=False: np.median(x, axis, keepdims=keepdims),
    [
        case((7,)), case((3, 4), axis=1), case((2, 3, 4), axis=(0, 1), keepdims=True),
        case(np.array([[np.inf, np.inf], [-np.inf, -np.inf], [1.0, np.inf]]), axis=1),
    ],
    ulps=16,
)  # fmt: skip
def median(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The middle element along axes (default all), or the mean of the two in the middle. NaN if one is NaN."""
    return quantile(x, 0.5, axis, keepdims)


__all__ = ["argsort", "kthvalue", "median", "quantile", "sort", "topk"]
