"""The primitives behind `scatter.py` and `subscript.py`: writing, adding and merging at computed places.

Each gives a new tensor. Two kinds of index: `…_points` has the same one for all elements off the axis, `…_along` has
one for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...dtypes import FLOATS, DType, int32, int64, uint8
from ...shapes import Shape, numel
from ...tensor import Tensor, new
from ..core.copies import copied, copy_into, fill_
from ..core.kernel_op import primitive
from ..core.mutation import apart, check_grows, check_kind, check_number_kind
from ..core.table import Integers, case
from ..elementwise.arithmetic import equal, where
from ..shape.creation import arange
from ..shape.movement import broadcast_to, reshape, strided_slice, to_dtype
from .gather import MOVED, corner, gather, take, take_points
from .launches import Lines, along, checked, points, scatter_lines

NUMBERS = (*FLOATS, int64, int32, uint8)


# --- what the ops and their twins in place share ------------------------------------------------------------------
def constant(value: Any, dtype: DType, like: Tensor) -> Tensor:
    """A 0-d tensor on the device of `like`."""
    return fill_(new(like.device, dtype, ()), value)


def as_source(op: str, x: Tensor, value: Any, shape: Shape) -> Tensor:
    """A number or a tensor as what is written to x: of x's kind of dtype, broadcast to `shape`."""
    if not isinstance(value, Tensor):
        return broadcast_to(constant(check_number_kind(op, x.dtype, value), x.dtype, x), shape)
    check_kind(op, x.dtype, value.dtype)
    if value.shape == shape:
        return value
    check_grows(op, shape, [value.shape])
    return broadcast_to(value, shape)


def write(y: Tensor, source: Tensor, lines: Lines, merge: str = "assign") -> None:
    """Scatter into the memory of y. Where faults are known at once, nothing is written if an index is out of range."""
    lines = checked(lines)
    lines = lines if lines.index.storage is not y.storage else _own_index(lines)
    scatter_lines(y, apart(y, source), lines, merge)


def _own_index(lines: Lines) -> Lines:
    whole = lines.index
    index = copied(whole.alias((whole.storage.numel,), (1,), 0)).alias(whole.shape, whole.strides, whole.offset)
    return replace(lines, index=index)


def point_shape(x: Any, indices: Any, axis: int, count: int = 1) -> Shape:
    """Of what is written to x at indices into `count` axes."""
    return (*x.shape[:axis], *indices.shape, *x.shape[axis + count :])


# --- a slice ----
def _put_slice_reference(x: Any, value: Any, starts: Shape, steps: Shape) -> Any:
    y = x.copy()
    y[np.ix_(*(s + t * np.arange(n) for s, t, n in zip(starts, steps, value.shape, strict=True)))] = value
    return y


def _put_slice_gradient(
    g: Tensor, value_shape: Shape, starts: Shape, steps: Shape, needs: tuple[bool, ...]
) -> tuple[Any, ...]:
    to_x = None
    if needs[0]:
        zeros = broadcast_to(constant(0, g.dtype, g), value_shape)
        to_x = put_slice(g, zeros, starts, steps)
    return to_x, strided_slice(g, starts, value_shape, steps) if needs[1] else None


@primitive(
    _put_slice_reference, [
        case((5, 6), (2, 3), starts=(1, 5), steps=(2, -2)),
        case((4,), (0,), starts=(0,), steps=(1,)),
        case((3,), (3,), starts=(2,), steps=(-1,)),
    ],
    gradient=_put_slice_gradient, ulps=0, method=False,
)  # fmt: skip
def put_slice(x: Tensor, value: Tensor, starts: Shape, steps: Shape) -> Tensor:
    """x with value written at start, start + step, … along each axis: what x[slices] = value becomes."""
    y = copied(x)
    if value.numel:
        offset = sum(s * stride for s, stride in zip(starts, y.strides, strict=True))
        strides = tuple(step * stride for step, stride in zip(steps, y.strides, strict=True))
        copy_into(y.alias(value.shape, strides, offset), value.detach())
    return y


# --- the same index for all ---------------------------------------------------------------------------------------
def _put_points_reference(x: Any, i: Any, v: Any, axis: int, count: int) -> Any:
    y = x.reshape((*x.shape[:axis], -1, *x.shape[axis + count :])).copy()
    y[(slice(None),) * axis + (i,)] = v
    return y.reshape(x.shape)


