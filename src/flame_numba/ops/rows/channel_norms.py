"""Norms over groups of channels and over batches: fused kernels both ways, differentiable twice through ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ConfigError, DTypeError, ShapeError
from ...grad import is_recomputing, is_recording
from ...shapes import Shape, numel
from ...tensor import Tensor
from ..core.autocast import cast_target
from ..core.formula_op import fuse
from ..core.kernel_op import Primitive, primitive
from ..core.mutation import check_unrecorded
from ..core.operands import check_floating
from ..core.table import Floats, case, cast_floating, composite
from ..core.update import update
from ..elementwise.arithmetic import rsqrt
from ..reduce.reductions import mean
from ..shape.movement import reshape
from .channel_launches import as_ncs, backward, by_channel, by_group, forward
from .second_order import again


def _check(x: Tensor, op: str, **parameters: Tensor | None) -> None:
    check_floating(x, op)
    if x.ndim < 2:
        raise ShapeError(f"{op}: x must be (N, C, …), got {x.shape}")
    for name, p in parameters.items():
        if p is not None and p.shape != x.shape[1:2]:
            raise ShapeError(f"{op}: {name}.shape={p.shape} must be ({x.shape[1]},), a number a channel (x: {x.shape})")
        if p is not None and not p.dtype.is_floating:
            raise DTypeError(f"{op}: {name} must be floating, got {p.dtype.name}")


def _grouped(shape: Shape, groups: int) -> Shape:
    return shape[0], groups, numel(shape[1:]) // groups


def _normal_formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, groups: int) -> Tensor:
    """Group norm by ops; groups = 0: batch norm."""
    parts = reshape(x, _grouped(x.shape, groups)) if groups else as_ncs(x)
    axes = 2 if groups else (0, 2)
    distance = parts - mean(parts, axis=axes, keepdims=True)
    y = reshape(distance * rsqrt(mean(distance * distance, axis=axes, keepdims=True) + eps), x.shape)
    spread = (-1, *(1,) * (x.ndim - 2))
    y = y if weight is None else y * reshape(weight, spread)
    return y if bias is None else y + reshape(bias, spread)


def _group_norm_rule(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, groups: int, center: Tensor,
    variance: Tensor, needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    if is_recording():
        return again(_normal_formula, g, [x, weight, bias], eps=eps, groups=groups)
    return backward(g, x, weight, bias, float(eps), center, variance, by_group(x.shape, groups), needs)


def _group_norm_reference(x: Any, groups: int, w: Any = None, b: Any = None, eps: float = 1e-5) -> Any:
    parts = x.reshape(_grouped(x.shape, groups))
    y = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + eps)
    return _scaled(y.reshape(x.shape), w, b)


def _scaled(y: Any, w: Any, b: Any) -> Any:
    shape = (-1, *(1,) * (y.ndim - 2))
    return y * (1 if w is None else w.reshape(shape)) + (0 if b is None else b.reshape(shape))


@primitive(
    _group_norm_reference, [
        case((2, 6, 5), 3), case((2, 6, 3, 2), 2, (6,), (6,)), case((2, 4, 3), 4, (4,)), case((1, 4, 7), 1, None, (4,)),
        case((3, 4), 2, (4,), (4,)), case((2, 4, 40, 60), 2, (4,), (4,)), case((1, 2, 100, 90), 1, (2,), (2,)),
        case((0, 4, 3), 2, (4,), (4,)), case((2, 4, 1, 1), 2, (4,), (4,)),
    ],
    gradient=_group_norm_rule, autocast="high", ulps=64,
)  # fmt: skip
def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Any:
    """(x − mean) / √(variance + eps)·weight + bias over groups of channels: x (N, C, …), weight and bias (C,).

    Raises ShapeError unless groups divides C. (Wu and He 2018)
    """
    _check(x, "group_norm", weight=weight, bias=bias)
    if groups < 1 or x.shape[1] % groups:
        raise ShapeError(f"group_norm: groups={groups} must divide the {x.shape[1]} channels (x: {x.shape})")
    y, center, variance = forward(x, weight, bias, float(eps), by_group(x.shape, groups))
    return y, {"center": center, "variance": variance}


@composite(
    lambda x, w=None, b=None, eps=1e-5: _group_norm_reference(x, x.shape[1], w, b, eps),
    [case((2, 3, 5)), case((2, 3, 4, 2), (3,), (3,)), case((1, 2, 3), (2,)), case((0, 2, 3))], ulps=64,
)  # fmt: skip
def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Any:
    """group_norm with a group for each channel: x (N, C, …), with an axis beyond the channels. (Ulyanov et al. 2016)"""
    _check(x, "instance_norm", weight=weight, bias=bias)
    if x.ndim < 3:
        raise ShapeError(f"instance_norm: x must be (N, C, …) with an axis to normalise over, got {x.shape}")
    return group_norm(x, x.shape[1], weight, bias, eps)


# --- batch norm ---------------------------------------------------------------------------------------------------
@update
def _follow(running_mean, running_var, center, variance, momentum, unbiased):
    """Exponential averages of a batch's mean and variance."""
    return (
        running_mean + momentum * (center - running_mean),
        running_var + momentum * (variance * unbiased - running_var),
    )


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, follow: Any) -> Any:
    rows = by_channel(x.shape)
    y, center, variance = forward(x, weight, bias, eps, rows)
    if follow is not None and not is_recomputing():  # a checkpoint runs this twice, the batch was seen once
        running_mean, running_var, momentum = follow
        _follow(running_mean, running_var, center, variance, momentum, rows.n / (rows.n - 1))
    return y, {"center": center, "variance": variance}


