"""How many elements there are of a kind, without atomics. Public through `searching.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dtypes import bool_, default_float, float16, float32, float64, int64, promote, uint8
from ...errors import ConfigError, DTypeError, ShapeError
from ...shapes import as_int
from ...tensor import Tensor
from ..core.table import Integers, case, composite
from ..elementwise.arithmetic import (
    equal,
    greater_equal,
    isfinite,
    less,
    less_equal,
    logical_and,
    not_equal,
    where,
)
from ..index.gather import scatter_take, take
from ..index.orders import search_rows
from ..reduce.reductions import Axis, sum, total_dtype
from ..reduce.reductions import max as reduced_max
from ..reduce.reductions import min as reduced_min
from ..shape.creation import arange, asarray, full, zeros
from ..shape.joining import concat
from ..shape.movement import narrow, reshape, to_dtype
from .scans import diff
from .sorting import sort

_COUNT_CASES = [case((3, 4)), case((3, 4), axis=0), case((2, 3, 4), axis=(0, 2), keepdims=True), case((0, 3), axis=0)]


@composite(
    lambda x, axis=None, keepdims=False: np.count_nonzero(x, axis, keepdims=keepdims), _COUNT_CASES,
    non_differentiable="its result is a count", test_dtypes=(float32, float16, int64, uint8, bool_),
)  # fmt: skip
def count_nonzero(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements along the axes (default all) are not 0, int64."""
    return sum(not_equal(x.detach(), 0), axis=axis, keepdims=keepdims, dtype=int64)


def _line_of_counts(x: Tensor, op: str) -> Tensor:
    if x.dtype.is_floating or x.ndim != 1:
        raise DTypeError(f"{op}: needs a 1-d tensor of integers, got {x.dtype.name} {x.shape}")
    return x.detach()


@composite(
    lambda x, weights=None, minlength=0, length=None: np.bincount(x, weights, max(minlength, length or 0))[:length], [
        case(Integers((20,), 0, 7), (20,)), case(Integers((5,), 0, 4), (5,), minlength=9),
        case(Integers((20,), 0, 2), np.full((20,), 200, np.uint8)), case(Integers((20,), 0, 2), np.full((20,), True)),
        case(Integers((9,), 0, 9), (9,), length=4), case(np.zeros((0,), np.int64), (0,), minlength=2),
    ],
    ulps=16, method=False,
)  # fmt: skip
def bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0, length: int | None = None) -> Tensor:
    """How often each of 0 … max(x) is in x, int64, or the sum of its weights; at least `minlength` numbers.

    x: integers (n) ≥ 0. It waits for the device to learn the maximum, unless `length` says how many numbers are
    counted; others are left out then. Sums have a fixed order, and the dtypes of `sum`. Raises ConfigError on a number
    below 0 that it sees.
    """
    line = _line_of_counts(x, "bincount")
    if length is None:
        if line.numel and int(reduced_min(line).item()) < 0:
            raise ConfigError("bincount: x holds numbers below 0")
        length = max(minlength, int(reduced_max(line).item()) + 1 if line.numel else 0)
    if weights is not None:
        return _weighted(line, weights, length)
    if line.numel == 0 or length == 0:
        return zeros((length,), dtype=int64, device=x.device)
    ordered = sort(to_dtype(line, int64))
    return diff(search_rows(ordered, arange(length + 1, device=x.device), right=False))


def _weighted(line: Tensor, weights: Tensor, length: int) -> Tensor:
    """Sums of weights by their numbers; those of numbers outside 0 … length − 1 go to a place that is cut off."""
    if weights.shape != line.shape:
        raise ShapeError(f"bincount: weights {weights.shape} must have the shape of x {line.shape}")
    places = to_dtype(line, int64)
    places = where(logical_and(greater_equal(places, 0), less(places, length)), places, length)
    weights = to_dtype(weights, total_dtype(weights, None))
    return narrow(scatter_take(weights, places, (length + 1,), 0), 0, 0, length)


