"""Where elements are: nonzero, search in sorted tensors, sets, counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, bool_, float16, float32, int64, promote, promote_scalar, uint8
from ...errors import ConfigError, DTypeError, ShapeError
from ...tensor import Tensor, new
from ..core.kernel_op import primitive
from ..core.launch import same_device
from ..core.table import Booleans, case, composite
from ..elementwise.arithmetic import equal, greater, logical_and, logical_not
from ..index.gather import take_along_axis
from ..index.orders import coordinates, flat_nonzero, search_rows
from ..shape.creation import asarray
from ..shape.joining import stack
from ..shape.movement import reshape, to_dtype
from .counting import bincount, count_nonzero, histogram
from .sets import unique, unique_all, unique_counts, unique_inverse, unique_values
from .sorting import sort

NUMBERS = (*FLOATS, *INTEGERS)
A_FEW = (float32, float16, int64, uint8)


# --- where a condition holds ----------------------------------------------------------------------------------------
_WHERE_CASES = [case((5,)), case((3, 4)), case((2, 3, 4)), case((0,)), case((2, 0)), case(Booleans((4, 5)))]


@composite(np.nonzero, _WHERE_CASES, non_differentiable="its result is an index", test_dtypes=(*NUMBERS, bool_))
def nonzero(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the elements that are not 0 (NaN is not), in row-major order: one int64 tensor (count,) an axis.

    The shape depends on values, so it waits for the device. Raises ShapeError for a 0-d tensor.
    """
    if x.ndim == 0:
        raise ShapeError("nonzero: a 0-d tensor has no indices; reshape it to (1,)")
    return coordinates(flat_nonzero(x), x.shape)


@composite(
    lambda x: np.argwhere(x), [*_WHERE_CASES, case(())], non_differentiable="its result is an index",
    test_dtypes=(*A_FEW, bool_),
)  # fmt: skip
def argwhere(x: Tensor) -> Tensor:
    """Indices of the elements that are not 0, in row-major order: int64 (count, ndim). Waits for the device."""
    flat = flat_nonzero(x)
    if x.ndim == 0:
        return new(x.device, int64, (flat.numel, 0))
    return stack(coordinates(flat, x.shape), axis=1)


# --- search in what is sorted -----------------------------------------------------------------------------------------
def _search_reference(x: Any, values: Any, side: Any = "left", sorter: Any = None) -> Any:
    if sorter is not None:
        x = np.take_along_axis(x, sorter, -1)
    if x.ndim == 1:
        return np.searchsorted(x, values, side)
    found = [np.searchsorted(x[at], values[at], side) for at in np.ndindex(x.shape[:-1])]
    return np.array(found, dtype=np.int64).reshape(values.shape)


_SORTED = np.array([-3.0, -1.0, -1.0, 0.0, 2.0, 2.0, 5.0])


@primitive(
    _search_reference, [
        case(_SORTED, (4,)), case(_SORTED, (2, 3), side="right"), case(_SORTED, np.array(2.0)),
        case(np.stack([_SORTED, _SORTED + 1]), np.array([[2.0, -9.0, 9.0], [3.0, np.nan, 0.0]]), side="right"),
        case(np.zeros((0,)), (3,)), case(_SORTED, (0,)),
    ],
    non_differentiable="its result is an index", test_dtypes=NUMBERS,
)  # fmt: skip
def searchsorted(x: Tensor, values: Tensor, side: str = "left", sorter: Tensor | None = None) -> Tensor:
    """Where each value would go in its sorted row, int64: before equal elements (side="left") or after them ("right").

    x: (n) with values of any shape, or (…, n) with values (…, m). NaN is above all numbers. `sorter`: indices of x's
    shape that sort it. What the result is for rows that are not sorted is not said.
    """
    _check_search(x, values, side, sorter)
    dtype = promote(x.dtype, values.dtype)
    dtype = uint8 if dtype is bool_ else dtype
    if sorter is not None:
        x = take_along_axis(x.detach(), sorter, -1)
    return search_rows(to_dtype(x.detach(), dtype), to_dtype(values.detach(), dtype), side == "right")


def _check_search(x: Tensor, values: Tensor, side: str, sorter: Tensor | None) -> None:
    if side not in ("left", "right"):
        raise ConfigError(f"searchsorted: side={side!r} must be 'left' or 'right'")
    if x.ndim == 0 or (x.ndim > 1 and x.shape[:-1] != values.shape[:-1]):
        raise ShapeError(f"searchsorted: x {x.shape} must be 1-d, or as values {values.shape} but for the last axis")
    if sorter is not None and (sorter.shape != x.shape or not sorter.dtype.is_integer):
        raise ShapeError(f"searchsorted: sorter must be integers {x.shape}, got {sorter.dtype.name} {sorter.shape}")


@composite(
    lambda x, boundaries, right=False: np.searchsorted(boundaries, x, "right" if right else "left"),
    [case((3, 4), _SORTED), case((5,), _SORTED, right=True)],
    non_differentiable="its result is an index", test_dtypes=A_FEW,
)  # fmt: skip
def bucketize(x: Tensor, boundaries: Tensor, right: bool = False) -> Tensor:
    """The bucket i of each element, boundaries[i−1] < x ≤ boundaries[i] (or ≤ … < if right); boundaries 1-d, sorted."""
    if boundaries.ndim != 1:
        raise ShapeError(f"bucketize: boundaries must be 1-d, their shape is {boundaries.shape}")
    return searchsorted(boundaries, x, side="right" if right else "left")


@composite(
    lambda x, test, invert=False: np.isin(x, test, invert=invert), [
        case((3, 4), np.array([1.0, 2.0, -1.0, 0.0])), case((6,), (40,)), case((5,), (0,)), case((0,), (3,)),
        case(np.array([1.0, np.nan, 3.0]), np.array([np.nan, 3.0]), invert=True),
    ],
    non_differentiable="its result is a truth value", test_dtypes=A_FEW,
)  # fmt: skip
def isin(x: Tensor | float, test: Tensor | float, invert: bool = False) -> Tensor:
    """Whether each element of x equals an element of `test` (or none, if invert). A NaN equals nothing.

    x or test may be a Python number. `test` is sorted, then searched: O((m + n)·log m).
    """
    x, test = _both(x, test)
    same_device([x, test], "isin")
    within = sort(reshape(test.detach(), (-1,)))
    plain = x.detach()
    # NaNs stand together at the end of the sorted elements, but equal nothing
    found = greater(searchsorted(within, plain, side="right"), searchsorted(within, plain, side="left"))
    found = logical_and(found, equal(plain, plain))
    return logical_not(found) if invert else found


def _both(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Two tensors of one dtype, of which one may be a number."""
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        raise DTypeError("isin: x or test must be a tensor")
    if not isinstance(x, Tensor):
        x = asarray(x, dtype=promote_scalar(y.dtype, x), device=y.device)
    if not isinstance(y, Tensor):
        y = asarray(y, dtype=promote_scalar(x.dtype, y), device=x.device)
    dtype = promote(x.dtype, y.dtype)
    return to_dtype(x, dtype), to_dtype(y, dtype)


__all__ = [
    "argwhere", "bincount", "bucketize", "count_nonzero", "histogram", "isin", "nonzero", "searchsorted", "unique",
    "unique_all", "unique_counts", "unique_inverse", "unique_values",
]  # fmt: skip
