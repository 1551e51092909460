"""Writing to computed places: scatter, index_add, put_along_axis and their kin.

All of them give a new tensor; `ops/inplace.py` has the same with a trailing underscore. Where an index names an element
twice, the last value wins, or values are added in the order of the index: results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...dtypes import bfloat16, float32, int64
from ...errors import ConfigError, DTypeError, ShapeError
from ...kernels.reduce.associative import COUNT
from ...shapes import Shape, axis_index, broadcast, numel
from ...tensor import Tensor, expanded
from ..core.launch import same_device
from ..core.mutation import check_grows, check_kind, check_number_kind
from ..core.table import Booleans, Integers, case, composite
from ..elementwise.arithmetic import maximum, where
from ..shape.movement import broadcast_to, clone, reshape, to_dtype
from .gather import A_FEW, check_fits, check_mask, check_single, corner, take, take_points
from .launches import check_index
from .orders import flat_nonzero, scan_axis
from .scatter_primitives import (
    add_along,
    add_points,
    as_source,
    constant,
    extreme_along,
    index_add_reference,
    multiply_along,
    point_shape,
    put_along,
    put_points,
    written_along,
)

A_FEW_NUMBERS = (float32, bfloat16, int64)


# --- the same index for all ---
def check_flat(op: str, x: Tensor, axis: int, indices: Tensor) -> int:
    """The axis ≥ 0. Raises ShapeError unless the index has one axis."""
    check_index(indices, op)
    at = axis_index(axis, x.ndim, op)
    if indices.ndim != 1:
        raise ShapeError(f"{op}: indices must have one axis, their shape is {indices.shape}")
    return at


@composite(
    index_add_reference,
    [
        case((5, 3), 0, Integers((4,), -5, 5), (4, 3)),
        case((2, 4), -1, Integers((6,), 0, 4), (2, 1), alpha=2),
        case((2, 3), 1, Integers((0,), 0, 3), (2, 0)),
    ],
    test_dtypes=A_FEW_NUMBERS,
)  # fmt: skip
def index_add(x: Tensor, axis: int, indices: Tensor, source: Tensor | float, alpha: float = 1) -> Tensor:
    """x with alpha·source added at indices (n) along an axis; source: x's shape with n there, or broadcast to it.

    Raises DTypeError for a source or an alpha that does not go into x's dtype.
    """
    at = check_flat("index_add", x, axis, indices)
    source = as_source("index_add", x, source, point_shape(x, indices, at))
    return add_points(x, indices, scaled("index_add", x, source, alpha), at)


def scaled(op: str, x: Tensor, source: Tensor, alpha: float) -> Tensor:
    """alpha·source. Raises DTypeError for an alpha that does not go into x's dtype: what is added would be cut."""
    return source if alpha == 1 else source * check_number_kind(op, x.dtype, alpha)


def _index_copy_reference(x: Any, axis: int, i: Any, source: Any) -> Any:
    y = x.copy()
    np.moveaxis(y, axis, 0)[i] = np.moveaxis(np.broadcast_to(source, point_shape(x, i, axis % x.ndim)), axis, 0)
    return y


