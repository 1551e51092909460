"""Pooling over windows of one, two and three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS
from ...errors import ShapeError
from ...shapes import numel
from ...tensor import Tensor
from ..core.per_axis import Numbers, per_axis, positions, spatial
from ..core.table import case, composite
from ..reduce.reductions import mean
from ..shape.movement import squeeze, unsqueeze
from .pooling_primitives import Windows, average_windows, largest_windows, largest_windows_index


def _windows(
    x: Tensor, kernel: Numbers, stride: Numbers | None, padding: Numbers, dilation: Numbers, ceil_mode: bool,
    padded: bool, axes: int, op: str,
) -> Windows:  # fmt: skip
    spatial(x, axes, op, floating=op.startswith("avg"))
    size = per_axis(kernel, axes, op, "kernel", 1)
    step = size if stride is None else per_axis(stride, axes, op, "stride", 1)
    around, apart = per_axis(padding, axes, op, "padding", 0), per_axis(dilation, axes, op, "dilation", 1)
    if any(2 * p > k for p, k in zip(around, size, strict=True)):
        raise ShapeError(f"{op}: padding={padding} must be at most half of the kernel {size}")
    if any(p and d > n for p, d, n in zip(around, apart, x.shape[2:], strict=True)):
        raise ShapeError(f"{op}: with dilation={dilation} a window of {x.shape[2:]} may hold padding alone")
    out = positions(x.shape[2:], size, step, around, apart, op, ceil_mode)
    ends = tuple(d * (k - 1) + 1 - p for k, p, d in zip(size, around, apart, strict=True))
    return Windows(out, step, tuple(-p for p in around), ends, apart, padded)


def _adaptive(x: Tensor, size: int | Sequence[int | None], axes: int, op: str) -> Windows:
    spatial(x, axes, op, floating="avg" in op)
    asked = tuple(size) if isinstance(size, Sequence) else (size,) * axes
    kept = (n if s is None else s for s, n in zip(asked, x.shape[2:], strict=False))
    if any(n < 1 for n in x.shape[2:]):
        raise ShapeError(f"{op}: there are no windows in an empty tensor, of shape {x.shape}")
    return Windows(per_axis(tuple(kept) if len(asked) == axes else asked, axes, op, "size", 1))  # type: ignore[arg-type]


def _batched(pool: Callable[[Tensor], Any], x: Tensor, axes: int) -> Any:
    """One sample (C, …) is a batch of one."""
    if x.ndim != axes + 1:
        return pool(x)
    y = pool(unsqueeze(x, 0))
    return tuple(squeeze(part, 0) for part in y) if isinstance(y, tuple) else squeeze(y, 0)


def _means(x: Tensor, windows: Windows) -> Any:
    """The mean of each window; that of one window over all is a reduction, which many threads share."""
    size = x.shape[2:]
    if numel(windows.out) == 1 and (windows.adaptive or (not any(windows.begin) and windows.end == size)):
        return mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)
    return average_windows(x, windows)


def _average(
    x: Tensor, kernel: Numbers, stride: Numbers | None, padding: Numbers, ceil_mode: bool, count_include_pad: bool,
    axes: int,
) -> Any:  # fmt: skip
    def pool(x: Tensor) -> Tensor:
        op = f"avg_pool{axes}d"
        return _means(x, _windows(x, kernel, stride, padding, 1, ceil_mode, count_include_pad, axes, op))

    return _batched(pool, x, axes)


def _largest(x: Tensor, windows: Windows, return_indices: bool) -> Any:
    y = largest_windows(x, windows)
    return (y, largest_windows_index(x.detach(), windows)) if return_indices else y


def _max(
    x: Tensor, kernel: Numbers, stride: Numbers | None, padding: Numbers, dilation: Numbers, ceil_mode: bool,
    return_indices: bool, axes: int,
) -> Any:  # fmt: skip
    def pool(x: Tensor) -> Any:
        op = f"max_pool{axes}d"
        return _largest(x, _windows(x, kernel, stride, padding, dilation, ceil_mode, False, axes, op), return_indices)

    return _batched(pool, x, axes)


def _adapted(kind: str, x: Tensor, size: int | Sequence[int | None], axes: int, return_indices: bool = False) -> Any:
    def pool(x: Tensor) -> Any:
        windows = _adaptive(x, size, axes, f"adaptive_{kind}_pool{axes}d")
        return _means(x, windows) if kind == "avg" else _largest(x, windows, return_indices)

    return _batched(pool, x, axes)


# --- references: the windows of a padded array, by NumPy's own view -----------------------------------------------
def _views(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, fill: float) -> Any:
    """Each window in the last axis, `fill` in the padding and beyond it."""
    axes = x.ndim - 2
    k, p, d = (per_axis(v, axes, "", "", 0) for v in (kernel, padding, dilation))
    s = k if stride is None else per_axis(stride, axes, "", "", 1)
    out = positions(x.shape[2:], k, s, p, d, "reference", ceil_mode)
    wide = tuple(e * (n - 1) + 1 for n, e in zip(k, d, strict=True))
    room = [(q, t + n) for q, t, n in zip(p, s, wide, strict=True)]
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *room), constant_values=fill)
    view: Any = np.lib.stride_tricks.sliding_window_view(x, wide, tuple(range(2, 2 + axes)))
    view = view[(..., *(slice(None, None, e) for e in d))]
    view = view[(slice(None), slice(None), *(slice(0, (m - 1) * t + 1, t) for m, t in zip(out, s, strict=True)))]
    return view.reshape(*view.shape[: 2 + axes], -1)


def _avg_reference(
    x: Any, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> Any:
    values = _views(x, kernel, stride, padding, 1, ceil_mode, 0)
    counted = np.ones((1, 1, *x.shape[2:]))
    if count_include_pad:
        p = per_axis(padding, x.ndim - 2, "", "", 0)
        counted = np.pad(counted, ((0, 0), (0, 0), *((q, q) for q in p)), constant_values=1)
        stride = kernel if stride is None else stride
        room = [
            (0, t + n) for t, n in zip(*(per_axis(v, x.ndim - 2, "", "", 1) for v in (stride, kernel)), strict=True)
        ]
        counted = np.pad(counted, ((0, 0), (0, 0), *room))
        k, s = per_axis(kernel, x.ndim - 2, "", "", 1), per_axis(stride, x.ndim - 2, "", "", 1)
        view = np.lib.stride_tricks.sliding_window_view(counted, k, tuple(range(2, x.ndim)))
        slices = tuple(slice(0, (m - 1) * t + 1, t) for m, t in zip(values.shape[2:-1], s, strict=True))
        number = view[(slice(None), slice(None), *slices)].reshape(1, 1, *values.shape[2:-1], -1).sum(-1)
    else:
        number = _views(counted, kernel, stride, padding, 1, ceil_mode, 0).sum(-1)
    return values.sum(-1) / number


def _max_reference(
    x: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    values = _views(x, kernel, stride, padding, dilation, ceil_mode, -np.inf)
    y = values.max(-1)
    if not return_indices:
        return y
    at = np.arange(np.prod(x.shape[2:])).reshape(1, 1, *x.shape[2:])
    at = np.broadcast_to(_views(at, kernel, stride, padding, dilation, ceil_mode, -1), values.shape)
    return y, np.take_along_axis(at, values.argmax(-1)[..., None], -1)[..., 0].astype(np.int64)


def _adaptive_reference(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def reference(x: Any, size: Any) -> Any:
        axes = x.ndim - 2
        out = (size,) * axes if isinstance(size, int) else size
        out = tuple(n if s is None else s for s, n in zip(out, x.shape[2:], strict=True))
        for axis, m in enumerate(out, 2):
            n = x.shape[axis]
            parts = [x.take(range(n * i // m, -(-n * (i + 1) // m)), axis) for i in range(m)]
            x = np.stack([reduce(part, axis) for part in parts], axis)
        return x

    return reference


_ONE = [case((2, 3, 8), 2), case((1, 2, 7), 3, stride=2, padding=1, ceil_mode=True)]
_TWO = [
    case((2, 3, 6, 6), kernel=2), case((1, 2, 7, 5), kernel=(3, 2), stride=2, padding=1),
    case((1, 1, 5, 5), kernel=3, stride=1), case((1, 2, 6, 7), 3, stride=(3, 2), padding=(0, 1), ceil_mode=True),
]  # fmt: skip
_THREE = [case((1, 2, 4, 5, 4), 2), case((1, 1, 4, 5, 6), kernel=(2, 3, 3), stride=2, padding=1, ceil_mode=True)]
_BARE = {"padding": 1, "count_include_pad": False}
_NUMERIC = FLOATS + INTEGERS


# --- entries ------------------------------------------------------------------------------------------------------
@composite(_avg_reference, [*_ONE, case((1, 2, 5), 3, stride=2, **_BARE)])
def avg_pool1d(
    x: Tensor, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:  # fmt: skip
    """Mean over windows: (N, C, L) → (N, C, out). See avg_pool2d."""
    return _average(x, kernel, stride, padding, ceil_mode, count_include_pad, 1)


@composite(_avg_reference, [*_TWO, case((1, 2, 5, 6), 3, stride=2, ceil_mode=True, **_BARE)])
def avg_pool2d(
    x: Tensor, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:  # fmt: skip
    """Mean over windows (stride: the kernel's size): (N, C, H, W) → (N, C, oh, ow).

    ceil_mode: also a last window that reaches beyond the padding. count_include_pad: zeros of the padding (not those
    beyond it) count as elements of the mean. Raises ShapeError if no window fits.
    """
    return _average(x, kernel, stride, padding, ceil_mode, count_include_pad, 2)


@composite(_avg_reference, [*_THREE, case((1, 1, 3, 4, 4), 2, **_BARE)])
def avg_pool3d(
    x: Tensor, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:  # fmt: skip
    """Mean over windows: (N, C, D, H, W) → (N, C, od, oh, ow). See avg_pool2d."""
    return _average(x, kernel, stride, padding, ceil_mode, count_include_pad, 3)


@composite(_max_reference, [*_ONE, case((2, 2, 9), 3, dilation=2)], ulps=0, test_dtypes=_NUMERIC)
def max_pool1d(
    x: Tensor, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """Largest of each window: (N, C, L) → (N, C, out). See max_pool2d."""
    return _max(x, kernel, stride, padding, dilation, ceil_mode, return_indices, 1)


@composite(
    _max_reference,
    [*_TWO, case((1, 2, 7, 8), kernel=(2, 3), stride=1, padding=1, dilation=(3, 2))],
    ulps=0,
    test_dtypes=_NUMERIC,
)
def max_pool2d(
    x: Tensor, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """Largest of each window (stride: the kernel's size): (N, C, H, W) → (N, C, oh, ow).

    Padding never wins, NaN always; the first of equals gets the gradient. return_indices: also where each was, within
    its plane of H·W elements. Raises ShapeError if no window fits.
    """
    return _max(x, kernel, stride, padding, dilation, ceil_mode, return_indices, 2)


@composite(_max_reference, [*_THREE, case((1, 1, 4, 4, 5), 2, 1, dilation=2)], ulps=0, test_dtypes=_NUMERIC)
def max_pool3d(
    x: Tensor, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """Largest of each window: (N, C, D, H, W) → (N, C, od, oh, ow). See max_pool2d."""
    return _max(x, kernel, stride, padding, dilation, ceil_mode, return_indices, 3)


@composite(_adaptive_reference(np.mean), [case((2, 3, 7), 3), case((1, 2, 3), size=(5,))])
def adaptive_avg_pool1d(x: Tensor, size: int | Sequence[int | None]) -> Any:
    """Means over as many windows as asked for: (N, C, L) → (N, C, size). See adaptive_avg_pool2d."""
    return _adapted("avg", x, size, 1)


@composite(
    _adaptive_reference(np.mean),
    [case((2, 3, 7, 5), size=(3, 2)), case((1, 2, 4, 6), size=(None, 3)), case((1, 2, 5, 5), 1)],
)
def adaptive_avg_pool2d(x: Tensor, size: int | Sequence[int | None]) -> Any:
    """Means over as many windows as asked for: (N, C, H, W) → (N, C, *size).

    Window i of m holds ⌊n·i / m⌋ … ⌈n·(i + 1) / m⌉ − 1. A size of None keeps that axis.
    """
    return _adapted("avg", x, size, 2)


@composite(_adaptive_reference(np.mean), [case((1, 2, 3, 5, 4), size=(2, 3, 4)), case((1, 1, 2, 3, 3), 1)])
def adaptive_avg_pool3d(x: Tensor, size: int | Sequence[int | None]) -> Any:
    """Means over as many windows as asked for: (N, C, D, H, W) → (N, C, *size). See adaptive_avg_pool2d."""
    return _adapted("avg", x, size, 3)


@composite(_adaptive_reference(np.max), [case((2, 3, 7), 3), case((1, 2, 3), size=(5,))], ulps=0, test_dtypes=_NUMERIC)
def adaptive_max_pool1d(x: Tensor, size: int | Sequence[int | None], return_indices: bool = False) -> Any:
    """Maxima of as many windows as asked for: (N, C, L) → (N, C, size). See adaptive_avg_pool2d and max_pool2d."""
    return _adapted("max", x, size, 1, return_indices)


@composite(
    _adaptive_reference(np.max),
    [case((2, 3, 7, 5), size=(3, 2)), case((1, 2, 4, 6), size=(None, 3)), case((1, 2, 5, 5), 1)],
    ulps=0,
    test_dtypes=_NUMERIC,
)
def adaptive_max_pool2d(x: Tensor, size: int | Sequence[int | None], return_indices: bool = False) -> Any:
    """Maxima of as many windows as asked for: (N, C, H, W) → (N, C, *size). See max_pool2d."""
    return _adapted("max", x, size, 2, return_indices)


@composite(
    _adaptive_reference(np.max),
    [case((1, 2, 3, 5, 4), size=(2, 3, 4)), case((1, 1, 2, 3, 3), 1)],
    ulps=0,
    test_dtypes=_NUMERIC,
)
def adaptive_max_pool3d(x: Tensor, size: int | Sequence[int | None], return_indices: bool = False) -> Any:
    """Maxima of as many windows as asked for: (N, C, D, H, W) → (N, C, *size). See max_pool2d."""
    return _adapted("max", x, size, 3, return_indices)


__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]
