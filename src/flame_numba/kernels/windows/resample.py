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
    Binding,
    C,
    Helper,
    Inline,
    Number,
    Pointer,
    below,
    element,
    grid,
    gridsize,
    load_g,
    load_x,
    outputs_of,
    place,
    share,
    store_y,
    udiv,
    weight,
)
from .planes import plane_program


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


def _below(i: int, a: int, b: int, c: int) -> tuple[int, Number]:
    """The element below the place of output i, and how far behind it the place is."""
    at = udiv(a * i + b + c, c) - 1  # one more c, so that places before the first element divide as others do
    return at, C(a * i + b - at * c) / C(c)


def _outputs_of(h: int, n: int, a: int, b: int, c: int, m: int, taps: int) -> tuple[int, int, int]:
    """The interval of the m outputs that read input h of n, and which `edge` h is.

    The element below is from h − after to h + before: c·(h − after) ≤ a·i + b < c·(h + before + 1).
    """
    before = BEFORE if taps > 1 else 0
    low = udiv(max(c * (h - taps + 1 + before) - b, 0) + a - 1, a) if a > 0 and h > 0 else 0
    end = udiv(max(c * (h + before + 1) - b, 0) + a - 1, a) if a > 0 and h < n - 1 else m
    return low, min(end, m), (1 if h == 0 else 0) + (2 if h == n - 1 else 0)


def upsample(
    y: Pointer, x: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, cd: int, ch: int, cw: int,
) -> None:  # fmt: skip
    """y[i] = Σ over taps weight·x[the place of i, and its neighbours], along all axes at once."""
    for item in range(grid(), rows * segments, gridsize()):
        row, q0, plane, k, j = place(item, segments, run, od, oh)
        d0, fd = below(k, ad, bd, cd)
        h0, fh = below(j, ah, bh, ch)
        for q in range(q0, min(q0 + run, ow)):
            w0, fw = below(q, aw, bw, cw)
            total = C(0)
            for u in range(TAPS_D):
                d = min(max(d0 + u - (BEFORE if TAPS_D > 1 else 0), 0), id_ - 1)
                in_d = weight(u, fd) if TAPS_D > 1 else C(1)
                for v in range(TAPS_H):
                    h = min(max(h0 + v - (BEFORE if TAPS_H > 1 else 0), 0), ih - 1)
                    in_h = in_d * weight(v, fh) if TAPS_H > 1 else in_d
                    for z in range(TAPS_W):
                        w = min(max(w0 + z - (BEFORE if TAPS_W > 1 else 0), 0), iw - 1)
                        value = load_x(x, element(plane, d, h, w, id_, ih, iw))
                        total += in_h * weight(z, fw) * value if TAPS_W > 1 else value
            store_y(y, row * ow + q, total)


def upsample_gradient(
    dx: Pointer, g: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, cd: int, ch: int, cw: int,
) -> None:  # fmt: skip
    """dx[h] = Σ over the outputs that read h; their intervals are found along each axis."""
    for item in range(grid(), rows * segments, gridsize()):
        row, start, plane, d, h = place(item, segments, run, id_, ih)
        low_d, end_d, edge_d = outputs_of(d, id_, ad, bd, cd, od, TAPS_D)
        low_h, end_h, edge_h = outputs_of(h, ih, ah, bh, ch, oh, TAPS_H)
        for w in range(start, min(start + run, iw)):
            low_w, end_w, edge_w = outputs_of(w, iw, aw, bw, cw, ow, TAPS_W)
            total = C(0)
            for k in range(low_d, end_d):
                in_d = C(1)
                if TAPS_D > 1:
                    at, f = below(k, ad, bd, cd)
                    in_d = share(at - d, f, edge_d)
                for j in range(low_h, end_h):
                    in_h = in_d
                    if TAPS_H > 1:
                        at, f = below(j, ah, bh, ch)
                        in_h = in_d * share(at - h, f, edge_h)
                    for q in range(low_w, end_w):
                        value = load_g(g, element(plane, k, j, q, od, oh, ow))
                        if TAPS_W > 1:
                            at, f = below(q, aw, bw, cw)
                            value *= in_h * share(at - w, f, edge_w)
                        total += value
            store_y(dx, row * iw + w, total)


def upsample_program(dtype: DType, taps: int, axes: int, gradient: bool) -> Program:
    """taps: 1 nearest, 2 linear, 4 cubic. axes: how many of the three are resampled, the last ones."""
    c = dtype.accumulator
    bindings: dict[str, Binding] = {
        "TAPS": taps, "TAPS_D": taps if axes > 2 else 1, "TAPS_H": taps if axes > 1 else 1, "TAPS_W": taps,
        "BEFORE": 1 if taps == 4 else 0, "CUBIC": taps == 4, "weight": Helper(_weight, 2, c),
        "share": Helper(_share, 3, c), "below": Inline(_below), "outputs_of": Inline(_outputs_of),
    }  # fmt: skip
    return plane_program(upsample_gradient if gradient else upsample, dtype, (dtype, dtype), 9, bindings)
