"""The product along axes.

A reduction; but its gradient is made of running products, which are made of reductions, so it stands above both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels.reduce.associative import PRODUCT
from ...shapes import Shape, axes_tuple
from ...tensor import Tensor
from ..core.kernel_op import primitive
from ..core.table import Domain, case
from ..reduce.reductions import Axis, total_over, with_axes
from ..shape.movement import flip, permute, reshape, to_dtype
from .scans import running_product, shifted


def _prod_gradient(g: Tensor, x: Tensor, axis: Axis) -> Tensor:
    return with_axes(g, x.shape, axis) * _product_of_others(x, axes_tuple(axis, x.ndim, "prod"))


def _product_of_others(x: Tensor, axes: Shape) -> Tensor:
    """Of each element: those before it times those after it along the axes. No division: right at zeros as well."""
    if x.numel == 0:
        return x
    order = tuple(a for a in range(x.ndim) if a not in axes) + axes
    moved = permute(to_dtype(x, x.dtype.accumulator), order)
    lines = reshape(moved, (*moved.shape[: x.ndim - len(axes)], -1))
    before = shifted(running_product(lines, -1), -1, False, 1)
    after = flip(shifted(running_product(flip(lines, -1), -1), -1, False, 1), -1)
    others = reshape(before * after, moved.shape)
    return permute(others, tuple(order.index(a) for a in range(x.ndim)))


@primitive(
    lambda x, axis=None, keepdims=False: x.prod(axis, keepdims=keepdims),
    [
        case((3, 5)), case((3, 5), axis=0), case((2, 3, 2), axis=1, keepdims=True), case((0, 2), axis=0), case(()),
        case(np.array([[0.0, 2.0, -3.0], [0.0, 0.5, 0.0], [4.0, 1.0, 3.0]]), axis=1), case((2, 3, 2), axis=(0, 2)),
    ],
    gradient=_prod_gradient, ulps=8, domain=Domain(0.5, 1.5, special=False),
)  # fmt: skip
def prod(x: Tensor, axis: Axis = None, keepdims: bool = False, dtype: Any = None) -> Tensor:
    """Product over axes. Empty: 1."""
    return total_over(x, PRODUCT, axis, keepdims, dtype, "prod")


__all__ = ["prod"]
