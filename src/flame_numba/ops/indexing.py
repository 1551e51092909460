"""Indexing: basic keys as views, integer tensors by gather, and the adjoints."""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import Any

import numpy as np

from ..dtypes import FLOATS, INTEGERS, bool_
from ..errors import DTypeError, GradientError, IndexOutOfRange, ShapeError
from ..grad import is_recording
from ..kernels.index import gather_program, scatter_add_program
from ..shapes import Shape, axis_index, numel
from ..tensor import FAULTS, Tensor, new
from .creation import arange, asarray
from .elementwise import equal, where
from .kernel_op import primitive
from .launch import run, same_device, spread
from .movement import contiguous, copied, copy_into, fill_, reshape, strided_slice, to_dtype, unsqueeze
from .table import Integers, case, composite

NUMBERS = FLOATS + INTEGERS


def _fault(message: str) -> int:
    FAULTS.append(message)
    return len(FAULTS) - 1


_TAKE = _fault("take: an index was out of range in a kernel queued before this point (its result there is 0)")
_ALONG = _fault("take_along_axis: an index was out of range in a kernel queued before this point")
_SCATTER = _fault("scatter_add: an index was out of range in a kernel queued before this point (it added nothing)")


def _check_index(indices: Tensor, op: str) -> None:
    if not indices.dtype.is_integer:
        raise DTypeError(f"{op}: indices must be integers, got {indices.dtype.name}")


def _gather(x: Tensor, index: Tensor, shape: Shape, axis: int, n: int, i_strides: Shape, code: int) -> Tensor:
    outer, size, inner = numel(x.shape[:axis]), x.shape[axis], numel(x.shape[axis + 1 :])
    source = contiguous(x.detach())
    y = new(x.device, x.dtype, shape)
    if y.numel:
        if size == 0:
            raise IndexOutOfRange(f"take: axis {axis} of shape {x.shape} is empty, there is nothing to take")
        run(
            x.device, gather_program, (x.dtype, index.dtype),
            (y, source, index, x.device.backend.fault_cell, code, outer, size, inner, n, *i_strides,
             size * inner, inner, 1),
            spread(x.device.backend, y.numel),
        )  # fmt: skip
        _raise_now(x)
    return y


def _raise_now(x: Tensor) -> None:
    if x.device.kind == "cpu":  # the kernel has run: nothing is gained by waiting
        x._raise_fault()


