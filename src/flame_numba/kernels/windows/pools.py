"""Averages and maxima over windows, along three axes. Each input looks for the windows that it takes part in.

Along an axis of n inputs and m outputs, the window of output i is [a·i + b, a·i + e), for every `step`-th input; or,
ADAPTIVE, [⌊n·i / m⌋, ⌈n·(i + 1) / m⌉). So the outputs whose windows reach input h are an interval too.
"""

from __future__ import annotations

from ...dtypes import DType, int64
from ..compiler.compile import Program
from ..language import (
    LOWEST,
    PADDED,
    Binding,
    C,
    Inline,
    Load,
    Pointer,
    Store,
    begin,
    counted,
    element,
    end,
    first,
    grid,
    gridsize,
    last,
    load_g,
    load_i,
    load_x,
    place,
    store_i,
    store_y,
    udiv,
    windows_of,
)
from .planes import plane_program


def _begin_fixed(i: int, a: int, b: int) -> int:
    return a * i + b


def _begin_adaptive(i: int, n: int, m: int) -> int:
    return udiv(n * i, m)


def _end_adaptive(i: int, n: int, m: int) -> int:
    return udiv(n * i + n + m - 1, m)


def _first_fixed(h: int, a: int, e: int) -> int:
    """The first output with a·i + e > h."""
    return udiv(max(h + 1 - e, 0) + a - 1, a)


def _last_fixed(h: int, a: int, b: int) -> int:
    """The last output with a·i + b ≤ h; b ≤ 0."""
    return udiv(h - b, a)


def _first_adaptive(h: int, n: int, m: int) -> int:
    return udiv(h * m, n)


def _last_adaptive(h: int, n: int, m: int) -> int:
    return udiv(h * m + m - 1, n)


def _windows_of(h: int, a: int, b: int, e: int, m: int) -> tuple[int, int]:
    """The interval of the m outputs whose windows reach input h."""
    return first(h, a, e), min(last(h, a, b) + 1, m)


def _counted(w0: int, w1: int, n: int, padded: int) -> int:
    """How many elements of the window [w0, w1) a mean counts, of n inputs; of the padding those before `padded`."""
    return min(w1, padded) - w0 if PADDED else min(w1, n) - max(w0, 0)


def average(
    y: Pointer, x: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, ed: int, eh: int, ew: int, pd: int, ph: int, pw: int,
) -> None:  # fmt: skip
    """The mean over each window. p.: where the padding ends; PADDED: zeros of the padding count as elements."""
    for item in range(grid(), rows * segments, gridsize()):
        row, q0, plane, k, j = place(item, segments, run, od, oh)
        d0, d1 = begin(k, ad, bd), end(k, ad, ed)
        h0, h1 = begin(j, ah, bh), end(j, ah, eh)
        for q in range(q0, min(q0 + run, ow)):
            w0, w1 = begin(q, aw, bw), end(q, aw, ew)
            total = C(0)
            for d in range(max(d0, 0), min(d1, id_)):
                for h in range(max(h0, 0), min(h1, ih)):
                    line = C(0)  # added up first: the mean of a large window keeps its digits
                    for w in range(max(w0, 0), min(w1, iw)):
                        line += load_x(x, element(plane, d, h, w, id_, ih, iw))
                    total += line
            count = counted(d0, d1, id_, pd) * counted(h0, h1, ih, ph) * counted(w0, w1, iw, pw)
            store_y(y, row * ow + q, total / C(count))


def average_gradient(
    dx: Pointer, g: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, ed: int, eh: int, ew: int, pd: int, ph: int, pw: int,
) -> None:  # fmt: skip
    for item in range(grid(), rows * segments, gridsize()):
        row, w0, plane, d, h = place(item, segments, run, id_, ih)
        low_d, high_d = windows_of(d, ad, bd, ed, od)
        low_h, high_h = windows_of(h, ah, bh, eh, oh)
        low, high = windows_of(w0, aw, bw, ew, ow)  # moved on along the row, without divisions
        for w in range(w0, min(w0 + run, iw)):
            while low < ow and end(low, aw, ew) <= w:
                low += 1
            while high < ow and begin(high, aw, bw) <= w:
                high += 1
            total = C(0)
            for k in range(low_d, high_d):
                depth = counted(begin(k, ad, bd), end(k, ad, ed), id_, pd)
                for j in range(low_h, high_h):
                    area = depth * counted(begin(j, ah, bh), end(j, ah, eh), ih, ph)
                    for q in range(low, high):
                        count = area * counted(begin(q, aw, bw), end(q, aw, ew), iw, pw)
                        total += load_g(g, element(plane, k, j, q, od, oh, ow)) / C(count)
            store_y(dx, row * iw + w, total)