def _winners(op: str, size: int, indices: Tensor, trailing: int) -> Tensor:
    """Which entries of an index are the last to name their element: (i…, 1 …)."""
    places = reshape(arange(indices.numel, dtype=int64, device=indices.device), indices.shape)
    last = fill_(new(indices.device, int64, (size,)), -1)
    scatter_lines(last, places, points(op, last.shape, 0, indices), "assign")
    return reshape(equal(take(last, indices), places), indices.shape + (1,) * trailing)


def _put_points_gradient(
    g: Tensor, indices: Tensor, value_shape: Shape, axis: int, count: int, needs: tuple[bool, ...]
) -> tuple[Any, ...]:
    to_x = to_value = None
    if needs[0]:
        to_x = put_points(g, indices, broadcast_to(constant(0, g.dtype, g), value_shape), axis, count)
    if needs[2]:
        taken = take_points(g, indices, axis, count)
        winners = _winners("index", numel(g.shape[axis : axis + count]), indices, g.ndim - axis - count)
        to_value = where(winners, taken, 0.0)
    return to_x, None, to_value


@primitive(
    lambda x, i, v, axis, count, op="index": _put_points_reference(x, i, v, axis, count), [
        case((5, 3), Integers((4,), -5, 5), (4, 3), axis=0, count=1),
        case((2, 3, 2, 2), Integers((2, 3), 0, 6), (2, 3, 2), axis=1, count=2),
        case((4,), Integers((), 0, 4), (), axis=0, count=1),
        case((3, 2), Integers((0,), 0, 3), (0, 2), axis=0, count=1),
    ],
    gradient=_put_points_gradient, test_dtypes=MOVED, ulps=0, method=False,
)  # fmt: skip
def put_points(x: Tensor, indices: Tensor, value: Tensor, axis: int, count: int, op: str = "index") -> Tensor:
    """x with `value` at indices into `count` axes from `axis` on: the last one wins. What x[indices] = value is.

    op: what an error names, here and below.
    """
    source = as_source(op, x, value.detach(), point_shape(x, indices, axis, count))
    y = copied(x)
    scatter_lines(y, source, points(op, y.shape, axis, indices, count), "assign")
    return y


def index_add_reference(x: Any, axis: int, i: Any, source: Any, alpha: float = 1) -> Any:
    y = x.copy()
    np.add.at(
        np.moveaxis(y, axis, 0),
        i,
        alpha * np.moveaxis(np.broadcast_to(source, point_shape(x, i, axis % x.ndim)), axis, 0),
    )
    return y


@primitive(
    lambda x, i, source, axis: index_add_reference(x, axis, i, source), 
    [case((5, 3), Integers((4,), -5, 5), (4, 3), axis=0), case((2, 4), Integers((6,), 0, 4), (2, 6), axis=1)],
    gradient=lambda g, indices, axis: (g, None, take(g, indices, axis)), test_dtypes=NUMBERS, method=False,
)  # fmt: skip
def add_points(x: Tensor, indices: Tensor, source: Tensor, axis: int) -> Tensor:
    """x with `source` added at indices along an axis, in their order: see index_add."""
    y = copied(x)
    scatter_lines(y, source.detach(), points("index_add", y.shape, axis, indices), "sum")
    return y


# --- an index for each line ---------------------------------------------------------------------------------------
def written_along(update: Callable[..., Any]) -> Callable[..., Any]:
    """x updated at (i, j, index…), one entry of the index after the other."""

    def reference(x: Any, i: Any, values: Any, axis: int) -> Any:
        y = x.copy()
        values = np.broadcast_to(values, i.shape)
        for at in np.ndindex(i.shape):
            target = list(at)
            target[axis] = i[at]
            y[tuple(target)] = update(y[tuple(target)], values[at])
        return y

    return reference


def line_target(y: Tensor, indices: Tensor, axis: int) -> Tensor:
    """The part of y that indices, which may be shorter off the axis, write to."""
    return corner(y, (*indices.shape[:axis], y.shape[axis], *indices.shape[axis + 1 :]))


