"""The three primitives of convolution, each an adjoint of the others.

The convolution, its adjoint in x (which is the transposed convolution) and its adjoint in the weight: all are linear in
both operands, so derivatives of every order are these three again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...shapes import Shape, numel
from ...tensor import Tensor, new
from ..core.copies import fill_
from ..core.kernel_op import primitive
from ..core.per_axis import lifted, positions
from ..core.table import case
from ..shape.movement import strided_slice
from . import convolution_paths as paths
from .convolution_paths import Geometry


def _geometry(
    x_shape: Shape, w_shape: Shape, out: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Geometry:
    return Geometry(
        x_shape[0], groups, w_shape[1], w_shape[0] // groups, lifted(x_shape[2:], 1), lifted(w_shape[2:], 1),
        lifted(out, 1), lifted(stride, 1), lifted(padding, 0), lifted(dilation, 1),
    )  # fmt: skip


# --- references ---------------------------------------------------------------------------------------------------
def _tap_slices(out: Any, kernel: Any, stride: Any, dilation: Any) -> Any:
    """(tap, where the windows at all positions read by that tap in the padded signal)."""
    for tap in np.ndindex(*kernel):
        along = zip(tap, out, stride, dilation, strict=True)
        yield tap, (..., *(slice(t * d, t * d + (n - 1) * s + 1, s) for t, n, s, d in along))


def _padded(x: Any, padding: Any) -> Any:
    return np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))


def convolve_reference(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    kernel = w.shape[2:]
    out = positions(x.shape[2:], kernel, stride, padding, dilation, "reference")
    x, w = _padded(x, padding), w.reshape(groups, -1, *w.shape[1:])
    x = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
    y = np.zeros((len(x), groups, w.shape[1], *out))
    for tap, at in _tap_slices(out, kernel, stride, dilation):
        y += np.einsum("ngc...,goc->ngo...", x[at], w[(..., *tap)])
    return y.reshape(len(x), groups * w.shape[1], *out)


def adjoint_reference(g: Any, w: Any, size: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    w = w.reshape(groups, -1, *w.shape[1:])
    out, kernel = g.shape[2:], w.shape[3:]
    g = g.reshape(len(g), groups, -1, *out)
    x: Any = np.zeros((len(g), groups, w.shape[2], *(n + 2 * p for n, p in zip(size, padding, strict=True))))
    for tap, at in _tap_slices(out, kernel, stride, dilation):
        x[at] += np.einsum("ngo...,goc->ngc...", g, w[(..., *tap)])
    x = x[(..., *(slice(p, p + n) for n, p in zip(size, padding, strict=True)))]
    return x.reshape(len(g), groups * w.shape[2], *size)


def weight_reference(x: Any, g: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    x = _padded(x, padding).reshape(len(x), groups, -1, *(n + 2 * p for n, p in zip(x.shape[2:], padding, strict=True)))
    out = g.shape[2:]
    g = g.reshape(len(g), groups, -1, numel(out))
    w = np.zeros((groups, g.shape[2], x.shape[2], *kernel))
    for tap, at in _tap_slices(out, kernel, stride, dilation):
        window = x[at].reshape(*x.shape[:3], -1)
        w[(..., *tap)] = np.einsum("ngop,ngcp->goc", g, window)
    return w.reshape(-1, *w.shape[2:])


# --- the three primitives -----------------------------------------------------------------------------------------
_PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
_SPARSE = {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1), "groups": 2}
_EVEN = {"stride": (2,), "padding": (1,), "dilation": (2,), "groups": 1}  # some phases have no tap
_DEEP = {"stride": (1, 2, 1), "padding": (0, 1, 1), "dilation": (1, 1, 2), "groups": 1}


def _convolve_rule(
    g: Tensor, x: Tensor, weight: Tensor, stride: Shape, padding: Shape, dilation: Shape, groups: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    settings = (stride, padding, dilation, groups)
    return (
        convolve_adjoint(g, weight, x.shape[2:], *settings) if needs[0] else None,
        convolve_weight(x, g, weight.shape[2:], *settings) if needs[1] else None,
    )


@primitive(
    convolve_reference, [
        case((2, 3, 6, 5), (4, 3, 3, 2), **_PLAIN), case((1, 4, 7, 8), (2, 2, 3, 3), **_SPARSE),
        case((2, 2, 9), (3, 2, 3), **_EVEN), case((1, 2, 3, 4, 5), (2, 2, 2, 3, 2), **_DEEP),
    ],
    gradient=_convolve_rule, method=False, ulps=16,
)  # fmt: skip
def convolve(
    x: Tensor, weight: Tensor, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Tensor:  # fmt: skip
    """Cross-correlation over all axes but two: x (N, C, …), weight (O, C / groups, …) → (N, O, …)."""
    out = positions(x.shape[2:], weight.shape[2:], stride, padding, dilation, "convolve")
    y = new(x.device, x.dtype, (x.shape[0], weight.shape[0], *out))
    if y.numel == 0 or weight.numel == 0:
        return fill_(y, 0)
    geo = _geometry(x.shape, weight.shape, out, stride, padding, dilation, groups)
    paths.forward(y, x.detach(), weight.detach(), geo)
    return y


def _cropped(y: Tensor, shape: Shape) -> Tensor:
    """Without windows beyond the last: output_padding makes room for more, where the dilation exceeds the stride."""
    if y.shape == shape:
        return y
    return strided_slice(y, (0,) * y.ndim, shape, (1,) * y.ndim)


def _adjoint_rule(
    g: Tensor, gy: Tensor, weight: Tensor, stride: Shape, padding: Shape, dilation: Shape, groups: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    settings = (stride, padding, dilation, groups)
    return (
        _cropped(convolve(g, weight, *settings), gy.shape) if needs[0] else None,
        convolve_weight(g, gy, weight.shape[2:], *settings) if needs[1] else None,
    )


@primitive(
    adjoint_reference, [
        case((2, 4, 4, 4), (4, 3, 3, 2), size=(6, 5), **_PLAIN),
        case((1, 2, 3, 4), (2, 2, 3, 3), size=(7, 8), **_SPARSE),
        case((2, 3, 4), (3, 2, 3), size=(9,), **_EVEN),
        case((1, 2, 2, 2, 5), (2, 2, 2, 3, 2), size=(3, 4, 5), **_DEEP),
    ],
    gradient=_adjoint_rule, method=False, ulps=16,
)  # fmt: skip
def convolve_adjoint(
    gy: Tensor, weight: Tensor, size: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Tensor:  # fmt: skip
    """The adjoint of convolve in x: g (N, O, …) spread over inputs (N, C, *size)."""
    dx = new(gy.device, gy.dtype, (gy.shape[0], weight.shape[1] * groups, *size))
    if dx.numel == 0 or gy.numel == 0:
        return fill_(dx, 0)
    geo = _geometry(dx.shape, weight.shape, gy.shape[2:], stride, padding, dilation, groups)
    paths.adjoint(dx, gy.detach(), weight.detach(), geo)
    return dx


def _weight_rule(
    g: Tensor, x: Tensor, gy: Tensor, stride: Shape, padding: Shape, dilation: Shape, groups: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    settings = (stride, padding, dilation, groups)
    return (
        convolve_adjoint(gy, g, x.shape[2:], *settings) if needs[0] else None,
        _cropped(convolve(x, g, *settings), gy.shape) if needs[1] else None,
    )


@primitive(
    weight_reference, [
        case((2, 3, 6, 5), (2, 4, 4, 4), kernel=(3, 2), **_PLAIN),
        case((1, 4, 7, 8), (1, 2, 3, 4), kernel=(3, 3), **_SPARSE),
        case((2, 2, 9), (2, 3, 4), kernel=(3,), **_EVEN),
        case((1, 2, 3, 4, 5), (1, 2, 2, 2, 5), kernel=(2, 3, 2), **_DEEP),
    ],
    gradient=_weight_rule, method=False, ulps=16,
)  # fmt: skip
def convolve_weight(
    x: Tensor, gy: Tensor, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Tensor:
    """The adjoint of convolve in the weight: x (N, C, …) and g (N, O, …) → (O, C / groups, *kernel)."""
    dw = new(x.device, x.dtype, (gy.shape[1], x.shape[1] // groups, *kernel))
    if dw.numel == 0 or gy.numel == 0:
        return fill_(dw, 0)
    geo = _geometry(x.shape, dw.shape, gy.shape[2:], stride, padding, dilation, groups)
    paths.weight(dw, x.detach(), gy.detach(), geo)
    return dw
