"""Shapes and order: axes, tile, repeat, roll, windows, patches, borders."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, bool_
from ...errors import AxisError, ConfigError, DTypeError, ShapeError
from ...shapes import Shape, as_int, axis_index, broadcast, numel
from ...tensor import Tensor
from ..core.kernel_op import primitive
from ..core.operands import check_tensors
from ..core.per_axis import per_axis
from ..core.table import case, composite
from ..index.gather import scatter_take, take
from ..shape.creation import arange
from ..shape.joining import concat, split, stack, with_zeros
from ..shape.movement import broadcast_to, check_widths, clone, flip, narrow, permute, reshape, transpose, unsqueeze

EVERY = (*FLOATS, *INTEGERS, bool_)
SOME = (*FLOATS, INTEGERS[2], bool_)  # views know no dtype: a few are as good as all


# --- axes ---------------------------------------------------------------------------------------------------------
@composite(lambda x, axis=0: np.expand_dims(x, axis), [case((2, 3), axis=1), case((2, 3), axis=(0, -1))])
def expand_dims(x: Tensor, axis: int | Sequence[int] = 0) -> Tensor:
    """New axes of size 1 at the named places of the result, as a view."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    ndim = x.ndim + len(axes)
    places = {axis_index(a, ndim, "expand_dims") for a in axes}
    if len(places) != len(axes):
        raise AxisError(f"expand_dims: axis={tuple(axes)} names a place twice (result: {ndim} axes)")
    sizes = iter(x.shape)
    return reshape(x, tuple(1 if a in places else next(sizes) for a in range(ndim)))


