"""Losses: "mean" (of no elements: NaN), "sum" or "none" of them; each element's loss is computed in f32 (f64 for f64).

Under autocast they take f32. `classes.py` has cross_entropy and nll_loss, `likelihoods.py` those of probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dtypes import promote
from ...errors import ConfigError, DTypeError
from ...kernels.elementwise import formula as f
from ...shapes import broadcast
from ...tensor import Tensor
from ..core.launch import same_device
from ..core.table import Booleans, Floats, case, composite
from ..elementwise.arithmetic import maximum, rsqrt
from ..reduce.reductions import sum
from ..shape.movement import to_dtype
from .classes import cross_entropy, nll_loss
from .likelihoods import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    gaussian_nll_loss,
    kl_div,
    poisson_nll_loss,
)
from .terms import PAIR, element_formula, elements, reduce_reference, reduced_loss, with_reduction


# --- distances ----------------------------------------------------------------------------------------------------
@element_formula()
def _squared(x, t):
    return (x - t) * (x - t)


@composite(with_reduction(lambda x, t: (x - t) ** 2), PAIR, ulps=16, method=False, autocast="high")
def mse_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared distance, (x − t)²."""
    return reduced_loss("mse_loss", reduction, _squared, prediction, target)


@element_formula()
def _absolute(x, t):
    return abs(x - t)


@composite(with_reduction(lambda x, t: np.abs(x - t)), PAIR, ulps=16, method=False, autocast="high")
def l1_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute distance, |x − t|; its derivative at 0 is 0."""
    return reduced_loss("l1_loss", reduction, _absolute, prediction, target)


@element_formula()
def _huber(x, t, delta, factor):
    d = abs(x - t)
    inside, beyond = f.where(d <= delta, d, 0), f.where(d <= delta, 0, delta)  # d and delta may be infinite
    return factor * f.where(d <= delta, 0.5 * inside * inside, beyond * (d - 0.5 * beyond))


def _huber_reference(x: Any, t: Any, delta: float = 1.0) -> Any:
    d = np.abs(x - t)
    return np.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta))


@composite(
    with_reduction(_huber_reference), [*PAIR, case((3, 4), (3, 4), delta=0.3)], ulps=16, method=False, autocast="high"
)
def huber_loss(prediction: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """(x − t)²/2 up to a distance delta > 0, a straight line beyond. (Huber 1964)"""
    if not delta > 0:
        raise ConfigError(f"huber_loss: delta must be above 0, got {delta}")
    return reduced_loss("huber_loss", reduction, _huber, prediction, target, delta, 1.0)


@composite(
    with_reduction(lambda x, t, beta=1.0: _huber_reference(x, t, beta) / beta if beta else np.abs(x - t)),
    [*PAIR, case((3, 4), (3, 4), beta=0.3), case((3, 4), (3, 4), beta=0.0)], ulps=16, method=False, autocast="high",
)  # fmt: skip
def smooth_l1_loss(prediction: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """The absolute distance, with a parabola below beta ≥ 0: huber_loss / beta. (Girshick 2015)"""
    if not beta >= 0:
        raise ConfigError(f"smooth_l1_loss: beta must be at least 0, got {beta}")
    if beta == 0:
        return reduced_loss("smooth_l1_loss", reduction, _absolute, prediction, target)
    return reduced_loss("smooth_l1_loss", reduction, _huber, prediction, target, beta, 1 / beta)


# --- margins and angles -----------------------------------------------------------------------------------------------
@element_formula()
def _hinge(x, t):
    margin = 1 - t * x
    return f.where(margin > 0, margin, margin * 0)


@composite(
    with_reduction(lambda x, t: np.maximum(1 - t * x, 0)), [case(Floats((3, 4), -0.7, 0.7), Floats((3, 4), -1.0, 1.0))],
    ulps=16, method=False, autocast="high",
)  # fmt: skip
def hinge_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """max(0, 1 − t·x) for targets t = ±1; its derivative at the margin is 0. (Cortes and Vapnik 1995)"""
    return reduced_loss("hinge_loss", reduction, _hinge, prediction, target)


def _cosine_reference(x: Any, t: Any, axis: int = -1, eps: float = 1e-8) -> Any:
    x, t = np.broadcast_arrays(x, t)
    a, b = (np.maximum(np.sqrt((v * v).sum(axis)), eps) for v in (x, t))
    return (x * t).sum(axis) / (a * b)


@element_formula()
def _product(x, t):
    return x * t


@composite(
    _cosine_reference, [
        case((3, 5), (3, 5)), case((2, 4, 3), (2, 4, 3), axis=1), case((3, 5), (5,)), case((4,), (4,)),
        case((0, 3), (0, 3)), case((3, 5), (3, 1)), case((1, 4), (3, 1), axis=0),
    ], ulps=32, autocast="high",
)  # fmt: skip
def cosine_similarity(x: Tensor, other: Tensor, axis: int = -1, eps: float = 1e-8) -> Tensor:
    """Σ x·y / (max(‖x‖, eps)·max(‖y‖, eps)) along an axis of the broadcast shapes, summed in f32 (f64 for f64)."""
    for t in (x, other):
        if not t.dtype.is_floating:
            raise DTypeError(f"cosine_similarity: needs floating tensors, got {t.dtype.name}")
    if x.shape != other.shape:
        shape = broadcast([x.shape, other.shape], "cosine_similarity")
        x, other = x.broadcast_to(shape), other.broadcast_to(shape)
    dot, xx, yy = (sum(elements(_product, a, b, wide=True), axis=axis) for a, b in ((x, other), (x, x), (other, other)))
    least = max(eps * eps, 1e-38)
    return to_dtype(dot * rsqrt(maximum(xx, least)) * rsqrt(maximum(yy, least)), promote(x.dtype, other.dtype))


@element_formula()
def _cosine_distance(c, t, margin):
    away = c - margin
    return f.where(t > 0, 1 - c, f.where(away > 0, away, away * 0))


def _cosine_embedding_reference(x: Any, y: Any, t: Any, margin: float = 0.0, reduction: str = "mean") -> Any:
    c = _cosine_reference(x, y)
    return reduce_reference(np.where(np.where(t, 1, -1) > 0, 1 - c, np.maximum(c - margin, 0)), reduction)


def _signs(x: Tensor, y: Tensor, mask: Tensor, **keywords: Any) -> Tensor:
    return cosine_embedding_loss(x, y, to_dtype(mask, x.dtype) * 2 - 1, **keywords)


@composite(
    _cosine_embedding_reference, [
        case((3, 5), (3, 5), Booleans((3,))), case((3, 5), (3, 5), Booleans((3,)), margin=-0.9, reduction="none"),
    ], ulps=32, method=False, autocast="high", example=_signs,
)  # fmt: skip
def cosine_embedding_loss(
    x: Tensor, other: Tensor, target: Tensor, margin: float = 0.0, reduction: str = "mean", axis: int = -1
) -> Tensor:
    """1 − cos(x, y) for a target above 0, else max(0, cos(x, y) − margin): x, y (…, n), target (…)."""
    cosine = cosine_similarity(x, other, axis)
    same_device([cosine, target], "cosine_embedding_loss")
    sign = target if target.dtype.is_floating else to_dtype(target, cosine.dtype)
    return reduced_loss("cosine_embedding_loss", reduction, _cosine_distance, cosine, sign, float(margin))


__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "gaussian_nll_loss",
    "hinge_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
]
