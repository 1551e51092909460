"""The frame of kernels that fill planes of three axes, element by element: of the pools and of resampling.

Such a kernel gathers, also an adjoint: along each axis the outputs that an input takes part in are an interval. It gets
rows, segments and run, then the sizes (depth, height, width) of the inputs and of the outputs, then what it wants to
know of the axes. A work item is `run` neighbours of a row: one for a GPU's thread, the whole row for the host, which
divides once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import Binding, Inline, Load, Store, udiv


def place(item: int, segments: int, run: int, depth: int, height: int) -> tuple[int, int, int, int, int]:
    """Where a work item lies: (row, first element of the row, plane, place in depth, place in height)."""
    row = udiv(item, segments)
    rest = udiv(row, height)
    plane = udiv(rest, depth)
    return row, (item - row * segments) * run, plane, rest - plane * depth, row - rest * height


def element(plane: int, d: int, h: int, w: int, depth: int, height: int, width: int) -> int:
    """The index of an element of a contiguous (planes, depth, height, width)."""
    return ((plane * depth + d) * height + h) * width + w


def plane_program(
    function: Callable[..., None],
    dtype: DType,
    pointers: tuple[DType, ...],
    numbers: int,
    bindings: Mapping[str, Binding],
) -> Program:
    """numbers: how many ints the kernel takes after the sizes."""
    c = dtype.accumulator
    frame: dict[str, Binding] = {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "store_y": Store(dtype, c),
        "place": Inline(place), "element": Inline(element),
    }  # fmt: skip
    arguments: tuple[DType | str, ...] = (*pointers, *("int",) * (9 + numbers))
    return Program(function.__name__, arguments, c, {**frame, **bindings}, function=function)