@composite(
    lambda x, source, destination: np.moveaxis(x, source, destination),
    [case((2, 3, 4), 0, -1), case((2, 3, 4), source=(0, 1), destination=(-1, 0))],
)
def moveaxis(x: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """Axes brought to other places, the rest in their order, as a view."""
    sources = (source,) if isinstance(source, int) else tuple(source)
    targets = (destination,) if isinstance(destination, int) else tuple(destination)
    if len(sources) != len(targets):
        raise AxisError(f"moveaxis: source={sources} and destination={targets} must name as many axes")
    from_axes = [axis_index(a, x.ndim, "moveaxis") for a in sources]
    to_axes = [axis_index(a, x.ndim, "moveaxis") for a in targets]
    if len(set(from_axes)) != len(from_axes) or len(set(to_axes)) != len(to_axes):
        raise AxisError(f"moveaxis: source={sources} or destination={targets} names an axis twice")
    order = [a for a in range(x.ndim) if a not in from_axes]
    for target, a in sorted(zip(to_axes, from_axes, strict=True)):
        order.insert(target, a)
    return permute(x, order)


def matrix_transpose(x: Tensor) -> Tensor:
    """The last two axes exchanged, as a view. Raises ShapeError below two axes."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: needs two axes, the shape is {x.shape}")
    return transpose(x, -1, -2)


@composite(
    lambda x, axis, sizes: x.reshape(x.shape[:axis] + tuple(sizes) + x.shape[axis + 1 :]),
    [case((2, 6), axis=1, sizes=(3, -1))],
)
def unflatten(x: Tensor, axis: int, sizes: int | Sequence[int]) -> Tensor:
    """One axis cut into several, one of whose sizes may be -1."""
    at = axis_index(axis, x.ndim, "unflatten")
    known = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if known.count(-1) == 1:
        others = -numel(known)
        known = tuple((x.shape[at] // others if others else 0) if n == -1 else n for n in known)
    if numel(known) != x.shape[at]:
        raise ShapeError(f"unflatten: sizes={sizes} do not make axis {at} of size {x.shape[at]}")
    return reshape(x, x.shape[:at] + known + x.shape[at + 1 :])


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Views of the shape that all broadcast to."""
    check_tensors("broadcast_tensors", tensors)
    shape = broadcast([t.shape for t in tensors], "broadcast_tensors") if tensors else ()
    return tuple(broadcast_to(t, shape) for t in tensors)


def meshgrid(*tensors: Tensor, indexing: str = "xy") -> tuple[Tensor, ...]:
    """Coordinates of the grid that vectors span, as views; "xy" exchanges the first two axes, "ij" does not."""
    if indexing not in ("xy", "ij"):
        raise ConfigError(f"meshgrid: indexing must be 'xy' or 'ij', got {indexing!r}")
    check_tensors("meshgrid", tensors)
    for t in tensors:
        if t.ndim > 1:
            raise ShapeError(f"meshgrid: needs vectors, got shape {t.shape}")
    swapped = indexing == "xy" and len(tensors) > 1
    sizes = [t.numel for t in tensors]
    if swapped:
        sizes[:2] = sizes[1::-1]
    grids = []
    for i, t in enumerate(tensors):
        at = 1 - i if swapped and i < 2 else i
        grids.append(broadcast_to(reshape(t, tuple(-1 if a == at else 1 for a in range(len(tensors)))), tuple(sizes)))
    return tuple(grids)


# --- repeating and turning ----------------------------------------------------------------------------------------
def _apart(y: Tensor, x: Tensor) -> Tensor:
    """y, copied if it is a view of x: whether an op copies must not hang on the values of its arguments."""
    return clone(y) if y.storage is x.storage else y


@composite(
    lambda x, repetitions: np.tile(x, repetitions),
    [
        case((2, 3), repetitions=(2, 1)),
        case((3,), repetitions=(2, 2)),
        case((2, 3), repetitions=2),
        case((), repetitions=(3,)),
        case((2,), repetitions=(0,)),
    ],
    test_dtypes=SOME,
)
def tile(x: Tensor, repetitions: Sequence[int] | int) -> Tensor:
    """The whole tensor repeated along each axis. Always a copy."""
    times = (repetitions,) if isinstance(repetitions, int) else tuple(repetitions)
    if any(n < 0 for n in times):
        raise ShapeError(f"tile: repetitions {times} must be ≥ 0")
    ndim = max(x.ndim, len(times))
    sizes = (1,) * (ndim - x.ndim) + x.shape
    times = (1,) * (ndim - len(times)) + times
    pairs = tuple(n for pair in zip(times, sizes, strict=True) for n in pair)
    spread = reshape(x, tuple(n for size in sizes for n in (1, size)))
    return _apart(reshape(broadcast_to(spread, pairs), tuple(t * n for t, n in zip(times, sizes, strict=True))), x)


@composite(
    lambda x, repeats, axis=None: np.repeat(x, repeats, axis),
    [case((2, 3), 2), case((2, 3), 3, axis=-1), case((3,), np.array([1, 0, 2]), axis=0), case((2, 2), 0, axis=0)],
    test_dtypes=SOME,
)
def repeat(x: Tensor, repeats: int | Sequence[int] | Tensor, axis: int | None = None) -> Tensor:
    """Each element repeated along an axis (None: of the flattened tensor). Always a copy.

    Several repeats, one for each element of the axis, decide the result's shape: a tensor of them is read by the host,
    which waits for the device. Raises ShapeError if it does not fit.
    """
    if axis is None:
        return repeat(reshape(x, (-1,)), repeats, 0)
    at = axis_index(axis, x.ndim, "repeat")
    if isinstance(repeats, Tensor) and repeats.dtype.is_floating:
        raise DTypeError(f"repeat: repeats must be integers, got {repeats.dtype.name}")
    if not isinstance(repeats, int):
        counts = repeats.numpy() if isinstance(repeats, Tensor) else np.asarray(repeats, np.int64)
        if counts.ndim > 1 or counts.size not in (1, x.shape[at]) or (counts < 0).any():
            raise ShapeError(f"repeat: repeats of shape {counts.shape} must be ≥ 0, one for each of {x.shape[at]}")
        index = np.repeat(np.arange(x.shape[at]), counts.astype(np.int64))  # one count stands for all
        return take(x, Tensor.from_numpy(index, x.device), axis=at)
    if repeats < 0:
        raise ShapeError(f"repeat: repeats must be ≥ 0, got {repeats}")
    shape = x.shape[: at + 1] + (repeats,) + x.shape[at + 1 :]
    merged = x.shape[:at] + (x.shape[at] * repeats,) + x.shape[at + 1 :]
    return _apart(reshape(broadcast_to(unsqueeze(x, at + 1), shape), merged), x)


@composite(
    lambda x, shift, axis=None: np.roll(x, shift, axis),
    [
        case((2, 5), shift=2, axis=1),
        case((2, 3), shift=-1),
        case((3, 4), shift=(1, 5), axis=(0, 1)),
        case((0, 2), shift=1, axis=0),
        case((3, 4), shift=(1, 5)),
        case((3, 4), shift=(1, -3, 1), axis=0),
        case((3, 4), shift=2, axis=(0, -1)),
    ],
    test_dtypes=SOME,
)
def roll(x: Tensor, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved on by `shift` along an axis; what leaves at one end comes in at the other. Always a copy.

    axis=None: of the flattened tensor. Several shifts or axes: one after another, a single one with each of the others.
    """
    if axis is None:
        return reshape(roll(reshape(x, (-1,)), shift, 0), x.shape)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    shifts = (shift,) if isinstance(shift, int) else tuple(shift)
    if len(shifts) != len(axes) and 1 not in (len(shifts), len(axes)):
        raise AxisError(f"roll: shift={shifts} and axis={axes} must have one length, or one of them one item")
    count = len(axes) if len(shifts) == 1 else len(shifts)
    shifts, axes = shifts * (count if len(shifts) == 1 else 1), axes * (count if len(axes) == 1 else 1)
    y = x
    for by, a in zip(shifts, axes, strict=True):
        at = axis_index(a, x.ndim, "roll")
        n = x.shape[at]
        if n and by % n:
            y = concat([narrow(y, at, n - by % n, by % n), narrow(y, at, 0, n - by % n)], at)
    return _apart(y, x)


@composite(lambda x, k=1, axes=(0, 1): np.rot90(x, k, axes), [case((2, 3)), case((2, 3, 4), k=-1, axes=(1, 2))])
def rot90(x: Tensor, k: int = 1, axes: tuple[int, int] = (0, 1)) -> Tensor:
    """A quarter turn, k times, in the plane of two axes, from the first towards the second."""
    places = {axis_index(i, x.ndim, "rot90") for i in axes}
    if len(axes) != 2 or len(places) != 2:
        raise AxisError(f"rot90: axes={axes} must be two different ones")
    a, b = (axis_index(i, x.ndim, "rot90") for i in axes)
    turned = [x, transpose(flip(x, b), a, b), flip(flip(x, a), b), flip(transpose(x, a, b), b)]
    return turned[k % 4]


def chunk(x: Tensor, chunks: int, axis: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of one size along an axis; the last may be smaller."""
    check_tensors("chunk", [x])
    chunks = as_int("chunk", "chunks", chunks)
    if chunks < 1:
        raise ShapeError(f"chunk: chunks must be ≥ 1, got {chunks}")
    n = x.shape[axis_index(axis, x.ndim, "chunk")]
    return split(x, builtins.max(1, -(-n // chunks)), axis) if n else (x,)


def _unstack_gradient(g: tuple[Tensor | None, ...], x_shape: Shape, axis: int) -> Tensor:
    at = axis % len(x_shape)
    return stack(with_zeros(g, [x_shape[:at] + x_shape[at + 1 :]] * len(g)), at)


@primitive(
    lambda x, axis=0: tuple(np.moveaxis(x, axis, 0)), [case((3, 2)), case((2, 4, 1), axis=-2), case((0, 2), axis=1)],
    gradient=_unstack_gradient, ulps=0,
)  # fmt: skip
def unstack(x: Tensor, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices along an axis, as views without it."""
    at = axis_index(axis, x.ndim, "unstack")
    shape, strides = x.shape[:at] + x.shape[at + 1 :], x.strides[:at] + x.strides[at + 1 :]
    step = x.strides[at] if x.numel else 0
    return tuple(x.alias(shape, strides, x.offset + i * step) for i in range(x.shape[at]))


# --- windows and patches ------------------------------------------------------------------------------------------
def _window_places(n: int, size: int, step: int, x: Tensor) -> Tensor:
    starts = arange((n - size) // step + 1, device=x.device) * step
    return unsqueeze(starts, -1) + arange(size, device=x.device)


def _sliding_gradient(g: Tensor, x_shape: Shape, axis: int, size: int, step: int) -> Tensor:
    at = axis % len(x_shape)
    windows = moveaxis(g, -1, at + 1)  # …, window, place in it, …
    return scatter_take(windows, _window_places(x_shape[at], size, step, g), x_shape, at)


def _sliding_reference(x: Any, axis: int, size: int, step: int) -> Any:
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    return np.moveaxis(np.moveaxis(view, axis, 0)[::step], 0, axis)


@primitive(
    _sliding_reference, [case((7,), 0, 3, 2), case((2, 6, 3), 1, 2, 1), case((2, 4), -1, 4, 1)],
    gradient=_sliding_gradient, ulps=0,
)  # fmt: skip
def sliding_windows(x: Tensor, axis: int, size: int, step: int = 1) -> Tensor:
    """Windows of `size` elements, `step` apart, as a view: (…, n, …) → (…, windows, …, size)."""
    at = axis_index(axis, x.ndim, "sliding_windows")
    if step < 1 or not 0 < size <= x.shape[at]:
        raise ShapeError(f"sliding_windows: size={size}, step={step} do not fit axis {at} of size {x.shape[at]}")
    shape, strides = list(x.shape), list(x.strides)
    shape[at], strides[at] = (x.shape[at] - size) // step + 1, x.strides[at] * step
    return x.alias((*shape, size), (*strides, x.strides[at]), x.offset)


def _patchify_reference(x: Any, p: int) -> Any:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // p, p, w // p, p).transpose(0, 2, 4, 3, 5, 1).reshape(n, -1, p * p * c)


@composite(_patchify_reference, [case((2, 3, 4, 6), 2), case((1, 2, 3, 3), 3)])
def patchify(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images cut into patches: (N, C, H, W) → (N, patches, height·width·C of one), rows of patches first."""
    p, q = per_axis(size, 2, "patchify", "size", 1)
    if x.ndim != 4 or x.shape[2] % p or x.shape[3] % q:
        raise ShapeError(f"patchify: patches of {(p, q)} do not fit images of shape {x.shape}")
    n, c, h, w = x.shape
    parts = permute(reshape(x, (n, c, h // p, p, w // q, q)), (0, 2, 4, 3, 5, 1))
    return reshape(parts, (n, (h // p) * (w // q), p * q * c))


def _unpatchify_reference(x: Any, p: int, height: int, width: int) -> Any:
    n, _, k = x.shape
    x = x.reshape(n, height // p, width // p, p, p, k // (p * p))
    return x.transpose(0, 5, 1, 3, 2, 4).reshape(n, -1, height, width)


@composite(_unpatchify_reference, [case((2, 6, 12), 2, 4, 6)])
def unpatchify(x: Tensor, size: int | tuple[int, int], height: int, width: int) -> Tensor:
    """Patches put together to images again, the inverse of patchify: (N, patches, p·q·C) → (N, C, height, width)."""
    p, q = per_axis(size, 2, "unpatchify", "size", 1)
    fits = x.ndim == 3 and height % p == 0 and width % q == 0 and x.shape[2] % (p * q) == 0
    if not fits or x.shape[1] != (height // p) * (width // q):
        raise ShapeError(f"unpatchify: {x.shape} is no image of {height} × {width} in patches of {(p, q)}")
    n, c = x.shape[0], x.shape[2] // (p * q)
    parts = permute(reshape(x, (n, height // p, width // q, p, q, c)), (0, 5, 1, 3, 2, 4))
    return reshape(parts, (n, c, height, width))


# --- borders ------------------------------------------------------------------------------------------------------
def _border_index(n: int, before: int, after: int, mode: str) -> Any:
    at = np.arange(-before, n + after)
    if mode == "edge":
        return np.clip(at, 0, n - 1)
    if mode == "wrap":
        return at % n
    period = builtins.max(2 * (n - 1), 1)  # "reflect": the edge itself is not repeated
    return (n - 1) - np.abs((at % period) - (n - 1))


@composite(
    lambda x, widths, mode: np.pad(x, widths, mode=mode),
    [
        case((3, 4), widths=((1, 2), (0, 3)), mode="reflect"), case((2, 3), widths=((1, 1), (2, 0)), mode="edge"),
        case((3,), widths=((4, 4),), mode="wrap"), case((1,), widths=((2, 1),), mode="reflect"),
    ],
    test_dtypes=SOME,
)  # fmt: skip
def pad_border(x: Tensor, widths: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Each axis continued by widths[axis] = (before, after): "reflect", "edge" (its last element) or "wrap"."""
    if mode not in ("reflect", "edge", "wrap"):
        raise ConfigError(f"pad_border: mode must be 'reflect', 'edge' or 'wrap', got {mode!r}")
    check_widths(widths, x.ndim, "pad_border")
    y = x
    for a, (before, after) in enumerate(widths):
        if before or after:
            if x.shape[a] == 0:
                raise ShapeError(f"pad_border: axis {a} is empty, there is nothing to continue (shape {x.shape})")
            y = take(y, Tensor.from_numpy(_border_index(x.shape[a], before, after, mode), x.device), axis=a)
    return _apart(y, x)


__all__ = [
    "broadcast_tensors", "chunk", "expand_dims", "matrix_transpose", "meshgrid", "moveaxis",
    "pad_border", "patchify", "repeat", "roll", "rot90", "sliding_windows", "tile", "unflatten",
    "unpatchify", "unstack",
]  # fmt: skip
