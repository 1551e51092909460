"""Convolution and pooling of images (N, C, H, W)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import int64
from ..errors import DTypeError, ShapeError
from ..kernels import windows as kernels
from ..shapes import Shape
from ..tensor import Tensor, new
from .indexing import take_along_axis
from .kernel_op import primitive
from .launch import run, spread
from .linalg import matrix_product
from .movement import contiguous, permute, reshape
from .table import case, composite

Pair = int | tuple[int, int]


def _pair(value: Pair, op: str, name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(v < least for v in pair):
        raise ShapeError(f"{op}: {name}={value} must be an int ≥ {least} or two of them")
    return pair


def _positions(size: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, op: str) -> Shape:
    """How many windows fit, along each axis."""
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    if any(n < 1 for n in out):
        raise ShapeError(f"{op}: a window of {kernel} with dilation {dilation} does not fit {size} padded by {padding}")
    return out


def _images(x: Tensor, op: str) -> None:
    if x.ndim != 4:
        raise ShapeError(f"{op}: needs images (N, C, H, W), got shape {x.shape}")
    if not x.dtype.is_floating:
        raise DTypeError(f"{op}: needs a floating tensor, got {x.dtype.name}")


def _unfold_reference(x: Any, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Any:
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    h = (x.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    w = (x.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    taps = [
        x[:, :, r * dilation[0] :, s * dilation[1] :][:, :, :: stride[0], :: stride[1]][:, :, :h, :w]
        for r in range(kernel[0]) for s in range(kernel[1])
    ]  # fmt: skip
    return np.stack(taps, 0).transpose(2, 0, 1, 3, 4).reshape(x.shape[1] * len(taps), -1)


_DENSE = {"kernel": (3, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
_SPARSE = {"kernel": (3, 3), "stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)}
_WINDOWS = [case((2, 3, 5, 6), **_DENSE), case((1, 2, 7, 7), **_SPARSE)]


def _unfold_gradient(
    g: Tensor, x_shape: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> Tensor:
    return fold(g, x_shape, kernel, stride, padding, dilation)


@primitive(_unfold_reference, _WINDOWS, ulps=0, method=False, gradient=_unfold_gradient)
def unfold(x: Tensor, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Tensor:
    """Windows as columns: (N, C, H, W) → (C·kh·kw, N·oh·ow)."""
    _images(x, "unfold")
    images, channels, height, width = x.shape
    oh, ow = _positions((height, width), kernel, stride, padding, dilation, "unfold")
    y = new(x.device, x.dtype, (channels * kernel[0] * kernel[1], images * oh * ow))
    if y.numel:
        run(
            x.device, kernels.unfold_program, (x.dtype,),
            (y, x, *x.shape, *kernel, oh, ow, *stride, *padding, *dilation, *x.strides),
            spread(x.device.backend, y.numel),
        )  # fmt: skip
    return y


def _fold_reference(g: Any, shape: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Any:
    at = _unfold_reference(np.arange(np.prod(shape)).reshape(shape) + 1.0, kernel, stride, padding, dilation)
    y = np.zeros(int(np.prod(shape)) + 1)
    np.add.at(y, at.astype(int), g)
    return y[1:].reshape(shape)


@primitive(
    _fold_reference,
    [case((18, 30), shape=(2, 3, 5, 6), **_DENSE), case((18, 9), shape=(1, 2, 7, 7), **_SPARSE)],
    method=False,
    gradient=lambda g, kernel, stride, padding, dilation: unfold(g, kernel, stride, padding, dilation),
)  # fmt: skip
def fold(g: Tensor, shape: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Tensor:
    """The adjoint of unfold: columns added back to images of `shape`."""
    oh, ow = _positions(shape[2:], kernel, stride, padding, dilation, "fold")
    y = new(g.device, g.dtype, tuple(shape))
    if y.numel:
        run(
            g.device, kernels.fold_program, (g.dtype,),
            (y, contiguous(g.detach()), *shape, *kernel, oh, ow, *stride, *padding, *dilation),
            spread(g.device.backend, y.numel),
        )  # fmt: skip
    return y


def _conv2d_reference(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    s, p, d = ((v, v) if isinstance(v, int) else v for v in (stride, padding, dilation))
    parts = []
    for xs, ws in zip(np.split(x, groups, 1), np.split(w, groups, 0), strict=True):
        columns = _unfold_reference(xs, w.shape[2:], s, p, d)
        parts.append(ws.reshape(ws.shape[0], -1) @ columns)
    oh = (x.shape[2] + 2 * p[0] - d[0] * (w.shape[2] - 1) - 1) // s[0] + 1
    y = np.concatenate(parts, 0).reshape(w.shape[0], x.shape[0], oh, -1).transpose(1, 0, 2, 3)
    return y if b is None else y + b[None, :, None, None]


@composite(
    _conv2d_reference,
    [
        case((2, 3, 6, 5), (4, 3, 3, 3), (4,)), case((2, 4, 7, 7), (6, 2, 3, 2), stride=2, padding=(1, 0), groups=2),
        case((1, 2, 8, 8), (3, 2, 3, 3), dilation=2, padding=2), case((1, 1, 1, 1), (1, 1, 1, 1)),
    ],
    autocast="low", ulps=8, method=False,
)  # fmt: skip
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """Cross-correlation: x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O) → (N, O, oh, ow).

    As a matrix product over unfolded windows. Raises ShapeError if channels, groups or sizes do not fit.
    """
    _images(x, "conv2d")
    if weight.ndim != 4 or groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ShapeError(f"conv2d: x {x.shape} and weight {weight.shape} do not fit with groups={groups}")
    steps, around = _pair(stride, "conv2d", "stride", 1), _pair(padding, "conv2d", "padding", 0)
    apart = _pair(dilation, "conv2d", "dilation", 1)
    out, _, kh, kw = weight.shape
    oh, ow = _positions(x.shape[2:], (kh, kw), steps, around, apart, "conv2d")
    columns = unfold(x, (kh, kw), steps, around, apart)
    taps = weight.shape[1] * kh * kw
    y = matrix_product(
        reshape(weight, (groups, out // groups, taps)), reshape(columns, (groups, taps, columns.shape[1]))
    )
    y = permute(reshape(y, (out, x.shape[0], oh, ow)), (1, 0, 2, 3))
    return y if bias is None else y + reshape(bias, (out, 1, 1))


# --- pooling ------------------------------------------------------------------------------------------------------
def _pool_arguments(shape: Shape, kernel: Shape, stride: Shape, padding: Shape, op: str) -> tuple[Shape, Shape]:
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ShapeError(f"{op}: padding={padding} must be at most half of the kernel {kernel}")
    oh, ow = _positions(shape[2:], kernel, stride, padding, (1, 1), op)
    planes = shape[0] * shape[1]
    return (oh, ow), (planes, *shape[2:], *kernel, oh, ow, *stride, *padding)


def _settings(kernel: Pair, stride: Pair | None, padding: Pair, op: str) -> tuple[Shape, Shape, Shape]:
    size = _pair(kernel, op, "kernel", 1)
    return size, size if stride is None else _pair(stride, op, "stride", 1), _pair(padding, op, "padding", 0)


def _windows_of(x: Any, kernel: Pair, stride: Pair | None, padding: Pair, fill: float) -> Any:
    size, step, around = _settings(kernel, stride, padding, "pool")
    x = np.pad(x, ((0, 0), (0, 0), (around[0],) * 2, (around[1],) * 2), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))
    return view[:, :, :: step[0], :: step[1]]


_POOLS = [
    case((2, 3, 6, 6), kernel=2), case((1, 2, 7, 5), kernel=(3, 2), stride=2, padding=1),
    case((1, 1, 5, 5), kernel=3, stride=1),
]  # fmt: skip


@primitive(
    lambda x, kernel, stride=None, padding=0: _windows_of(x, kernel, stride, padding, 0).mean((-1, -2)), _POOLS,
    gradient=lambda g, x_shape, kernel, stride, padding: avg_pool2d_gradient(g, x_shape, kernel, stride, padding),  # type: ignore[has-type]
)  # fmt: skip
def avg_pool2d(x: Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Mean over windows (stride: the kernel's size); padding counts as zeros."""
    _images(x, "avg_pool2d")
    positions, numbers = _pool_arguments(x.shape, *_settings(kernel, stride, padding, "avg_pool2d"), "avg_pool2d")
    y = new(x.device, x.dtype, x.shape[:2] + positions)
    if y.numel:
        run(
            x.device, kernels.average_pool_program, (x.dtype, False), (y, contiguous(x.detach()), *numbers),
            spread(x.device.backend, y.numel),
        )  # fmt: skip
    return y


