"""Convolutions over one, two and three axes, and their transposes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...dtypes import promote
from ...errors import ShapeError
from ...shapes import Shape
from ...tensor import Tensor
from ..core.per_axis import Numbers, per_axis, positions, spatial
from ..core.table import case, composite
from ..shape.movement import pad, reshape, squeeze, to_dtype, unsqueeze
from .convolution_primitives import adjoint_reference, convolve, convolve_adjoint, convolve_reference


def _operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, axes: int, op: str, transposed: bool
) -> tuple[Tensor, Tensor]:
    """x and weight, checked and of one dtype. A transposed convolution's weight is (C, O / groups, …)."""
    spatial(x, axes, op)
    inner = 0
    if weight.ndim == axes + 2:
        inner = weight.shape[0] if transposed else weight.shape[1] * groups
    if weight.ndim != axes + 2 or groups < 1 or x.shape[1] != inner or weight.shape[0] % groups:
        raise ShapeError(f"{op}: x {x.shape} and weight {weight.shape} do not fit with groups={groups}")
    if 0 in weight.shape[2:]:
        raise ShapeError(f"{op}: the kernel of weight {weight.shape} must not be empty")
    out = weight.shape[1] * groups if transposed else weight.shape[0]
    if bias is not None and bias.shape != (out,):
        raise ShapeError(f"{op}: bias.shape={bias.shape} must be ({out},), the output channels")
    if x.dtype is not weight.dtype:
        dtype = promote(x.dtype, weight.dtype)
        return to_dtype(x, dtype), to_dtype(weight, dtype)
    return x, weight


def _batched(function: Callable[..., Tensor], x: Tensor, axes: int) -> Tensor:
    """One sample (C, …) is a batch of one."""
    return squeeze(function(unsqueeze(x, 0)), 0) if x.ndim == axes + 1 else function(x)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + reshape(bias, (bias.shape[0],) + (1,) * (y.ndim - 2))


def _around(
    x: Tensor, padding: Numbers | str, kernel: Shape, stride: Shape, dilation: Shape, op: str
) -> tuple[Tensor, Shape]:
    """(x, the padding of both sides); "same" may have to add one more element behind x."""
    axes = len(kernel)
    if not isinstance(padding, str):
        return x, per_axis(padding, axes, op, "padding", 0)
    if padding == "valid":
        return x, (0,) * axes
    if padding != "same" or any(s != 1 for s in stride):
        raise ShapeError(
            f'{op}: padding={padding!r} must be numbers, "valid", or "same" with stride 1 (it is {stride})'
        )
    more = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(m % 2 for m in more):
        x = pad(x, ((0, 0), (0, 0), *((0, m % 2) for m in more)))
    return x, tuple(m // 2 for m in more)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Numbers, padding: Numbers | str, dilation: Numbers,
    groups: int, axes: int,
) -> Tensor:  # fmt: skip
    op = f"conv{axes}d"

    def convolved(x: Tensor) -> Tensor:
        x, w = _operands(x, weight, bias, groups, axes, op, False)
        steps, apart = per_axis(stride, axes, op, "stride", 1), per_axis(dilation, axes, op, "dilation", 1)
        x, around = _around(x, padding, w.shape[2:], steps, apart, op)
        positions(x.shape[2:], w.shape[2:], steps, around, apart, op)
        return _with_bias(convolve(x, w, steps, around, apart, groups), bias)

    return _batched(convolved, x, axes)


def _transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Numbers, padding: Numbers, output_padding: Numbers,
    groups: int, dilation: Numbers, axes: int,
) -> Tensor:  # fmt: skip
    op = f"conv_transpose{axes}d"

    def convolved(x: Tensor) -> Tensor:
        x, w = _operands(x, weight, bias, groups, axes, op, True)
        steps, apart = per_axis(stride, axes, op, "stride", 1), per_axis(dilation, axes, op, "dilation", 1)
        around, more = (
            per_axis(padding, axes, op, "padding", 0),
            per_axis(output_padding, axes, op, "output_padding", 0),
        )
        along = zip(x.shape[2:], w.shape[2:], steps, around, apart, more, strict=True)
        size = tuple((n - 1) * s - 2 * p + d * (k - 1) + m + 1 for n, k, s, p, d, m in along)
        if any(m >= max(s, d) for m, s, d in zip(more, steps, apart, strict=True)) or any(n < 1 for n in size):
            raise ShapeError(
                f"{op}: output_padding={more} must be below stride={steps} or dilation={apart}, and the result not "
                f"empty: its size would be {size}"
            )
        return _with_bias(convolve_adjoint(x, w, size, steps, around, apart, groups), bias)

    return _batched(convolved, x, axes)


