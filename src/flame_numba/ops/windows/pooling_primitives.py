"""Averages and maxima over windows, with their adjoints: what every pool is made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, int64
from ...kernels.windows import pools as kernels
from ...shapes import Shape, numel
from ...tensor import Tensor, new
from ..core.kernel_op import primitive
from ..core.per_axis import lifted
from ..core.table import case
from ..index.gather import take_along_axis
from ..shape.creation import asarray
from ..shape.movement import contiguous, reshape
from .planes import fill_planes


@dataclass(frozen=True)
class Windows:
    """The window of output i along an axis: elements begin + a·i … end + a·i − 1; or of an ADAPTIVE pool, ⌊n·i/m⌋ ….

    out: how many outputs. padded: whether zeros of the padding count in a mean.
    """

    out: Shape
    stride: Shape = ()
    begin: Shape = ()
    end: Shape = ()
    step: Shape = ()
    padded: bool = False

    @property
    def adaptive(self) -> bool:
        return not self.stride

    def numbers(self, size: Shape) -> tuple[int, ...]:
        """Inputs, outputs, a, b, e of the three axes, as the kernels want them."""
        both = (*lifted(size, 1), *lifted(self.out, 1))
        if self.adaptive:
            return (*both, *both, *lifted(self.out, 1))
        return (*both, *lifted(self.stride, 1), *lifted(self.begin, 0), *lifted(self.end, 1))

    def ends(self, size: Shape) -> tuple[int, ...]:
        """`numbers`, and where the padding ends."""
        beyond = size if self.adaptive else tuple(n - b for n, b in zip(size, self.begin, strict=True))
        return self.numbers(size) + lifted(beyond, 1)

    def elements(self, size: Shape, axis: int, i: int) -> list[int]:
        """The inputs of output i along an axis (for the references)."""
        n = size[axis]
        if self.adaptive:
            m = self.out[axis]
            return list(range(n * i // m, -(-n * (i + 1) // m)))
        at = self.stride[axis] * i
        return [h for h in range(self.begin[axis] + at, self.end[axis] + at, self.step[axis]) if 0 <= h < n]

    def count(self, size: Shape, axis: int, i: int) -> int:
        """What a mean divides by along an axis (for the references)."""
        if not self.padded:
            return len(self.elements(size, axis, i))
        begin = self.begin[axis] + self.stride[axis] * i
        return min(self.end[axis] + self.stride[axis] * i, size[axis] - self.begin[axis]) - begin


def _places(size: Shape, windows: Windows) -> Any:
    """(output, its inputs as an index of NumPy, what its mean divides by)."""
    axes = range(len(size))
    for out in product(*map(range, windows.out)):
        inside = np.ix_(*(windows.elements(size, a, out[a]) for a in axes))
        yield out, inside, numel(tuple(windows.count(size, a, out[a]) for a in axes))


def _average_reference(x: Any, windows: Windows) -> Any:
    y = np.zeros(x.shape[:2] + windows.out)
    for out, inside, count in _places(x.shape[2:], windows):
        y[(..., *out)] = x[(slice(None), slice(None), *inside)].sum(tuple(range(2, x.ndim))) / count
    return y


def _average_gradient_reference(g: Any, size: Shape, windows: Windows) -> Any:
    x = np.zeros(g.shape[:2] + size)
    for out, inside, count in _places(size, windows):
        x[(slice(None), slice(None), *inside)] += (g[(..., *out)] / count).reshape(*g.shape[:2], *(1,) * len(size))
    return x


_EVEN = Windows((2, 3), (2, 2), (0, 0), (2, 2), (1, 1))
_OVERLAP = Windows((4, 3), (2, 2), (-1, -1), (2, 1), (1, 1), padded=True)
_ADAPTIVE = Windows((3, 2))
_SQUARE = Windows((2, 2), (2, 2), (0, 0), (2, 2), (1, 1))
_THREES = Windows((2, 3), (1, 1), (0, 0), (3, 3), (1, 1))
_LINE = Windows((3,), (3,), (0,), (2,), (1,))


@primitive(
    _average_reference,
    [case((2, 3, 4, 6), _EVEN), case((1, 2, 7, 5), _OVERLAP), case((1, 2, 7, 5), _ADAPTIVE), case((2, 1, 9), _LINE)],
    gradient=lambda g, x_shape, windows: average_windows_gradient(g, x_shape[2:], windows),  # type: ignore[has-type]
    method=False,
)  # fmt: skip
def average_windows(x: Tensor, windows: Windows) -> Tensor:
    """The mean of each window: (N, C, …) → (N, C, *windows.out)."""
    y = new(x.device, x.dtype, x.shape[:2] + windows.out)
    if y.numel:
        choices = (x.dtype, windows.adaptive, windows.padded, False)
        fill_planes(kernels.average_program, choices, windows.ends(x.shape[2:]), y, contiguous(x.detach()))
    return y


@primitive(
    _average_gradient_reference, [
        case((2, 3, 2, 3), size=(4, 6), windows=_EVEN), case((1, 2, 4, 3), size=(7, 5), windows=_OVERLAP),
        case((1, 2, 3, 2), size=(7, 5), windows=_ADAPTIVE), case((2, 1, 3), size=(9,), windows=_LINE),
    ],
    gradient=lambda g, windows: average_windows(g, windows), method=False,
)  # fmt: skip
def average_windows_gradient(gy: Tensor, size: Shape, windows: Windows) -> Tensor:
    """The adjoint of average_windows: each mean's gradient shared among its window, as (N, C, *size)."""
    dx = new(gy.device, gy.dtype, gy.shape[:2] + tuple(size))
    if dx.numel:
        choices = (gy.dtype, windows.adaptive, windows.padded, True)
        fill_planes(kernels.average_program, choices, windows.ends(dx.shape[2:]), dx, contiguous(gy.detach()))
    return dx


