"""Where a column and a term of a gathered product read and write: index arithmetic of convolution, one product a part.

The place in b is the sum of a column's and a term's part, coordinate by coordinate:

    product   a column is            a term is               b is read at
    forward   (image, position)      (channel, tap)          position·stride − padding + tap·dilation
    input     (image, position)      (output row, tap)       position − (tap·dilation − phase) / stride
    weight    (channel, tap)         (image, position)       position·stride − padding + tap·dilation

The input's positions are those of one phase modulo the stride. Only the taps that reach it are summed, a regular part
of all: from `first` on, `apart` from each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..language import udiv
from ..tile.index import ceiling, divide

OUTSIDE = -(1 << 40)  # a coordinate that no sum brings back inside


class Axes(NamedTuple):
    """A number for each of the three axes."""

    d: int
    h: int
    w: int


class Phase(NamedTuple):
    """Of the positions modulo the stride, one: how many there are, the first of the taps that reach it, how many do."""

    at: Axes
    span: Axes
    first: Axes
    taps: Axes


def unravel(index: int, size: Any) -> tuple[int, Axes]:
    """An index of boxes in a row → (which box, the place in it)."""
    rest, w = divide(index, size.w)
    rest, h = divide(rest, size.h)
    box, d = divide(rest, size.d)
    return box, Axes(d, h, w)


def ravel(box: int, place: Any, size: Any) -> int:
    """The opposite of `unravel`, but that the box may be one of others' strides."""
    return box + (place.d * size.h + place.h) * size.w + place.w


def window(position: Any, geo: Any) -> Axes:
    """Where the window of an output begins."""
    return Axes(
        position.d * geo.stride.d - geo.padding.d,
        position.h * geo.stride.h - geo.padding.h,
        position.w * geo.stride.w - geo.padding.w,
    )


def spread(tap: Any, geo: Any) -> Axes:
    """Where a tap reads, from the beginning of its window."""
    return Axes(tap.d * geo.dilation.d, tap.h * geo.dilation.h, tap.w * geo.dilation.w)


# --- forward, and what weight has in common with it ------------------------------------------------------------------
def one_phase(geo: Any) -> int:
    return 1


def whole_phase(number: int, geo: Any) -> tuple[int, Phase]:
    """(group, phase): there is one, which all taps reach."""
    nowhere = Axes(0, 0, 0)
    return number, Phase(nowhere, geo.out, nowhere, geo.taps)


def whole_depth(depth: int, phase: Any) -> int:
    return depth


def image_size(geo: Any) -> Any:
    """The images are gathered from."""
    return geo.image


def output_column(j: int, to: Any, b: Any, geo: Any, phase: Any) -> tuple[int, int, int, int, int]:
    n, position = unravel(j, geo.out)
    begin = window(position, geo)
    return n * b.n, begin.d, begin.h, begin.w, ravel(n * to.n, position, geo.out)


def channel_term(k: int, a: Any, b: Any, geo: Any, phase: Any) -> tuple[int, int, int, int, int]:
    c, tap = phase_tap(k, geo, phase)
    at = spread(tap, geo)
    return ravel(c * a.n, tap, geo.taps), c * b.c, at.d, at.h, at.w


def phase_tap(k: int, geo: Any, phase: Any) -> tuple[int, Axes]:
    """(channel, tap) of a summed index."""
    c, tap = unravel(k, phase.taps)
    first, apart = phase.first, geo.apart
    return c, Axes(first.d + tap.d * apart.d, first.h + tap.h * apart.h, first.w + tap.w * apart.w)


# --- input -----------------------------------------------------------------------------------------------------------
def all_phases(geo: Any) -> int:
    return geo.stride.d * geo.stride.h * geo.stride.w


def output_size(geo: Any) -> Any:
    """The gradients of the outputs are gathered from."""
    return geo.out


def phase_depth(depth: int, phase: Any) -> int:
    return depth * phase.taps.d * phase.taps.h * phase.taps.w