@composite(
    _index_copy_reference,
    [case((5, 3), 0, Integers((4,), -5, 5), (4, 3)), case((2, 4), -1, Integers((6,), 0, 4), (1, 6))],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def index_copy(x: Tensor, axis: int, indices: Tensor, source: Tensor | float) -> Tensor:
    """x with `source` at indices (n) along an axis; source: x's shape with n there, or broadcast to it."""
    at = check_flat("index_copy", x, axis, indices)
    return put_points(x, indices, as_source("index_copy", x, source, point_shape(x, indices, at)), at, 1, "index_copy")


@composite(
    _index_copy_reference, [case((5, 3), 0, Integers((4,), -5, 5), 1), case((2, 4), -1, Integers((0,), 0, 4), 1)],
    test_dtypes=A_FEW_NUMBERS, ulps=0,
)  # fmt: skip
def index_fill(x: Tensor, axis: int, indices: Tensor, value: Tensor | float) -> Tensor:
    """x with one value (a number or a 0-d tensor) at indices (n) along an axis."""
    at = check_flat("index_fill", x, axis, indices)
    check_single("index_fill", value, "index_copy")
    return put_points(x, indices, as_source("index_fill", x, value, point_shape(x, indices, at)), at, 1, "index_fill")


# --- an index for each line ---
def line_source(op: str, x: Tensor, axis: int, indices: Tensor, src: Any) -> tuple[int, Tensor]:
    """(axis ≥ 0, what to write): src may be longer than indices, or a number. Raises ShapeError."""
    at = check_fits(op, indices, x.shape, axis)
    if isinstance(src, Tensor) and src.ndim == indices.ndim and src.ndim:
        if any(i > n for i, n in zip(indices.shape, src.shape, strict=True)):
            raise ShapeError(f"{op}: indices of shape {indices.shape} must not be longer than src of {src.shape}")
        src = corner(src, indices.shape)
    return at, as_source(op, x, src, indices.shape)


def _by_position(update: Callable[..., Any]) -> Callable[..., Any]:
    reference = written_along(update)
    return lambda x, axis, i, src: reference(x, i, src if np.ndim(src) == 0 else src[tuple(map(slice, i.shape))], axis)


_SCATTER_CASES = [
    case((3, 5), 1, Integers((3, 2), -5, 5), (3, 2)),
    case((3, 5), -2, Integers((2, 3), 0, 3), (4, 3)),
    case((3, 2), 0, Integers((2, 2), 0, 3), 1),
    case((3,), 0, Integers((0,), 0, 3), (2,)),
]


@composite(_by_position(lambda old, value: value), _SCATTER_CASES, test_dtypes=A_FEW_NUMBERS, ulps=0)
def scatter(x: Tensor, axis: int, indices: Tensor, src: Tensor | float) -> Tensor:
    """x with y[indices[i, j, …], j, …] = src[i, j, …] (for axis 0); of equal indices the last wins.

    indices may be shorter than x off the axis, and than src; src may be a number. Raises ShapeError.
    """
    at, source = line_source("scatter", x, axis, indices, src)
    return put_along(x, indices, source, at)


@composite(_by_position(lambda old, value: old + value), _SCATTER_CASES, test_dtypes=A_FEW_NUMBERS)
def scatter_add(x: Tensor, axis: int, indices: Tensor, src: Tensor | float) -> Tensor:
    """x with y[indices[i, j, …], j, …] += src[i, j, …] (for axis 0), in the order of i; shapes as for `scatter`."""
    at, source = line_source("scatter_add", x, axis, indices, src)
    return add_along(x, indices, source, at)


_START = {"sum": 0, "mean": 0, "prod": 1, "amax": -np.inf, "amin": np.inf}


def _scatter_reduce_reference(x: Any, axis: int, i: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    updates = {"sum": np.add, "mean": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}
    start = x if include_self else written_along(lambda old, value: value)(x, i, _START[reduce], axis)
    y = _by_position(updates[reduce])(start, axis, i, src)
    if reduce != "mean":
        return y
    counts = np.ones(x.shape) if include_self else written_along(lambda old, value: 0)(np.ones(x.shape), i, 0, axis)
    return y / _by_position(np.add)(counts, axis, i, np.ones(i.shape))


@composite(
    _scatter_reduce_reference,
    [
        case((2, 3), 1, Integers((2, 4), 0, 3), (2, 4), reduce=r, include_self=own)
        for r, own in (
            ("sum", False), ("mean", True), ("mean", False), ("amax", True), ("amax", False), ("amin", False),
        )
    ],
)  # fmt: skip
def scatter_reduce(
    x: Tensor, axis: int, indices: Tensor, src: Tensor | float, reduce: str, include_self: bool = True
) -> Tensor:  # fmt: skip
    """x combined with src at indices by reduce: sum, mean, prod, amax or amin; shapes as for `scatter`.

    Without include_self, x counts only where no index points. `prod` has no derivative. Raises ConfigError.
    """
    if reduce not in _START:
        raise ConfigError(f"scatter_reduce: reduce must be one of {', '.join(_START)}, got {reduce!r}")
    if reduce == "mean" and not x.dtype.is_floating:
        raise DTypeError(f"scatter_reduce: a mean of {x.dtype.name} is not a whole number; cast x to a float")
    at, source = line_source("scatter_reduce", x, axis, indices, src)
    op = "scatter_reduce"
    start = x if include_self else put_along(x, indices, _start(x, reduce, indices.shape), at, op)
    if reduce in ("amax", "amin"):
        return extreme_along(start, indices, source, at, reduce == "amax")
    if reduce == "prod":
        return multiply_along(start, indices, source, at)
    if reduce == "sum":
        return add_along(start, indices, source, at, op)
    wide = x.dtype.accumulator  # a sum of 2-byte floats, or their number, may be out of their range
    one = constant(1, wide, x)
    count = broadcast_to(one, x.shape)
    if not include_self:
        count = put_along(count, indices, broadcast_to(constant(0, wide, x), indices.shape), at, op)
    count = add_along(count, indices, broadcast_to(one, indices.shape), at, op)
    total = add_along(to_dtype(start, wide), indices, to_dtype(source, wide), at, op)
    return to_dtype(total / count, x.dtype)


def _start(x: Tensor, reduce: str, shape: Shape) -> Tensor:
    value: Any = _START[reduce]
    if reduce in ("amax", "amin") and x.dtype.is_integer:
        info = np.iinfo(x.dtype.numpy)
        value = int(info.min if reduce == "amax" else info.max)
    return broadcast_to(constant(value, x.dtype, x), shape)


def check_along_axis(op: str, x: Tensor, indices: Tensor, axis: int) -> int:
    """The axis ≥ 0. Raises ShapeError unless indices broadcast to x off the axis."""
    check_index(indices, op)
    at = axis_index(axis, x.ndim, op)
    if indices.ndim != x.ndim:
        raise ShapeError(f"{op}: indices of shape {indices.shape} must have as many axes as {x.shape}")
    check_grows(op, (*x.shape[:at], indices.shape[at], *x.shape[at + 1 :]), [indices.shape])
    return at


def _put_along_axis_reference(x: Any, i: Any, values: Any, axis: int = -1) -> Any:
    y = x.copy()
    np.put_along_axis(y, i, values, axis)
    return y


@composite(
    _put_along_axis_reference,
    [case((3, 5), Integers((3, 2), 0, 5), (3, 2)), case((4, 3), Integers((2, 1), 0, 4), (1, 3), axis=0)],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def put_along_axis(x: Tensor, indices: Tensor, values: Tensor | float, axis: int = -1) -> Tensor:
    """x with y[…, indices[…, j, …], …] = values[…, j, …]: a new tensor. Off the axis, indices broadcast to x."""
    at = check_along_axis("put_along_axis", x, indices, axis)
    shape = (*x.shape[:at], indices.shape[at], *x.shape[at + 1 :])
    wide = expanded(indices, shape)
    return put_along(x, wide, as_source("put_along_axis", x, values, shape), at)


# --- by a mask ----------------------------------------------------------------------------------------------------
@composite(
    lambda x, m: np.extract(np.broadcast_to(m, (x * m).shape), np.broadcast_to(x, (x * m).shape)),
    [case((3, 4), Booleans((3, 4))), case((3, 1), Booleans((4,))), case((0,), Booleans((0,)))],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    """The elements where the mask holds, in order, (n,); x and mask broadcast. Waits for the device, to know n."""
    check_mask(mask, "masked_select")
    same_device([x, mask], "masked_select")
    shape = broadcast([x.shape, mask.shape], "masked_select")
    places = flat_nonzero(reshape(expanded(mask.detach(), shape), (numel(shape),)))
    return take_points(broadcast_to(x, shape), places, 0, len(shape)) if shape else take(reshape(x, (1,)), places)


def _masked_scatter_reference(x: Any, mask: Any, source: Any) -> Any:
    y = x.copy()
    m = np.broadcast_to(mask, x.shape)
    y[m] = source.reshape(-1)[: m.sum()]
    return y


@composite(
    _masked_scatter_reference,
    [case((3, 4), Booleans((3, 4)), (12,)), case((2, 3), Booleans((3,)), (2, 4)), case((0, 2), Booleans((1, 2)), (0,))],
    test_dtypes=A_FEW_NUMBERS, ulps=0,
)  # fmt: skip
def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """x with the elements of source, in order, where the mask (broadcast to x) holds.

    An IndexOutOfRange, when it is noticed, means that source has fewer elements than the mask. An empty source waits
    for the device, which knows whether the mask asks for any.
    """
    check_mask(mask, "masked_scatter")
    same_device([x, mask, source], "masked_scatter")
    check_grows("masked_scatter", x.shape, [mask.shape])
    check_kind("masked_scatter", x.dtype, source.dtype)
    if not x.numel or not (source.numel or mask.any().item()):  # the mask needs no element; few ask whether it does
        return clone(x)
    held = reshape(expanded(mask.detach(), x.shape), (x.numel,))
    places = maximum(scan_axis(held, COUNT, 0, False, int64, int64) - 1, 0)
    taken = take_points(reshape(source, (source.numel,)), places, 0, 1, "masked_scatter")
    return where(mask, reshape(to_dtype(taken, x.dtype), x.shape), x)


__all__ = [
    "index_add",
    "index_copy",
    "index_fill",
    "masked_scatter",
    "masked_select",
    "put_along_axis",
    "scatter",
    "scatter_add",
    "scatter_reduce",
]