def _conv_reference(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    axes = w.ndim - 2
    if x.ndim == axes + 1:
        return _conv_reference(x[None], w, b, stride, padding, dilation, groups)[0]
    s, d = per_axis(stride, axes, "", "", 1), per_axis(dilation, axes, "", "", 1)
    if padding == "same":
        more = [e * (k - 1) for k, e in zip(w.shape[2:], d, strict=True)]
        x = np.pad(x, ((0, 0), (0, 0), *((m // 2, m - m // 2) for m in more)))
    p = per_axis(0 if isinstance(padding, str) else padding, axes, "", "", 0)
    y = convolve_reference(x, w, s, p, d, groups)
    return y if b is None else y + b.reshape(-1, *(1,) * axes)


def _transpose_reference(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> Any:  # fmt: skip
    axes = w.ndim - 2
    s, p, o, d = (per_axis(v, axes, "", "", 0) for v in (stride, padding, output_padding, dilation))
    along = zip(x.shape[2:], w.shape[2:], s, p, o, d, strict=True)
    # the whole of what the taps reach, then cropped: the part beyond may be missing
    full = tuple((n - 1) * t + e * (k - 1) + 1 + m for n, k, t, _, m, e in along)
    y = adjoint_reference(x, w, full, s, (0,) * axes, d, groups)
    y = y[(..., *(slice(q, n - q) for q, n in zip(p, full, strict=True)))]
    return y if b is None else y + b.reshape(-1, *(1,) * axes)


# --- entries ------------------------------------------------------------------------------------------------------
@composite(
    _conv_reference, [
        case((2, 3, 9), (4, 3, 3), (4,)), case((2, 4, 8), (6, 2, 4), stride=2, padding=1, groups=2),
        case((1, 2, 7), (2, 2, 4), padding="same", dilation=2), case((3, 6), (2, 3, 3)), case((0, 2, 5), (3, 2, 2)),
    ],
    autocast="low", ulps=16, method=False,
)  # fmt: skip
def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1, padding: Numbers | str = 0,
    dilation: Numbers = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Cross-correlation: x (N, C, L), weight (O, C / groups, k), bias (O) → (N, O, out). See conv2d."""
    return _convolution(x, weight, bias, stride, padding, dilation, groups, 1)


@composite(
    _conv_reference, [
        case((2, 3, 6, 5), (4, 3, 3, 3), (4,)), case((2, 4, 7, 7), (6, 2, 3, 2), stride=2, padding=(1, 0), groups=2),
        case((1, 2, 8, 8), (3, 2, 3, 3), dilation=2, padding=2), case((1, 1, 1, 1), (1, 1, 1, 1)),
        case((2, 4, 5, 5), (4, 1, 3, 3), (4,), padding=1, groups=4), case((1, 2, 5, 4), (2, 2, 2, 3), padding="same"),
    ],
    autocast="low", ulps=16, method=False,
)  # fmt: skip
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1, padding: Numbers | str = 0,
    dilation: Numbers = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Cross-correlation: x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O) → (N, O, oh, ow).

    padding: zeros on each side, "valid" for none, or "same" (with stride 1) for as many outputs as inputs. Without N,
    x is one sample. Raises ShapeError if channels, groups or sizes do not fit.
    """
    return _convolution(x, weight, bias, stride, padding, dilation, groups, 2)


@composite(
    _conv_reference, [
        case((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), (3,)),
        case((2, 2, 5, 4, 5), (2, 1, 3, 2, 3), stride=(2, 1, 2), padding=1, groups=2),
    ],
    autocast="low", ulps=16, method=False,
)  # fmt: skip
def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1, padding: Numbers | str = 0,
    dilation: Numbers = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Cross-correlation: x (N, C, D, H, W), weight (O, C / groups, kd, kh, kw) → (N, O, od, oh, ow). See conv2d."""
    return _convolution(x, weight, bias, stride, padding, dilation, groups, 3)


@composite(
    _transpose_reference, [
        case((2, 3, 5), (3, 4, 3), (4,)), case((1, 4, 4), (4, 2, 4), stride=3, padding=1, output_padding=1, groups=2),
    ],
    autocast="low", ulps=16, method=False,
)  # fmt: skip
def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1, padding: Numbers = 0,
    output_padding: Numbers = 0, groups: int = 1, dilation: Numbers = 1,
) -> Tensor:  # fmt: skip
    """The adjoint of conv1d: x (N, C, L), weight (C, O / groups, k) → (N, O, out). See conv_transpose2d."""
    return _transposed(x, weight, bias, stride, padding, output_padding, groups, dilation, 1)


@composite(
    _transpose_reference, [
        case((2, 3, 4, 3), (3, 2, 3, 2), (2,)), case((1, 2, 3, 3), (2, 3, 4, 4), stride=2, padding=1),
        case((1, 2, 2, 3), (2, 1, 2, 2), output_padding=1, dilation=2),
        case((1, 4, 3, 2), (4, 1, 3, 3), (2,), stride=(2, 3), padding=1, output_padding=1, groups=2, dilation=2),
    ],
    autocast="low", ulps=16, method=False,
)  # fmt: skip
def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1, padding: Numbers = 0,
    output_padding: Numbers = 0, groups: int = 1, dilation: Numbers = 1,
) -> Tensor:  # fmt: skip
    """The adjoint of conv2d: x (N, C, H, W), weight (C, O / groups, kh, kw), bias (O) → (N, O, oh, ow).

    oh = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1. Raises ShapeError where sizes do not fit.
    """
    return _transposed(x, weight, bias, stride, padding, output_padding, groups, dilation, 2)


@composite(
    _transpose_reference, [case((1, 2, 2, 3, 2), (2, 2, 2, 3, 3), (2,), stride=(1, 2, 2), padding=(0, 1, 1))],
    autocast="low", ulps=16, method=False,
)  # fmt: skip
def conv_transpose3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1, padding: Numbers = 0,
    output_padding: Numbers = 0, groups: int = 1, dilation: Numbers = 1,
) -> Tensor:  # fmt: skip
    """The adjoint of conv3d: x (N, C, D, H, W), weight (C, O / groups, kd, kh, kw). See conv_transpose2d."""
    return _transposed(x, weight, bias, stride, padding, output_padding, groups, dilation, 3)


__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