def _batch_norm_rule(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: Tensor, variance: Tensor,
    needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    if is_recording():
        return again(_normal_formula, g, [x, weight, bias], eps=eps, groups=0)
    return backward(g, x, weight, bias, eps, center, variance, by_channel(x.shape), needs)


_BATCH_NORM = Primitive(_batch_norm, _batch_norm_rule, None)
_FIXED = fuse(lambda x, center, variance, w, b, eps: (x - center) * rsqrt(variance + eps) * w + b)


def _batch_reference(
    x: Any, m: Any, v: Any, w: Any = None, b: Any = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    axes = (0, *range(2, x.ndim))
    if training:
        m, v = x.mean(axes), x.var(axes)
    shape = (-1, *(1,) * (x.ndim - 2))
    return _scaled((x - m.reshape(shape)) / np.sqrt(v.reshape(shape) + eps), w, b)


def _batch_example(x: Tensor, m: Tensor, v: Tensor, *rest: Any, **keywords: Any) -> Any:
    if keywords.get("training"):
        m, v = m.detach().clone(), v.detach().clone()
    return batch_norm(x, m, v, *rest, **keywords)


_MEAN, _VAR = Floats((4,), -1.0, 1.0), Floats((4,), 0.2, 2.0)


@composite(
    _batch_reference, [
        case((3, 4, 5), _MEAN, _VAR, (4,), (4,)), case((3, 4), _MEAN, _VAR), case((0, 4), _MEAN, _VAR),
        *(
            # a large eps: where all values of a channel are one (a broadcast), the result is rounding errors / √eps
            case(shape, _MEAN, _VAR, *affine, training=True, eps=0.1)
            for shape, *affine in (
                ((3, 4),), ((3, 4, 2), (4,), (4,)), ((2, 4, 6, 6), (4,)), ((2, 4, 90, 95), (4,), (4,)),
            )
        ),
    ], ulps=64, example=_batch_example,
)  # fmt: skip
def batch_norm(
    x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """(x − mean) / √(variance + eps)·weight + bias for each channel: x (N, C, …), all others (C,).

    Training: mean and variance of the batch; running_mean and running_var, if given, move by `momentum` towards them
    in place, the variance with n − 1. Else the running ones, which must be given. Under autocast x is taken in f32.
    Raises ShapeError for a single value a channel in training, GradientError if it would move one that requires a
    gradient. (Ioffe and Szegedy 2015)
    """
    running = {"running_mean": running_mean, "running_var": running_var}
    _check(x, "batch_norm", weight=weight, bias=bias, **running)
    given = sum(t is not None for t in running.values())
    if given == 1 or (not given and not training):
        raise ConfigError("batch_norm: give both running_mean and running_var (in training: both or none)")
    target = cast_target("high")
    x = x if target is None else cast_floating(x, target)
    if not training:
        assert running_mean is not None and running_var is not None
        return _fixed(x, running_mean, running_var, weight, bias, eps)
    if x.numel // max(x.shape[1], 1) < 2:
        raise ShapeError(f"batch_norm: training needs more than one value a channel (x: {x.shape})")
    for name, t in running.items():
        if t is not None:
            check_unrecorded(f"batch_norm, {name}", t)
    follow = (running_mean, running_var, float(momentum)) if given else None
    return _BATCH_NORM(x, weight, bias, float(eps), follow)


def _fixed(x: Tensor, center: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    shape = (-1, *(1,) * (x.ndim - 2))
    values = (v if v is None else reshape(v, shape) for v in (center, variance, weight, bias))
    m, v, w, b = values
    return _FIXED._apply(
        (x, m, v, 1.0 if w is None else w, 0.0 if b is None else b, float(eps)), (x.dtype,), x.dtype.accumulator
    )


__all__ = ["batch_norm", "group_norm", "instance_norm"]
