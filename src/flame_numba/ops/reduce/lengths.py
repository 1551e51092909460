"""Lengths of vectors and matrices."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from ...errors import ConfigError, DTypeError, ShapeError
from ...scalars import is_number
from ...shapes import Shape, axes_tuple
from ...tensor import Tensor
from ..core.kernel_op import primitive
from ..core.operands import check_floating
from ..core.table import case, composite
from ..elementwise.arithmetic import abs, equal, not_equal, pow, sign, sqrt, square, where
from ..shape.movement import reshape, to_dtype
from .reductions import Axis, max, min, shared_gradient, sum

_INF = float("inf")


def _kept(shape: Shape, axis: Axis) -> Shape:
    axes = axes_tuple(axis, len(shape), "vector_norm")
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


def _vector_norm_gradient(g: Tensor, y: Tensor, x: Tensor, axis: Axis, ord: float) -> Tensor:
    shape = _kept(x.shape, axis)
    g, y = reshape(g, shape), reshape(y, shape)
    if ord == 0:
        return x * 0 * g
    if ord == 1:
        return sign(x) * g
    zero = equal(y, 0)  # there the slope is taken as 0
    if ord == 2:
        return where(zero, 0, x / where(zero, 1, y)) * g
    if builtins.abs(ord) == _INF:
        return sign(x) * shared_gradient(g, y, abs(x), axis)
    share = pow(abs(x) / where(zero, 1, y), ord - 1)
    return where(zero, 0, sign(x) * share) * g


def _vector_norm_reference(x: Any, axis: Any = None, keepdims: bool = False, ord: float = 2) -> Any:
    axes = tuple(range(x.ndim)) if axis is None else axis
    size = np.abs(x)
    if builtins.abs(ord) == _INF:
        return (size.max if ord > 0 else size.min)(axes, keepdims=keepdims)
    if ord == 0:
        return (x != 0).astype(float).sum(axes, keepdims=keepdims)
    return (size**ord).sum(axes, keepdims=keepdims) ** (1 / ord)


@primitive(
    _vector_norm_reference,
    [
        case((3, 5)), case((3, 5), axis=1, keepdims=True), case((2, 3, 4), axis=(0, 2), ord=1),
        case((3, 4), axis=0, ord=_INF), case((3, 4), axis=-1, ord=-_INF), case((3, 4), ord=3), case((0, 3), axis=0),
        case((3, 4), ord=0), case(()),
    ],
    gradient=_vector_norm_gradient, ulps=32,
)  # fmt: skip
def vector_norm(x: Tensor, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """(Σ |x|^ord)^(1/ord) over axes (default all); ±inf: the largest or smallest |x|; 0: how many are not 0.

    Computed in f32 or wider, rounded once. Its slope at a vector of zeros is taken as 0.
    """
    _check_ord(ord, "vector_norm")
    check_floating(x, "vector_norm")
    wide = to_dtype(x.detach(), x.dtype.accumulator)
    return to_dtype(_lengths(wide, axis, keepdims, ord), x.dtype).detach()


def _check_ord(ord: Any, op: str) -> None:
    if not is_number(ord):
        raise DTypeError(f"{op}: ord must be a number, got {ord!r}; matrix_norm takes the names of norms of matrices")


def _lengths(x: Tensor, axis: Axis, keepdims: bool, ord: float) -> Tensor:
    if ord == _INF:
        return max(abs(x), axis=axis, keepdims=keepdims)
    if ord == -_INF:
        return min(abs(x), axis=axis, keepdims=keepdims)
    if ord == 0:
        return sum(to_dtype(not_equal(x, 0), x.dtype), axis=axis, keepdims=keepdims)
    if ord == 1:
        return sum(abs(x), axis=axis, keepdims=keepdims)
    if ord == 2:
        return sqrt(sum(square(x), axis=axis, keepdims=keepdims))
    return pow(sum(pow(abs(x), ord), axis=axis, keepdims=keepdims), 1 / ord)


@composite(
    lambda x, ord="fro", keepdims=False: np.linalg.norm(x, ord, axis=(-2, -1), keepdims=keepdims),
    [case((3, 4)), case((2, 3, 4), ord=1), case((3, 4), ord=_INF, keepdims=True), case((3, 4), ord=-1)],
    ulps=32,
)  # fmt: skip
def matrix_norm(x: Tensor, ord: str | float = "fro", keepdims: bool = False) -> Tensor:
    """Norms of matrices (…, m, n): "fro" (Frobenius), ±1 (sums of columns), ±inf (sums of rows)."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_norm: needs two axes, the shape is {x.shape}")
    if ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord not in (1, -1, _INF, -_INF):
        raise ConfigError(f"matrix_norm: ord must be 'fro', ±1 or ±inf, got {ord!r}")
    along = -2 if builtins.abs(ord) == 1 else -1
    sums = sum(abs(x), axis=along, keepdims=True)
    return (max if ord > 0 else min)(sums, axis=(-2, -1), keepdims=keepdims)


@composite(
    lambda x, ord=2, axis=None, keepdims=False: _vector_norm_reference(x, axis, keepdims, ord),
    [case((3, 5)), case((3, 5), ord=1, axis=1)], ulps=32,
)  # fmt: skip
def norm(x: Tensor, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Length of the elements along axes (default all) as of one vector; see vector_norm and matrix_norm."""
    _check_ord(ord, "norm")
    return vector_norm(x, axis=axis, keepdims=keepdims, ord=ord)


__all__ = ["matrix_norm", "norm", "vector_norm"]
