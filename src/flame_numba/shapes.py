"""Shapes, strides and axes as plain tuples. Strides count elements, not bytes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from .errors import AxisError, DTypeError, ShapeError

Shape = tuple[int, ...]

numel = prod


def as_int(op: str, name: str, value: Any) -> int:
    """A Python int of what is one: NumPy's ints too, and integer arrays and tensors of one element, but no float.

    Raises DTypeError (a TypeError) that names the argument.
    """
    if type(value) is int:
        return value
    number = _index(value)
    if number is None:
        raise DTypeError(f"{op}: {name} must be an int, got {value!r}")
    return number


def _index(value: Any) -> int | None:
    try:
        return int(operator.index(value))  # of a bool, too
    except (TypeError, ShapeError):  # ShapeError: a tensor of several elements
        return None


def as_ints(value: Any, gaps: bool = False) -> Any:
    """An int, or nested sequences of ints as tuples; with `gaps` they may hold None. Raises TypeError."""
    if type(value) is int or (gaps and value is None):
        return value
    number = _index(value)
    if number is not None:
        return number
    if isinstance(value, (str, bytes)):  # their items are such again
        raise TypeError("no ints")
    return tuple([as_ints(item, gaps) for item in value])


def as_shape(value: Any, op: str = "shape") -> Shape:
    """A tuple of non-negative ints from an int or a sequence of ints. Raises ShapeError."""
    if type(value) is tuple:
        for n in value:
            if type(n) is not int or n < 0:
                break
        else:
            return value
    try:
        number = _index(value)
        shape = tuple([int(operator.index(item)) for item in value]) if number is None else (number,)
    except TypeError:
        raise ShapeError(f"{op}: expected an int or a sequence of ints, got {value!r}") from None
    if any(n < 0 for n in shape):
        raise ShapeError(f"{op}: sizes must be ≥ 0, got {shape}")
    return shape


@functools.lru_cache(maxsize=4096)
def layout(shape: Shape) -> tuple[Shape, int]:
    """(strides, number of elements) of a new tensor, remembered: programs repeat their shapes."""
    check_sizes(shape, "shape")
    return row_major(shape), numel(shape)


def check_sizes(shape: Shape, op: str) -> None:
    """Raises ShapeError unless sizes are ints. To call before what a shape remembers: (2.0,) would stand for (2,)."""
    if any(type(n) is not int for n in shape):
        raise ShapeError(f"{op}: sizes must be ints, got {shape}")


def row_major(shape: Shape) -> Shape:
    """Strides of a contiguous tensor, last axis fastest."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: Shape, strides: Shape) -> bool:
    """Whether elements lie in row-major order without gaps (axes of size 1 may have any stride)."""
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n == 0:
            return True
        if n != 1:
            if stride != step:
                return False
            step *= n
    return True


def axis_index(axis: int, ndim: int, op: str) -> int:
    """A possibly negative axis as 0 … ndim-1. Raises AxisError."""
    index = as_int(op, "axis", axis)
    if not -ndim <= index < ndim:
        raise AxisError(f"{op}: axis={axis} is out of range for {ndim} dimensions")
    return index % ndim


def axes_tuple(axis: int | Iterable[int] | None, ndim: int, op: str) -> Shape:
    """Sorted distinct axes; None means all of them. Raises AxisError."""
    if axis is None:
        return tuple(range(ndim))
    number = _index(axis)
    try:
        given = tuple(axis) if number is None else (number,)  # type: ignore[arg-type]
    except TypeError:
        raise DTypeError(f"{op}: axis must be an int, a sequence of ints or None, got {axis!r}") from None
    axes = tuple(sorted(axis_index(a, ndim, op) for a in given))
    if len(set(axes)) != len(axes):
        raise AxisError(f"{op}: axis={given} names an axis twice")
    return axes


def broadcast(shapes: Sequence[Shape], op: str) -> Shape:
    """The common shape under NumPy's rules. Raises ShapeError naming the op and all shapes."""
    if len(shapes) == 1:
        return shapes[0]
    first = shapes[0]
    if all(shape == first for shape in shapes[1:]):
        return first
    ndim = max(map(len, shapes))
    result = [1] * ndim
    for shape in shapes:
        for i, n in enumerate(shape, ndim - len(shape)):
            if n != 1 and result[i] != 1 and n != result[i]:
                raise ShapeError(f"{op}: shapes {', '.join(map(str, shapes))} do not broadcast at axis {i - ndim}")
            if n != 1:
                result[i] = n
    return tuple(result)


def expand_strides(shape: Shape, strides: Shape, to: Shape) -> Shape:
    """Strides that read a tensor of `shape` as if it had the broadcast shape `to`."""
    lead = len(to) - len(shape)
    return (0,) * lead + tuple(0 if n == 1 and m != 1 else s for n, m, s in zip(shape, to[lead:], strides, strict=True))


def resolve_reshape(shape: Shape, total: int, op: str) -> Shape:
    """Replace one -1 by the size that makes the product `total`. Raises ShapeError."""
    unknown = [i for i, n in enumerate(shape) if n == -1]
    if len(unknown) > 1 or any(n < -1 for n in shape):
        raise ShapeError(f"{op}: shape {shape} may hold one -1 and no other negative size")
    known = prod(n for n in shape if n != -1)
    if unknown:
        if known == 0 or total % known:
            raise ShapeError(f"{op}: {total} elements do not fill shape {shape}")
        i = unknown[0]
        return shape[:i] + (total // known,) + shape[i + 1 :]
    if known != total:
        raise ShapeError(f"{op}: {total} elements do not fill shape {shape} ({known} elements)")
    return shape


def view_strides(shape: Shape, strides: Shape, to: Shape) -> Shape | None:
    """Strides that show the same elements, in the same order, in shape `to`; None where a copy is needed."""
    if prod(shape) == 0:
        return row_major(to)
    groups = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result: list[int] = []
    rest = list(reversed(groups))
    # walk from the last axis: split or merge source axes while they stay evenly spaced
    size, stride = rest.pop(0) if rest else (1, 1)
    for n in reversed(to):
        if n == 1:
            result.append(stride * size)
            continue
        while size < n or size % n:
            if not rest:
                return None
            outer, outer_stride = rest.pop(0)
            if outer_stride != stride * size:
                return None
            size *= outer
        result.append(stride)
        size //= n
        stride *= n
        if size == 1 and rest:
            size, stride = rest.pop(0)
    return tuple(reversed(result))


def collapse(shape: Shape, strides: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """Merge neighbouring axes that every operand walks evenly, and drop axes of size 1.

    The fewer the axes, the less index arithmetic in a strided kernel. Returns at least one axis.
    """
    sizes: list[int] = []
    walks: list[tuple[int, ...]] = []
    for i, n in enumerate(shape):
        if n == 1:
            continue
        walk = tuple(s[i] for s in strides)
        if sizes and all(last == step * n for last, step in zip(walks[-1], walk, strict=True)):
            sizes[-1] *= n
            walks[-1] = walk
        else:
            sizes.append(n)
            walks.append(walk)
    if not sizes:
        sizes, walks = [1], [(0,) * len(strides)]
    return tuple(sizes), [tuple(walk[k] for walk in walks) for k in range(len(strides))]


def permute(values: Shape, axes: Shape) -> Shape:
    return tuple(values[a] for a in axes)


def span(shape: Shape, strides: Shape) -> tuple[int, int]:
    """Places of the lowest and the highest element, counted from the first one. No axis is empty."""
    reaches = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    return sum(min(0, r) for r in reaches), sum(max(0, r) for r in reaches)
