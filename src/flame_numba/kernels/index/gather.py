"""Gather along one part of the axes: (outer…, indexed…, inner…) → (outer…, n, inner…), for any strides.

The kernels are written out for the number of axes that are left in each part after merging: with one axis a part, the
usual case, there is no division but those that find the item.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...dtypes import DType, float64, int8, int16, int32, int64
from ..compiler.compile import Program
from ..language import C, Load, Number, Pointer, Store, grid, gridsize, store_y

Ranks = tuple[int, int, int]  # axes left in the outer, the indexed and the inner part

_WORDS = {1: int8, 2: int16, 4: int32, 8: int64}


def word(dtype: DType) -> DType:
    """The integer of an element's size: what a kernel moves that only copies elements, bit for bit."""
    return _WORDS[dtype.itemsize]


def parameters(part: str, rank: int, pointers: Sequence[str]) -> list[str]:
    """Names of the sizes of a part's axes, then of each pointer's strides."""
    return [f"{part}_n{a}" for a in range(rank)] + [f"{p}_{part}{a}" for p in pointers for a in range(rank)]


def offsets(part: str, rank: int, pointers: Sequence[str], index: str, indent: int) -> list[str]:
    """Lines that set `<pointer>_<part>`: where element `index` of a part (row-major) lies for each pointer."""
    if rank == 1:
        lines = [f"{p}_{part} = {index} * {p}_{part}0" for p in pointers]
    else:
        lines = [f"{part}_rest = {index}", *(f"{p}_{part} = 0" for p in pointers)]
        for a in range(rank - 1, 0, -1):
            lines.append(f"{part}_quotient = udiv({part}_rest, {part}_n{a})")
            lines += [f"{p}_{part} += ({part}_rest - {part}_quotient * {part}_n{a}) * {p}_{part}{a}" for p in pointers]
            lines.append(f"{part}_rest = {part}_quotient")
        lines += [f"{p}_{part} += {part}_rest * {p}_{part}0" for p in pointers]
    return [" " * indent + line for line in lines]


def look_up(at: str, indent: int, ranks: Ranks, pointer: str) -> list[str]:
    """Lines that load an index, count a negative one from the end, and report one that is out of range."""
    lines = [
        f"at = load_index(index, {at})",
        "if at < 0:",
        "    at += size",
        "good = at >= 0 and at < size",
        "if not good:",
        "    fault(cell, code)",
        "    at = 0",
    ]
    return [" " * indent + line for line in lines] + offsets("k", ranks[1], [pointer], "at", indent)


def _gather_source(ranks: Ranks, shared: bool) -> str:
    both = ["x", "index"]
    names = parameters("o", ranks[0], both) + parameters("k", ranks[1], ["x"]) + parameters("i", ranks[2], both)
    sizes = "outer, size, inner, n, segments, run, index_n"
    lines = [
        f"def kernel(y, x, index, cell, code, {sizes}, {', '.join(names)}):",
        "    for item in range(grid(), outer * n * segments, gridsize()):",
        "        rest = udiv(item, segments)",
        "        start = (item - rest * segments) * run",
        "        o = udiv(rest, n)",
        *offsets("o", ranks[0], both, "o", 8),
        "        index_o += (rest - o * n) * index_n",
        *(look_up("index_o", 8, ranks, "x") if shared else ()),
        "        for i in range(start, min(start + run, inner)):",
        *offsets("i", ranks[2], both, "i", 12),
        *(() if shared else look_up("index_o + index_i", 12, ranks, "x")),
        "            if good:",
        "                store_y(y, rest * inner + i, load_x(x, x_o + x_k + x_i))",
        "            else:",
        "                store_y(y, rest * inner + i, C(0))",
    ]
    return "\n".join(lines) + "\n"


def gather_program(dtype: DType, index: DType, ranks: Ranks, shared: bool) -> Program:
    """kernel(y, x, index, cell, code, outer, size, inner, n, segments, run, index_n, sizes and strides of the parts).

    y[o, j, i] = x[o, index[o, j, i], i], y row-major. Negative indices count from the end; one out of range is a fault
    and gives 0. shared: all i have one index. An item is a segment of `run` inner elements of one (o, j).
    """
    element = word(dtype)
    bindings = {"load_x": Load(element, int64), "load_index": Load(index, int64), "store_y": Store(element, int64)}
    integers = 8 + 3 * ranks[0] + 2 * ranks[1] + 3 * ranks[2]
    arguments: tuple[DType | str, ...] = (element, element, index, int64, *("int",) * integers)
    name = f"gather_{'_'.join(map(str, ranks))}"
    return Program(name, arguments, int64, bindings, source=_gather_source(ranks, shared))


def _resolve_source(count: int, rank: int) -> str:
    pointers = [f"index{k}" for k in range(count)]
    sizes = [f"size{k}" for k in range(count)]
    names = ["y", *pointers, "cell", "code", "n", "total", *sizes, *parameters("j", rank, pointers)]
    lines = [
        f"def kernel({', '.join(names)}):",
        "    for item in range(grid(), n, gridsize()):",
        *offsets("j", rank, pointers, "item", 8),
        "        target = 0",
        "        good = True",
    ]
    for k in range(count):
        lines += [
            f"        at = load_index{k}(index{k}, index{k}_j)",
            "        if at < 0:",
            f"            at += size{k}",
            f"        good = good and at >= 0 and at < size{k}",
            f"        target = target * size{k} + at",
        ]
    lines += ["        if not good:", "            fault(cell, code)", "            target = total"]
    return "\n".join([*lines, "        store_y(y, item, target)"]) + "\n"


def resolve_program(indices: tuple[DType, ...], rank: int) -> Program:
    """kernel(y, indices…, cell, code, n, total, size of each axis, sizes and strides of the indices' common shape).

    Several indices, one an axis, become one index into those axes in row-major order. Where one of them is out of
    range it is `total`, the number of elements, which no element has; and a fault.
    """
    bindings = {f"load_index{k}": Load(dtype, int64) for k, dtype in enumerate(indices)}
    integers = 3 + len(indices) + rank * (1 + len(indices))
    arguments: tuple[DType | str, ...] = (int64, *indices, int64, *("int",) * integers)
    return Program(
        f"resolve_{len(indices)}_{rank}", arguments, int64, {**bindings, "store_y": Store(int64, int64)},
        source=_resolve_source(len(indices), rank),
    )  # fmt: skip


def iota(y: Pointer, start: Number, step: Number, n: int) -> None:
    """y[i] = start + i·step, each from i alone: no error adds up."""
    for i in range(grid(), n, gridsize()):
        store_y(y, i, start + C(i) * step)


def iota_program(dtype: DType) -> Program:
    compute = float64 if dtype.is_floating else dtype.accumulator
    return Program(
        "iota", (dtype, "number", "number", "int"), compute, {"store_y": Store(dtype, compute)}, function=iota
    )
