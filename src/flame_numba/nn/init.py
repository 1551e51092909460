"""First values for parameters, written in place. Each returns the tensor that it filled; none is recorded."""

from __future__ import annotations

from math import sqrt

from ..errors import ShapeError
from ..ops.core.copies import copy_into, fill_
from ..ops.core.operands import check_tensors
from ..ops.random import Generator, rand, randn
from ..shapes import numel
from ..tensor import Tensor


def uniform_(x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Uniform numbers in low ≤ x < high."""
    check_tensors("uniform_", [x])
    copy_into(x, rand(x.shape, low, high, dtype=x.dtype, device=x.device, generator=generator))
    return x


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Normal numbers of the given mean and standard deviation."""
    check_tensors("normal_", [x])
    copy_into(x, randn(x.shape, mean, std, dtype=x.dtype, device=x.device, generator=generator))
    return x


def zeros_(x: Tensor) -> Tensor:
    """Every element 0."""
    check_tensors("zeros_", [x])
    return fill_(x, 0)


def ones_(x: Tensor) -> Tensor:
    """Every element 1."""
    check_tensors("ones_", [x])
    return fill_(x, 1)


def fans(x: Tensor) -> tuple[int, int]:
    """(inputs, outputs) that one element of a weight connects: weight (out, in, …), the rest a kernel's window.

    Raises ShapeError if x has fewer than two axes.
    """
    check_tensors("fans", [x])
    if x.ndim < 2:
        raise ShapeError(f"fans: a weight needs at least two axes (out, in, …), the shape is {x.shape}")
    window = numel(x.shape[2:])
    return x.shape[1] * window, x.shape[0] * window


def xavier_uniform_(x: Tensor, gain: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """U(±gain·√(6 / (fan_in + fan_out))): keeps the variance of signals and gradients. (Glorot and Bengio 2010)"""
    bound = gain * sqrt(6 / max(1, sum(fans(x))))
    return uniform_(x, -bound, bound, generator=generator)


def kaiming_uniform_(x: Tensor, slope: float = 0.0, *, generator: Generator | None = None) -> Tensor:
    """U(±√(6 / ((1 + slope²)·fan_in))), for leaky rectifiers of that slope below 0. (He et al. 2015)

    slope=√5 gives U(±1/√fan_in), the usual start of linear layers and convolutions.
    """
    bound = sqrt(6 / ((1 + slope * slope) * max(1, fans(x)[0])))
    return uniform_(x, -bound, bound, generator=generator)