def _avg_pool_gradient_reference(g: Any, shape: Shape, kernel: Pair, stride: Pair | None, padding: Pair) -> Any:
    size, _, around = _settings(kernel, stride, padding, "pool")
    padded = (*shape[:2], shape[2] + 2 * around[0], shape[3] + 2 * around[1])
    at = _windows_of(np.arange(np.prod(padded)).reshape(padded), kernel, stride, 0, 0)
    y = np.zeros(int(np.prod(padded)))
    np.add.at(y, at, np.broadcast_to(g[..., None, None] / (size[0] * size[1]), at.shape))
    y = y.reshape(padded)
    return y[:, :, around[0] : padded[2] - around[0], around[1] : padded[3] - around[1]]


@primitive(
    _avg_pool_gradient_reference, [
        case((2, 3, 3, 3), shape=(2, 3, 6, 6), kernel=2, stride=None, padding=0),
        case((1, 2, 4, 3), shape=(1, 2, 7, 5), kernel=(3, 2), stride=2, padding=1),
    ],
    gradient=lambda g, kernel, stride, padding: avg_pool2d(g, kernel, stride, padding), method=False,
)  # fmt: skip
def avg_pool2d_gradient(g: Tensor, shape: Shape, kernel: Pair, stride: Pair | None, padding: Pair) -> Tensor:
    """The adjoint of avg_pool2d: each mean's gradient shared among its window."""
    _, numbers = _pool_arguments(shape, *_settings(kernel, stride, padding, "avg_pool2d"), "avg_pool2d")
    dx = new(g.device, g.dtype, tuple(shape))
    if dx.numel:
        run(
            g.device, kernels.average_pool_program, (g.dtype, True), (dx, contiguous(g.detach()), *numbers),
            spread(g.device.backend, dx.numel),
        )  # fmt: skip
    return dx


