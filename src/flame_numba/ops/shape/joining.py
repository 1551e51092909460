"""Several tensors made one, and one cut in several: concat, stack, split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...dtypes import promote
from ...errors import DTypeError, ShapeError
from ...shapes import Shape, as_int, as_ints, axis_index
from ...tensor import Tensor, new
from ..core.copies import copy_into, fill_
from ..core.kernel_op import primitive
from ..core.operands import check_tensors
from ..core.table import case
from .movement import broadcast_to, narrow, unsqueeze


def _concat_gradient(g: Tensor, shapes: tuple[Shape, ...], axis: int) -> tuple[Tensor, ...]:
    parts, start = [], 0
    for shape in shapes:
        n = shape[axis % g.ndim]
        parts.append(narrow(g, axis, start, n))
        start += n
    return tuple(parts)


@primitive(
    lambda *xs, axis: np.concatenate(xs, axis), [case((2, 3), (2, 1), (2, 2), axis=1), case((0, 3), (2, 3), axis=0)],
    gradient=_concat_gradient,
    method=False,
)  # fmt: skip
def join(*tensors: Tensor, axis: int) -> Tensor:
    """Tensors one after another along an axis; see `concat`."""
    first = tensors[0]
    at = axis_index(axis, first.ndim, "concat")
    dtype = first.dtype
    for t in tensors[1:]:
        if t.ndim != first.ndim or t.shape[:at] + t.shape[at + 1 :] != first.shape[:at] + first.shape[at + 1 :]:
            shapes = ", ".join(str(t.shape) for t in tensors)
            raise ShapeError(f"concat: shapes {shapes} must agree but for axis {at}")
        if t.dtype is not dtype:
            dtype = promote(dtype, t.dtype)
    shape = first.shape[:at] + (sum(t.shape[at] for t in tensors),) + first.shape[at + 1 :]
    y = new(first.device, dtype, shape)
    start = 0
    for t in tensors:
        if t.numel:
            copy_into(y.alias(t.shape, y.strides, start * y.strides[at]), t)
        start += t.shape[at]
    return y


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after another along an axis; other sizes must agree, dtypes are promoted."""
    items = tuple(tensors)
    check_tensors("concat", items)
    if not items:
        raise ShapeError("concat: needs at least one tensor")
    return join(*items, axis=axis)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    given = tuple(tensors)
    check_tensors("stack", given)
    items = [unsqueeze(t, axis) for t in given]
    return concat(items, axis_index(axis, items[0].ndim, "stack") if items else 0)


def with_zeros(gradients: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
    """Gradients of several results, with zeros for those that got none."""
    known = next(g for g in gradients if g is not None)
    zero = fill_(new(known.device, known.dtype, ()), 0)
    return [broadcast_to(zero, s) if g is None else g for g, s in zip(gradients, shapes, strict=True)]


def _parts_gradient(g: tuple[Tensor | None, ...], x_shape: Shape, sizes: Shape, axis: int) -> Tensor:
    at = axis % len(x_shape)
    return join(*with_zeros(g, [(*x_shape[:at], n, *x_shape[at + 1 :]) for n in sizes]), axis=at)


@primitive(
    lambda x, sizes, axis: tuple(np.split(x, np.cumsum(sizes)[:-1], axis)),
    [case((2, 6), sizes=(2, 0, 1, 3), axis=-1), case((0, 2), sizes=(0,), axis=0)],
    gradient=_parts_gradient, ulps=0, method=False,
)  # fmt: skip
def parts(x: Tensor, sizes: Shape, axis: int) -> tuple[Tensor, ...]:
    """Views of these sizes, one after another along an axis. See `split`.

    One op for all of them, so that their gradients are written once, each to its place.
    """
    at = axis_index(axis, x.ndim, "split")
    views, offset = [], x.offset
    for n in sizes:
        views.append(x.alias((*x.shape[:at], n, *x.shape[at + 1 :]), x.strides, offset if n else x.offset))
        offset += n * x.strides[at]
    return tuple(views)


def split(x: Tensor, size: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Views of `size` elements along an axis (the last may be shorter), or of the listed sizes."""
    check_tensors("split", [x])
    n = x.shape[axis_index(axis, x.ndim, "split")]
    try:
        given = as_ints(size)
    except TypeError:
        raise DTypeError(f"split: size must be an int or a sequence of ints, got {size!r}") from None
    if isinstance(given, tuple):
        sizes = [as_int("split", "size", s) for s in given]
        if sum(sizes) != n or any(s < 0 for s in sizes):
            raise ShapeError(f"split: sizes {sizes} must be ≥ 0 and add up to {n}")
    else:
        if given < 1:
            raise ShapeError(f"split: size must be ≥ 1, got {given}")
        sizes = [min(given, n - start) for start in range(0, max(n, 1), given)]  # of an empty axis, one empty part
    return parts(x, tuple(sizes), axis) if sizes else ()


__all__ = ["concat", "split", "stack"]
