"""From tensors and an index to the launches that gather and scatter; faults, and what they say.

A tensor is seen as (outer…, indexed…, inner…). The index has n entries for the indexed axes, together in row-major
order; either the same ones for all outer and inner elements (`points`), or its own for each of them (`along`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np

from ...devices import Device
from ...dtypes import int64
from ...errors import DTypeError, IndexOutOfRange
from ...faults import FAULTS
from ...kernels.index.gather import gather_program, resolve_program
from ...kernels.index.scatter import join_runs_program, last_of_runs_program, merge_runs_program, walk_program
from ...shapes import Shape, broadcast, collapse, expand_strides, numel, row_major, view_strides
from ...tensor import Tensor, new
from ..core.copies import copied, copy_into
from ..core.debug import is_debugging
from ..core.launch import run, same_device, spread
from ..shape.creation import arange
from .orders import order_rows

THREADS = 1 << 17  # what a walk on a GPU cuts the targets for
WALK = 1 << 14  # entries that a thread of a GPU may well walk over: some 0.2 ms
LINES = 1 << 16  # lines enough to fill a GPU: then a thread may walk over any number of entries

_CODES: dict[str, int] = {}


def fault_code(op: str, consequence: str = "", what: str = "an index") -> int:
    """The code that a kernel of this op leaves for an index out of range."""
    if op not in _CODES:
        text = f"{op}: {what} was out of range in a kernel queued before this point{consequence}"
        FAULTS.append((IndexOutOfRange, text))
        _CODES[op] = len(FAULTS) - 1
    return _CODES[op]


def check_index(index: Tensor, op: str) -> None:
    if not isinstance(index, Tensor):
        raise DTypeError(f"{op}: indices must be a tensor, got {type(index).__name__}; see asarray()")
    if not index.dtype.is_integer:
        raise DTypeError(f"{op}: indices must be integers, got {index.dtype.name}")


@dataclass(slots=True)
class Lines:
    """Which elements an index names: the three parts of the shape, and how the index is walked along them."""

    op: str
    outer: Shape
    indexed: Shape
    inner: Shape
    n: int
    index: Tensor
    index_outer: Shape
    index_n: int
    index_inner: Shape
    axis: int  # for messages

    @property
    def size(self) -> int:
        return numel(self.indexed)

    @property
    def shared(self) -> bool:
        """Whether all inner elements have one index."""
        return not any(s for s, n in zip(self.index_inner, self.inner, strict=True) if n > 1)

    @property
    def shape(self) -> Shape:
        """Of what is gathered or scattered."""
        return (*self.outer, self.n, *self.inner)

    @property
    def count(self) -> int:
        return numel(self.shape)

    def cut(self, strides: Shape) -> tuple[Shape, Shape, Shape]:
        """Strides of the tensor itself, part by part."""
        a, b = len(self.outer), len(self.outer) + len(self.indexed)
        return strides[:a], strides[a:b], strides[b:]


def points(op: str, shape: Shape, axis: int, indices: Tensor, count: int = 1) -> Lines:
    """One index for all: entries of `count` axes from `axis` on."""
    outer, indexed, inner = shape[:axis], shape[axis : axis + count], shape[axis + count :]
    flat = indices if indices.is_contiguous else copied(indices)
    return Lines(
        op, outer, indexed, inner, indices.numel, flat.detach(), (0,) * len(outer), 1, (0,) * len(inner), axis
    )  # fmt: skip


def along(op: str, shape: Shape, axis: int, indices: Tensor) -> Lines:
    """An index of its own for each element off the axis. Off the axis, indices are of `shape` or broadcast to it."""
    n = indices.shape[axis]
    strides = expand_strides(indices.shape, indices.strides, (*shape[:axis], n, *shape[axis + 1 :]))
    return Lines(
        op, shape[:axis], shape[axis : axis + 1], shape[axis + 1 :], n, indices.detach(), strides[:axis],
        indices.strides[axis], strides[axis + 1 :], axis,
    )  # fmt: skip


def check_size(lines: Lines) -> None:
    if lines.size == 0 and lines.count:
        raise IndexOutOfRange(
            f"{lines.op}: axis {lines.axis} of shape {(*lines.outer, *lines.indexed, *lines.inner)} is empty, "
            f"so every index is out of range"
        )


# --- faults -------------------------------------------------------------------------------------------------------
Offenders = Sequence[tuple[Tensor, int, int]]  # an index, the size of the axis that it is for, and that axis


def launch(
    op: str, device: Device, build: Callable[..., Any], choices: tuple[Any, ...], arguments: Sequence[Any], items: int,
    offenders: Offenders,
) -> None:  # fmt: skip
    """`run`, and where the outcome is known at once (the CPU device, debug mode) an error that says which index."""
    try:
        run(device, build, choices, arguments, spread(device.backend, items), may_fault=True)
    except IndexOutOfRange as error:
        raise _explained(op, offenders) or error from None


def _explained(op: str, offenders: Offenders) -> IndexOutOfRange | None:
    for index, size, axis in offenders:
        values = index.detach().numpy()
        wrong = np.argwhere((values < -size) | (values >= size))
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            place = f" at {at if len(at) != 1 else at[0]}" if at else ""
            return IndexOutOfRange(
                f"{op}: an index was out of range: {values[at]}{place}{more}, for axis {axis} of size {size}"
            )
    return None


def known_at_once(device: Device) -> bool:
    """Whether a fault is raised before the op returns."""
    return device.kind == "cpu" or is_debugging()


# --- several indices as one ---------------------------------------------------------------------------------------
def resolve(
    op: str, indices: Sequence[Tensor], sizes: Shape, axes: Shape, as_given: Sequence[Tensor] | None = None
) -> Tensor:
    """Broadcast indices, one an axis, as one index into those axes in row-major order, ≥ 0.

    Entries that are out of range become the number of elements, and leave a fault.
    axes, and the indices as the user gave them, are for messages.
    """
    for index in indices:
        check_index(index, op)
    device = same_device(indices, op)
    shape = broadcast([i.shape for i in indices], op)
    y = new(device, int64, shape)
    if y.numel == 0:
        return y
    n, walks = collapse(shape, [expand_strides(i.shape, i.strides, shape) for i in indices])
    arguments = (
        y, *(i.detach() for i in indices), device.backend.fault_cell, fault_code(op), y.numel, numel(sizes),
        *sizes, *n, *(s for walk in walks for s in walk),
    )  # fmt: skip
    choices = (tuple(i.dtype for i in indices), len(n))
    offenders = list(zip(as_given or indices, sizes, axes, strict=True))
    launch(op, device, resolve_program, choices, arguments, y.numel, offenders)
    return y


def checked(lines: Lines) -> Lines:
    """The same with an index that was found in range, where that can be known before anything is written."""
    if not known_at_once(lines.index.device) or lines.count == 0:
        return lines
    found = resolve(lines.op, [_index_view(lines)], (lines.size,), (lines.axis,), [lines.index])
    a = len(lines.outer)
    # where all have one index, it was resolved once: a broadcast axis stays one
    wide = expand_strides(found.shape, found.strides, (*lines.outer, lines.n, *lines.inner))
    return replace(lines, index=found, index_outer=wide[:a], index_n=wide[a], index_inner=wide[a + 1 :])


def _index_view(lines: Lines) -> Tensor:
    """The index in the shape (outer…, n, inner…), with 1 where it is the same for all."""
    strides = (*lines.index_outer, lines.index_n, *lines.index_inner)
    a = len(lines.outer)
    shape = tuple(n if s or i == a else 1 for i, (n, s) in enumerate(zip(lines.shape, strides, strict=True)))
    return lines.index.alias(shape, strides, lines.index.offset)


def check_unread(lines: Lines) -> None:
    """Look at an index by which nothing is read or written, as another axis is empty: it may be wrong all the same."""
    if lines.index.numel:
        resolve(lines.op, [lines.index], (lines.size,), (lines.axis,))


# --- gather -------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4096)
def _gather_plan(
    outer: Shape, indexed: Shape, inner: Shape, n: int, x_strides: tuple[Shape, Shape, Shape],
    index_strides: tuple[Shape, int, Shape], on_cpu: bool,
) -> tuple[tuple[int, int, int], bool, int, tuple[int, ...]]:  # fmt: skip
    """(axes left in each part, whether all inner elements have one index, items, the kernel's integers)."""
    x_outer, x_indexed, x_inner = x_strides
    index_outer, index_n, index_inner = index_strides
    if on_cpu and numel(inner) == 1:  # one thread rather walks along n than finds each item anew
        inner, n, x_inner, index_inner = (n,), 1, (0,), (index_n,)
    o, (xo, io) = collapse(outer, [x_outer, index_outer])
    k, (xk,) = collapse(indexed, [x_indexed])
    i, (xi, ii) = collapse(inner, [x_inner, index_inner])
    count, width = numel(outer), numel(inner)
    run_length = width if on_cpu else 1
    segments = width // run_length
    sizes = (count, numel(indexed), width, n, segments, run_length, index_n)
    integers = (*sizes, *o, *xo, *io, *k, *xk, *i, *xi, *ii)
    return (len(o), len(k), len(i)), not any(ii), count * n * segments, integers


def gather_lines(x: Tensor, lines: Lines, shape: Shape) -> Tensor:
    """A new tensor of `shape` (lines.shape, up to how n is written) with the elements of x that the index names."""
    device = x.device
    y = new(device, x.dtype, shape)
    if y.numel == 0:
        check_unread(lines)
        return y
    check_size(lines)
    index = lines.index
    ranks, shared, items, integers = _gather_plan(
        lines.outer, lines.indexed, lines.inner, lines.n, lines.cut(x.strides),
        (lines.index_outer, lines.index_n, lines.index_inner), device.kind == "cpu",
    )  # fmt: skip
    arguments = (y, x, index, device.backend.fault_cell, fault_code(lines.op), *integers)
    choices = (x.dtype, index.dtype, ranks, shared)
    launch(lines.op, device, gather_program, choices, arguments, items, ((index, lines.size, lines.axis),))
    return y


# --- scatter ------------------------------------------------------------------------------------------------------
def wants_sort(device: Device, n: int, lines: int) -> bool:
    """Whether sorting the index first is faster than that threads walk over all of it."""
    return device.kind != "cpu" and n > WALK and lines < LINES


def scatter_lines(y: Tensor, g: Tensor, lines: Lines, merge: str) -> None:
    """Write to, or merge into, the elements of y that the index names, in the order of the index. y changes.

    g: of lines.shape, up to how n is written, or such a view with stretched axes. y and g share no memory.
    """
    if y.numel and lines.count:
        y.storage.version += 1
        _scatter(y, g, lines, merge)
    elif lines.count:
        check_size(lines)
    else:
        check_unread(lines)


def _scatter(y: Tensor, g: Tensor, lines: Lines, merge: str) -> None:
    if merge == "assign":
        g = g if g.dtype is y.dtype else copied(g, y.dtype)
    elif y.dtype is not y.dtype.accumulator:
        total = copied(y, y.dtype.accumulator)
        _scatter(total, g, lines, merge)
        copy_into(y, total)
        return
    strides = view_strides(g.shape, g.strides, lines.shape)
    if strides is None:
        g, strides = copied(g), row_major(lines.shape)
    source = g.alias(lines.shape, strides, g.offset)
    if wants_sort(y.device, lines.n, numel(lines.outer) * numel(lines.inner)):
        _sorted(y, source, lines, merge)
    else:
        _walk(y, source, lines, merge)


@functools.lru_cache(maxsize=4096)
def _walk_plan(
    outer: Shape, indexed: Shape, inner: Shape, n: int, y_strides: tuple[Shape, Shape, Shape],
    index_strides: tuple[Shape, int, Shape], g_strides: Shape, on_cpu: bool,
) -> tuple[tuple[int, int, int], bool, int, tuple[int, ...]]:  # fmt: skip
    """As `_gather_plan`, for a walk over the index."""
    a = len(outer)
    y_outer, y_indexed, y_inner = y_strides
    index_outer, index_n, index_inner = index_strides
    o, (yo, io, go) = collapse(outer, [y_outer, index_outer, g_strides[:a]])
    k, (yk,) = collapse(indexed, [y_indexed])
    i, (yi, ii, gi) = collapse(inner, [y_inner, index_inner, g_strides[a + 1 :]])
    count, size, width = numel(outer), numel(indexed), numel(inner)
    run_length = width if on_cpu else 1
    segments = width // run_length
    ranges = 1 if on_cpu else max(1, min(size, THREADS // (count * width)))
    sizes = (count, size, width, n, ranges, segments, run_length, index_n, g_strides[a])
    integers = (*sizes, *o, *yo, *io, *go, *k, *yk, *i, *yi, *ii, *gi)
    return (len(o), len(k), len(i)), not any(ii), count * ranges * segments, integers


def _walk(y: Tensor, g: Tensor, lines: Lines, merge: str) -> None:
    device, index = y.device, lines.index
    ranks, shared, items, integers = _walk_plan(
        lines.outer, lines.indexed, lines.inner, lines.n, lines.cut(y.strides),
        (lines.index_outer, lines.index_n, lines.index_inner), g.strides, device.kind == "cpu",
    )  # fmt: skip
    arguments = (y, g, index, device.backend.fault_cell, fault_code(lines.op), *integers)
    choices = (y.dtype, g.dtype, index.dtype, ranks, shared, merge)
    launch(lines.op, device, walk_program, choices, arguments, items, ((index, lines.size, lines.axis),))


def _sorted(y: Tensor, g: Tensor, lines: Lines, merge: str) -> None:
    """The same through a stable sort of the targets. Time: that of the sort, then about √n steps a thread."""
    outer, size, inner, targets = _targets(lines)
    order = order_rows(targets)
    targets = gather_lines(targets, points(lines.op, targets.shape, 0, order), targets.shape)
    total = y if y.is_contiguous else copied(y)
    source = g if g.is_contiguous else copied(g)
    sizes = (outer, size, inner, targets.numel)
    if merge == "assign":
        blocks = spread(y.device.backend, outer * targets.numel * inner)
        run(y.device, last_of_runs_program, (y.dtype,), (total, source, targets, order, *sizes), blocks)
    else:
        _merge_runs(total, source, targets, order, sizes, merge)
    if total is not y:
        copy_into(y, total)


def _merge_runs(
    y: Tensor, g: Tensor, targets: Tensor, order: Tensor, sizes: tuple[int, int, int, int], merge: str
) -> None:
    outer, _, inner, n = sizes
    chunk = max(32, isqrt(n))
    chunks = -(-n // chunk)
    heads, tails = (new(y.device, y.dtype, (outer * chunks * inner,)) for _ in range(2))
    numbers, blocks = (*sizes, chunk, chunks), spread(y.device.backend, heads.numel)
    arguments = (y, g, targets, order, heads, tails, *numbers)
    run(y.device, merge_runs_program, (y.dtype, g.dtype, merge), arguments, blocks)
    run(y.device, join_runs_program, (y.dtype, merge), (y, targets, heads, tails, *numbers), blocks)


def _targets(lines: Lines) -> tuple[int, int, int, Tensor]:
    """(outer, size, inner, sorted by): the index in one line; where each line has its own, all lines in one."""
    outer, inner = numel(lines.outer), numel(lines.inner)
    if lines.shared and not any(s for s, n in zip(lines.index_outer, lines.outer, strict=True) if n > 1):
        index = lines.index.alias((lines.n,), (lines.index_n,), lines.index.offset)
        return outer, lines.size, inner, resolve(lines.op, [index], (lines.size,), (lines.axis,), [lines.index])
    ones = (1,) * len(lines.outer), (1,) * len(lines.inner)
    device = lines.index.device
    first = arange(outer, device=device).alias((*lines.outer, 1, *ones[1]), (*row_major(lines.outer), 0, *ones[1]), 0)
    last = arange(inner, device=device).alias((*ones[0], 1, *lines.inner), (*ones[0], 0, *row_major(lines.inner)), 0)
    sizes = (outer, lines.size, inner)
    targets = resolve(lines.op, [first, _index_view(lines), last], sizes, (0, lines.axis, 0))
    total = outer * lines.size * inner
    return 1, total, 1, targets.alias((targets.numel,), (1,), 0)