def _scatter(g: Tensor, index: Tensor, shape: Shape, axis: int, n: int, i_strides: Shape) -> Tensor:
    outer, size, inner = numel(shape[:axis]), shape[axis], numel(shape[axis + 1 :])
    source = contiguous(g.detach())
    total = new(g.device, g.dtype.accumulator, shape)
    fill_(total, 0)
    if total.numel and n:
        lines = outer * inner
        # one thread a line of targets is enough where there are many lines; else cut the axis in ranges
        ranges = 1 if g.device.kind == "cpu" else max(1, min(size, 65536 // lines))
        run(
            g.device, scatter_add_program, (g.dtype, index.dtype),
            (total, source, index, g.device.backend.fault_cell, _SCATTER, outer, size, inner, n, *i_strides, ranges),
            spread(g.device.backend, lines * ranges),
        )  # fmt: skip
        _raise_now(g)
    return total if total.dtype is g.dtype else copied(total, g.dtype)


def _take_gradient(g: Tensor, x_shape: Shape, indices: Tensor, axis: int) -> tuple[Tensor, None]:
    return scatter_take(g, indices, x_shape, axis), None


@primitive(
    lambda x, i, axis=0: np.take(x, i, axis),
    [
        case((5, 3), Integers((4,), -5, 5)),
        case((2, 6, 3), Integers((2, 3), 0, 6), axis=1),
        case((4,), Integers((), 0, 4)),
    ],
    gradient=_take_gradient, test_dtypes=NUMBERS, ulps=0,
)  # fmt: skip
def take(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """Elements at integer indices along an axis: (…, size, …), indices (i…) → (…, i…, …). Negative ones from the end.

    An index out of range raises IndexOutOfRange: on the CPU device at once, on CUDA when a value next comes to the
    host. The gradient is summed in a fixed order.
    """
    _check_index(indices, "take")
    at = axis_index(axis, x.ndim, "take")
    index = contiguous(indices)
    shape = x.shape[:at] + indices.shape + x.shape[at + 1 :]
    return _gather(x, index, shape, at, indices.numel, (0, 1, 0), _TAKE)


def _scatter_take_reference(g: Any, i: Any, shape: Shape, axis: int) -> Any:
    y = np.zeros(shape)
    np.add.at(np.moveaxis(y, axis, 0), i, np.moveaxis(g, tuple(range(axis, axis + i.ndim)), tuple(range(i.ndim))))
    return y


@primitive(
    _scatter_take_reference, [
        case((4, 3), Integers((4,), 0, 5), shape=(5, 3), axis=0),
        case((2, 2, 3), Integers((2,), 0, 4), shape=(2, 4, 3), axis=1),
    ],
    gradient=lambda g, indices, axis: (take(g, indices, axis), None),
    method=False,
)  # fmt: skip
def scatter_take(g: Tensor, indices: Tensor, shape: Shape, axis: int) -> Tensor:
    """Zeros of `shape` to which g is added at indices along an axis: the adjoint of take. Sums in a fixed order."""
    _check_index(indices, "scatter_take")
    at = axis_index(axis, len(shape), "scatter_take")
    return _scatter(g, contiguous(indices), tuple(shape), at, indices.numel, (0, 1, 0))


def _along_strides(index: Tensor, axis: int) -> Shape:
    inner = numel(index.shape[axis + 1 :])
    return (index.shape[axis] * inner, inner, 1)


@primitive(
    lambda x, i, axis=-1: np.take_along_axis(x, i, axis),
    [case((3, 5), Integers((3, 2), 0, 5)), case((4, 3), Integers((6, 3), -4, 4), axis=0)],
    gradient=lambda g, x_shape, indices, axis: (scatter_along_axis(g, indices, x_shape, axis), None),  # type: ignore[has-type]
    test_dtypes=NUMBERS, ulps=0,
)  # fmt: skip
def take_along_axis(x: Tensor, indices: Tensor, axis: int = -1) -> Tensor:
    """y[…, j, …] = x[…, indices[…, j, …], …]; the shapes agree but for `axis`."""
    _check_index(indices, "take_along_axis")
    at = axis_index(axis, x.ndim, "take_along_axis")
    if indices.ndim != x.ndim or indices.shape[:at] + indices.shape[at + 1 :] != x.shape[:at] + x.shape[at + 1 :]:
        raise ShapeError(f"take_along_axis: {indices.shape} must agree with {x.shape} but for axis {at}")
    index = contiguous(indices)
    return _gather(x, index, indices.shape, at, indices.shape[at], _along_strides(index, at), _ALONG)


def _scatter_along_reference(g: Any, i: Any, shape: Shape, axis: int) -> Any:
    y = np.zeros(shape)
    grid = list(np.indices(i.shape))
    grid[axis] = i
    np.add.at(y, tuple(grid), g)
    return y


@primitive(
    _scatter_along_reference, [case((3, 2), Integers((3, 2), 0, 5), shape=(3, 5), axis=1)],
    gradient=lambda g, indices, axis: (take_along_axis(g, indices, axis), None),
    method=False,
)  # fmt: skip
def scatter_along_axis(g: Tensor, indices: Tensor, shape: Shape, axis: int) -> Tensor:
    """Zeros of `shape` with y[…, indices[…, j, …], …] += g[…, j, …]: the adjoint of take_along_axis."""
    at = axis_index(axis, len(shape), "scatter_along_axis")
    index = contiguous(indices)
    return _scatter(g, index, tuple(shape), at, indices.shape[at], _along_strides(index, at))


@composite(
    lambda i, w: w[i], [case(Integers((2, 3), 0, 7), (7, 4))], example=lambda i, w: embedding(i, w), method=False
)
def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Rows of a table: indices (…), weight (rows, n) → (…, n)."""
    return take(weight, indices, 0)


@composite(
    lambda i, n: np.eye(n)[i],
    [case(Integers((2, 3), 0, 4), 4)],
    non_differentiable="its operand is an index",
    method=False,
)
def one_hot(indices: Tensor, classes: int) -> Tensor:
    """1 at the index, else 0, float32: (…) → (…, classes)."""
    return to_dtype(equal(unsqueeze(indices, -1), arange(classes, device=indices.device)), "float32")


@composite(
    lambda x, m, value: np.where(m != 0, value, x), [case((3, 4), Integers((3, 4), 0, 2), 2.0)], test_dtypes=FLOATS
)
def masked_fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """x, and `value` where the mask holds; the mask broadcasts."""
    return where(mask, value, x)


# --- x[key] and x[key] = value ------------------------------------------------------------------------------------
def _expand_key(key: Any, ndim: int) -> list[Any]:
    items = list(key) if isinstance(key, tuple) else [key]
    used = sum(1 for k in items if k is not None and not isinstance(k, EllipsisType))
    if used > ndim:
        raise IndexOutOfRange(f"index: {used} indices for {ndim} dimensions")
    gaps = [i for i, k in enumerate(items) if isinstance(k, EllipsisType)]
    if len(gaps) > 1:
        raise IndexOutOfRange("index: an index may hold one ... only")
    at = gaps[0] if gaps else len(items)
    return items[:at] + [slice(None)] * (ndim - used) + items[at + 1 :]


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key]: ints, slices, None and ... give a view; one integer tensor (or list, or array) gathers along its axis."""
    items = _expand_key(key, x.ndim)
    arrays = [i for i, k in enumerate(items) if isinstance(k, (Tensor, np.ndarray, list))]
    if arrays:
        return _gather_key(x, items, arrays)
    starts, lengths, steps, shape = [], [], [], []
    axis = 0
    for k in items:
        if k is None:
            shape.append(1)
            continue
        n = x.shape[axis]
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            length = len(range(start, stop, step))
            shape.append(length)
        else:
            try:
                start, length, step = operator.index(k), 1, 1
            except TypeError:
                raise IndexOutOfRange(
                    f"index: expected ints, slices, None, ... or an integer tensor, got {k!r}"
                ) from None
            if not -n <= start < n:
                raise IndexOutOfRange(f"index: {start} is out of range for axis {axis} of size {n}")
            start %= n
        starts.append(start)
        lengths.append(length)
        steps.append(step)
        axis += 1
    y = strided_slice(x, tuple(starts), tuple(lengths), tuple(steps))
    return y if y.shape == tuple(shape) else reshape(y, tuple(shape))


def _gather_key(x: Tensor, items: list[Any], arrays: list[int]) -> Tensor:
    if len(arrays) > 1:
        raise IndexOutOfRange("index: one integer tensor at a time; index again for the next axis")
    at = arrays[0]
    indices = asarray(items[at], device=x.device)
    if indices.dtype is bool_:
        raise IndexOutOfRange(
            "index: a boolean mask gives a shape that depends on values; use where() or masked_fill()"
        )
    rest = list(items)
    rest[at] = slice(None)
    y = getitem(x, tuple(rest))
    # ints before the tensor drop an axis, Nones add one
    axis = sum(1 for k in rest[:at] if k is None or isinstance(k, slice))
    return take(y, indices, axis)


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value in place, for a key of ints, slices, None and .... Raises GradientError on a recorded tensor."""
    if is_recording() and x.requires_grad:
        raise GradientError("x[key] = value: x takes part in the graph; do it under no_grad(), or build a new tensor")
    if any(isinstance(k, (Tensor, np.ndarray, list)) for k in _expand_key(key, x.ndim)):
        raise IndexOutOfRange("x[key] = value: the key must be ints, slices, None and ...; use where() for masks")
    target = getitem(x.detach(), key)
    if any(s == 0 and n > 1 for s, n in zip(target.strides, target.shape, strict=True)):
        raise ShapeError("x[key] = value: x is a broadcast view, whose elements share memory; clone() it first")
    if isinstance(value, Tensor):
        same_device([x, value], "x[key] = value")
        # elements of one storage would be read after they were written: take them aside first
        copy_into(target, copied(value) if value.storage is x.storage else value.detach())
    elif isinstance(value, (bool, int, float, np.generic)):
        fill_(target, value.item() if isinstance(value, np.generic) else value)
    else:
        copy_into(target, asarray(value, device=x.device))


__all__ = ["embedding", "masked_fill", "one_hot", "take", "take_along_axis"]
