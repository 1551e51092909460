"""Scatter: y[o, index[o, j, i], i] = or += g[o, j, i], in a fixed order and without atomics, so that bits repeat.

Two ways. A *walk* gives each thread a range of the targets: it reads all indices and acts on its own, in the order of
j. Its time is that of one thread reading n indices, whatever their values; it is the only way on a machine of one
thread, where it is as good as any. For many indices and few lines, the host *sorts* the indices first (stably, so
that equal targets keep their order); then runs of equal targets are combined in chunks of about √n, so that no
thread does more than some √n steps, also where all indices are equal.
"""

from __future__ import annotations

from typing import Any

from ...dtypes import DType, int64
from ..compiler.compile import Program
from ..language import (
    Function,
    Load,
    Pointer,
    Store,
    grid,
    gridsize,
    load_g,
    load_part,
    load_y,
    merge,
    store_part,
    store_y,
    udiv,
)
from .gather import Ranks, look_up, offsets, parameters, word

# what a and b become, a being there first; None: b takes its place
MERGES = {
    "assign": "b",
    "sum": "a + b",
    "prod": "a * b",
    "amax": "a if a > b or a != a else b",
    "amin": "a if a < b or a != a else b",
}


def _walk_source(ranks: Ranks, shared: bool, assign: bool) -> str:
    three = ["y", "index", "g"]
    names = parameters("o", ranks[0], three) + parameters("k", ranks[1], ["y"]) + parameters("i", ranks[2], three)
    sizes = "outer, size, inner, n, ranges, segments, run, index_n, g_n"
    old = "" if assign else "load_y(y, y_o + y_k + y_i), "
    new = f"{'' if assign else 'merge'}({old}load_g(g, g_o + j * g_n + g_i))"
    lines = [
        f"def kernel(y, g, index, cell, code, {sizes}, {', '.join(names)}):",
        "    span = udiv(size + ranges - 1, ranges)",
        "    for item in range(grid(), outer * ranges * segments, gridsize()):",
        "        rest = udiv(item, segments)",
        "        start = (item - rest * segments) * run",
        "        o = udiv(rest, ranges)",
        "        low = (rest - o * ranges) * span",
        "        high = min(low + span, size)",
        *offsets("o", ranks[0], three, "o", 8),
        "        for j in range(n):",
        *(look_up("index_o + j * index_n", 12, ranks, "y") if shared else ()),
        "            for i in range(start, min(start + run, inner)):",
        *offsets("i", ranks[2], three, "i", 16),
        *(() if shared else look_up("index_o + j * index_n + index_i", 16, ranks, "y")),
        "                if good and at >= low and at < high:",
        f"                    store_y(y, y_o + y_k + y_i, {new})",
    ]
    return "\n".join(lines) + "\n"


def _bindings(target: DType, source: DType, merge: str) -> tuple[DType, DType, DType, dict[str, Any]]:
    """(types of the elements of y and of g, type computed in, how to load, store and merge them)."""
    y, g = (word(target), word(target)) if merge == "assign" else (target, source)
    compute = int64 if merge == "assign" else target.accumulator
    function = Function(f"def call(a, b):\n    return {MERGES[merge]}\n", 2, compute)
    bindings = {
        "load_g": Load(g, compute), "load_y": Load(y, compute), "store_y": Store(y, compute), "merge": function,
    }  # fmt: skip
    return y, g, compute, bindings


def walk_program(target: DType, source: DType, index: DType, ranks: Ranks, shared: bool, merge: str) -> Program:
    """kernel(y, g, index, cell, code, outer, size, inner, n, ranges, segments, run, index_n, g_n, parts…).

    y holds a start value. An item is a segment of `run` inner elements of one o, for one of `ranges`
    ranges of the targets. An index out of range is a fault, and writes nothing.
    """
    y, g, compute, bindings = _bindings(target, source, merge)
    bindings["load_index"] = Load(index, int64)
    integers = 10 + 4 * ranks[0] + 2 * ranks[1] + 4 * ranks[2]
    arguments: tuple[DType | str, ...] = (y, g, index, int64, *("int",) * integers)
    name = f"scatter_{merge}_{'_'.join(map(str, ranks))}"
    return Program(name, arguments, compute, bindings, source=_walk_source(ranks, shared, merge == "assign"))


