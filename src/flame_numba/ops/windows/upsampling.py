"""Images made larger or smaller: nearest, linear, bilinear, trilinear, bicubic; pixels from channels and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor, inf
from typing import Any

import numpy as np

from ...errors import ConfigError, ShapeError
from ...kernels.windows.resample import upsample_program
from ...scalars import as_number
from ...shapes import Shape, numel
from ...tensor import Tensor, new
from ..core.kernel_op import primitive
from ..core.per_axis import lifted, per_axis, spatial
from ..core.table import case, composite
from ..shape.movement import contiguous, permute, reshape
from .planes import fill_planes

Places = tuple[
    tuple[int, int, int], ...
]  # for each axis a, b, c: output i lies at the place (a·i + b) / c of the inputs

_TAPS = {"nearest": 1, "nearest-exact": 1, "linear": 2, "bilinear": 2, "trilinear": 2, "bicubic": 4}
_AXES = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}


# --- the two primitives -------------------------------------------------------------------------------------------
def _fill(y: Tensor, x: Tensor, inputs: Shape, outputs: Shape, places: Places, taps: int, gradient: bool) -> None:
    lead = ((1, 0, 1),) * (3 - len(places))
    numbers = (n for parts in zip(*lead, *places, strict=True) for n in parts)
    choices = (x.dtype, taps, len(places), gradient)
    sizes = (*lifted(inputs, 1), *lifted(outputs, 1))
    fill_planes(upsample_program, choices, (*sizes, *numbers), y, contiguous(x.detach()))


def _weights(n: int, m: int, place: tuple[int, int, int], taps: int) -> Any:
    """The matrix (m, n) that resamples an axis (for the references)."""
    a, b, c = place
    matrix = np.zeros((m, n))
    for i in range(m):
        below, rest = divmod(a * i + b, c)
        f = rest / c
        if taps == 1:
            weights = [1.0]
        elif taps == 2:
            weights = [1 - f, f]
        else:
            near = [(1.25 * t - 2.25) * t * t + 1 for t in (f, 1 - f)]
            far = [((-0.75 * t + 3.75) * t - 6) * t + 3 for t in (f + 1, 2 - f)]
            weights = [far[0], *near, far[1]]
        for tap, w in enumerate(weights):
            matrix[i, min(max(below + tap - (taps == 4), 0), n - 1)] += w
    return matrix


def _resample_reference(x: Any, size: Shape, places: Places, taps: int) -> Any:
    for axis, (m, place) in enumerate(zip(size, places, strict=True), 2):
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ _weights(x.shape[axis], m, place, taps).T, -1, axis)
    return x


def _resample_gradient_reference(g: Any, size: Shape, places: Places, taps: int) -> Any:
    for axis, (n, place) in enumerate(zip(size, places, strict=True), 2):
        g = np.moveaxis(np.moveaxis(g, axis, -1) @ _weights(n, g.shape[axis], place, taps), -1, axis)
    return g


_TWICE, _CORNERS, _NEAREST = ((2, -1, 4), (10, -4, 14)), ((3, 0, 7), (1, 0, 2)), ((4, 0, 7),)


@primitive(
    _resample_reference, [
        case((2, 2, 3, 5), size=(6, 7), places=_TWICE, taps=2), case((1, 2, 3, 5), size=(6, 7), places=_TWICE, taps=4),
        case((1, 1, 4, 3), size=(8, 5), places=_CORNERS, taps=2), case((2, 1, 4), size=(7,), places=_NEAREST, taps=1),
    ],
    gradient=lambda g, x_shape, places, taps: resample_gradient(g, x_shape[2:], places, taps),  # type: ignore[has-type]
    method=False, ulps=16,
)  # fmt: skip
def resample(x: Tensor, size: Shape, places: Places, taps: int) -> Tensor:
    """Interpolation at `places`: (N, C, …) → (N, C, *size), from the nearest 1, 2 or 4 elements along each axis."""
    y = new(x.device, x.dtype, x.shape[:2] + tuple(size))
    if y.numel:
        _fill(y, x, x.shape[2:], y.shape[2:], places, taps, False)
    return y


@primitive(
    _resample_gradient_reference, [
        case((2, 2, 6, 7), size=(3, 5), places=_TWICE, taps=2), case((1, 2, 6, 7), size=(3, 5), places=_TWICE, taps=4),
        case((1, 1, 8, 5), size=(4, 3), places=_CORNERS, taps=2), case((2, 1, 7), size=(4,), places=_NEAREST, taps=1),
    ],
    gradient=lambda g, gy_shape, places, taps: resample(g, gy_shape[2:], places, taps), method=False, ulps=16,
)  # fmt: skip
def resample_gradient(gy: Tensor, size: Shape, places: Places, taps: int) -> Tensor:
    """The adjoint of resample: (N, C, …) → (N, C, *size). Each input gathers from the outputs that read it."""
    dx = new(gy.device, gy.dtype, gy.shape[:2] + tuple(size))
    if dx.numel:
        _fill(dx, gy, dx.shape[2:], gy.shape[2:], places, taps, True)
    return dx


# --- entries ------------------------------------------------------------------------------------------------------
def _place(n: int, m: int, ratio: Fraction, mode: str, align_corners: bool) -> tuple[int, int, int]:
    """Output i of m lies at (a·i + b) / c of n inputs: a, b, c. ratio: inputs for one output."""
    if align_corners:
        return (n - 1, 0, m - 1) if m > 1 else (0, 0, 1)
    a, c = ratio.numerator, ratio.denominator
    if n == m and mode != "bicubic":  # a factor that leaves the size leaves the axis; in PyTorch not for signals
        return 1, 0, 1
    if mode == "nearest":
        return a, 0, c
    return (2 * a, a, 2 * c) if mode == "nearest-exact" else (2 * a, a - c, 2 * c)


def _sizes(
    x: Tensor, size: int | Sequence[int] | None, scale_factor: float | Sequence[float] | None
) -> tuple[Shape, list[Fraction]]:
    """The size of the result, and how many inputs come to one output along each axis."""
    axes, inputs = x.ndim - 2, x.shape[2:]
    if (size is None) == (scale_factor is None):
        raise ConfigError("upsample: give size or scale_factor, one of them")
    if size is not None:
        out = per_axis(size, axes, "upsample", "size", 1)
        return out, [Fraction(n, m) for n, m in zip(inputs, out, strict=True)]
    several = isinstance(scale_factor, (Sequence, np.ndarray)) and not isinstance(scale_factor, str)
    given = tuple(scale_factor) if several else (scale_factor,) * axes  # type: ignore[arg-type]
    scales = [float(as_number("upsample", "scale_factor", s)) for s in given]
    if len(scales) != axes or any(not 0 < s < inf for s in scales):
        raise ShapeError(f"upsample: scale_factor={scale_factor} must be a finite number > 0 or {axes} of them")
    out = tuple(floor(n * s) for n, s in zip(inputs, scales, strict=True))
    if any(m < 1 for m in out):
        raise ShapeError(f"upsample: scale_factor={scale_factor} leaves nothing of {inputs}")
    return out, [1 / _fraction(s, max(n, m)) for s, n, m in zip(scales, inputs, out, strict=True)]


def _fraction(s: float, longest: int) -> Fraction:
    """The factor as a fraction whose products with indices up to `longest` fit 64 bits."""
    near = Fraction(s).limit_denominator(4096)  # a factor such as 1/3 is meant as the fraction that it is near to
    return near if abs(near - Fraction(s)) <= 1e-12 * s else Fraction(s).limit_denominator(2**56 // longest)


def _upsample_reference(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool = False
) -> Any:
    axes = x.ndim - 2
    scales: Any = None if scale_factor is None else np.broadcast_to(np.asarray(scale_factor, float), (axes,))
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        m = int(n * scales[axis - 2]) if size is None else int(np.broadcast_to(size, (axes,))[axis - 2])
        ratio = n / m if scales is None else 1 / scales[axis - 2]
        i = np.arange(m)
        if mode.startswith("nearest"):
            place = np.floor((i + (mode == "nearest-exact") / 2) * ratio + 1e-9)
        else:
            place = i * ((n - 1) / max(m - 1, 1)) if align_corners else (i + 0.5) * ratio - 0.5
        below = np.floor(place + 1e-9)
        f = place - below
        taps = {0: [1 - f, f]}
        if mode == "bicubic":
            w = [np.polyval([-0.75, 3.75, -6, 3], t) for t in (f + 1, 2 - f)]
            v = [np.polyval([1.25, -2.25, 0, 1], t) for t in (f, 1 - f)]
            taps = {-1: [w[0], v[0], v[1], w[1]]}
        (first, weights), *_ = taps.items()
        parts = 0.0
        for t, weight in enumerate(weights):
            at = np.clip(below + first + t, 0, n - 1).astype(int)
            parts = parts + np.take(x, at, axis) * weight.reshape(-1, *(1,) * (x.ndim - axis - 1))
        x = parts
    return x


@composite(
    _upsample_reference, [
        case((2, 3, 3, 4), scale_factor=2), case((1, 2, 5, 3), size=(3, 7)), case((1, 2, 5), size=8, mode="linear"),
        case((1, 2, 4), size=7, mode="nearest-exact"), case((2, 2, 3, 4), scale_factor=2, mode="bilinear"),
        case((1, 2, 3, 4), size=(6, 3), mode="bilinear", align_corners=True),
        case((1, 2, 4, 3), size=(7, 5), mode="bicubic"), case((1, 2, 4, 4), scale_factor=0.5, mode="bicubic"),
        case((1, 2, 3, 4), size=(6, 1), mode="bicubic", align_corners=True),
        case((1, 2, 2, 3, 4), scale_factor=(2, 1.5, 1), mode="trilinear"), case((1, 1, 2, 2, 3), scale_factor=2),
        case((0, 2, 3, 3), size=5, mode="bilinear"), case((1, 2, 1, 1), size=3, mode="bilinear", align_corners=True),
    ],
    ulps=32,
)  # fmt: skip
def upsample(
    x: Tensor, size: int | Sequence[int] | None = None, scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest", align_corners: bool = False,
) -> Tensor:  # fmt: skip
    """Resampled to `size`, or by a factor (also below 1): (N, C, …) → (N, C, *size).

    mode: "nearest", "nearest-exact", "linear" (N, C, L), "bilinear" and "bicubic" (N, C, H, W), "trilinear"
    (N, C, D, H, W). Pixels are areas; with align_corners they are points, and those at the corners stay where they
    are. As PyTorch's: no low-pass filter when shrinking, and a = −3/4 in "bicubic" (Keys 1981). Raises ConfigError
    for a mode that does not fit.
    """
    spatial(x, min(max(x.ndim - 2, 1), 3), "upsample")
    axes = x.ndim - 2
    known = isinstance(mode, str) and mode in _TAPS
    if not known or _AXES.get(mode, axes) != axes or (align_corners and mode not in _AXES):
        corners = ", align_corners=True" if align_corners else ""
        raise ConfigError(f"upsample: mode={mode!r}{corners} does not fit {axes} axes; modes: {', '.join(_TAPS)}")
    if any(n < 1 for n in x.shape[2:]):
        raise ShapeError(f"upsample: there is nothing to resample in shape {x.shape}")
    out, ratios = _sizes(x, size, scale_factor)
    along = zip(x.shape[2:], out, ratios, strict=True)
    places = tuple(_place(n, m, ratio, mode, align_corners) for n, m, ratio in along)
    return resample(x, out, places, _TAPS[mode])


interpolate: Callable[..., Tensor] = upsample


def _shuffle_reference(x: Any, factor: int) -> Any:
    n, c, h, w = x.shape
    y = x.reshape(n, c // factor**2, factor, factor, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // factor**2, h * factor, w * factor)


@composite(_shuffle_reference, [case((2, 8, 2, 3), 2), case((1, 9, 1, 2), 3), case((1, 2, 2, 2), 1)], ulps=0)
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Channels become pixels: (…, C·f², H, W) → (…, C, H·f, W·f). (Shi et al. 2016)"""
    if x.ndim < 3 or factor < 1 or x.shape[-3] % factor**2:
        raise ShapeError(f"pixel_shuffle: the channels of {x.shape} must be a multiple of factor² = {factor**2}")
    *lead, c, h, w = x.shape
    y = reshape(x, (numel(tuple(lead)), c // factor**2, factor, factor, h, w))
    return reshape(permute(y, (0, 1, 4, 2, 5, 3)), (*lead, c // factor**2, h * factor, w * factor))


def _unshuffle_reference(x: Any, factor: int) -> Any:
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // factor, factor, w // factor, factor).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * factor**2, h // factor, w // factor)


@composite(_unshuffle_reference, [case((2, 2, 4, 6), 2), case((1, 1, 3, 6), 3), case((1, 2, 2, 2), 1)], ulps=0)
def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Pixels become channels, the inverse of pixel_shuffle: (…, C, H·f, W·f) → (…, C·f², H, W)."""
    if x.ndim < 3 or factor < 1 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise ShapeError(f"pixel_unshuffle: the height and width of {x.shape} must be multiples of factor={factor}")
    *lead, c, h, w = x.shape
    y = reshape(x, (numel(tuple(lead)), c, h // factor, factor, w // factor, factor))
    return reshape(permute(y, (0, 1, 3, 5, 2, 4)), (*lead, c * factor**2, h // factor, w // factor))


__all__ = ["interpolate", "pixel_shuffle", "pixel_unshuffle", "upsample"]
