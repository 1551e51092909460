"""Reading at computed places: take, gather and their kin, each with its adjoint. `subscript.py` has `x[key]`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dtypes import FLOATS, bfloat16, bool_, float32, int32, int64, uint8, uint64
from ...errors import ConfigError, DTypeError, IndexOutOfRange, ShapeError
from ...kernels.elementwise import formula
from ...shapes import Shape, axis_index, broadcast, numel
from ...tensor import Tensor, expanded, new
from ..core.copies import fill_
from ..core.formula_op import Elementwise
from ..core.kernel_op import primitive
from ..core.launch import check_element
from ..core.table import Booleans, Floats, Integers, case, composite
from ..elementwise.arithmetic import equal, where
from ..shape.creation import arange
from ..shape.movement import reshape, strided_slice, to_dtype, unsqueeze
from .launches import along, check_index, gather_lines, points, scatter_lines

MOVED = (*FLOATS, int64, int32, uint8, bool_)  # one or more of each size: elements are moved as words
A_FEW = (float32, bfloat16, int64, bool_)  # for what is made of ops that are tested in all


# --- the same index for all: take ---------------------------------------------------------------------------------
def _take_gradient(g: Tensor, x_shape: Shape, indices: Tensor, axis: int) -> tuple[Tensor, None]:
    return scatter_take(g, indices, x_shape, axis), None


@primitive(
    lambda x, i, axis=0: np.take(x, i, axis),
    [
        case((5, 3), Integers((4,), -5, 5)),
        case((2, 6, 3), Integers((2, 3), 0, 6), axis=1),
        case((4,), Integers((), 0, 4)),
        case((3, 2), Integers((0,), 0, 1), axis=-1),
        case((0, 2), Integers((3,), 0, 2), axis=1),
    ],
    gradient=_take_gradient, test_dtypes=MOVED, ulps=0,
)  # fmt: skip
def take(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """Elements at integer indices along an axis: (…, size, …), indices (i…) → (…, i…, …). Negative ones from the end.

    An index out of range raises IndexOutOfRange: on the CPU device and in debug mode at once, else when a value next
    comes to the host. The gradient is summed in a fixed order.
    """
    check_index(indices, "take")
    at = axis_index(axis, x.ndim, "take")
    return gather_lines(x, points("take", x.shape, at, indices), x.shape[:at] + indices.shape + x.shape[at + 1 :])


def _scatter_take_reference(g: Any, i: Any, shape: Shape, axis: int) -> Any:
    y = np.zeros(shape)
    np.add.at(np.moveaxis(y, axis, 0), i, np.moveaxis(g, tuple(range(axis, axis + i.ndim)), tuple(range(i.ndim))))
    return y


@primitive(
    _scatter_take_reference, [
        case((4, 3), Integers((4,), 0, 5), shape=(5, 3), axis=0),
        case((2, 2, 3), Integers((2,), 0, 4), shape=(2, 4, 3), axis=1),
        case((0, 2), Integers((0,), 0, 4), shape=(4, 2), axis=0),
    ],
    gradient=lambda g, indices, axis: (take(g, indices, axis), None),
    method=False,
)  # fmt: skip
def scatter_take(g: Tensor, indices: Tensor, shape: Shape, axis: int) -> Tensor:
    """Zeros of `shape` to which g is added at indices along an axis: the adjoint of take. Sums in a fixed order."""
    check_index(indices, "scatter_take")
    at = axis_index(axis, len(shape), "scatter_take")
    y = fill_(new(g.device, g.dtype, tuple(shape)), 0)
    scatter_lines(y, g.detach(), points("scatter_take", y.shape, at, indices), "sum")
    return y


def _merged(shape: Shape, axis: int, count: int) -> Shape:
    return (*shape[:axis], numel(shape[axis : axis + count]), *shape[axis + count :])


@primitive(
    lambda x, i, axis, count, op="index": np.take(x.reshape(_merged(x.shape, axis, count)), i, axis),
    [
        case((3, 2, 4, 2), Integers((5,), 0, 8), axis=1, count=2),
        case((2, 3), Integers((2, 2), 0, 6), axis=0, count=2),
    ],
    gradient=lambda g, x_shape, indices, axis, count: (
        reshape(scatter_take(g, indices, _merged(x_shape, axis, count), axis), x_shape), None
    ),
    test_dtypes=MOVED, ulps=0, method=False,
)  # fmt: skip
def take_points(x: Tensor, indices: Tensor, axis: int, count: int, op: str = "index") -> Tensor:
    """`take` from `count` axes, beginning at `axis`, as if they were one: they need not merge without a copy.

    op: what an error names.
    """
    check_index(indices, op)
    lines = points(op, x.shape, axis, indices, count)
    return gather_lines(x, lines, x.shape[:axis] + indices.shape + x.shape[axis + count :])


# --- an index for each line: take_along_axis ----------------------------------------------------------------------
def _off_axis(x: Tensor, indices: Tensor, axis: int, op: str) -> tuple[int, Shape]:
    """(axis ≥ 0, the common shape of x and indices off the axis, with the size of x on it)."""
    check_index(indices, op)
    at = axis_index(axis, x.ndim, op)
    if indices.ndim != x.ndim:
        raise ShapeError(f"{op}: indices of shape {indices.shape} must have as many axes as {x.shape}")
    ours, theirs = list(x.shape), list(indices.shape)
    ours[at] = theirs[at] = 1
    common = list(broadcast([tuple(ours), tuple(theirs)], f"{op} (off axis {at})"))
    common[at] = x.shape[at]
    return at, tuple(common)


def _along_gradient(g: Tensor, x_shape: Shape, indices: Tensor, axis: int) -> tuple[Tensor, None]:
    at = axis % g.ndim
    return scatter_along_axis(g, indices, g.shape[:at] + (x_shape[at],) + g.shape[at + 1 :], at), None


@primitive(
    lambda x, i, axis=-1: np.take_along_axis(x, i, axis),
    [
        case((3, 5), Integers((3, 2), 0, 5)),
        case((4, 3), Integers((6, 3), -4, 4), axis=0),
        case((2, 3, 2), Integers((1, 4, 2), 0, 3), axis=1),
        case((1, 3), Integers((4, 0), 0, 3)),
        case((4,), Integers((3,), 0, 4)),
    ],
    gradient=_along_gradient, test_dtypes=MOVED, ulps=0,
)  # fmt: skip
def take_along_axis(x: Tensor, indices: Tensor, axis: int = -1) -> Tensor:
    """y[…, j, …] = x[…, indices[…, j, …], …]. Off the axis, the shapes broadcast. See also `gather`."""
    at, common = _off_axis(x, indices, axis, "take_along_axis")
    lines = along("take_along_axis", common, at, indices)
    return gather_lines(expanded(x, common), lines, lines.shape)


@primitive(
    lambda x, i, axis: np.take_along_axis(x, i, axis), [case((3, 5), Integers((3, 2), -5, 5), axis=1)],
    gradient=_along_gradient, ulps=0, method=False,
)  # fmt: skip
def gather_along(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """`take_along_axis` for shapes that agree off the axis, by the name of `gather`."""
    lines = along("gather", x.shape, axis, indices)
    return gather_lines(x, lines, lines.shape)


def _scatter_along_reference(g: Any, i: Any, shape: Shape, axis: int) -> Any:
    y = np.zeros(shape)
    i = np.broadcast_to(i, g.shape)
    grid = list(np.indices(i.shape))
    grid[axis] = i
    np.add.at(y, tuple(grid), g)
    return y


@primitive(
    _scatter_along_reference, [
        case((3, 2), Integers((3, 2), 0, 5), shape=(3, 5), axis=1),
        case((3, 2, 2), Integers((1, 2, 2), 0, 5), shape=(3, 5, 2), axis=1),
    ],
    gradient=lambda g, indices, axis: (take_along_axis(g, indices, axis), None),
    method=False,
)  # fmt: skip
def scatter_along_axis(g: Tensor, indices: Tensor, shape: Shape, axis: int) -> Tensor:
    """Zeros of `shape` with y[…, indices[…, j, …], …] += g[…, j, …]: the adjoint of take_along_axis."""
    check_index(indices, "scatter_along_axis")
    at = axis_index(axis, len(shape), "scatter_along_axis")
    y = fill_(new(g.device, g.dtype, tuple(shape)), 0)
    scatter_lines(y, g.detach(), along("scatter_along_axis", y.shape, at, indices), "sum")
    return y


# --- made of these ------------------------------------------------------------------------------------------------
def corner(x: Tensor, shape: Shape) -> Tensor:
    """The first elements along each axis, as a view."""
    return x if x.shape == shape else strided_slice(x, (0,) * x.ndim, shape, (1,) * x.ndim)


def check_fits(op: str, indices: Tensor, shape: Shape, axis: int) -> int:
    """The axis ≥ 0. Raises ShapeError unless indices have as many axes, none longer than `shape` has but for axis."""
    check_index(indices, op)
    at = axis_index(axis, len(shape), op)
    if indices.ndim != len(shape):
        raise ShapeError(f"{op}: indices of shape {indices.shape} must have as many axes as {shape}")
    if any(i > n for a, (i, n) in enumerate(zip(indices.shape, shape, strict=True)) if a != at):
        raise ShapeError(f"{op}: indices of shape {indices.shape} must not be longer than {shape} but for axis {at}")
    return at


def _gather_reference(x: Any, axis: int, i: Any) -> Any:
    grid = list(np.indices(i.shape))
    grid[axis] = i
    return x[tuple(grid)]


@composite(
    _gather_reference,
    [
        case((3, 5), 1, Integers((2, 4), -5, 5)),
        case((3, 2, 2), 0, Integers((4, 1, 2), 0, 3)),
        case((2, 0), 1, Integers((1, 0), 0, 1)),
    ],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def gather(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    """y[i, j, …] = x[indices[i, j, …], j, …] (for axis 0), of the shape of indices, which may be shorter than x."""
    at = check_fits("gather", indices, x.shape, axis)
    shape = (*indices.shape[:at], x.shape[at], *indices.shape[at + 1 :])
    return gather_along(corner(x, shape), indices, at)


@composite(
    lambda x, axis, i: np.take(x, i, axis),
    [case((2, 3, 2), 1, Integers((4,), -3, 3)), case((3,), 0, Integers((2,), 0, 3))],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def index_select(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    """`take` with a 1-D index, in PyTorch's order of operands. Raises ShapeError for an index of more axes."""
    if indices.ndim > 1:
        raise ShapeError(f"index_select: indices must have one axis, their shape is {indices.shape}; see take")
    at = axis_index(axis, x.ndim, "index_select")
    return take_points(x, reshape(indices, (indices.numel,)), at, 1, "index_select")