def merge_runs(
    y: Pointer, g: Pointer, targets: Pointer, order: Pointer, heads: Pointer, tails: Pointer,
    outer: int, size: int, inner: int, n: int, chunk: int, chunks: int,
) -> None:  # fmt: skip
    """Merge the runs of equal targets within each chunk. targets: sorted; order: their places in g.

    A run that begins and ends in the chunk goes to y at once. What began before goes to heads, what ends later and
    began here to tails: see join_runs.
    """
    for item in range(grid(), outer * chunks * inner, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, chunks)
        begin = (rest - o * chunks) * chunk
        end = min(begin + chunk, n)
        target = targets[begin]
        from_left = begin > 0 and targets[begin - 1] == target
        total = load_g(g, (o * n + order[begin]) * inner + i)
        for p in range(begin + 1, end):
            value = load_g(g, (o * n + order[p]) * inner + i)
            if targets[p] == target:
                total = merge(total, value)
            else:
                if from_left:
                    store_part(heads, item, total)
                elif target < size:
                    at = (o * size + target) * inner + i
                    store_y(y, at, merge(load_y(y, at), total))
                from_left = False
                target = targets[p]
                total = value
        if from_left:
            store_part(heads, item, total)
        elif end < n and targets[end] == target:
            store_part(tails, item, total)
        elif target < size:
            at = (o * size + target) * inner + i
            store_y(y, at, merge(load_y(y, at), total))


def join_runs(
    y: Pointer, targets: Pointer, heads: Pointer, tails: Pointer,
    outer: int, size: int, inner: int, n: int, chunk: int, chunks: int,
) -> None:  # fmt: skip
    """Merge the runs that span chunks: the tail of the chunk that they began in, then the heads of the next ones."""
    for item in range(grid(), outer * chunks * inner, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, chunks)
        c = rest - o * chunks
        end = min((c + 1) * chunk, n)
        target = targets[end - 1]
        begins_here = c == 0 or targets[c * chunk - 1] != target
        if begins_here and end < n and targets[end] == target and target < size:
            total = load_part(tails, item)
            d = c + 1
            while d < chunks and targets[d * chunk] == target:
                total = merge(total, load_part(heads, (o * chunks + d) * inner + i))
                d += 1
            at = (o * size + target) * inner + i
            store_y(y, at, merge(load_y(y, at), total))


def last_of_runs(
    y: Pointer, g: Pointer, targets: Pointer, order: Pointer, outer: int, size: int, inner: int, n: int
) -> None:
    """y[o, target, i] = g of the last entry in each run of equal targets."""
    for item in range(grid(), outer * n * inner, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, n)
        p = rest - o * n
        target = targets[p]
        if target < size and (p == n - 1 or targets[p + 1] != target):
            store_y(y, (o * size + target) * inner + i, load_g(g, (o * n + order[p]) * inner + i))


def merge_runs_program(target: DType, source: DType, merge: str) -> Program:
    y, g, compute, bindings = _bindings(target, source, merge)
    bindings["store_part"] = Store(compute, compute)
    arguments = (y, g, int64, int64, compute, compute, *("int",) * 6)
    return Program(f"merge_runs_{merge}", arguments, compute, bindings, function=merge_runs)


def join_runs_program(target: DType, merge: str) -> Program:
    y, _, compute, bindings = _bindings(target, target, merge)
    bindings["load_part"] = Load(compute, compute)
    arguments = (y, int64, compute, compute, *("int",) * 6)
    return Program(f"join_runs_{merge}", arguments, compute, bindings, function=join_runs)


def last_of_runs_program(dtype: DType) -> Program:
    y, g, compute, bindings = _bindings(dtype, dtype, "assign")
    arguments = (y, g, int64, int64, *("int",) * 4)
    return Program("last_of_runs", arguments, compute, bindings, function=last_of_runs)
