"""Softmax and its logarithm along an axis: fused row kernels, differentiable twice through the ops they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...grad import is_recording
from ...kernels.rows import softmax as kernels
from ...kernels.rows.blocks import row_threads
from ...shapes import axis_index
from ...tensor import Tensor, new
from ..core.kernel_op import primitive
from ..core.launch import run
from ..core.operands import check_floating
from ..core.table import case
from ..elementwise.arithmetic import exp
from ..reduce.reductions import sum
from ..shape.movement import contiguous, transpose


def _rows(x: Tensor, axis: int, op: str) -> tuple[Tensor, int]:
    """x as contiguous rows along its last axis, and which axis that was. Outside the graph."""
    check_floating(x, op)
    at = axis_index(axis, x.ndim, op)
    return contiguous(transpose(x.detach(), at, -1)), at


def _softmax(x: Tensor, axis: int, logarithm: bool) -> Tensor:
    flat, at = _rows(x, axis, "log_softmax" if logarithm else "softmax")
    n = flat.shape[-1]
    y = new(x.device, x.dtype, flat.shape)
    if y.numel:
        rows, threads = y.numel // n, row_threads(n)
        run(x.device, kernels.softmax_program, (x.dtype, logarithm, threads), (y, flat, rows, n), rows, threads)
    return transpose(y, at, -1)


def _softmax_gradient(g: Tensor, y: Tensor, axis: int, logarithm: bool) -> Tensor:
    if is_recording():
        if logarithm:
            return g - exp(y) * sum(g, axis=axis, keepdims=True)
        return y * (g - sum(g * y, axis=axis, keepdims=True))
    flat_y, at = _rows(y, axis, "softmax")
    flat_g, _ = _rows(g, axis, "softmax")
    n = flat_y.shape[-1]
    dx = new(y.device, y.dtype, flat_y.shape)
    if dx.numel:
        rows, threads = dx.numel // n, row_threads(n)
        run(
            y.device, kernels.softmax_gradient_program, (y.dtype, logarithm, threads), (dx, flat_y, flat_g, rows, n),
            rows, threads,
        )  # fmt: skip
    return transpose(dx, at, -1)


def _softmax_reference(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


_SOFTMAX_CASES = [case((3, 7)), case((2, 5, 3), axis=1), case((4, 300)), case((3, 1)), case((5,), axis=0)]


@primitive(
    _softmax_reference, _SOFTMAX_CASES, autocast="high", ulps=8,
    gradient=lambda g, y, axis: _softmax_gradient(g, y, axis, False),
)  # fmt: skip
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / Σ exp(x) along an axis, shifted so that nothing overflows. (Milakov and Gimelshein 2018)

    An element of −∞ (a mask) gives 0 and gets the gradient 0; a row of nothing else, or one with ∞, is all NaN.
    """
    return _softmax(x, axis, False)


@primitive(
    lambda x, axis=-1: np.log(_softmax_reference(x, axis)), _SOFTMAX_CASES, autocast="high", ulps=16,
    gradient=lambda g, y, axis: _softmax_gradient(g, y, axis, True),
)  # fmt: skip
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, without losing small probabilities; −∞ stays −∞. NaN where softmax is."""
    return _softmax(x, axis, True)


__all__ = ["log_softmax", "softmax"]
