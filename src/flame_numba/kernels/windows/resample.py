"""Interpolation along three axes: nearest, linear, cubic; and its adjoint, as a gather.

Along an axis, output i reads around the place (a·i + b) / c of the inputs: TAPS of them, from BEFORE the element below
it on, those beyond an end taken as the end's. Places are fractions of integers, so they are exact, and the outputs that
read an input are an interval that is known exactly too.
"""

from __future__ import annotations

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    BEFORE,
    CUBIC,
    TAPS,
    TAPS_D,
    TAPS_H,
    TAPS_W,
    C,
    Helper,
    Load,
    Number,
    Pointer,
    Store,
    grid,
    gridsize,
    load_g,
    load_x,
    share,
    store_y,
    udiv,
    weight,
)


def _weight(tap: int, f: Number) -> Number:
    """The weight of a tap at the fraction f behind the element below: linear, or cubic. (Keys 1981, a = −3/4)"""
    if not CUBIC:
        return f if tap == 1 else C(1) - f
    t = f + C(1) if tap == 0 else f if tap == 1 else C(1) - f if tap == 2 else C(2) - f
    if tap == 1 or tap == 2:
        return (C(1.25) * t - C(2.25)) * t * t + C(1)
    return ((C(-0.75) * t + C(3.75)) * t - C(6)) * t + C(3)


def _share(distance: int, f: Number, edge: int) -> Number:
    """How much an input gets from an output whose element below is `distance` behind it.

    edge: whether it is the first (1), the last (2), or both (3): these stand for what lies beyond, too.
    """
    total = C(0)
    for tap in range(TAPS):
        at = distance + tap - BEFORE
        if at == 0 or (at < 0 and edge & 1 != 0) or (at > 0 and edge & 2 != 0):
            total += weight(tap, f)
    return total


def upsample(
    y: Pointer, x: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, cd: int, ch: int, cw: int,
) -> None:  # fmt: skip
    """y[i] = Σ over taps weight·x[the place of i, and its neighbours], along all axes at once."""
    for item in range(grid(), rows * segments, gridsize()):
        row = udiv(item, segments)
        q0 = (item - row * segments) * run
        rest = udiv(row, oh)
        j = row - rest * oh
        plane = udiv(rest, od)
        k = rest - plane * od
        # one more c, so that places before the first element divide as others do
        d0 = udiv(ad * k + bd + cd, cd) - 1
        h0 = udiv(ah * j + bh + ch, ch) - 1
        fd = C(ad * k + bd - d0 * cd) / C(cd)
        fh = C(ah * j + bh - h0 * ch) / C(ch)
        for q in range(q0, min(q0 + run, ow)):
            w0 = udiv(aw * q + bw + cw, cw) - 1
            fw = C(aw * q + bw - w0 * cw) / C(cw)
            total = C(0)
            for u in range(TAPS_D):
                d = min(max(d0 + u - (BEFORE if TAPS_D > 1 else 0), 0), id_ - 1)
                in_d = weight(u, fd) if TAPS_D > 1 else C(1)
                for v in range(TAPS_H):
                    h = min(max(h0 + v - (BEFORE if TAPS_H > 1 else 0), 0), ih - 1)
                    in_h = in_d * weight(v, fh) if TAPS_H > 1 else in_d
                    for z in range(TAPS_W):
                        w = min(max(w0 + z - (BEFORE if TAPS_W > 1 else 0), 0), iw - 1)
                        value = load_x(x, ((plane * id_ + d) * ih + h) * iw + w)
                        total += in_h * weight(z, fw) * value if TAPS_W > 1 else value
            store_y(y, row * ow + q, total)


def upsample_gradient(
    dx: Pointer, g: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, cd: int, ch: int, cw: int,
) -> None:  # fmt: skip
    """dx[h] = Σ over the outputs that read h; their intervals are found along each axis."""
    for item in range(grid(), rows * segments, gridsize()):
        row = udiv(item, segments)
        start = (item - row * segments) * run
        rest = udiv(row, ih)
        h = row - rest * ih
        plane = udiv(rest, id_)
        d = rest - plane * id_
        # the element below is from h − after to h + before: c·(h − after) ≤ a·i + b < c·(h + before + 1)
        before_d = BEFORE if TAPS_D > 1 else 0
        before_h = BEFORE if TAPS_H > 1 else 0
        before_w = BEFORE if TAPS_W > 1 else 0
        low_d = udiv(max(cd * (d - TAPS_D + 1 + before_d) - bd, 0) + ad - 1, ad) if ad > 0 and d > 0 else 0
        end_d = udiv(max(cd * (d + before_d + 1) - bd, 0) + ad - 1, ad) if ad > 0 and d < id_ - 1 else od
        low_h = udiv(max(ch * (h - TAPS_H + 1 + before_h) - bh, 0) + ah - 1, ah) if ah > 0 and h > 0 else 0
        end_h = udiv(max(ch * (h + before_h + 1) - bh, 0) + ah - 1, ah) if ah > 0 and h < ih - 1 else oh
        edge_d = (1 if d == 0 else 0) + (2 if d == id_ - 1 else 0)
        edge_h = (1 if h == 0 else 0) + (2 if h == ih - 1 else 0)
        for w in range(start, min(start + run, iw)):
            low_w = udiv(max(cw * (w - TAPS_W + 1 + before_w) - bw, 0) + aw - 1, aw) if aw > 0 and w > 0 else 0
            end_w = udiv(max(cw * (w + before_w + 1) - bw, 0) + aw - 1, aw) if aw > 0 and w < iw - 1 else ow
            edge_w = (1 if w == 0 else 0) + (2 if w == iw - 1 else 0)
            total = C(0)
            for k in range(low_d, min(end_d, od)):
                in_d = C(1)
                if TAPS_D > 1:
                    at = udiv(ad * k + bd + cd, cd) - 1
                    f = C(ad * k + bd - at * cd) / C(cd)
                    in_d = share(at - d, f, edge_d)
                for j in range(low_h, min(end_h, oh)):
                    in_h = in_d
                    if TAPS_H > 1:
                        at = udiv(ah * j + bh + ch, ch) - 1
                        f = C(ah * j + bh - at * ch) / C(ch)
                        in_h = in_d * share(at - h, f, edge_h)
                    for q in range(low_w, min(end_w, ow)):
                        value = load_g(g, ((plane * od + k) * oh + j) * ow + q)
                        if TAPS_W > 1:
                            at = udiv(aw * q + bw + cw, cw) - 1
                            f = C(aw * q + bw - at * cw) / C(cw)
                            value *= in_h * share(at - w, f, edge_w)
                        total += value
            store_y(dx, row * iw + w, total)


def upsample_program(dtype: DType, taps: int, axes: int, gradient: bool) -> Program:
    """taps: 1 nearest, 2 linear, 4 cubic. axes: how many of the three are resampled, the last ones."""
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "store_y": Store(dtype, c),
        "weight": Helper(_weight, 2, c), "share": Helper(_share, 3, c),
        "TAPS": taps, "TAPS_D": taps if axes > 2 else 1, "TAPS_H": taps if axes > 1 else 1, "TAPS_W": taps,
        "BEFORE": 1 if taps == 4 else 0, "CUBIC": taps == 4,
    }  # fmt: skip
    function = upsample_gradient if gradient else upsample
    return Program(function.__name__, (dtype, dtype, *("int",) * 18), c, bindings, function=function)
