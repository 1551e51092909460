"""From a (N, C, …) tensor to the launches of its norms over channels, both ways."""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import DType
from ...kernels.reduce.associative import SUM
from ...kernels.rows import channel_norms as kernels
from ...kernels.rows.blocks import row_threads
from ...shapes import Shape, numel
from ...tensor import Tensor, new
from ..core.copies import fill_
from ..core.launch import run
from ..reduce.reductions import reduce_axes
from ..shape.movement import contiguous, permute, reshape, to_dtype

_CHUNK = 8192  # elements of a part, where a row is cut
_NARROW = 32  # runs shorter than this are laid side by side first (batch norm)


@dataclass(frozen=True)
class Rows:
    """How what is normalised together lies in a contiguous (N, C, S) tensor. See kernels/rows/channel_norms.py."""

    rows: int
    row_stride: int
    pieces: int
    piece_stride: int
    size: int
    period: int
    row_step: int
    piece_step: int
    swapped: bool = False  # the kernels see (C, N, S) instead

    @property
    def n(self) -> int:
        return self.pieces * self.size

    @property
    def runs(self) -> tuple[int, ...]:
        return self.rows, self.row_stride, self.pieces, self.piece_stride, self.size

    @property
    def weights(self) -> tuple[int, ...]:
        return self.period, self.row_step, self.piece_step

    @property
    def chunks(self) -> int:
        return -(-self.size // _CHUNK)

    @property
    def parts(self) -> int:
        return self.rows * self.pieces * self.chunks

    def source(self, x: Tensor, dtype: DType) -> Tensor:
        x = contiguous(to_dtype(x.detach(), dtype))
        return contiguous(permute(as_ncs(x), (1, 0, 2))) if self.swapped else x

    def result(self, y: Tensor, shape: Shape) -> Tensor:
        return reshape(permute(y, (1, 0, 2)), shape) if self.swapped else y


def as_ncs(x: Tensor) -> Tensor:
    return reshape(x, (*x.shape[:2], numel(x.shape[2:])))


def by_group(shape: Shape, groups: int) -> Rows:
    channels, size = shape[1] // groups, numel(shape[2:])
    return Rows(shape[0] * groups, channels * size, channels, size, size, groups, channels, 1)


def by_channel(shape: Shape) -> Rows:
    items, channels, size = *shape[:2], numel(shape[2:])
    if size < _NARROW:  # a channel's elements as one run
        return Rows(channels, items * size, 1, 0, items * size, channels, 1, 0, swapped=True)
    return Rows(channels, size, items, channels * size, size, channels, 1, 0)


def _affine(source: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[DType, Tensor, Tensor]:
    """Their common dtype, and what stands for them in a launch."""
    given = weight if weight is not None else bias
    kind = source.dtype if given is None else given.dtype
    w = source if weight is None else contiguous(weight.detach())
    b = source if bias is None else contiguous(to_dtype(bias.detach(), kind))
    return kind, w, b


def _whole(x: Tensor, rows: Rows) -> bool:
    """Whether a block takes a whole row in one kernel: it is short, or there are rows for all multiprocessors."""
    if rows.n <= _CHUNK:
        return True
    return x.device.kind != "cpu" and rows.n <= 8 * _CHUNK and rows.rows >= x.device.backend.multiprocessors


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the mean and variance of each row."""
    compute = x.dtype.accumulator
    source = rows.source(x, x.dtype)
    y = new(x.device, x.dtype, source.shape)
    center, variance = (new(x.device, compute, (rows.rows,)) for _ in range(2))
    if not y.numel:
        return rows.result(y, x.shape), fill_(center, 0), fill_(variance, 0)
    kind, w, b = _affine(source, weight, bias)
    choices = (x.dtype, kind, weight is not None, bias is not None)
    if _whole(x, rows):
        threads = 512 if rows.n > _CHUNK else row_threads(rows.n)
        run(
            x.device, kernels.norm_program, (*choices, threads),
            (y, center, variance, source, w, b, eps, *rows.runs, *rows.weights), rows.rows, threads,
        )  # fmt: skip
        return rows.result(y, x.shape), center, variance
    threads = row_threads(min(rows.size, _CHUNK))
    cut = (_CHUNK, rows.chunks)
    part_center, part_spread = (new(x.device, compute, (rows.parts,)) for _ in range(2))
    run(
        x.device, kernels.moments_program, (x.dtype, threads), (part_center, part_spread, source, *rows.runs, *cut),
        rows.parts, threads,
    )  # fmt: skip
    each = row_threads(rows.parts // rows.rows)
    run(
        x.device, kernels.merge_program, (compute, each),
        (center, variance, part_center, part_spread, rows.rows, rows.pieces, rows.size, *cut), rows.rows, each,
    )  # fmt: skip
    run(
        x.device, kernels.apply_program, (*choices, threads),
        (y, center, variance, source, w, b, eps, *rows.runs, *rows.weights, *cut), rows.parts, threads,
    )  # fmt: skip
    return rows.result(y, x.shape), center, variance


def backward(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: Tensor, variance: Tensor,
    rows: Rows, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients for x, weight and bias, as far as there are such and they are needed."""
    if not x.numel:
        return tuple(fill_(new(t.device, t.dtype, t.shape), 0) for t in (x, weight, bias) if t is not None)
    compute, threads = x.dtype.accumulator, row_threads(min(rows.size, _CHUNK))
    source, given = rows.source(x, x.dtype), rows.source(g, x.dtype)
    first, second = (new(x.device, compute, (rows.parts,)) for _ in range(2))
    run(
        x.device, kernels.sums_program, (x.dtype, threads),
        (first, second, center, variance, source, given, eps, *rows.runs, _CHUNK, rows.chunks), rows.parts, threads,
    )  # fmt: skip
    w = source if weight is None else contiguous(weight.detach())
    found: list[Tensor | None] = [None]
    if needs[0]:
        dx = _input_gradient(source, given, w, weight is not None, eps, center, variance, first, second, rows)
        found = [rows.result(dx, x.shape)]
    for parameter, sums, needed in ((weight, second, needs[min(1, len(needs) - 1)]), (bias, first, needs[-1])):
        if parameter is not None:
            found.append(_channel_sums(sums, rows, parameter.dtype) if needed else None)
    return tuple(found)


def _input_gradient(
    source: Tensor, given: Tensor, w: Tensor, weighted: bool, eps: float, center: Tensor, variance: Tensor,
    first: Tensor, second: Tensor, rows: Rows,
) -> Tensor:  # fmt: skip
    device, dtype, compute = source.device, source.dtype, center.dtype
    kind = w.dtype
    row_first, row_second = (new(device, compute, (rows.rows,)) for _ in range(2))
    each, threads = row_threads(rows.parts // rows.rows), row_threads(min(rows.size, _CHUNK))
    run(
        device, kernels.row_sums_program, (compute, kind, weighted, each),
        (row_first, row_second, first, second, w, rows.rows, rows.pieces, rows.size, *rows.weights, rows.chunks),
        rows.rows, each,
    )  # fmt: skip
    dx = new(device, dtype, source.shape)
    run(
        device, kernels.gradient_program, (dtype, kind, weighted, threads),
        (dx, center, variance, row_first, row_second, source, given, w, eps, *rows.runs, *rows.weights, _CHUNK,
         rows.chunks), rows.parts, threads,
    )  # fmt: skip
    return dx


def _channel_sums(sums: Tensor, rows: Rows, dtype: DType) -> Tensor:
    """Sums of parts added up for each channel."""
    if rows.piece_step:  # the pieces of a row are channels: (items, channels, chunks)
        channels = rows.period * rows.row_step
        return reduce_axes(sums.reshape((-1, channels, rows.chunks)), SUM, (0, 2), False, dtype, sums.dtype)
    return reduce_axes(sums.reshape((rows.rows, -1)), SUM, (1,), False, dtype, sums.dtype)
