"""Cross-entropy with a label for each row of a contiguous (rows, n) matrix, a block a row."""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import DType, int64
from ..compiler.compile import Program
from ..language import (
    INF,
    NORMALIZE,
    SMOOTH,
    THREADS,
    WEIGHT,
    Array,
    Binding,
    C,
    Load,
    Number,
    Pointer,
    Store,
    block_count,
    block_index,
    block_max,
    block_sum,
    exp,
    fault,
    load_label,
    load_m,
    load_w,
    load_x,
    log,
    shared,
    span,
    store_s,
    store_y,
    thread_index,
)
from ..reduce.reduce import SPAN


def cross_entropy(
    loss: Pointer, seen: Pointer, largest: Pointer, sums: Pointer, x: Pointer, labels: Pointer, w: Pointer,
    cell: Pointer, code: int, ignored: int, smoothing: Number, rows: int, n: int,
) -> None:  # fmt: skip
    """loss[row] = (1 − smoothing)·w[label]·d[label] + smoothing·mean(w·d), where d = log Σ exp(x) − x.

    Not NORMALIZE: x holds logarithms, d = −x. The largest x and Σ exp(x − largest) are kept, and w[label] as `seen`. A
    row labelled `ignored` gives 0 for loss and seen; any other label out of range is a fault.
    """
    partial = shared()
    t = thread_index()
    step = span(n)
    for row in range(block_index(), rows, block_count()):
        base = row * n
        top = C(0)
        total = C(1)
        if NORMALIZE:
            top = C(-INF)
            for j in range(t, n, THREADS):
                v = load_x(x, base + j)
                top = v if v > top or v != v else top
            top = block_max(partial, top)
            total = C(0)
            for begin in range(t, n, step):
                piece = C(0)
                for j in range(begin, min(begin + step, n), THREADS):
                    piece += exp(load_x(x, base + j) - top)
                total += piece
            total = block_sum(partial, total)
        rest = log(total) if NORMALIZE else C(0)
        others = C(0)
        if SMOOTH:
            for begin in range(t, n, step):
                piece = C(0)
                for j in range(begin, min(begin + step, n), THREADS):
                    d = rest - (load_x(x, base + j) - top)
                    piece += d * load_w(w, j) if WEIGHT else d
                others += piece
            others = block_sum(partial, others) * smoothing / C(n)
        if t == 0:
            label = load_label(labels, row)
            value = C(0)
            weight = C(0)
            if label != ignored:
                if label < 0 or label >= n:
                    fault(cell, code)
                    label = 0
                weight = load_w(w, label) if WEIGHT else C(1)
                value = (rest - (load_x(x, base + label) - top)) * weight
                if SMOOTH:
                    value = value * (C(1) - smoothing) + others
            store_y(loss, row, value)
            store_s(seen, row, weight)
            store_s(largest, row, top)
            store_s(sums, row, total)


def cross_entropy_gradient(
    dx: Pointer, x: Pointer, largest: Pointer, sums: Pointer, labels: Pointer, w: Pointer, total: Pointer, g: Pointer,
    g_step: int, ignored: int, smoothing: Number, rows: int, n: int,
) -> None:  # fmt: skip
    """The gradient of `cross_entropy` times g[row], with total[0] = Σ w.

    NORMALIZE: with terms of p = exp(x − largest) / sum.
    """
    for row in range(block_index(), rows, block_count()):
        base = row * n
        label = load_label(labels, row)
        scale = load_m(g, row * g_step)
        if label == ignored:
            for j in range(thread_index(), n, THREADS):
                store_y(dx, base + j, C(0))
        else:
            inside = label >= 0 and label < n
            each = smoothing / C(n)
            direct = C(1)
            whole = C(n)
            if WEIGHT:
                direct = load_w(w, label if inside else 0)
                if SMOOTH:
                    whole = load_m(total, 0)
            if SMOOTH:
                direct *= C(1) - smoothing
            spread = direct + each * whole if SMOOTH else direct
            top = load_m(largest, row)
            share = spread / load_m(sums, row)
            for j in range(thread_index(), n, THREADS):
                v = share * exp(load_x(x, base + j) - top) if NORMALIZE else C(0)
                if SMOOTH:
                    v -= each * load_w(w, j) if WEIGHT else each
                if j == label:
                    v -= direct
                store_y(dx, base + j, v * scale)


@dataclass(frozen=True)
class LabelLoss:
    """A variant of the loss of a label: of logits or of logarithms, with class weights, with label smoothing."""

    normalize: bool
    weighted: bool
    smooth: bool

    @property
    def name(self) -> str:
        return "cross_entropy" if self.normalize else "nll"

    @property
    def flags(self) -> dict[str, Binding]:
        return {"NORMALIZE": self.normalize, "WEIGHT": self.weighted, "SMOOTH": self.smooth}


def cross_entropy_program(
    what: LabelLoss, dtype: DType, labels: DType, weight: DType, out: DType, threads: int
) -> Program:
    c = dtype.accumulator
    bindings: dict[str, Binding] = {
        **what.flags, "load_x": Load(dtype, c), "load_label": Load(labels, int64), "load_w": Load(weight, c),
        "store_y": Store(out, c), "store_s": Store(c, c), "shared": Array(c, threads, shared=True), "span": SPAN,
    }  # fmt: skip
    arguments = (out, c, c, c, dtype, labels, weight, int64, "int", "int", "number", "int", "int")
    return Program(what.name, arguments, c, bindings, function=cross_entropy, threads=threads)


def cross_entropy_gradient_program(
    what: LabelLoss, dtype: DType, labels: DType, weight: DType, threads: int
) -> Program:
    c = dtype.accumulator
    bindings: dict[str, Binding] = {
        **what.flags, "load_x": Load(dtype, c), "load_m": Load(c, c), "load_label": Load(labels, int64),
        "load_w": Load(weight, c), "store_y": Store(dtype, c),
    }  # fmt: skip
    arguments = (dtype, dtype, c, c, labels, weight, c, c, "int", "int", "number", "int", "int")
    return Program(what.name + "_gradient", arguments, c, bindings, function=cross_entropy_gradient, threads=threads)