def largest(
    y: Pointer, index: Pointer, x: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int,
    od: int, oh: int, ow: int, ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, ed: int, eh: int, ew: int,
    sd: int, sh: int, sw: int,
) -> None:  # fmt: skip
    """The largest of each window (the first of equals, NaN above all) and where it was; padding never wins.

    s.: distance of the elements of a window.
    """
    for item in range(grid(), rows * segments, gridsize()):
        row, q0, plane, k, j = place(item, segments, run, od, oh)
        for q in range(q0, min(q0 + run, ow)):
            best = C(LOWEST)
            at = -1
            for d in range(begin(k, ad, bd), min(end(k, ad, ed), id_), sd):
                for h in range(begin(j, ah, bh), min(end(j, ah, eh), ih), sh):
                    for w in range(begin(q, aw, bw), min(end(q, aw, ew), iw), sw):
                        if d >= 0 and h >= 0 and w >= 0:
                            v = load_x(x, element(plane, d, h, w, id_, ih, iw))
                            if at < 0 or v > best or (v != v and best == best):
                                best = v
                                at = (d * ih + h) * iw + w
            store_y(y, row * ow + q, best)
            store_i(index, row * ow + q, at)


def largest_gradient(
    dx: Pointer, index: Pointer, g: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int,
    od: int, oh: int, ow: int, ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, ed: int, eh: int, ew: int,
) -> None:  # fmt: skip
    """Each input gets the gradients of the windows that it won."""
    for item in range(grid(), rows * segments, gridsize()):
        row, w0, plane, d, h = place(item, segments, run, id_, ih)
        low_d, high_d = windows_of(d, ad, bd, ed, od)
        low_h, high_h = windows_of(h, ah, bh, eh, oh)
        low, high = windows_of(w0, aw, bw, ew, ow)  # moved on along the row, without divisions
        for w in range(w0, min(w0 + run, iw)):
            here = (d * ih + h) * iw + w
            while low < ow and end(low, aw, ew) <= w:
                low += 1
            while high < ow and begin(high, aw, bw) <= w:
                high += 1
            total = C(0)
            for k in range(low_d, high_d):
                for j in range(low_h, high_h):
                    for q in range(low, high):
                        window = element(plane, k, j, q, od, oh, ow)
                        if load_i(index, window) == here:
                            total += load_g(g, window)
            store_y(dx, row * iw + w, total)


def _bindings(adaptive: bool) -> dict[str, Binding]:
    return {
        "load_i": Load(int64, int64), "store_i": Store(int64, int64),
        "begin": Inline(_begin_adaptive if adaptive else _begin_fixed),
        "end": Inline(_end_adaptive if adaptive else _begin_fixed),
        "first": Inline(_first_adaptive if adaptive else _first_fixed),
        "last": Inline(_last_adaptive if adaptive else _last_fixed),
        "windows_of": Inline(_windows_of),  # it calls first and last, so it stands behind them
    }  # fmt: skip


def average_program(dtype: DType, adaptive: bool, padded: bool, gradient: bool) -> Program:
    bindings = {**_bindings(adaptive), "PADDED": padded, "counted": Inline(_counted)}
    return plane_program(average_gradient if gradient else average, dtype, (dtype, dtype), 12, bindings)


def largest_program(dtype: DType, adaptive: bool, gradient: bool) -> Program:
    function, numbers = (largest_gradient, 9) if gradient else (largest, 12)
    bindings = {**_bindings(adaptive), "LOWEST": float("-inf") if dtype.is_floating else 0}
    return plane_program(function, dtype, (dtype, int64, dtype), numbers, bindings)