# --- maxima -------------------------------------------------------------------------------------------------------
def _winners(x: Any, windows: Windows) -> Any:
    """Where in its plane the largest of each window is: the first of equals, NaN above all."""
    index = np.zeros(x.shape[:2] + windows.out, np.int64)
    at = np.arange(numel(x.shape[2:])).reshape(x.shape[2:])
    for out, inside, _ in _places(x.shape[2:], windows):
        values = x[(slice(None), slice(None), *inside)].reshape(*x.shape[:2], -1)
        index[(..., *out)] = at[inside].reshape(-1)[values.argmax(-1)]
    return index


def _taken(x: Any, index: Any) -> Any:
    planes = x.reshape(*x.shape[:2], -1)
    return np.take_along_axis(planes, index.reshape(*index.shape[:2], -1), -1).reshape(index.shape)


def _maxima(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    y = new(x.device, x.dtype, x.shape[:2] + windows.out)
    index = new(x.device, int64, y.shape)
    if y.numel:
        numbers = windows.numbers(x.shape[2:]) + lifted(windows.step or (1,), 1)
        fill_planes(
            kernels.largest_program, (x.dtype, windows.adaptive, False), numbers, y, index, contiguous(x.detach())
        )
    return y, index


_FAR = Windows((2, 2), (2, 1), (-1, 0), (4, 4), (2, 3))
_MAXIMA = [
    case((2, 3, 4, 6), _EVEN), case((1, 2, 7, 5), _OVERLAP), case((1, 2, 5, 5), _FAR), case((1, 2, 7, 5), _ADAPTIVE),
    case((2, 1, 9), _LINE),
]  # fmt: skip


@primitive(
    lambda x, windows: _taken(x, _winners(x, windows)), _MAXIMA,
    gradient=lambda g, x_shape, windows, index: largest_windows_gradient(g, index, x_shape[2:], windows),  # type: ignore[has-type]
    method=False, ulps=0, test_dtypes=FLOATS + INTEGERS,
)  # fmt: skip
def largest_windows(x: Tensor, windows: Windows) -> Any:
    """The largest of each window: (N, C, …) → (N, C, *windows.out). The first of equals gets the gradient."""
    y, index = _maxima(x, windows)
    return y, {"index": index}


@primitive(
    _winners, _MAXIMA, non_differentiable="its result is an index", method=False, test_dtypes=FLOATS + INTEGERS,
)  # fmt: skip
def largest_windows_index(x: Tensor, windows: Windows) -> Tensor:
    """Where the largest of each window is in its plane (D·H·W elements), as int64."""
    return _maxima(x, windows)[1]


def _gradient_reference(g: Any, index: Any, size: Shape, windows: Windows) -> Any:
    x = np.zeros((*g.shape[:2], numel(size)))
    for n, c in np.ndindex(*g.shape[:2]):
        np.add.at(x[n, c], index[n, c].reshape(-1), g[n, c].reshape(-1))
    return x.reshape(*g.shape[:2], *size)


def _gradient_rule(g: Tensor, index: Tensor) -> tuple[Tensor, None]:
    """g read at the winners."""
    planes = reshape(g, (*g.shape[:2], numel(g.shape[2:])))
    winners = reshape(index, (*index.shape[:2], numel(index.shape[2:])))
    return reshape(take_along_axis(planes, winners, axis=-1), index.shape), None


@primitive(
    _gradient_reference, [
        case((1, 1, 2, 2), index=np.array([[[[0, 3], [9, 10]]]]), size=(4, 4), windows=_SQUARE),
        case((1, 1, 2, 3), index=np.array([[[[6, 6, 7], [6, 6, 12]]]]), size=(4, 5), windows=_THREES),
    ],
    gradient=_gradient_rule, method=False,
    # a keyword: every index has to lie in its window, whatever layout a test gives to operands
    example=lambda g, index, **k: largest_windows_gradient(g, asarray(index, device=g.device), **k),  # type: ignore[has-type]
)  # fmt: skip
def largest_windows_gradient(gy: Tensor, index: Tensor, size: Shape, windows: Windows) -> Tensor:
    """Each window's gradient at its winner, added up in the order of windows: (N, C, …) → (N, C, *size).

    index: of the winner in its plane, which lies in the window.
    """
    dx = new(gy.device, gy.dtype, gy.shape[:2] + tuple(size))
    if dx.numel:
        choices, numbers = (gy.dtype, windows.adaptive, True), windows.numbers(dx.shape[2:])
        fill_planes(kernels.largest_program, choices, numbers, dx, contiguous(index), contiguous(gy.detach()))
    return dx