def _along(op: str, x: Tensor, indices: Tensor, values: Tensor, axis: int, merge: str) -> Tensor:
    y = copied(x)
    target = line_target(y, indices, axis)
    scatter_lines(target, values.detach(), along(op, target.shape, axis, indices), merge)
    return y


def _put_along_gradient(g: Tensor, indices: Tensor, axis: int, needs: tuple[bool, ...]) -> tuple[Any, ...]:
    to_x = to_values = None
    if needs[0]:
        to_x = put_along(g, indices, broadcast_to(constant(0, g.dtype, g), indices.shape), axis)
    if needs[2]:
        n = indices.shape[axis]
        places = arange(n, dtype=int64, device=g.device).alias(
            indices.shape, tuple(int(a == axis) for a in range(g.ndim)), 0
        )
        last = _along("scatter", fill_(new(g.device, int64, g.shape), -1), indices, places, axis, "assign")
        to_values = where(equal(gather(last, axis, indices), places), gather(g, axis, indices), 0.0)
    return to_x, None, to_values


_ALONG_CASES = [
    case((3, 5), Integers((3, 2), -5, 5), (3, 2), axis=1),
    case((3, 5), Integers((4, 3), 0, 3), (4, 3), axis=0),
    case((3, 2, 2), Integers((2, 1, 2), 0, 3), (2, 1, 2), axis=0),
    case((3,), Integers((0,), 0, 3), (0,), axis=0),
]


@primitive(
    written_along(lambda old, value: value), _ALONG_CASES, gradient=_put_along_gradient, test_dtypes=MOVED, ulps=0,
    method=False,
)  # fmt: skip
def put_along(x: Tensor, indices: Tensor, values: Tensor, axis: int, op: str = "scatter") -> Tensor:
    """x with y[…, indices[…, j, …], …] = values[…, j, …]: the last one wins. See scatter."""
    return _along(op, x, indices, values, axis, "assign")


@primitive(
    written_along(lambda old, value: old + value), _ALONG_CASES,
    gradient=lambda g, indices, axis: (g, None, gather(g, axis, indices)), test_dtypes=NUMBERS, method=False,
)  # fmt: skip
def add_along(x: Tensor, indices: Tensor, values: Tensor, axis: int, op: str = "scatter_add") -> Tensor:
    """x with y[…, indices[…, j, …], …] += values[…, j, …], in the order of j. See scatter_add."""
    return _along(op, x, indices, values, axis, "sum")


def _extreme_gradient(g: Tensor, y: Tensor, x: Tensor, indices: Tensor, values: Tensor, axis: int) -> tuple[Any, ...]:
    mine, theirs = equal(x, y), equal(values, gather(y, axis, indices))
    ones = add_along(to_dtype(mine, g.dtype), indices, to_dtype(theirs, g.dtype), axis)
    share = g / ones
    return where(mine, share, 0.0), None, where(theirs, gather(share, axis, indices), 0.0)


def _extreme_reference(x: Any, i: Any, values: Any, axis: int, largest: bool) -> Any:
    return written_along(np.maximum if largest else np.minimum)(x, i, values, axis)


@primitive(
    _extreme_reference,
    [
        case((3, 5), Integers((3, 2), 0, 5), (3, 2), axis=1, largest=True),
        case((3, 2), Integers((4, 1), 0, 3), (4, 1), axis=0, largest=False),
    ],
    gradient=_extreme_gradient, test_dtypes=NUMBERS, ulps=0, method=False,
)  # fmt: skip
def extreme_along(x: Tensor, indices: Tensor, values: Tensor, axis: int, largest: bool) -> Tensor:
    """The larger (or smaller) of x and what is scattered to it; equal ones share the gradient. See scatter_reduce."""
    return _along("scatter_reduce", x, indices, values, axis, "amax" if largest else "amin")


@primitive(
    written_along(lambda old, value: old * value), _ALONG_CASES[:2],
    non_differentiable="a product's derivative needs the products of all others: use logarithms and scatter_add",
    test_dtypes=NUMBERS, method=False,
)  # fmt: skip
def multiply_along(x: Tensor, indices: Tensor, values: Tensor, axis: int) -> Tensor:
    """x times the values scattered to it, in the order of j. See scatter_reduce."""
    return _along("scatter_reduce", x, indices, values, axis, "prod")
