"""Losses of a class for each row: cross-entropy of logits, negative log-likelihood. `losses.py` offers them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...dtypes import DType, int64, promote
from ...errors import AxisError, ConfigError, DTypeError, GradientError, ShapeError
from ...grad import is_recording
from ...kernels.reduce.associative import SUM
from ...kernels.rows import cross_entropy as kernels
from ...kernels.rows.blocks import row_threads
from ...kernels.rows.cross_entropy import LabelLoss
from ...shapes import axis_index, numel
from ...tensor import Tensor, new
from ..core.formula_op import fuse
from ..core.kernel_op import Primitive
from ..core.launch import run
from ..core.operands import check_floating
from ..core.table import Floats, Integers, case, composite
from ..elementwise.arithmetic import divide, equal, logical_and, not_equal, where
from ..index.gather import take, take_along_axis
from ..index.launches import check_index, fault_code
from ..reduce.reductions import mean, reduce_axes, sum
from ..rows.second_order import again
from ..rows.softmax import log_softmax
from ..shape.creation import asarray
from ..shape.movement import contiguous, permute, squeeze, to_dtype, unsqueeze
from .terms import check_reduction


def _all(x: Tensor, out: DType) -> Tensor:
    return reduce_axes(x, SUM, tuple(range(x.ndim)), False, out, x.dtype)


def _label_formula(
    x: Tensor, labels: Tensor, weight: Tensor | None, ignored: int, smoothing: float, reduction: str, normalize: bool
) -> Tensor:
    """The same by ops, for second derivatives."""
    logarithms = log_softmax(x) if normalize else x
    labels = to_dtype(labels, int64)  # which holds any `ignored`
    kept = not_equal(labels, ignored)
    inside = where(kept, labels, 0)
    factor = to_dtype(kept, x.dtype) if weight is None else where(kept, to_dtype(take(weight, inside), x.dtype), 0)
    loss = -squeeze(take_along_axis(logarithms, unsqueeze(inside, -1), -1), -1) * factor
    if smoothing:
        terms = logarithms if weight is None else logarithms * to_dtype(weight, x.dtype)
        loss = loss * (1 - smoothing) - where(kept, mean(terms, axis=-1), 0) * smoothing
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    count = sum(factor)  # 0: the mean is NaN, its gradient 0
    empty = equal(count, 0)
    return where(empty, math.nan, sum(loss) / where(empty, 1, count))


def label_loss(
    x: Tensor, labels: Tensor, weight: Tensor | None, ignored: int, smoothing: float, reduction: str, normalize: bool
) -> tuple[Tensor, dict[str, Any]]:
    """x (…, n), labels (…) → the loss of each row, their sum, or their mean weighted by what was seen."""
    source, n, wide = contiguous(x.detach()), x.shape[-1], x.dtype.accumulator
    kind = x.dtype if reduction == "none" else wide
    loss, seen, largest, sums = (new(x.device, d, labels.shape) for d in (kind, wide, wide, wide))
    if loss.numel:
        what = LabelLoss(normalize, weight is not None, smoothing > 0)
        w = source if weight is None else contiguous(weight.detach())
        rows, threads = numel(labels.shape), row_threads(n)
        code = fault_code(what.name, " (it was taken as 0)", "a label")
        run(
            x.device, kernels.cross_entropy_program, (what, x.dtype, labels.dtype, w.dtype, kind, threads),
            (loss, seen, largest, sums, source, contiguous(labels), w, x.device.backend.fault_cell, code, ignored,
             smoothing, rows, n), rows, threads, may_fault=True,
        )  # fmt: skip
    saved = {"seen": seen, "largest": largest, "sums": sums, "count": seen}
    if reduction == "none":
        return loss, saved
    if reduction == "sum":
        return _all(loss, x.dtype), saved
    saved["count"] = _all(seen, wide)
    return to_dtype(divide(_all(loss, wide), saved["count"]), x.dtype), saved


@fuse
def _SHARE(g, count):
    """g / count; 0 where nothing was counted."""
    return where(equal(count, 0), 0, g / where(equal(count, 0), 1, count))


def _label_gradient(
    g: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None, largest: Tensor, sums: Tensor, count: Tensor,
    ignored: int, smoothing: float, reduction: str, normalize: bool,
) -> Any:  # fmt: skip
    nothing = (None,) * (1 if weight is None else 2)
    if is_recording():
        rest = {"ignored": ignored, "smoothing": smoothing, "reduction": reduction, "normalize": normalize}
        found = again(lambda v: _label_formula(v, labels, weight, **rest), g, [x])  # type: ignore[arg-type]
        return (*found, *nothing)
    source, n, wide = contiguous(x.detach()), x.shape[-1], x.dtype.accumulator
    dx = new(x.device, x.dtype, x.shape)
    if dx.numel:
        scale = contiguous(to_dtype(g.detach(), wide))
        scale = _SHARE(scale, count) if reduction == "mean" else scale
        what = LabelLoss(normalize, weight is not None, smoothing > 0)
        w = source if weight is None else contiguous(weight.detach())
        total = _all(to_dtype(w, wide), wide) if weight is not None and smoothing else scale
        rows, threads = dx.numel // n, row_threads(n)
        run(
            x.device, kernels.cross_entropy_gradient_program, (what, x.dtype, labels.dtype, w.dtype, threads),
            (dx, source, largest, sums, contiguous(labels), w, total, scale, int(reduction == "none"), ignored,
             smoothing, rows, n), rows, threads,
        )  # fmt: skip
    return (dx, *nothing)


_LABEL_LOSS = Primitive(label_loss, _label_gradient, "high")


def _classes_last(x: Tensor, axis: int, op: str) -> Tensor:
    check_floating(x, op)
    if x.ndim < 1:
        raise AxisError(f"{op}: needs an axis of classes, got a tensor without axes")
    at = axis_index(axis, x.ndim, op)
    if x.shape[at] == 0:
        raise ShapeError(f"{op}: no classes along axis={axis} ({x.shape})")
    return x if at == x.ndim - 1 else permute(x, (*range(at), *range(at + 1, x.ndim), at))


def _check_weight(x: Tensor, weight: Tensor | None, op: str) -> None:
    if weight is None:
        return
    if weight.shape != x.shape[-1:]:
        raise ShapeError(f"{op}: weight.shape={weight.shape} must be ({x.shape[-1]},), a number a class")
    if not weight.dtype.is_floating:
        raise DTypeError(f"{op}: weight must be floating, got {weight.dtype.name}")
    if weight.requires_grad and is_recording():
        raise GradientError(f"{op}: class weights are constants; pass weight.detach()")


def _of_labels(
    x: Tensor, labels: Tensor, weight: Tensor | None, ignored: int, smoothing: float, reduction: str, normalize: bool,
    op: str,
) -> Tensor:  # fmt: skip
    check_index(labels, op)
    if labels.shape != x.shape[:-1]:
        raise ShapeError(f"{op}: labels {labels.shape} must have the shape of the rows {x.shape[:-1]}")
    found: Tensor = _LABEL_LOSS(x, labels, weight, int(ignored), float(smoothing), reduction, normalize)
    return found


@fuse
def _SOFT(t, logarithm, w):
    """−w·t·logarithm, where 0·log 0 is 0."""
    return -(w * t * where(logical_and(equal(t, 0), equal(logarithm, -math.inf)), 0, logarithm))


def _of_probabilities(x: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, reduction: str) -> Tensor:
    if target.shape != x.shape:
        raise ShapeError(f"cross_entropy: probabilities {target.shape} must have the shape of the logits {x.shape}")
    kind = promote(x.dtype, target.dtype)
    wide = kind.accumulator
    t = to_dtype(target, wide)
    if smoothing:
        t = t * (1 - smoothing) + smoothing / x.shape[-1]
    rows = sum(_SOFT(t, log_softmax(to_dtype(x, wide)), 1.0 if weight is None else to_dtype(weight, wide)), axis=-1)
    if reduction != "none":
        rows = mean(rows) if reduction == "mean" else sum(rows)
    return to_dtype(rows, kind)


def _reference(
    x: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, axis: int = -1, normalize: bool = True,
) -> Any:  # fmt: skip
    x = np.moveaxis(x, axis, -1)
    n, w = x.shape[-1], np.ones(x.shape[-1]) if weight is None else np.array(weight)
    top = x.max(-1, keepdims=True)
    logarithm = x - (np.log(np.exp(x - top).sum(-1, keepdims=True)) + top) if normalize else x
    if target.dtype.kind == "f":
        t = np.moveaxis(target, axis, -1) * (1 - label_smoothing) + label_smoothing / n
        rows, seen = -(w * t * logarithm).sum(-1), np.ones(x.shape[:-1])
    else:
        kept = target != ignore_index
        label = np.where(kept, target, 0)
        seen = np.where(kept, w[label], 0)
        rows = -np.take_along_axis(logarithm, label[..., None], -1)[..., 0] * seen
        rows = rows * (1 - label_smoothing) - np.where(kept, (w * logarithm).mean(-1), 0) * label_smoothing
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / seen.sum()


_WEIGHTS = (0.5, 2.0, 1.0, 0.7, 1.5)


def _with_weight(loss: str) -> Any:
    """A test case's call: class weights are numbers, since they are no operands that have a gradient."""

    def example(x: Tensor, target: Tensor, weight: Any = None, **keywords: Any) -> Any:
        w = None if weight is None else asarray(weight, dtype=x.dtype, device=x.device)
        return globals()[loss](x, target, w, **keywords)

    return example


