"""`x[key]` and `x[key] = value`, with NumPy's keys and NumPy's rules.

A key is read once, as a view of x (ints, slices, None, ...) and a list of indices into axes of that view. Indices of
several axes become one index into those axes in row-major order, so that one kernel gathers or scatters; a mask is
such an index already, found by `nonzero`. Where indices stand apart (`x[i, :, j]`) their axes come first, as in NumPy.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np

from ...dtypes import bool_
from ...errors import DTypeError, IndexOutOfRange, ShapeError
from ...kernels.elementwise import formula
from ...scalars import NUMBERS
from ...shapes import Shape, broadcast, numel
from ...tape.anomaly import WATCH, inspect_forward
from ...tensor import Tensor
from ..core.copies import copy_into, fill_
from ..core.launch import MapKernel, check_number, same_device
from ..core.mutation import apart, check_kind, check_number_kind, check_target, is_recorded, record_change
from ..elementwise.arithmetic import where
from ..shape.creation import asarray, zeros
from ..shape.movement import broadcast_to, permute, reshape, strided_slice
from .gather import take_points
from .launches import points, resolve
from .orders import flat_nonzero
from .scatter_primitives import constant, put_points, put_slice, write

_SET = "x[key] = value"
_WHERE = MapKernel(
    "assign_where", ["x0", "x1", "x2"], [formula.where(*(formula.variable(f"x{i}") for i in range(3)))], ["x0"]
)


@dataclass
class Entry:
    """An index tensor, or a mask, and the axes of the view that it is for."""

    axis: int  # of the view
    count: int  # axes that it covers, as one
    value: Tensor
    is_mask: bool
    x_axis: int  # for messages


@dataclass
class Key:
    """A key read for one shape: how x is sliced, the shape of that view, and the indices into it."""

    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)  # of the view: without the axes of ints, with those of None
    entries: list[Entry] = field(default_factory=list)
    apart: bool = False  # a slice, None or ... stands between two indices

    def add(self, start: int, length: int, step: int) -> None:
        self.starts.append(start)
        self.lengths.append(length)
        self.steps.append(step)

    def view(self, x: Tensor) -> Tensor:
        y = x
        if self.lengths != list(x.shape) or any(step != 1 for step in self.steps):
            y = strided_slice(x, tuple(self.starts), tuple(self.lengths), tuple(self.steps))
        return y if y.shape == tuple(self.shape) else reshape(y, tuple(self.shape))

    def order(self) -> tuple[Shape, int, int]:
        """(axes of the view, so that those of the entries are neighbours; the first of these; how many)."""
        named = [e.axis + k for e in self.entries for k in range(e.count)]
        if not self.apart:
            return tuple(range(len(self.shape))), named[0], len(named)
        return (*named, *(a for a in range(len(self.shape)) if a not in named)), 0, len(named)


def _is_array(k: Any) -> bool:
    """Of an item of a key; a key that is a tuple itself is no item."""
    if isinstance(k, np.ndarray):
        return k.ndim > 0 or k.dtype == bool
    return isinstance(k, (Tensor, list, tuple, range))


def _as_index(k: Any, x: Tensor) -> Tensor:
    if isinstance(k, Tensor):
        same_device([x, k], "index")
        return k.detach()
    try:
        host = np.asarray(k)
    except ValueError:
        raise ShapeError(f"index: {k!r} is no array, its rows differ in length") from None
    if host.size == 0 and not isinstance(k, np.ndarray):
        host = host.astype(np.int64)  # [] holds no number that would say of which kind it is
    return asarray(host, device=x.device)


def _items(key: Any, x: Tensor) -> list[Any]:
    """The items of a key, arrays as tensors, and ... as as many slices as are missing, before a marker."""
    given = list(key) if isinstance(key, tuple) else [key]
    items: list[Any] = [_as_index(k, x) if _is_array(k) else k for k in given]
    used, gaps = 0, 0
    for k in items:
        if isinstance(k, Tensor):
            used += k.ndim if k.dtype is bool_ else 1
        elif isinstance(k, EllipsisType):
            gaps += 1
        elif k is not None and not isinstance(k, (bool, np.bool_)):
            used += 1
    if used > x.ndim:
        raise IndexOutOfRange(f"index: {used} indices for {x.ndim} dimensions")
    if gaps > 1:
        raise IndexOutOfRange("index: an index may hold one ... only")
    if not gaps:
        items.append(Ellipsis)
    at = next(i for i, k in enumerate(items) if isinstance(k, EllipsisType))
    return items[: at + 1] + [slice(None)] * (x.ndim - used) + items[at + 1 :]


def read_key(key: Any, x: Tensor) -> Key:
    """Raises IndexOutOfRange, ShapeError for a mask that does not fit, DTypeError for a tensor that is no index."""
    items, result = _items(key, x), Key()
    advanced = [i for i, k in enumerate(items) if isinstance(k, (Tensor, bool, np.bool_))]
    indices = []  # ints count as indices as soon as there is an array
    for i, k in enumerate(items):
        axis = len(result.lengths)
        if k is None:
            result.shape.append(1)
        elif isinstance(k, EllipsisType):
            continue
        elif isinstance(k, slice):
            start, stop, step = _bounds(k, x.shape[axis])
            length = len(range(start, stop, step))
            result.add(start, length, step)
            result.shape.append(length)
        else:
            indices.append(i)
            if i in advanced:
                _add_entry(result, k, x, axis)
            else:
                result.add(_integer(k, axis, x.shape[axis]), 1, 1)
    result.apart = bool(advanced) and indices != list(range(indices[0], indices[0] + len(indices)))
    return result


def _bounds(k: slice, n: int) -> tuple[int, int, int]:
    try:
        return k.indices(n)
    except (TypeError, ValueError):  # a bound that is no int, or step 0
        raise IndexOutOfRange(f"index: {k} must hold ints or None, and no step 0") from None


def _integer(k: Any, axis: int, n: int) -> int:
    try:
        at = operator.index(k)
    except TypeError:
        raise IndexOutOfRange(f"index: expected ints, slices, None, ..., integer or bool tensors, got {k!r}") from None
    if not -n <= at < n:
        raise IndexOutOfRange(f"index: {at} is out of range for axis {axis} of size {n}")
    return at % n


def _add_entry(key: Key, k: Any, x: Tensor, axis: int) -> None:
    if isinstance(k, Tensor) and k.dtype is bool_ and k.ndim:
        covered = x.shape[axis : axis + k.ndim]
        if k.shape != covered:
            if len(covered) != k.ndim or any(m not in (n, 0) for m, n in zip(k.shape, covered, strict=True)):
                raise IndexOutOfRange(f"index: a mask of shape {k.shape} does not fit axes {axis} … of shape {x.shape}")
            k = zeros(covered, dtype=bool_, device=x.device)  # as in NumPy, a mask with an empty axis takes nothing
    elif isinstance(k, Tensor) and k.dtype is not bool_:
        if not k.dtype.is_integer:
            raise DTypeError(f"index: a tensor index must be of integers or bool, got {k.dtype.name}")
        covered = x.shape[axis : axis + 1]
    else:  # one truth value: an index into a new axis of size 1
        mask = k if isinstance(k, Tensor) else asarray(np.asarray(bool(k)), device=x.device)
        key.entries.append(Entry(len(key.shape), 1, reshape(mask, (1,)), True, axis))
        key.shape.append(1)
        return
    key.entries.append(Entry(len(key.shape), len(covered), k, k.dtype is bool_, axis))
    for n in covered:
        key.add(0, n, 1)
    key.shape += covered


def _target(key: Key, shape: Shape, first: int) -> Tensor:
    """One index into the axes of all entries: `shape` is that of the view with these as neighbours."""
    indices, sizes, at = [], [], first
    for e in key.entries:
        flat = reshape(e.value, (e.value.numel,)) if e.is_mask else e.value
        indices.append(flat_nonzero(flat) if e.is_mask else flat)
        sizes.append(numel(shape[at : at + e.count]))
        at += e.count
    if len(indices) == 1:
        return indices[0]
    return resolve("index", indices, tuple(sizes), tuple(e.x_axis for e in key.entries))


def _plain_view(x: Tensor, key: tuple[Any, ...]) -> Tensor | None:
    """The view that ints and slices give outside the graph; None for any other key. It is on the path of many loops."""
    if len(key) > x.ndim:
        return None
    shape, strides, offset = [], [], x.offset
    for axis, k in enumerate(key):
        n, stride = x.shape[axis], x.strides[axis]
        if k.__class__ is int:
            if not -n <= k < n:
                return None
            offset += (k + n if k < 0 else k) * stride
        elif k.__class__ is slice:
            start, stop, step = _bounds(k, n)
            length = len(range(start, stop, step))
            shape.append(length)
            strides.append(stride * step)
            offset += start * stride if length else 0
        else:
            return None
    rest = len(key)
    y = x.alias((*shape, *x.shape[rest:]), (*strides, *x.strides[rest:]), offset)
    if y.numel == 0:
        y.offset = x.offset
    return y


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key]. Ints, slices, None and ... give a view; integer tensors (lists, arrays) and masks gather.

    An index out of range raises as in `take`. A mask waits for the device, since the shape depends on its values.
    """
    if isinstance(key, Tensor) and key.dtype.is_integer and x.ndim:
        return take_points(x, key, 0, 1)
    if not x.requires_grad:
        plain = _plain_view(x, key if isinstance(key, tuple) else (key,))
        if plain is not None:
            return plain
    read = read_key(key, x)
    view = read.view(x)
    if not read.entries:  # a tensor of its own, also where the key is `...`
        return view if view is not x else strided_slice(x, tuple(read.starts), x.shape, tuple(read.steps))
    order, first, count = read.order()
    view = permute(view, order) if read.apart else view
    return take_points(view, _target(read, view.shape, first), first, count)


