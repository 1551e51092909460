"""Windows as columns: the operand that makes a convolution a matrix product, for a machine with a fast product (BLAS).

unfold copies whole runs of a row, and fold adds them back: the divisions that find a place are made once a plane. Where
columns would be as expensive as the product itself, `gather_product` makes them on the fly instead.
"""

from __future__ import annotations

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import C, Load, Pointer, Store, grid, gridsize, load_g, load_x, load_y, store_y, udiv


def unfold(
    y: Pointer, x: Pointer, images: int, channels: int, first: int, end: int,
    in_d: int, in_h: int, in_w: int, kd: int, kh: int, kw: int, od: int, oh: int, ow: int,
    sd: int, sh: int, sw: int, pd: int, ph: int, pw: int, dd: int, dh: int, dw: int,
    x_n: int, x_c: int, x_d: int, x_h: int, x_w: int,
) -> None:  # fmt: skip
    """y[(c, tap), (n, line, q)] = x[n, c, window's place], 0 outside, for the lines (rows of outputs) first … end-1."""
    lines = end - first
    step = sw * x_w
    for item in range(grid(), channels * kd * kh * kw * images, gridsize()):
        row = udiv(item, images)
        n = item - row * images
        rest = udiv(row, kw)
        r = (row - rest * kw) * dw - pw  # where the tap of window 0 lies
        plane = udiv(rest, kh)
        top = (rest - plane * kh) * dh - ph
        c = udiv(plane, kd)
        front = (plane - c * kd) * dd - pd
        low = min(udiv(max(-r, 0) + sw - 1, sw), ow)
        high = max(low, min(udiv(max(in_w - r + sw - 1, 0), sw), ow))
        for k in range(od):
            d = front + k * sd
            for j in range(max(first - k * oh, 0), min(end - k * oh, oh)):
                h = top + j * sh
                to = ((row * images + n) * lines + k * oh + j - first) * ow
                if d < 0 or d >= in_d or h < 0 or h >= in_h:
                    for q in range(ow):
                        store_y(y, to + q, C(0))
                    continue
                at = n * x_n + c * x_c + d * x_d + h * x_h + r * x_w
                for q in range(low):
                    store_y(y, to + q, C(0))
                if step == 1:  # a loop of its own: this one becomes a copy of vectors
                    for q in range(low, high):
                        store_y(y, to + q, load_x(x, at + q))
                else:
                    for q in range(low, high):
                        store_y(y, to + q, load_x(x, at + q * step))
                for q in range(high, ow):
                    store_y(y, to + q, C(0))


def fold(
    y: Pointer, g: Pointer, images: int, channels: int, first: int, end: int,
    in_d: int, in_h: int, in_w: int, kd: int, kh: int, kw: int, od: int, oh: int, ow: int,
    sd: int, sh: int, sw: int, pd: int, ph: int, pw: int, dd: int, dh: int, dw: int,
) -> None:  # fmt: skip
    """The adjoint of unfold, added to the contiguous y: a plane (n, c) belongs to one thread, which adds in order."""
    lines = end - first
    for item in range(grid(), images * channels, gridsize()):
        n = udiv(item, channels)
        c = item - n * channels
        for tap in range(kd * kh * kw):
            rest = udiv(tap, kw)
            r = (tap - rest * kw) * dw - pw
            front = udiv(rest, kh)
            top = (rest - front * kh) * dh - ph
            front = front * dd - pd
            low = min(udiv(max(-r, 0) + sw - 1, sw), ow)
            high = min(udiv(max(in_w - r + sw - 1, 0), sw), ow)
            row = (c * kd * kh * kw + tap) * images + n
            for k in range(od):
                d = front + k * sd
                if d < 0 or d >= in_d:
                    continue
                for j in range(max(first - k * oh, 0), min(end - k * oh, oh)):
                    h = top + j * sh
                    if h < 0 or h >= in_h:
                        continue
                    to = ((item * in_d + d) * in_h + h) * in_w + r
                    at = (row * lines + k * oh + j - first) * ow
                    if sw == 1:
                        for q in range(low, high):
                            store_y(y, to + q, load_y(y, to + q) + load_g(g, at + q))
                    else:
                        for q in range(low, high):
                            store_y(y, to + q * sw, load_y(y, to + q * sw) + load_g(g, at + q))


def unfold_program(dtype: DType) -> Program:
    """Columns are in the accumulator's type, what the product is computed in."""
    c = dtype.accumulator
    bindings = {"load_x": Load(dtype, c), "store_y": Store(c, c)}
    return Program("unfold", (c, dtype, *("int",) * 27), c, bindings, function=unfold)


def fold_program(compute: DType) -> Program:
    c = compute
    bindings = {"load_g": Load(c, c), "load_y": Load(c, c), "store_y": Store(c, c)}
    return Program("fold", (c, c, *("int",) * 22), c, bindings, function=fold)
