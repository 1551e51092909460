"""What the losses share: a formula for each element, evaluated in f32 (f64 for f64), then reduced and rounded once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ...dtypes import promote
from ...errors import ConfigError, DTypeError, ShapeError
from ...kernels.elementwise import formula as f
from ...shapes import broadcast
from ...tensor import Tensor
from ..core.formula_op import Elementwise
from ..core.table import case
from ..reduce.reductions import mean, sum
from ..shape.movement import to_dtype

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str, op: str, known: tuple[str, ...] = REDUCTIONS) -> None:
    if reduction not in known:
        raise ConfigError(f"{op}: reduction must be {', '.join(map(repr, known))}, got {reduction!r}")


def element_formula(partials: Callable[..., Any] | None = None) -> Callable[[Callable[..., Any]], Elementwise]:
    """The loss of one element."""

    def decorate(function: Callable[..., Any]) -> Elementwise:
        names = tuple(inspect.signature(function).parameters)
        name = function.__name__.strip("_")
        return Elementwise(name, names, f.trace(function, names), partials=partials)

    return decorate


def elements(op: Elementwise, *values: Any, wide: bool = False) -> Tensor:
    """The formula of each element, in the operands' dtype; or in the accumulator's, to be added and then rounded."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    kind = tensors[0].dtype
    for t in tensors:
        kind = promote(kind, t.dtype)
    return op._apply(values, (kind.accumulator if wide else kind,), kind.accumulator)


def reduced_loss(name: str, reduction: str, op: Elementwise, prediction: Any, target: Any, *rest: Any) -> Tensor:
    """The reduced loss of a prediction and a target of one shape; the rest broadcasts to it."""
    check_reduction(reduction, name)
    for what, t in (("prediction", prediction), ("target", target), *(("weight", w) for w in rest)):
        if not isinstance(t, Tensor) and what != "weight":
            raise DTypeError(f"{name}: {what} must be a tensor, got {type(t).__name__}")
        if isinstance(t, Tensor) and not t.dtype.is_floating:
            raise DTypeError(f"{name}: {what} must be floating, got {t.dtype.name}")
    if prediction.shape != target.shape:
        raise ShapeError(f"{name}: prediction {prediction.shape} and target {target.shape} must have one shape")
    for w in rest:
        if isinstance(w, Tensor) and broadcast([w.shape, prediction.shape], name) != prediction.shape:
            raise ShapeError(f"{name}: a weight of shape {w.shape} does not broadcast to {prediction.shape}")
    if reduction == "none":
        return elements(op, prediction, target, *rest)
    terms = elements(op, prediction, target, *rest, wide=True)
    return to_dtype(mean(terms) if reduction == "mean" else sum(terms), promote(prediction.dtype, target.dtype))


def reduce_reference(x: Any, reduction: str) -> Any:
    return x if reduction == "none" else x.sum() / x.size if reduction == "mean" else x.sum()


def with_reduction(element: Callable[..., Any]) -> Callable[..., Any]:
    def reference(x: Any, t: Any, *rest: Any, reduction: str = "mean", **keywords: Any) -> Any:
        return reduce_reference(element(x, t, *rest, **keywords), reduction)

    return reference


PAIR = [
    case((3, 4), (3, 4)), case((), ()), case((2, 1, 3), (2, 1, 3), reduction="sum"), case((7,), (7,), reduction="none"),
    case((0, 2), (0, 2)), case((0, 2), (0, 2), reduction="sum"),
]  # fmt: skip
