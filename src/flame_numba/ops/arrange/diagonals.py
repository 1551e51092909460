"""Triangles and diagonals of matrices."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from ...dtypes import DType, bool_
from ...errors import AxisError, ShapeError
from ...shapes import Shape, axis_index
from ...tensor import Tensor, new
from ..core.copies import copy_into, fill_
from ..core.kernel_op import primitive
from ..core.table import case, composite
from ..elementwise.arithmetic import where
from ..shape.creation import arange
from ..shape.movement import unsqueeze
from .rearrange import SOME, moveaxis


def _below(x: Tensor, k: int, op: str) -> Tensor:
    """Whether an element of the last two axes lies on or below diagonal k."""
    if x.ndim < 2:
        raise ShapeError(f"{op}: needs two axes, the shape is {x.shape}")
    rows, columns = (arange(n, device=x.device) for n in x.shape[-2:])
    return unsqueeze(rows, -1) + k >= columns


_TRIANGLES = [case((3, 4)), case((4, 3), k=1), case((2, 3, 3), k=-1), case((2, 0))]


@composite(lambda x, k=0: np.tril(x, k), _TRIANGLES, test_dtypes=SOME)
def tril(x: Tensor, k: int = 0) -> Tensor:
    """The matrices' lower triangle, up to diagonal k; 0 above it."""
    return where(_below(x, k, "tril"), x, _zero(x.dtype))


@composite(lambda x, k=0: np.triu(x, k), _TRIANGLES, test_dtypes=SOME)
def triu(x: Tensor, k: int = 0) -> Tensor:
    """The matrices' upper triangle, from diagonal k; 0 below it."""
    return where(_below(x, k - 1, "triu"), _zero(x.dtype), x)


def _zero(dtype: DType) -> bool | int:
    return False if dtype is bool_ else 0


def _diagonal_view(x: Tensor, offset: int) -> Tensor:
    """The diagonal of the last two axes."""
    (m, n), (down, across) = x.shape[-2:], x.strides[-2:]
    length = builtins.max(0, builtins.min(m, n - offset) if offset >= 0 else builtins.min(m + offset, n))
    start = (offset * across if offset >= 0 else -offset * down) if length else 0
    return x.alias((*x.shape[:-2], length), (*x.strides[:-2], down + across), x.offset + start)


@primitive(
    lambda x, offset=0: np.diagonal(x, offset, -2, -1), [case((3, 4)), case((2, 4, 3), offset=-1), case((2, 2), 5)],
    gradient=lambda g, x_shape, offset: diagonal_place(g, x_shape, offset),  # type: ignore[has-type]
    ulps=0, method=False, test_dtypes=SOME,
)  # fmt: skip
def matrix_diagonal(x: Tensor, offset: int = 0) -> Tensor:
    """Diagonals of matrices, as a view: (…, m, n) → (…, length)."""
    if x.ndim < 2:
        raise ShapeError(f"diagonal: needs two axes, the shape is {x.shape}")
    return _diagonal_view(x, offset)


def _diagonal_place_reference(x: Any, shape: Shape, offset: int) -> Any:
    y = np.zeros(shape)
    i = np.arange(x.shape[-1])
    y[..., i + builtins.max(-offset, 0), i + builtins.max(offset, 0)] = x
    return y


@primitive(
    _diagonal_place_reference, [case((3,), shape=(3, 4), offset=1), case((2, 2), shape=(2, 3, 3), offset=-1)],
    gradient=lambda g, offset: matrix_diagonal(g, offset), ulps=0, method=False,
)  # fmt: skip
def diagonal_place(x: Tensor, shape: Shape, offset: int) -> Tensor:
    """Zeros of `shape` with x on the diagonals of its matrices: the adjoint of matrix_diagonal."""
    y = fill_(new(x.device, x.dtype, tuple(shape)), _zero(x.dtype))
    if x.numel:
        copy_into(_diagonal_view(y, offset), x)
    return y


@composite(
    lambda x, offset=0, axis1=-2, axis2=-1: np.diagonal(x, offset, axis1, axis2),
    [case((3, 4)), case((3, 4, 2), offset=1, axis1=0, axis2=1)],
)
def diagonal(x: Tensor, offset: int = 0, axis1: int = -2, axis2: int = -1) -> Tensor:
    """The diagonal of two axes as the last axis, as a view; offset > 0 lies above the main one."""
    a, b = axis_index(axis1, x.ndim, "diagonal"), axis_index(axis2, x.ndim, "diagonal")
    if a == b:
        raise AxisError(f"diagonal: axis1={axis1} and axis2={axis2} must be two different axes")
    return matrix_diagonal(moveaxis(x, (a, b), (-2, -1)), offset)


@composite(lambda x, k=0: np.diag(x, k), [case((3,)), case((2,), k=-1), case((3, 4), k=1)])
def diag(x: Tensor, k: int = 0) -> Tensor:
    """A vector as the diagonal of a matrix of zeros, or the diagonal of a matrix."""
    if x.ndim == 1:
        n = x.shape[0] + builtins.abs(k)
        return diagonal_place(x, (n, n), k)
    if x.ndim != 2:
        raise ShapeError(f"diag: needs a vector or a matrix, the shape is {x.shape}")
    return matrix_diagonal(x, k)


__all__ = ["diag", "diagonal", "tril", "triu"]