# --- assignment ---------------------------------------------------------------------------------------------------
def setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value, in place: a number, an array, or a tensor, broadcast to the shape of x[key].

    Where indices name an element twice, the last value wins. A mask with a value that broadcasts along the masked
    axis needs no count of it, so nothing waits. Recorded if x or value requires a gradient: see `ops/core/mutation.py`.
    Raises DTypeError if value does not go into x's dtype, ShapeError, IndexOutOfRange, GradientError.
    """
    check_target(_SET, x)
    value = _as_value(x, value)
    if WATCH.open:
        inspect_forward(_SET, (value,), (value,))  # not the rest of x, which may never have been written
    if is_recorded(x, [value]):
        read = read_key(key, x)
        record_change(_SET, x, lambda old: _with_value(old, read, value))
        return
    view = _plain_view(x, key if isinstance(key, tuple) else (key,))
    if view is None:
        _assign(x.detach(), read_key(key, x), value)
    else:
        _copy(view, _fitted(value, view.shape))


def _as_value(x: Tensor, value: Any) -> Any:
    if isinstance(value, NUMBERS):
        return check_number_kind(_SET, x.dtype, value)
    if isinstance(value, Tensor):
        same_device([x, value], _SET)
    else:
        value = asarray(value, device=x.device)
    check_kind(_SET, x.dtype, value.dtype)
    return value


def _fitted(value: Any, shape: Shape) -> Any:
    """The value without leading axes of size 1 that the target lacks. Raises ShapeError if it does not broadcast."""
    if not isinstance(value, Tensor):
        return value
    extra = value.ndim - len(shape)
    if extra > 0 and all(n == 1 for n in value.shape[:extra]):
        value = reshape(value, value.shape[extra:])
    if broadcast([shape, value.shape], _SET) != shape:
        raise ShapeError(f"{_SET}: a value of shape {value.shape} does not broadcast to {shape}")
    return value


def _is_uniform(key: Key, value: Any) -> bool:
    """Whether one mask is the whole index, and the value is the same for all its elements."""
    if len(key.entries) != 1 or not key.entries[0].is_mask:
        return False
    rest = len(key.shape) - key.entries[0].count - key.entries[0].axis
    return not isinstance(value, Tensor) or value.ndim <= rest


def _wide_mask(key: Key) -> Tensor:
    (e,) = key.entries
    shape = key.shape[e.axis : e.axis + e.count]
    return reshape(e.value, (*shape, *(1,) * (len(key.shape) - e.axis - e.count)))


def _assign(x: Tensor, key: Key, value: Any) -> None:
    view = key.view(x)
    if not key.entries:
        _copy(view, _fitted(value, view.shape))
    elif _is_uniform(key, value):
        compute = x.dtype if x.dtype.kind == "bool" else x.dtype.accumulator
        given = _fitted(value, view.shape)
        source = apart(x, given) if isinstance(given, Tensor) else check_number(given, compute, _SET)
        _WHERE([apart(x, _wide_mask(key)), source, view], (x.dtype,), compute, into=[view])
    else:
        order, first, count = key.order()
        view = permute(view, order) if key.apart else view
        targets = _target(key, view.shape, first)
        write(view, _source(x, view, targets, first, count, value), points("index", view.shape, first, targets, count))


def _source(x: Tensor, view: Tensor, targets: Tensor, first: int, count: int, value: Any) -> Tensor:
    shape = (*view.shape[:first], *targets.shape, *view.shape[first + count :])
    if not isinstance(value, Tensor):
        value = constant(value, x.dtype, x)
    return broadcast_to(_fitted(value, shape), shape)


def _copy(view: Tensor, value: Any) -> None:
    if not isinstance(value, Tensor):
        fill_(view, value, _SET)
    elif (value.storage, value.shape, value.strides, value.offset) != (
        view.storage, view.shape, view.strides, view.offset,
    ):  # fmt: skip
        copy_into(view, apart(view, value))  # else: x[key] += … has changed the view itself


def _with_value(x: Tensor, key: Key, value: Any) -> Tensor:
    """x with the value, by ops that record themselves."""
    view = key.view(x)
    if not key.entries:
        given = constant(value, x.dtype, x) if not isinstance(value, Tensor) else value
        changed = broadcast_to(_fitted(given, view.shape), view.shape)
    elif _is_uniform(key, value):
        changed = where(_wide_mask(key), _fitted(value, view.shape), view)
    else:
        order, first, count = key.order()
        moved = permute(view, order) if key.apart else view
        targets = _target(key, moved.shape, first)
        changed = put_points(moved, targets, _source(x, moved, targets, first, count, value), first, count)
        changed = permute(changed, tuple(np.argsort(order).tolist())) if key.apart else changed
    return put_slice(x, reshape(changed, tuple(key.lengths)), tuple(key.starts), tuple(key.steps))
