"""What convolution, pooling and upsampling share: arguments for one to three spatial axes, and where windows lie.

Kernels know three spatial axes. A signal (N, C, L) is a volume (N, C, 1, 1, L), an image one of depth 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DTypeError, ShapeError
from ...shapes import Shape
from ...tensor import Tensor

Numbers = int | Sequence[int]

_KINDS = {1: "signals (N, C, L)", 2: "images (N, C, H, W)", 3: "volumes (N, C, D, H, W)"}


def per_axis(value: Numbers, axes: int, op: str, name: str, least: int) -> Shape:
    """One int for each spatial axis, from an int for all or from a sequence of them."""
    numbers = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(numbers) != axes or any(not isinstance(v, int) or v < least for v in numbers):
        raise ShapeError(f"{op}: {name}={value} must be an int ≥ {least} or {axes} of them")
    return numbers


def spatial(x: Tensor, axes: int, op: str, floating: bool = True) -> None:
    """Raise unless x has a batch axis, a channel axis and `axes` more."""
    if x.ndim != axes + 2:
        raise ShapeError(f"{op}: needs {_KINDS[axes]}, got shape {x.shape}")
    if (floating and not x.dtype.is_floating) or x.dtype.kind == "bool":
        raise DTypeError(f"{op}: needs a {'floating' if floating else 'numeric'} tensor, got {x.dtype.name}")


def positions(
    size: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, op: str, ceil_mode: bool = False
) -> Shape:
    """How many windows fit, along each axis. ceil_mode: also one that begins inside but ends beyond the padding."""
    out = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = room // s + 1
        if ceil_mode:
            count = -(-room // s) + 1
            count -= (count - 1) * s >= n + p  # it would begin in the padding
        out.append(count)
    if any(n < 1 for n in out):
        raise ShapeError(f"{op}: a window of {kernel} with dilation {dilation} does not fit {size} padded by {padding}")
    return tuple(out)


def lifted(values: Sequence[int], fill: int) -> Shape:
    """Three numbers, those of absent leading axes `fill`."""
    return (fill,) * (3 - len(values)) + tuple(values)


def volumes(x: Tensor) -> Tensor:
    """A view (N, C, D, H, W) of signals or images, outside the graph."""
    lead = 5 - x.ndim
    return x.alias(x.shape[:2] + (1,) * lead + x.shape[2:], x.strides[:2] + (0,) * lead + x.strides[2:], x.offset)