@composite(
    _reference, [
        case((4, 7), Integers((4,), 0, 7)), case((2, 3, 300), Integers((2, 3), 0, 300)),
        case((1, 1), Integers((1,), 0, 1)), case((5,), Integers((), 0, 5), reduction="none"),
        case((2, 5, 3), Integers((2, 3), 0, 5), axis=1, reduction="none", label_smoothing=0.1),
        case((6, 5), Integers((6,), 0, 5), weight=_WEIGHTS, ignore_index=2, reduction="sum"),
        case((6, 5), np.array([1, 2, 2, 0, 4, 3]), weight=_WEIGHTS, ignore_index=2, label_smoothing=0.2),
        case((6, 5), np.array([1, -100, 2, 0, -100, 3]), reduction="none"),
        case((4, 5), Floats((4, 5), 0.0, 1.0), weight=_WEIGHTS, label_smoothing=0.1),
        case((0, 5), Integers((0,), 0, 5)),
        case((2, 5, 3), Floats((2, 5, 3), 0.0, 1.0), axis=1, reduction="none"),
    ], ulps=64, method=False, autocast="high", example=_with_weight("cross_entropy"),
)  # fmt: skip
def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, axis: int = -1,
) -> Tensor:  # fmt: skip
    """−log softmax(logits)[label]: logits (…, classes, …) with the classes along `axis`, integer labels without it.

    A floating target of the logits' shape holds probabilities: −Σ target·log softmax. weight: a factor a class (the
    mean over labels is weighted by it). Rows labelled ignore_index count for nothing; a mean over no rows is NaN. A
    label out of range raises IndexOutOfRange: on the CPU device at once, else when a value next comes to the host.
    """
    check_reduction(reduction, "cross_entropy")
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(f"cross_entropy: label_smoothing must be in 0 … 1, got {label_smoothing}")
    x = _classes_last(logits, axis, "cross_entropy")
    _check_weight(x, weight, "cross_entropy")
    if target.dtype.is_floating:
        return _of_probabilities(x, _classes_last(target, axis, "cross_entropy"), weight, label_smoothing, reduction)
    return _of_labels(x, target, weight, ignore_index, label_smoothing, reduction, True, "cross_entropy")


@composite(
    lambda x, t, **keywords: _reference(x, t, normalize=False, **keywords), [
        case((4, 7), Integers((4,), 0, 7)), case((2, 5, 3), Integers((2, 3), 0, 5), axis=1, reduction="none"),
        case((6, 5), np.array([1, 2, 2, 0, 4, 3]), weight=_WEIGHTS, ignore_index=2), case((3, 1), Integers((3,), 0, 1)),
    ], ulps=32, method=False, autocast="high", example=_with_weight("nll_loss"),
)  # fmt: skip
def nll_loss(
    logarithms: Tensor, labels: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", axis: int = -1,
) -> Tensor:  # fmt: skip
    """−logarithms[label]: the loss of log_softmax's result; shapes and the rest as in cross_entropy."""
    check_reduction(reduction, "nll_loss")
    x = _classes_last(logarithms, axis, "nll_loss")
    _check_weight(x, weight, "nll_loss")
    return _of_labels(x, labels, weight, ignore_index, 0.0, reduction, False, "nll_loss")
