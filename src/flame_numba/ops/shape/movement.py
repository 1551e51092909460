"""Views and copies: reshape, permute, slices, expand, casts, moves between devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...devices import Device
from ...dtypes import as_dtype
from ...errors import AxisError, ShapeError
from ...shapes import (
    Shape,
    as_shape,
    axes_tuple,
    axis_index,
    broadcast,
    numel,
    resolve_reshape,
    row_major,
    view_strides,
)
from ...shapes import permute as permuted
from ...tensor import Tensor, expanded, new
from ..core.copies import copied, copy_into, fill_
from ..core.kernel_op import primitive
from ..core.table import case, composite

Sizes = int | Sequence[int]


# --- copies -------------------------------------------------------------------------------------------------------
@primitive(lambda x: x, [case((3, 4))], gradient=lambda g: g)
def clone(x: Tensor) -> Tensor:
    """A contiguous copy with storage of its own; gradients pass through."""
    return copied(x)


@primitive(lambda x: x, [case((3, 4))], gradient=lambda g: g)
def contiguous(x: Tensor) -> Tensor:
    """The tensor itself, or a copy where its elements are not in row-major order."""
    return x.detach() if x.is_contiguous else copied(x)


@primitive(lambda x, dtype: x.astype(dtype), [case((3, 4), "float64")], gradient=lambda g: g)
def to_dtype(x: Tensor, dtype: Any) -> Tensor:
    """The values in another dtype, rounded to nearest even; the gradient is cast back.

    Floats to integers drop the fraction; what does not fit is undefined, as in NumPy.
    """
    target = as_dtype(dtype)
    return x.detach() if target is x.dtype else copied(x, target)


@primitive(
    lambda x, device: x, [case((3, 4), "cpu")],
    gradient=lambda g, x_device: to_device(g, x_device),  # type: ignore[has-type]
    example=lambda x, device: to_device(x, x.device),  # type: ignore[has-type]
)  # fmt: skip
def to_device(x: Tensor, device: Device | str) -> Any:
    """A copy on another device (through the host), or the tensor itself if it is there already."""
    target = Device.parse(device)
    y = x.detach() if target == x.device else Tensor.from_numpy(x.numpy(), target)
    return y, {"x_device": x.device}


# --- views --------------------------------------------------------------------------------------------------------
def _reshape_gradient(g: Tensor, x_shape: Shape) -> Tensor:
    return reshape(g, x_shape)


@primitive(
    lambda x, shape: x.reshape(shape),
    [case((2, 6), shape=(3, -1)), case((4,), shape=(2, 2)), case((2, 3), shape=(6,)), case((1,), shape=())],
    gradient=_reshape_gradient,
)  # fmt: skip
def reshape(x: Tensor, shape: Sizes) -> Tensor:
    """The same elements in row-major order in another shape; one size may be -1. A view where strides allow."""
    target = resolve_reshape(_several(shape), x.numel, "reshape")
    strides = view_strides(x.shape, x.strides, target)
    if strides is None:
        return copied(x).alias(target, row_major(target), 0)
    return x.alias(target, strides, x.offset)


def _several(given: Any) -> Any:
    return given if isinstance(given, tuple) else (given,)


@primitive(
    lambda x, shape: x.reshape(shape), [case((2, 6), shape=(3, -1))], gradient=_reshape_gradient,
    example=lambda x, shape: view(contiguous(x), shape),  # type: ignore[has-type]
)  # fmt: skip
def view(x: Tensor, shape: Sizes) -> Tensor:
    """`reshape` that never copies. Raises ShapeError where a copy would be needed."""
    target = resolve_reshape(_several(shape), x.numel, "view")
    strides = view_strides(x.shape, x.strides, target)
    if strides is None:
        raise ShapeError(f"view: shape {x.shape} with strides {x.strides} has no view of shape {target}; use reshape")
    return x.alias(target, strides, x.offset)


def _permute_gradient(g: Tensor, axes: Any) -> Tensor:
    ordered = tuple(a % g.ndim for a in _several(axes))
    return permute(g, tuple(sorted(range(g.ndim), key=ordered.__getitem__)))


@primitive(
    lambda x, axes: x.transpose(axes),
    [case((2, 3, 4), axes=(2, 0, 1)), case((3, 2), axes=(-1, 0))],
    gradient=_permute_gradient,
)
def permute(x: Tensor, axes: int | Sequence[int]) -> Tensor:
    """Axes in another order, as a view. Raises AxisError unless every axis is named once."""
    order = tuple(axis_index(a, x.ndim, "permute") for a in _several(axes))
    if sorted(order) != list(range(x.ndim)):
        raise AxisError(f"permute: axes={axes} must name each of {x.ndim} axes once")
    return x.alias(permuted(x.shape, order), permuted(x.strides, order), x.offset)


@composite(lambda x, a=-2, b=-1: x.swapaxes(a, b), [case((2, 3, 4), 0, -1), case((3, 2))])
def transpose(x: Tensor, axis0: int = -2, axis1: int = -1) -> Tensor:
    """Two axes exchanged (default the last two), as a view."""
    order = list(range(x.ndim))
    a, b = axis_index(axis0, x.ndim, "transpose"), axis_index(axis1, x.ndim, "transpose")
    order[a], order[b] = order[b], order[a]
    return permute(x, tuple(order))


@primitive(
    lambda x, shape: np.broadcast_to(x, shape), 
    [case((3, 1), shape=(2, 3, 4)), case((), shape=(2, 2)), case((1, 0), shape=(3, 0))],
    gradient=lambda g: g,
)  # fmt: skip
def broadcast_to(x: Tensor, shape: Sizes) -> Tensor:
    """A view of a larger shape, with stretched axes of stride 0. Raises ShapeError if it does not broadcast."""
    target = as_shape(shape, "broadcast_to")
    if broadcast([x.shape, target], "broadcast_to") != target:
        raise ShapeError(f"broadcast_to: {x.shape} does not broadcast to {target}")
    view = expanded(x, target)
    return x.detach() if view is x else view


@composite(lambda x, axis: np.expand_dims(x, axis), [case((2, 3), 1), case((2, 3), -1), case((), 0)])
def unsqueeze(x: Tensor, axis: int) -> Tensor:
    """A new axis of size 1 before `axis`, as a view."""
    at = axis_index(axis, x.ndim + 1, "unsqueeze")
    return reshape(x, x.shape[:at] + (1,) + x.shape[at:])


@composite(lambda x, axis=None: np.squeeze(x, axis), [case((2, 1, 3, 1)), case((2, 1, 3), axis=1)])
def squeeze(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """Without the axes of size 1, or without the named ones, as a view. Raises ShapeError if one is longer."""
    axes = axes_tuple(axis, x.ndim, "squeeze")
    if axis is None:
        axes = tuple(a for a in axes if x.shape[a] == 1)
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} has size {x.shape[a]}, not 1 (shape {x.shape})")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in axes))


@composite(
    lambda x, start=0, end=-1: x.reshape(x.shape[:start] + (-1,) + x.shape[end % x.ndim + 1 :]),
    [case((2, 3, 4), 1), case((2, 3, 4), 0, 1)],
)
def flatten(x: Tensor, start_axis: int = 0, end_axis: int = -1) -> Tensor:
    """Axes start … end merged into one; a 0-d tensor becomes 1-d. Raises AxisError if start comes after end."""
    if x.ndim == 0:
        return reshape(x, (1,))
    a, b = axis_index(start_axis, x.ndim, "flatten"), axis_index(end_axis, x.ndim, "flatten")
    if a > b:
        raise AxisError(f"flatten: start_axis={start_axis} comes after end_axis={end_axis} (shape {x.shape})")
    return reshape(x, x.shape[:a] + (numel(x.shape[a : b + 1]),) + x.shape[b + 1 :])


# --- slices and their adjoint -------------------------------------------------------------------------------------
def _slice_reference(x: Any, starts: Shape, lengths: Shape, steps: Shape) -> Any:
    for axis, (start, length, step) in enumerate(zip(starts, lengths, steps, strict=True)):
        x = np.take(x, start + step * np.arange(length), axis)
    return x


@primitive(
    _slice_reference, [
        case((5, 6), starts=(1, 5), lengths=(2, 3), steps=(2, -2)),
        case((4,), starts=(0,), lengths=(0,), steps=(1,)),
    ],
    gradient=lambda g, x_shape, starts, steps: place(g, x_shape, starts, steps),  # type: ignore[has-type]
    method=False,
)  # fmt: skip
def strided_slice(x: Tensor, starts: Shape, lengths: Shape, steps: Shape) -> Tensor:
    """Elements start, start + step, … (length of them) along each axis, as a view. Indices are in range."""
    offset = x.offset + sum(s * stride for s, stride in zip(starts, x.strides, strict=True))
    strides = tuple(step * stride for step, stride in zip(steps, x.strides, strict=True))
    return x.alias(tuple(lengths), strides, offset if numel(lengths) else x.offset)


def _place_reference(x: Any, shape: Shape, starts: Shape, steps: Shape) -> Any:
    y = np.zeros(shape)
    y[np.ix_(*(s + t * np.arange(n) for s, t, n in zip(starts, steps, x.shape, strict=True)))] = x
    return y


@primitive(
    _place_reference, [case((2, 3), shape=(5, 6), starts=(1, 5), steps=(2, -2))],
    gradient=lambda g, x_shape, starts, steps: strided_slice(g, starts, x_shape, steps),
    method=False,
)  # fmt: skip
def place(x: Tensor, shape: Shape, starts: Shape, steps: Shape) -> Tensor:
    """Zeros of `shape` with x written at start, start + step, … along each axis: the adjoint of a slice."""
    y = new(x.device, x.dtype, tuple(shape))
    fill_(y, 0)
    if x.numel:
        offset = sum(s * stride for s, stride in zip(starts, y.strides, strict=True))
        strides = tuple(step * stride for step, stride in zip(steps, y.strides, strict=True))
        copy_into(y.alias(x.shape, strides, offset), x)
    return y


@composite(lambda x, axis, start, length: x.take(range(start, start + length), axis), [case((4, 5), 1, 2, 3)])
def narrow(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """Elements start … start + length − 1 along an axis, as a view. Raises ShapeError if they are not all there."""
    a = axis_index(axis, x.ndim, "narrow")
    begin = start + x.shape[a] if start < 0 else start
    if begin < 0 or length < 0 or begin + length > x.shape[a]:
        raise ShapeError(f"narrow: start={start}, length={length} do not fit axis {a} of size {x.shape[a]}")
    starts, lengths = [0] * x.ndim, list(x.shape)
    starts[a], lengths[a] = begin, length
    return strided_slice(x, tuple(starts), tuple(lengths), (1,) * x.ndim)


@composite(lambda x, axis=None: np.flip(x, axis), [case((3, 4), axis=1), case((3, 4))])
def flip(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """The order of elements reversed along the axes (default all), as a view."""
    axes = axes_tuple(axis, x.ndim, "flip")
    turned = [a in axes and x.shape[a] > 0 for a in range(x.ndim)]
    starts = tuple(n - 1 if turn else 0 for n, turn in zip(x.shape, turned, strict=True))
    return strided_slice(x, starts, x.shape, tuple(-1 if turn else 1 for turn in turned))


@primitive(
    lambda x, widths, value=0.0: np.pad(x, widths, constant_values=value),
    [case((2, 3), widths=((1, 0), (0, 2))), case((2,), widths=((1, 1),), value=2.5)],
    gradient=lambda g, x_shape, widths: strided_slice(g, tuple(a for a, _ in widths), x_shape, (1,) * g.ndim), ulps=0,
)  # fmt: skip
def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`value` added before and after each axis: widths[axis] = (before, after), each ≥ 0. See also pad_border."""
    check_widths(widths, x.ndim, "pad")
    y = new(x.device, x.dtype, tuple(n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)))
    fill_(y, value, "pad")
    if x.numel:
        start = sum(a * stride for (a, _), stride in zip(widths, y.strides, strict=True))
        copy_into(y.alias(x.shape, y.strides, start), x)
    return y


def check_widths(widths: Any, ndim: int, op: str) -> None:
    """Raises ShapeError unless widths are a tuple of `ndim` pairs of sizes ≥ 0."""
    pairs = widths if isinstance(widths, tuple) else ()
    fit = len(pairs) == ndim and all(isinstance(p, tuple) and len(p) == 2 and min(p) >= 0 for p in pairs)
    if not fit or not isinstance(widths, tuple):
        raise ShapeError(f"{op}: widths={widths} must be a pair of sizes ≥ 0 for each of {ndim} axes")


__all__ = [
    "broadcast_to",
    "clone",
    "contiguous",
    "flatten",
    "flip",
    "narrow",
    "pad",
    "permute",
    "reshape",
    "squeeze",
    "to_device",
    "to_dtype",
    "transpose",
    "unsqueeze",
    "view",
]