@composite(
    lambda x, axis, index: np.take(x, index, axis),
    [case((2, 3, 2), 1, -1), case((3,), 0, 2)],
    test_dtypes=A_FEW,
    ulps=0,
)
def select(x: Tensor, axis: int, index: int) -> Tensor:
    """x without an axis, at one place of it: (…, size, …) → (…, …), a view. Raises IndexOutOfRange."""
    at = axis_index(axis, x.ndim, "select")
    n = x.shape[at]
    if not -n <= index < n:
        raise IndexOutOfRange(f"select: {index} is out of range for axis {at} of size {n}")
    strides = (*x.strides[:at], *x.strides[at + 1 :])
    shape = (*x.shape[:at], *x.shape[at + 1 :])
    if not x.requires_grad:
        return x.alias(shape, strides, x.offset + index % n * x.strides[at])
    starts, lengths = [0] * x.ndim, list(x.shape)
    starts[at], lengths[at] = index % n, 1
    return reshape(strided_slice(x, tuple(starts), tuple(lengths), (1,) * x.ndim), shape)


def _either(index: Any, place: Any, from_end: Any) -> Any:
    """Whether an index names the row that has these two."""
    return formula.logical_or(formula.equal(index, place), formula.equal(index, from_end))


_PLACES = ("index", "place", "from_end")
_EITHER = Elementwise("embedding", _PLACES, formula.trace(_either, _PLACES), result="bool")


