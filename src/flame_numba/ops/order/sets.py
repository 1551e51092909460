"""The distinct elements of a tensor. Public through `searching.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...dtypes import bool_, float16, float32, int64, uint8
from ...kernels.order.search import put_program
from ...shapes import Shape
from ...tensor import Tensor, new
from ..core.launch import run, spread
from ..core.table import case, composite
from ..elementwise.arithmetic import not_equal
from ..index.gather import take
from ..index.orders import flat_nonzero
from ..shape.creation import full, ones
from ..shape.joining import concat
from ..shape.movement import narrow, reshape
from .scans import cumsum, diff
from .sorting import argsort

A_FEW = (float32, float16, int64, uint8)


def _unique_reference(*parts: str) -> Any:
    def reference(x: Any) -> Any:
        found = np.unique_all(x)
        out = tuple(getattr(found, part) for part in parts)
        return out if len(out) > 1 else out[0]

    return reference


class UniqueAll(NamedTuple):
    """The results of `unique_all`."""

    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class UniqueCounts(NamedTuple):
    """The results of `unique_counts`."""

    values: Tensor
    counts: Tensor


class UniqueInverse(NamedTuple):
    """The results of `unique_inverse`."""

    values: Tensor
    inverse_indices: Tensor


def _runs(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(all elements, their order, whether each in order begins a run of equals, the places where runs begin)."""
    line = reshape(x, (-1,))
    order = argsort(line.detach())
    ordered = take(line.detach(), order, 0)
    n = line.numel
    begins = ones((min(n, 1),), dtype=bool_, device=x.device)
    if n > 1:
        begins = concat([begins, not_equal(narrow(ordered, 0, 1, n - 1), narrow(ordered, 0, 0, n - 1))])
    return line, order, begins, flat_nonzero(begins)


def _run_lengths(starts: Tensor, n: int) -> Tensor:
    return diff(starts, append=full((1,), n, dtype=int64, device=starts.device))


def _inverse(order: Tensor, begins: Tensor, shape: Shape) -> Tensor:
    y = new(order.device, int64, shape)
    if y.numel:
        run_of = cumsum(begins, 0) - 1
        run(order.device, put_program, (), (y, order, run_of, y.numel), spread(y.device.backend, y.numel))
    return y


_UNIQUE_CASES = [case((40,)), case((3, 4)), case(()), case((0,)), case((1,))]


@composite(
    _unique_reference("values", "indices", "inverse_indices", "counts"), _UNIQUE_CASES, test_dtypes=(*A_FEW, bool_),
    ulps=0,
)  # fmt: skip
def unique_all(x: Tensor) -> UniqueAll:
    """(values, indices, inverse_indices, counts) of the distinct elements, in order.

    indices: where each is first, in row-major order; inverse_indices: which of the values each element is, in x's
    shape. Each NaN is distinct, −0 equals +0. The shape depends on values, so it waits for the device.
    """
    line, order, begins, starts = _runs(x)
    first = take(order, starts, 0)
    return UniqueAll(take(line, first, 0), first, _inverse(order, begins, x.shape), _run_lengths(starts, line.numel))


@composite(_unique_reference("values", "counts"), _UNIQUE_CASES, test_dtypes=A_FEW, ulps=0)
def unique_counts(x: Tensor) -> UniqueCounts:
    """(values, counts) of the distinct elements, in order. See `unique_all`."""
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


@composite(_unique_reference("values", "inverse_indices"), _UNIQUE_CASES, test_dtypes=A_FEW, ulps=0)
def unique_inverse(x: Tensor) -> UniqueInverse:
    """(values, inverse_indices) of the distinct elements, in order: values[inverse_indices] = x. See `unique_all`."""
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)


@composite(_unique_reference("values"), _UNIQUE_CASES, test_dtypes=A_FEW, ulps=0)
def unique_values(x: Tensor) -> Tensor:
    """The distinct elements, in order. See `unique_all`."""
    return unique_all(x).values


@composite(
    lambda x, **keywords: np.unique(x, **keywords), [
        case((40,)), case((3, 4), return_counts=True), case((9,), return_index=True, return_inverse=True),
    ],
    test_dtypes=A_FEW, ulps=0,
)  # fmt: skip
def unique(
    x: Tensor, return_index: bool = False, return_inverse: bool = False, return_counts: bool = False
) -> Any:  # fmt: skip
    """The distinct elements, in order, and what else is asked for, in this order, as NumPy's. See `unique_all`."""
    values, indices, inverse, counts = unique_all(x)
    if not (return_index or return_inverse or return_counts):
        return values
    asked = ((indices, return_index), (inverse, return_inverse), (counts, return_counts))
    return (values, *(part for part, wanted in asked if wanted))
