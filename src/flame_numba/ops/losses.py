"""Losses: a mean over the batch by default, computed in f32 under autocast."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import FLOATS
from ..errors import ConfigError, DTypeError, ShapeError
from ..grad import is_recording
from ..kernels import formula as f
from ..kernels import rows as kernels
from ..shapes import numel
from ..tensor import Tensor, new
from .elementwise import abs
from .formula_op import elementwise
from .indexing import _check_index, _fault, _raise_now, one_hot
from .kernel_op import primitive
from .launch import run
from .movement import contiguous, to_dtype, unsqueeze
from .normalization import softmax
from .reductions import mean, sum
from .table import Domain, Integers, case, composite

_LABEL = _fault("cross_entropy: a label was out of range in a kernel queued before this point (it was taken as 0)")


def _reduced(loss: Tensor, reduction: str, op: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"{op}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return mean(loss) if reduction == "mean" else sum(loss)


def _rows_gradient(g: Tensor, x: Tensor, labels: Tensor, lse: Tensor) -> Any:
    if is_recording():
        return (softmax(x) - one_hot(labels, x.shape[-1]).to_dtype(x.dtype)) * unsqueeze(g, -1), None
    source = contiguous(x.detach())
    n = x.shape[-1]
    dx = new(x.device, x.dtype, x.shape)
    if dx.numel:
        rows, threads = dx.numel // n, kernels.row_threads(n)
        run(
            x.device, kernels.cross_entropy_gradient_program, (x.dtype, labels.dtype, threads),
            (dx, source, lse, contiguous(labels), contiguous(to_dtype(g.detach(), x.dtype)), rows, n), rows, threads,
        )  # fmt: skip
    return dx, None


def _rows_reference(x: Any, labels: Any) -> Any:
    top = x.max(-1, keepdims=True)
    lse = np.log(np.exp(x - top).sum(-1)) + top[..., 0]
    return lse - np.take_along_axis(x, labels[..., None], -1)[..., 0]


@primitive(
    _rows_reference, [case((4, 7), Integers((4,), 0, 7)), case((2, 3, 300), Integers((2, 3), 0, 300))],
    gradient=_rows_gradient, autocast="high", ulps=32, method=False,
)  # fmt: skip
def cross_entropy_rows(x: Tensor, labels: Tensor) -> Any:
    """log Σ exp(x) − x[label] of each row: (…, n), integer labels (…) → (…). See cross_entropy."""
    _check_index(labels, "cross_entropy")
    if not x.dtype.is_floating:
        raise DTypeError(f"cross_entropy: needs floating logits, got {x.dtype.name}")
    if x.ndim < 1 or labels.shape != x.shape[:-1]:
        raise ShapeError(f"cross_entropy: labels.shape={labels.shape} must equal logits.shape[:-1] (logits: {x.shape})")
    if x.shape[-1] == 0:
        raise ShapeError(f"cross_entropy: no classes (logits: {x.shape})")
    source, n = contiguous(x.detach()), x.shape[-1]
    loss = new(x.device, x.dtype, labels.shape)
    lse = new(x.device, x.dtype.accumulator, labels.shape)
    if loss.numel:
        rows, threads = numel(labels.shape), kernels.row_threads(n)
        run(
            x.device, kernels.cross_entropy_program, (x.dtype, labels.dtype, threads),
            (loss, lse, source, contiguous(labels), x.device.backend.fault_cell, _LABEL, rows, n), rows, threads,
        )  # fmt: skip
        _raise_now(x)
    return loss, {"lse": lse}


@composite(
    lambda x, labels, reduction="mean": _rows_reference(x, labels).mean(),
    [case((4, 7), Integers((4,), 0, 7)), case((1, 1), Integers((1,), 0, 1))], ulps=32, method=False,
)  # fmt: skip
def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """−log softmax(logits)[label]: logits (…, classes), integer labels (…); "mean", "sum" or "none" of them.

    A label out of range raises IndexOutOfRange: on the CPU device at once, on CUDA when a value next comes to the host.
    """
    return _reduced(cross_entropy_rows(logits, labels), reduction, "cross_entropy")


def _same_shape(x: Tensor, target: Tensor, op: str) -> None:
    if x.shape != target.shape:
        raise ShapeError(f"{op}: prediction {x.shape} and target {target.shape} must have one shape")


@composite(
    lambda x, t, reduction="mean": ((x - t) ** 2).mean(), [case((3, 4), (3, 4)), case((), ())], ulps=16, method=False,
    autocast="high",
)  # fmt: skip
def mse_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared distance, its mean, "sum" or "none" of them."""
    _same_shape(prediction, target, "mse_loss")
    distance = prediction - target
    return _reduced(distance * distance, reduction, "mse_loss")


@composite(
    lambda x, t, reduction="mean": np.abs(x - t).mean(), [case((3, 4), (3, 4))], ulps=16, method=False,
    autocast="high",
)  # fmt: skip
def l1_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute distance, its mean, "sum" or "none" of them."""
    _same_shape(prediction, target, "l1_loss")
    return _reduced(abs(prediction - target), reduction, "l1_loss")


@elementwise(
    lambda x, t: np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))),
    domain=(Domain(-1e3, 1e3, special=False), Domain(0, 1, special=False)), accepts=FLOATS, ulps=8, cancels=True,
    partials=lambda y, x, t: (f.sigmoid(x) - t, -x),
)  # fmt: skip
def logistic_loss(x, target):
    """−t·log σ(x) − (1 − t)·log(1 − σ(x)), without overflow: the binary cross-entropy of a logit."""
    return f.maximum(x, 0) - x * target + f.log1p(f.exp(-f.apply("abs", x)))


@composite(
    lambda x, t, reduction="mean": (np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))).mean(),
    [case((3, 4), (3, 4))], ulps=32, method=False, autocast="high",
)  # fmt: skip
def binary_cross_entropy_with_logits(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Mean binary cross-entropy of logits against probabilities of the same shape."""
    _same_shape(logits, target, "binary_cross_entropy_with_logits")
    return _reduced(logistic_loss(logits, target), reduction, "binary_cross_entropy_with_logits")


__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "l1_loss", "mse_loss"]