@composite(
    lambda i, w, padding_idx=None: w[i],
    [case(Integers((2, 3), 0, 7), (7, 4)), case(Integers((), 0, 3), (3, 2)), case(Integers((0,), 0, 3), (3, 2))],
    example=lambda i, w: embedding(i, w), method=False,
)  # fmt: skip
def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table: indices (…), weight (rows, n) → (…, n). The row at padding_idx gets no gradient."""
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight must have 2 axes, (rows, n), its shape is {weight.shape}")
    rows = weight.shape[0]
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise IndexOutOfRange(f"embedding: padding_idx={padding_idx} is out of range for {rows} rows")
    y = take_points(weight, indices, 0, 1, "embedding")
    if padding_idx is None or not y.requires_grad:
        return y
    place = padding_idx % rows
    from_end = place if indices.dtype.kind == "uint" else place - rows
    return where(unsqueeze(_EITHER(indices, place, from_end), -1), y.detach(), y)


@composite(
    lambda i, n: np.eye(n)[i],
    [case(Integers((2, 3), 0, 4), 4), case(Integers((), 0, 2), 2), case(Integers((0,), 0, 2), 3)],
    non_differentiable="its operand is an index",
    method=False,
)
def one_hot(indices: Tensor, classes: int) -> Tensor:
    """1 at the index, else 0, float32: (…) → (…, classes). An index out of range gives a row of zeros."""
    check_index(indices, "one_hot")
    if classes < 0:
        raise ConfigError(f"one_hot: classes must be ≥ 0, got {classes}")
    numbers = arange(classes, dtype=uint64 if indices.dtype is uint64 else int64, device=indices.device)
    return to_dtype(equal(unsqueeze(indices, -1), numbers), "float32")


def check_single(op: str, value: Any, other: str) -> None:
    """Raises ShapeError unless the value is a number or a 0-d tensor. other: the op that takes more."""
    if isinstance(value, Tensor) and value.ndim:
        raise ShapeError(f"{op}: the value must be a number or 0-d, its shape is {value.shape}; see {other}")


def check_mask(mask: Tensor, op: str) -> None:
    if mask.dtype is not bool_:
        raise DTypeError(f"{op}: the mask must be bool, got {mask.dtype.name}")


@composite(
    lambda x, m, value: np.where(m != 0, value, x),
    [
        case((3, 4), Booleans((3, 4)), 2.0),
        case((3, 4), Booleans((4,)), -1.0),
        case((), Booleans(()), 1.0),
        case((2, 3), Booleans((2, 1)), Floats((), -1, 1)),
    ],
    test_dtypes=FLOATS,
)  # fmt: skip
def masked_fill(x: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    """x, and `value` (a number or a 0-d tensor) where the mask holds; the mask broadcasts to x.

    Raises DTypeError for an int that the dtype of x does not hold.
    """
    if broadcast([x.shape, mask.shape], "masked_fill") != x.shape:
        raise ShapeError(f"masked_fill: a mask of shape {mask.shape} does not broadcast to {x.shape}")
    check_single("masked_fill", value, "where")
    if x.dtype.is_integer and isinstance(value, (int, np.integer)):
        check_element(int(value), x.dtype, "masked_fill")
    return where(mask, value, x)


__all__ = [
    "embedding",
    "gather",
    "index_select",
    "masked_fill",
    "one_hot",
    "select",
    "take",
    "take_along_axis",
]