def strided_phase(number: int, geo: Any) -> tuple[int, Phase]:
    """(group, phase)."""
    group, at = unravel(number, geo.stride)
    image, stride = geo.image, geo.stride
    span = Axes(ceiling(image.d, stride.d), ceiling(image.h, stride.h), ceiling(image.w, stride.w))
    first = Axes(
        first_tap(at.d, geo.taps.d, geo.dilation.d, geo.stride.d),
        first_tap(at.h, geo.taps.h, geo.dilation.h, geo.stride.h),
        first_tap(at.w, geo.taps.w, geo.dilation.w, geo.stride.w),
    )
    taps = Axes(
        ceiling(geo.taps.d - first.d, geo.apart.d),
        ceiling(geo.taps.h - first.h, geo.apart.h),
        ceiling(geo.taps.w - first.w, geo.apart.w),
    )
    return group, Phase(at, span, first, taps)


def first_tap(at: int, taps: int, dilation: int, stride: int) -> int:
    """The first that reaches a phase, `taps` if none does."""
    tap = 0
    while tap < taps and (tap * dilation - at) - udiv(tap * dilation, stride) * stride != 0:
        tap += 1
    return tap


def input_column(j: int, to: Any, b: Any, geo: Any, phase: Any) -> tuple[int, int, int, int, int]:
    stride, padding, at = geo.stride, geo.padding, phase.at
    n, position = unravel(j, phase.span)
    # positions are counted from the padding's edge: those before the first inside are left out
    d = position.d + ceiling(max(padding.d - at.d, 0), stride.d)
    h = position.h + ceiling(max(padding.h - at.h, 0), stride.h)
    w = position.w + ceiling(max(padding.w - at.w, 0), stride.w)
    into = Axes(
        d * stride.d + at.d - padding.d, h * stride.h + at.h - padding.h, w * stride.w + at.w - padding.w
    )  # fmt: skip
    inside = into.d < geo.image.d and into.h < geo.image.h and into.w < geo.image.w
    return n * b.n, d, h, w, ravel(n * to.n, into, geo.image) if inside else -1


def output_term(k: int, a: Any, b: Any, geo: Any, phase: Any) -> tuple[int, int, int, int, int]:
    c, tap = phase_tap(k, geo, phase)
    at, stride, reach = phase.at, geo.stride, spread(tap, geo)
    d = -udiv(reach.d - at.d, stride.d)
    h = -udiv(reach.h - at.h, stride.h)
    w = -udiv(reach.w - at.w, stride.w)
    return ravel(c * a.n, tap, geo.taps), c * b.c, d, h, w


# --- weight ----------------------------------------------------------------------------------------------------------
def tap_column(j: int, to: Any, b: Any, geo: Any, phase: Any) -> tuple[int, int, int, int, int]:
    c, tap = unravel(j, geo.taps)
    at = spread(tap, geo)
    return c * b.c, at.d, at.h, at.w, j


def position_term(k: int, a: Any, b: Any, geo: Any, phase: Any) -> tuple[int, int, int, int, int]:
    n, position = unravel(k, geo.out)
    begin = window(position, geo)
    in_a = n * a.n + position.d * a.d + position.h * a.h + position.w * a.w
    return in_a, n * b.n, begin.d, begin.h, begin.w


_WHOLE = {"phases_of": one_phase, "phase_of": whole_phase, "depth_of": whole_depth, "gathered_size": image_size}
# by mode (FORWARD, INPUT, WEIGHT): the kernel's name, and what the words that it leaves open mean
MODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("convolve", {**_WHOLE, "column_of": output_column, "term_of": channel_term}),
    (
        "convolve_input",
        {
            "phases_of": all_phases, "phase_of": strided_phase, "depth_of": phase_depth, "gathered_size": output_size,
            "column_of": input_column, "term_of": output_term,
        },
    ),
    ("convolve_weight", {**_WHOLE, "column_of": tap_column, "term_of": position_term}),
)  # fmt: skip