def _edges(x: Tensor, bins: Any, limits: tuple[float, float] | None) -> Tensor:
    """The limits of the bins, on the device: of the elements themselves if none are given."""
    if isinstance(bins, Tensor) and bins.ndim == 0:
        bins = as_int("histogram", "bins", bins)
    if isinstance(bins, Tensor):
        if bins.ndim != 1 or bins.numel < 2:
            raise ShapeError(f"histogram: bins must be an int or edges (n ≥ 2), their shape is {bins.shape}")
        return bins.detach()
    if bins < 1:
        raise ConfigError(f"histogram: bins must be ≥ 1 or a tensor of edges, got {bins}")
    dtype = x.dtype.accumulator if x.dtype.is_floating else float64
    if limits is not None:
        try:
            low, high = (float(v) for v in limits)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"histogram: range must be two numbers, got {limits!r}") from None
        if not low <= high or not np.isfinite(high - low):
            raise ConfigError(f"histogram: range={limits} must be finite and in order")
        low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
        return asarray(np.linspace(low, high, bins + 1), dtype=dtype, device=x.device)
    line = to_dtype(x.detach(), dtype) if x.numel else asarray([0.0, 1.0], dtype=dtype, device=x.device)
    first, last = reduced_min(line), reduced_max(line)
    first = where(isfinite(last - first), first, float("nan"))  # then no bin has limits, and all stay empty
    last = where(isfinite(last - first), last, float("nan"))
    wide = where(equal(first, last), 0.5, 0.0)
    first, last = first - wide, last + wide
    first, last = to_dtype(first, float64), to_dtype(last, float64)
    numbers = arange(bins + 1, dtype=float64, device=x.device)
    # whole steps, as NumPy's: a share of the way, k·(1/bins), is rounded before it is used, and misses whole numbers
    edges = where(equal(numbers, bins), last, numbers * ((last - first) / bins) + first)
    return to_dtype(edges, dtype)


def _histogram_reference(x: Any, bins: Any = 10, range: Any = None, weights: Any = None, density: bool = False) -> Any:
    wide = None if weights is None else weights * np.int64(1)  # NumPy sums weights of 8 bits in 8 bits
    return np.histogram(x, bins, range, density, wide)


@composite(
    _histogram_reference, [
        case((50,), 7, range=(-1.9, 2.0)), case((3, 4), np.array([-1.0, 0.0, 0.7, 2.5])), case((0,), 3, range=(0, 1)),
        case((5,), 2, range=(3, 3)), case(np.arange(2**24, 2**24 + 4), 4),
        case(np.zeros((70000,)), np.array([0.0, 2.0, 4.0], np.float16), density=True),
        case(np.zeros((3, 4)), 2, None, np.full((3, 4), 100, np.int8)),
    ],
    non_differentiable="its result is a count", method=False, ulps=8,
)  # fmt: skip
def histogram(
    x: Tensor, bins: int | Tensor = 10, range: tuple[float, float] | None = None, weights: Tensor | None = None,
    density: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(counts, edges): how many elements lie in each bin, int64, or the sum of their weights. As NumPy's.

    bins: how many of one width between the limits `range` (default the smallest and the largest element), or their
    edges, ascending. A bin holds its lower edge, the last also its upper one. NaN and what lies outside is in none.
    Where NumPy raises, here no check waits for the device: without limits, and with elements that are not all finite,
    edges are NaN and counts 0, and so is the count of a bin whose edges descend.
    density: divided by the total and the widths of the bins. Integers are compared in f64; sums of weights have the
    dtypes of `sum`. The elements are sorted: counts need no atomics.
    """
    if weights is not None and weights.shape != x.shape:
        raise ShapeError(f"histogram: weights {weights.shape} must have the shape of x {x.shape}")
    edges = _edges(x, bins, range)
    dtype = promote(x.dtype, edges.dtype)
    if dtype.is_floating and not (x.dtype.is_floating and edges.dtype.is_floating):
        dtype = float64  # f32 holds no integer above 2²⁴ + 1
    line = to_dtype(reshape(x.detach(), (-1,)), dtype)
    if weights is None:
        counts = _counts_between(line, to_dtype(edges, dtype))
    else:
        counts = _weights_between(line, to_dtype(edges, dtype), weights)
    if density:
        target = edges.dtype if edges.dtype.is_floating else default_float
        parts, widths = to_dtype(counts, target.accumulator), diff(to_dtype(edges, target.accumulator))
        return to_dtype(parts / (sum(parts) * widths), target), edges
    return counts, edges


def _counts_between(line: Tensor, edges: Tensor) -> Tensor:
    ordered, n = sort(line), edges.numel - 1
    below = search_rows(ordered, edges, right=False)
    upto = search_rows(ordered, narrow(edges, 0, n, 1), right=True)
    return _of_valid(diff(concat([narrow(below, 0, 0, n), upto])), edges)


def _of_valid(counts: Tensor, edges: Tensor) -> Tensor:
    """The counts of bins whose edges are in order, 0 for the others: a check would wait for the device."""
    n = counts.numel
    return where(less_equal(narrow(edges, 0, 0, n), narrow(edges, 0, 1, n)), counts, 0)


def _weights_between(line: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    n = edges.numel - 1
    last = take(edges, full((), n, dtype=int64, device=line.device), 0)
    place = search_rows(edges, line, right=True) - 1
    place = where(equal(line, last), n - 1, place)
    return _of_valid(_weighted(where(equal(line, line), place, n), reshape(weights.detach(), (-1,)), n), edges)