def _max_pool_rule(
    g: Tensor, x_shape: Shape, kernel: Pair, stride: Pair | None, padding: Pair, index: Tensor
) -> Tensor:
    return max_pool2d_gradient(g, index, x_shape, kernel, stride, padding)


@primitive(
    lambda x, kernel, stride=None, padding=0: _windows_of(x, kernel, stride, padding, -np.inf).max((-1, -2)), _POOLS,
    gradient=_max_pool_rule, ulps=0,
)  # fmt: skip
def max_pool2d(x: Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = 0) -> Any:
    """Largest of each window (stride: the kernel's size); the first of equals gets the gradient."""
    _images(x, "max_pool2d")
    positions, numbers = _pool_arguments(x.shape, *_settings(kernel, stride, padding, "max_pool2d"), "max_pool2d")
    y = new(x.device, x.dtype, x.shape[:2] + positions)
    index = new(x.device, int64, y.shape)
    if y.numel:
        run(
            x.device, kernels.max_pool_program, (x.dtype, False), (y, index, contiguous(x.detach()), *numbers),
            spread(x.device.backend, y.numel),
        )  # fmt: skip
    return y, {"index": index}


def _max_pool_again(g: Tensor, index: Tensor) -> tuple[Tensor, None]:
    """The adjoint of max_pool2d_gradient: g read at the winners."""
    planes = (*g.shape[:2], g.shape[2] * g.shape[3])
    winners = reshape(index, (*index.shape[:2], index.shape[2] * index.shape[3]))
    return reshape(take_along_axis(reshape(g, planes), winners, axis=-1), index.shape), None


@primitive(
    lambda g, i, shape, kernel, stride, padding: _scatter_windows(g, i, shape),
    [case((1, 1, 2, 2), np.array([[[[0, 3], [9, 10]]]]), shape=(1, 1, 4, 4), kernel=2, stride=None, padding=0)],
    gradient=_max_pool_again, method=False,
)  # fmt: skip
def max_pool2d_gradient(
    g: Tensor, index: Tensor, shape: Shape, kernel: Pair, stride: Pair | None, padding: Pair
) -> Tensor:
    """Each window's gradient at its winner, `index` within the image plane."""
    _, numbers = _pool_arguments(shape, *_settings(kernel, stride, padding, "max_pool2d"), "max_pool2d")
    dx = new(g.device, g.dtype, tuple(shape))
    if dx.numel:
        run(
            g.device, kernels.max_pool_program, (g.dtype, True),
            (dx, contiguous(index), contiguous(g.detach()), *numbers),
            spread(g.device.backend, dx.numel),
        )  # fmt: skip
    return dx


def _scatter_windows(g: Any, index: Any, shape: Shape) -> Any:
    y = np.zeros((shape[0] * shape[1], shape[2] * shape[3]))
    for plane, (values, places) in enumerate(
        zip(g.reshape(y.shape[0], -1), index.reshape(y.shape[0], -1), strict=True)
    ):
        np.add.at(y[plane], places, values)
    return y.reshape(shape)


__all__ = ["avg_pool2d", "conv2d", "max_pool2d"]
