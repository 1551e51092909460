"""Averages and maxima over windows, along three axes. Every adjoint gathers: each input looks for its windows.

Along an axis of n inputs and m outputs, the window of output i is [a·i + b, a·i + e), for every `step`-th input; or,
ADAPTIVE, [⌊n·i / m⌋, ⌈n·(i + 1) / m⌉). So the outputs whose windows reach input h are an interval too.

A work item is `run` neighbours of a row: one for a GPU's thread, the whole row for the host, which divides once a row.
"""

from __future__ import annotations

from typing import Any

from ...dtypes import DType, int64
from ..compiler.compile import Program
from ..language import (
    LOWEST,
    PADDED,
    C,
    Helper,
    Load,
    Pointer,
    Store,
    begin,
    end,
    first,
    grid,
    gridsize,
    last,
    load_g,
    load_i,
    load_x,
    store_i,
    store_y,
    udiv,
)


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


def average(
    y: Pointer, x: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, ed: int, eh: int, ew: int, pd: int, ph: int, pw: int,
) -> None:  # fmt: skip
    """The mean over each window. p.: where the padding ends; PADDED: zeros of the padding count as elements."""
    for item in range(grid(), rows * segments, gridsize()):
        row = udiv(item, segments)
        q0 = (item - row * segments) * run
        rest = udiv(row, oh)
        j = row - rest * oh
        plane = udiv(rest, od)
        k = rest - plane * od
        d0, d1 = begin(k, ad, bd), end(k, ad, ed)
        h0, h1 = begin(j, ah, bh), end(j, ah, eh)
        for q in range(q0, min(q0 + run, ow)):
            w0, w1 = begin(q, aw, bw), end(q, aw, ew)
            total = C(0)
            for d in range(max(d0, 0), min(d1, id_)):
                for h in range(max(h0, 0), min(h1, ih)):
                    line = C(0)  # added up first: the mean of a large window keeps its digits
                    for w in range(max(w0, 0), min(w1, iw)):
                        line += load_x(x, ((plane * id_ + d) * ih + h) * iw + w)
                    total += line
            if PADDED:
                count = (min(d1, pd) - d0) * (min(h1, ph) - h0) * (min(w1, pw) - w0)
            else:
                count = (min(d1, id_) - max(d0, 0)) * (min(h1, ih) - max(h0, 0)) * (min(w1, iw) - max(w0, 0))
            store_y(y, row * ow + q, total / C(count))


def average_gradient(
    dx: Pointer, g: Pointer, rows: int, segments: int, run: int, id_: int, ih: int, iw: int, od: int, oh: int, ow: int,
    ad: int, ah: int, aw: int, bd: int, bh: int, bw: int, ed: int, eh: int, ew: int, pd: int, ph: int, pw: int,
) -> None:  # fmt: skip
    for item in range(grid(), rows * segments, gridsize()):
        row = udiv(item, segments)
        w0 = (item - row * segments) * run
        rest = udiv(row, ih)
        h = row - rest * ih
        plane = udiv(rest, id_)
        d = rest - plane * id_
        low_d, high_d = first(d, ad, ed), min(last(d, ad, bd) + 1, od)
        low_h, high_h = first(h, ah, eh), min(last(h, ah, bh) + 1, oh)
        low, high = first(w0, aw, ew), min(last(w0, aw, bw) + 1, ow)  # moved on along the row, without divisions
        for w in range(w0, min(w0 + run, iw)):
            while low < ow and end(low, aw, ew) <= w:
                low += 1
            while high < ow and begin(high, aw, bw) <= w:
                high += 1
            total = C(0)
            for k in range(low_d, high_d):
                k0, k1 = begin(k, ad, bd), end(k, ad, ed)
                depth = min(k1, pd) - k0 if PADDED else min(k1, id_) - max(k0, 0)
                for j in range(low_h, high_h):
                    j0, j1 = begin(j, ah, bh), end(j, ah, eh)
                    area = depth * (min(j1, ph) - j0 if PADDED else min(j1, ih) - max(j0, 0))
                    for q in range(low, high):
                        q0, q1 = begin(q, aw, bw), end(q, aw, ew)
                        count = area * (min(q1, pw) - q0 if PADDED else min(q1, iw) - max(q0, 0))
                        total += load_g(g, ((plane * od + k) * oh + j) * ow + q) / C(count)
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
        row = udiv(item, segments)
        q0 = (item - row * segments) * run
        rest = udiv(row, oh)
        j = row - rest * oh
        plane = udiv(rest, od)
        k = rest - plane * od
        for q in range(q0, min(q0 + run, ow)):
            best = C(LOWEST)
            at = -1
            for d in range(begin(k, ad, bd), min(end(k, ad, ed), id_), sd):
                for h in range(begin(j, ah, bh), min(end(j, ah, eh), ih), sh):
                    for w in range(begin(q, aw, bw), min(end(q, aw, ew), iw), sw):
                        if d >= 0 and h >= 0 and w >= 0:
                            v = load_x(x, ((plane * id_ + d) * ih + h) * iw + w)
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
        row = udiv(item, segments)
        w0 = (item - row * segments) * run
        rest = udiv(row, ih)
        h = row - rest * ih
        plane = udiv(rest, id_)
        d = rest - plane * id_
        low_d, high_d = first(d, ad, ed), min(last(d, ad, bd) + 1, od)
        low_h, high_h = first(h, ah, eh), min(last(h, ah, bh) + 1, oh)
        low, high = first(w0, aw, ew), min(last(w0, aw, bw) + 1, ow)  # moved on along the row, without divisions
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
                        window = ((plane * od + k) * oh + j) * ow + q
                        if load_i(index, window) == here:
                            total += load_g(g, window)
            store_y(dx, row * iw + w, total)


def _bindings(dtype: DType, adaptive: bool) -> dict[str, Any]:
    c = dtype.accumulator
    return {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "store_y": Store(dtype, c),
        "load_i": Load(int64, int64), "store_i": Store(int64, int64),
        "begin": Helper(_begin_adaptive if adaptive else _begin_fixed, 3, int64),
        "end": Helper(_end_adaptive if adaptive else _begin_fixed, 3, int64),
        "first": Helper(_first_adaptive if adaptive else _first_fixed, 3, int64),
        "last": Helper(_last_adaptive if adaptive else _last_fixed, 3, int64),
        "ADAPTIVE": adaptive,  # the key of the compile cache does not see which function a helper is
    }  # fmt: skip


def average_program(dtype: DType, adaptive: bool, padded: bool, gradient: bool) -> Program:
    bindings = _bindings(dtype, adaptive) | {"PADDED": padded}
    function = average_gradient if gradient else average
    return Program(
        function.__name__, (dtype, dtype, *("int",) * 21), dtype.accumulator, bindings, function=function
    )  # fmt: skip


def largest_program(dtype: DType, adaptive: bool, gradient: bool) -> Program:
    function, integers = (largest_gradient, 18) if gradient else (largest, 21)
    lowest = float("-inf") if dtype.is_floating else 0
    arguments: tuple[DType | str, ...] = (dtype, int64, dtype, *("int",) * integers)
    return Program(
        function.__name__,
        arguments,
        dtype.accumulator,
        _bindings(dtype, adaptive) | {"LOWEST": lowest},
        function=function,
    )
