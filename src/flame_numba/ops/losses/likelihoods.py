"""Losses of probabilities: binary cross-entropies, Kullback-Leibler, Poisson, Gauss. `losses.py` offers them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import ShapeError
from ...kernels.elementwise import formula as f
from ...tensor import Tensor
from ..core.table import Floats, case, composite
from .terms import PAIR, check_reduction, element_formula, reduce_reference, reduced_loss, with_reduction


def _logs(p: Any) -> tuple[Any, Any]:
    return f.maximum(f.log(p), -100), f.maximum(f.log1p(-p), -100)


@element_formula(
    partials=lambda y, p, t, w: (
        w * (p - t) / f.maximum(p * (1 - p), 1e-12),
        w * (_logs(p)[1] - _logs(p)[0]),
        -(t * _logs(p)[0] + (1 - t) * _logs(p)[1]),
    )
)
def _binary(p, t, w):
    yes, no = _logs(p)
    return -w * (t * yes + (1 - t) * no)


def _binary_reference(p: Any, t: Any, w: Any = None) -> Any:
    yes, no = np.maximum(np.log(p), -100), np.maximum(np.log1p(-p), -100)
    return -(t * yes + (1 - t) * no) * (1 if w is None else w)


_P = Floats((3, 4), 0.1, 0.9)


@composite(
    with_reduction(_binary_reference), [
        case(_P, _P), case(_P, _P, (4,)), case(Floats((), 0.1, 0.9), Floats((), 0.1, 0.9), reduction="sum"),
        case(_P, _P, (3, 1), reduction="none"), case(Floats((0,), 0, 1), Floats((0,), 0, 1)),
    ], ulps=32, method=False, autocast="high",
)  # fmt: skip
def binary_cross_entropy(
    probabilities: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """−t·log p − (1 − t)·log(1 − p), logarithms held at −100; the weight broadcasts. With logits use …_with_logits."""
    w = 1.0 if weight is None else weight
    return reduced_loss("binary_cross_entropy", reduction, _binary, probabilities, target, w)


def _softplus(x: Any) -> Any:
    return f.maximum(x, 0) + f.log1p(f.exp(-f.apply("abs", x)))


@element_formula(
    partials=lambda y, x, t, w, q: (
        w * ((1 - t) - (1 + (q - 1) * t) * f.sigmoid(-x)),
        w * ((q - 1) * _softplus(-x) - x),
        (1 - t) * x + (1 + (q - 1) * t) * _softplus(-x),
        w * t * _softplus(-x),
    )
)
def _logistic(x, t, w, q):
    # each part counts only where it has a share: an infinite logit of the right sign costs nothing
    negative = f.where(f.equal(t, 1), 0, (1 - t) * _softplus(x))
    positive = f.where(f.equal(q * t, 0), 0, q * t * _softplus(-x))
    return w * (negative + positive)


def _logistic_reference(x: Any, t: Any, w: Any = None, q: Any = None) -> Any:
    loss = (1 - t) * x + (1 + ((1 if q is None else q) - 1) * t) * np.logaddexp(0, -x)
    return loss * (1 if w is None else w)


@composite(
    with_reduction(_logistic_reference), [
        *PAIR, case((3, 4), _P, (4,), Floats((4,), 0.5, 3.0)), case((3, 4), _P, None, Floats((4,), 0.5, 3.0)),
        case(np.array([-1e4, -90.0, 0.0, 1e4]), np.array([0.0, 1.0, 0.5, 1.0]), reduction="none"),
    ], ulps=32, method=False, autocast="high",
)  # fmt: skip
def binary_cross_entropy_with_logits(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """−q·t·log σ(x) − (1 − t)·log(1 − σ(x)), without overflow: targets t in 0 … 1, q = pos_weight, all times weight."""
    w, q = (1.0 if p is None else p for p in (weight, pos_weight))
    return reduced_loss("binary_cross_entropy_with_logits", reduction, _logistic, logits, target, w, q)


@element_formula()
def _kl(x, t):
    safe = f.where(t > 0, t, 1)
    return f.where(t > 0, safe * (f.log(safe) - f.where(t > 0, x, 0)), f.where(f.isnan(t), t, 0))


@element_formula()
def _kl_of_logs(x, t):
    present = t > -math.inf
    safe = f.where(present, t, 0)
    return f.where(present, f.exp(safe) * (safe - f.where(present, x, 0)), f.where(f.isnan(t), t, 0))


def _kl_reference(x: Any, t: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    if log_target:
        element = np.exp(t) * (t - x)
    else:
        element = np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - x), 0)
    return element.sum() / x.shape[0] if reduction == "batchmean" else reduce_reference(element, reduction)


@composite(
    _kl_reference, [
        case((3, 4), _P), case((3, 4), _P, reduction="batchmean"), case((3, 4), (3, 4), log_target=True),
        case((4,), Floats((4,), 0.1, 1.0), reduction="none"), case((3, 4), _P, reduction="sum"),
        case(np.array([[-np.inf, -1.0], [-0.5, -2.0]]), np.array([[0.0, 0.5], [0.25, 0.25]])),
    ], ulps=16, method=False, autocast="high",
)  # fmt: skip
def kl_div(logarithms: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """Kullback-Leibler divergence t·(log t − x) from logarithms x of probabilities; 0 where t is 0, whatever x.

    log_target: the target holds logarithms too. reduction "batchmean" is the sum over the first axis' length, the
    divergence itself; "mean" divides by the number of elements.
    """
    check_reduction(reduction, "kl_div", ("mean", "sum", "none", "batchmean"))
    if reduction == "batchmean" and logarithms.ndim < 1:
        raise ShapeError("kl_div: batchmean needs a batch axis")
    how = "sum" if reduction == "batchmean" else reduction
    loss = reduced_loss("kl_div", how, _kl_of_logs if log_target else _kl, logarithms, target)
    return loss * (1 / max(logarithms.shape[0], 1)) if reduction == "batchmean" else loss


@element_formula()
def _poisson_of_log(x, t):
    return f.exp(x) - t * x


@element_formula()
def _poisson(x, t, eps):
    return x - t * f.log(x + eps)


def _poisson_reference(x: Any, t: Any, log_input: bool = True, eps: float = 1e-8) -> Any:
    return np.exp(x) - t * x if log_input else x - t * np.log(x + eps)


@composite(
    with_reduction(_poisson_reference), [*PAIR, case(_P, _P, log_input=False)], ulps=16, method=False, autocast="high"
)
def poisson_nll_loss(
    prediction: Tensor, target: Tensor, log_input: bool = True, eps: float = 1e-8, reduction: str = "mean"
) -> Tensor:
    """eˣ − t·x, or x − t·log(x + eps) if not log_input: the likelihood of a count t without its constant."""
    if log_input:
        return reduced_loss("poisson_nll_loss", reduction, _poisson_of_log, prediction, target)
    return reduced_loss("poisson_nll_loss", reduction, _poisson, prediction, target, float(eps))


@element_formula()
def _gaussian(x, t, variance, eps, constant):
    v = f.maximum(variance, eps)
    return 0.5 * (f.log(v) + (x - t) * (x - t) / v) + constant


def _gaussian_reference(x: Any, t: Any, variance: Any, full: bool = False, eps: float = 1e-6) -> Any:
    v = np.maximum(variance, eps)
    return 0.5 * (np.log(v) + (x - t) ** 2 / v) + (0.5 * math.log(2 * math.pi) if full else 0)


@composite(
    with_reduction(_gaussian_reference), [
        case((3, 4), (3, 4), Floats((3, 4), 0.2, 2.0)), case((3, 4), (3, 4), Floats((3, 1), 0.2, 2.0), full=True),
        case((3,), (3,), Floats((3,), 0.2, 2.0), reduction="none"),
    ], ulps=32, method=False, autocast="high",
)  # fmt: skip
def gaussian_nll_loss(
    prediction: Tensor, target: Tensor, variance: Tensor, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """(log v + (x − t)²/v) / 2 with v = max(variance, eps), which broadcasts; full: with the constant log(2π) / 2."""
    constant = 0.5 * math.log(2 * math.pi) if full else 0.0
    return reduced_loss("gaussian_nll_loss", reduction, _gaussian, prediction, target, variance, float(eps), constant)
