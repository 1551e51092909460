"""Sliding windows over images (N, C, H, W): unfold to columns and fold back, average and maximum pooling.

Every adjoint is written as a gather (each input looks for the windows that hold it), so that sums have a fixed order.
"""

from __future__ import annotations

from ..dtypes import DType, int64
from .compile import Program
from .language import INF, C, Load, Pointer, Store, grid, gridsize, load_g, load_i, load_x, store_i, store_y, udiv


def unfold(
    y: Pointer, x: Pointer, images: int, channels: int, height: int, width: int, kh: int, kw: int, oh: int, ow: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, step_h: int, step_w: int,
    x_n: int, x_c: int, x_h: int, x_w: int,
) -> None:  # fmt: skip
    """y[(c, r, s), (n, p, q)] = x[n, c, p·stride − pad + r·step, …], 0 outside: a convolution becomes a product."""
    positions = images * oh * ow
    for item in range(grid(), channels * kh * kw * positions, gridsize()):
        tap = udiv(item, positions)
        position = item - tap * positions
        c = udiv(tap, kh * kw)
        r = udiv(tap - c * kh * kw, kw)
        s = tap - (c * kh + r) * kw
        image = udiv(position, oh * ow)
        p = udiv(position - image * oh * ow, ow)
        q = position - (image * oh + p) * ow
        h = p * stride_h - pad_h + r * step_h
        w = q * stride_w - pad_w + s * step_w
        inside = h >= 0 and h < height and w >= 0 and w < width
        store_y(y, item, load_x(x, image * x_n + c * x_c + h * x_h + w * x_w) if inside else C(0))


def fold(
    y: Pointer, g: Pointer, images: int, channels: int, height: int, width: int, kh: int, kw: int, oh: int, ow: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, step_h: int, step_w: int,
) -> None:  # fmt: skip
    """The adjoint of unfold: y[n, c, h, w] = the sum of all g that unfold took from there."""
    positions = images * oh * ow
    for item in range(grid(), images * channels * height * width, gridsize()):
        rest = udiv(item, width)
        w = item - rest * width
        plane = udiv(rest, height)
        h = rest - plane * height
        image = udiv(plane, channels)
        c = plane - image * channels
        total = C(0)
        for r in range(kh):
            top = h + pad_h - r * step_h
            if top < 0:
                continue
            p = udiv(top, stride_h)
            if p >= oh or p * stride_h != top:
                continue
            for s in range(kw):
                left = w + pad_w - s * step_w
                if left < 0:
                    continue
                q = udiv(left, stride_w)
                if q < ow and q * stride_w == left:
                    total += load_g(g, ((c * kh + r) * kw + s) * positions + (image * oh + p) * ow + q)
        store_y(y, item, total)


def average_pool(
    y: Pointer, x: Pointer, planes: int, height: int, width: int, kh: int, kw: int, oh: int, ow: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int,
) -> None:  # fmt: skip
    """The mean over each window; padding counts as zeros."""
    for item in range(grid(), planes * oh * ow, gridsize()):
        plane = udiv(item, oh * ow)
        p = udiv(item - plane * oh * ow, ow)
        q = item - (plane * oh + p) * ow
        total = C(0)
        for r in range(kh):
            for s in range(kw):
                h = p * stride_h - pad_h + r
                w = q * stride_w - pad_w + s
                if h >= 0 and h < height and w >= 0 and w < width:
                    total += load_x(x, (plane * height + h) * width + w)
        store_y(y, item, total / C(kh * kw))


def average_pool_gradient(
    dx: Pointer, g: Pointer, planes: int, height: int, width: int, kh: int, kw: int, oh: int, ow: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int,
) -> None:  # fmt: skip
    for item in range(grid(), planes * height * width, gridsize()):
        rest = udiv(item, width)
        w = item - rest * width + pad_w
        plane = udiv(rest, height)
        h = rest - plane * height + pad_h
        total = C(0)
        # windows that hold h start at p·stride with h − kh < p·stride ≤ h
        for p in range(udiv(max(h - kh + stride_h, 0), stride_h), min(udiv(h, stride_h) + 1, oh)):
            for q in range(udiv(max(w - kw + stride_w, 0), stride_w), min(udiv(w, stride_w) + 1, ow)):
                total += load_g(g, (plane * oh + p) * ow + q)
        store_y(dx, item, total / C(kh * kw))


def max_pool(
    y: Pointer, index: Pointer, x: Pointer, planes: int, height: int, width: int, kh: int, kw: int, oh: int, ow: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int,
) -> None:  # fmt: skip
    """The largest of each window (the first of equals, NaN above all) and where it was; padding never wins."""
    for item in range(grid(), planes * oh * ow, gridsize()):
        plane = udiv(item, oh * ow)
        p = udiv(item - plane * oh * ow, ow)
        q = item - (plane * oh + p) * ow
        best = C(-INF)
        at = -1
        for r in range(kh):
            for s in range(kw):
                h = p * stride_h - pad_h + r
                w = q * stride_w - pad_w + s
                if h >= 0 and h < height and w >= 0 and w < width:
                    v = load_x(x, (plane * height + h) * width + w)
                    if at < 0 or v > best or (v != v and best == best):
                        best = v
                        at = h * width + w
        store_y(y, item, best)
        store_i(index, item, at)


def max_pool_gradient(
    dx: Pointer, index: Pointer, g: Pointer, planes: int, height: int, width: int, kh: int, kw: int, oh: int, ow: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int,
) -> None:  # fmt: skip
    for item in range(grid(), planes * height * width, gridsize()):
        rest = udiv(item, width)
        plane = udiv(rest, height)
        here = item - plane * height * width
        w = item - rest * width + pad_w
        h = rest - plane * height + pad_h
        total = C(0)
        for p in range(udiv(max(h - kh + stride_h, 0), stride_h), min(udiv(h, stride_h) + 1, oh)):
            for q in range(udiv(max(w - kw + stride_w, 0), stride_w), min(udiv(w, stride_w) + 1, ow)):
                window = (plane * oh + p) * ow + q
                if load_i(index, window) == here:
                    total += load_g(g, window)
        store_y(dx, item, total)


def _program(function, pointers, integers, dtype):
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "store_y": Store(dtype, c),
        "load_i": Load(int64, int64), "store_i": Store(int64, int64),
    }  # fmt: skip
    return Program(function.__name__, (*pointers, *("int",) * integers), c, bindings, function=function)


def unfold_program(dtype: DType) -> Program:
    return _program(unfold, (dtype, dtype), 18, dtype)


def fold_program(dtype: DType) -> Program:
    return _program(fold, (dtype, dtype), 14, dtype)


def average_pool_program(dtype: DType, gradient: bool) -> Program:
    return _program(average_pool_gradient if gradient else average_pool, (dtype, dtype), 11, dtype)


def max_pool_program(dtype: DType, gradient: bool) -> Program:
    return _program(max_pool_gradient if gradient else max_pool, (dtype, int64, dtype), 11, dtype)
