"""The three products of a convolution, on either machine: unfolded columns and BLAS, or the gathering kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from ...dtypes import DType
from ...kernels.tile.micro import Tile
from ...kernels.windows import convolve as gathering
from ...kernels.windows import unfold as columns
from ...kernels.windows.convolve import FORWARD, INPUT, WEIGHT
from ...shapes import Shape, numel
from ...tensor import Tensor, new
from ..core.copies import copied, copy_into, fill_
from ..core.launch import run, spread
from ..core.per_axis import volumes
from ..products.linalg import blas_matmul
from ..reduce.reductions import sum as add_up
from ..shape.movement import contiguous

COLUMN_BYTES = 4 << 20  # of columns at a time: little enough to stay in the cache between unfold and product
# of a product with fewer, the summed index is cut; a constant, since results must not depend on the GPU's size
_BLOCKS = 512


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution (N, groups·channels, *size) → (N, groups·rows, *out), along three axes."""

    images: int
    groups: int
    channels: int
    rows: int
    size: Shape
    kernel: Shape
    out: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    @property
    def taps(self) -> int:
        return self.channels * numel(self.kernel)

    @property
    def axes(self) -> tuple[Shape, ...]:
        return self.size, self.kernel, self.out, self.stride, self.padding, self.dilation

    @property
    def numbers(self) -> Shape:
        return tuple(n for three in self.axes for n in three)


# --- the host: columns and BLAS -----------------------------------------------------------------------------------
def _parts(geo: Geometry, itemsize: int) -> Iterator[tuple[int, int, int, int]]:
    """(first image, images, first line, end) whose columns fit COLUMN_BYTES: whole images, or lines of one."""
    lines = geo.out[0] * geo.out[1]
    most = max(1, COLUMN_BYTES // (geo.groups * geo.taps * geo.out[2] * itemsize))
    if most >= lines:
        step = most // lines
        for n in range(0, geo.images, step):
            yield n, min(step, geo.images - n), 0, lines
        return
    for n in range(geo.images):
        for line in range(0, lines, most):
            yield n, 1, line, min(line + most, lines)


def _outputs(y: Tensor, geo: Geometry, part: tuple[int, int, int, int]) -> Tensor:
    """The part of a contiguous (N, O, *out) as (O, images, positions)."""
    n, images, first, end = part
    width, channels, span = geo.out[2], geo.groups * geo.rows, numel(geo.out)
    shape = (channels, images, (end - first) * width)
    return y.alias(shape, (span, channels * span, 1), y.offset + n * channels * span + first * width)


def _matrices(x: Tensor, geo: Geometry, compute: DType) -> Tensor:
    """(O, images, positions) as contiguous (groups, rows, columns) in the compute type."""
    flat = x if x.is_contiguous and x.dtype is compute else copied(x, compute)
    return flat.alias(*_grouped(flat, geo.groups, geo.rows))


def _grouped(x: Tensor, groups: int, rows: int) -> tuple[Shape, Shape, int]:
    width = x.numel // (groups * rows)
    return (groups, rows, width), (rows * width, width, 1), x.offset


def _turned(x: Tensor) -> Tensor:
    shape, strides = x.shape, x.strides
    return x.alias((shape[0], shape[2], shape[1]), (strides[0], strides[2], strides[1]), x.offset)


def _unfolded(x: Tensor, geo: Geometry, part: tuple[int, int, int, int]) -> Tensor:
    n, images, first, end = part
    compute, taps = x.dtype.accumulator, geo.groups * geo.taps
    y = new(x.device, compute, (geo.groups, geo.taps, images * (end - first) * geo.out[2]))
    source = x.alias(x.shape, x.strides, x.offset + n * x.strides[0])
    run(
        x.device, columns.unfold_program, (x.dtype,),
        (y, source, images, geo.groups * geo.channels, first, end, *geo.numbers, *x.strides),
        spread(x.device.backend, taps * images),
    )  # fmt: skip
    return y


def _weights(w: Tensor, geo: Geometry) -> Tensor:
    flat = copied(w, w.dtype.accumulator) if w.dtype.itemsize == 2 else contiguous(w)
    return flat.alias(*_grouped(flat, geo.groups, geo.rows))


def columns_forward(y: Tensor, x: Tensor, w: Tensor, geo: Geometry) -> None:
    compute, matrix = x.dtype.accumulator, _weights(w, geo)
    for part in _parts(geo, compute.itemsize):
        unfolded = _unfolded(x, geo, part)
        product = new(y.device, compute, (geo.groups, geo.rows, unfolded.shape[2]))
        blas_matmul(product, matrix, unfolded, compute)
        target = _outputs(y, geo, part)
        copy_into(target, product.alias(target.shape, (product.strides[1], target.shape[2], 1), 0))


def columns_input(dx: Tensor, g: Tensor, w: Tensor, geo: Geometry) -> None:
    compute, matrix, given = g.dtype.accumulator, _turned(_weights(w, geo)), contiguous(g)
    total = fill_(dx if dx.dtype is compute else new(dx.device, compute, dx.shape), 0)
    for part in _parts(geo, compute.itemsize):
        n, images, first, end = part
        outputs = _matrices(_outputs(given, geo, part), geo, compute)
        product = new(g.device, compute, (geo.groups, geo.taps, outputs.shape[2]))
        blas_matmul(product, matrix, outputs, compute)
        target = total.alias(total.shape, total.strides, n * total.strides[0])
        run(
            g.device, columns.fold_program, (compute,),
            (target, product, images, geo.groups * geo.channels, first, end, *geo.numbers),
            spread(g.device.backend, images * geo.groups * geo.channels),
        )  # fmt: skip
    if total is not dx:
        copy_into(dx, total)


def columns_weight(dw: Tensor, x: Tensor, g: Tensor, geo: Geometry) -> None:
    compute, given = x.dtype.accumulator, contiguous(g)
    shape, total = (geo.groups, geo.rows, geo.taps), None
    for part in _parts(geo, compute.itemsize):
        product = new(x.device, compute, shape)
        outputs = _matrices(_outputs(given, geo, part), geo, compute)
        blas_matmul(product, outputs, _turned(_unfolded(x, geo, part)), compute)
        total = product if total is None else total + product
    assert total is not None
    copy_into(dw, total.alias(dw.shape, dw.strides, 0))


# --- CUDA: one kernel ---------------------------------------------------------------------------------------------
def gather(
    mode: int, y: Tensor, a: Tensor, b: Tensor, geo: Geometry, tile: Tile | None = None,
    splits: int | None = None,
) -> None:  # fmt: skip
    """y = a·(b gathered), see `kernels/windows/convolve.py`: (x of y, a, b) are (y, w, x), (dx, w, g), (dw, g, x)."""
    taps, spans = numel(geo.kernel), tuple(-(-n // s) for n, s in zip(geo.size, geo.stride, strict=True))
    rows, cols, depth, phases = {
        FORWARD: (geo.rows, geo.images * numel(geo.out), geo.taps, 1),
        INPUT: (geo.channels, geo.images * numel(spans), geo.rows, numel(geo.stride)),
        WEIGHT: (geo.rows, geo.taps, geo.images * numel(geo.out), 1),
    }[mode]
    tile = tile or gathering.cuda_tile(rows, cols, y.dtype)
    tiles = geo.groups * phases * -(-rows // tile.m) * -(-cols // tile.n)
    long = depth * (taps if mode == INPUT else 1)
    splits = splits or max(1, min(_BLOCKS // tiles, long // (16 * tile.k)))
    chunk = -(-max(long, 1) // (splits * tile.k)) * tile.k
    if mode != WEIGHT:
        a = contiguous(a)
    target = y if splits == 1 else new(y.device, y.dtype.accumulator, (splits, *y.shape))
    apart = tuple(s // gcd(s, d) if mode == INPUT else 1 for s, d in zip(geo.stride, geo.dilation, strict=True))
    block, span = geo.rows * geo.taps, numel(geo.out)
    a_strides, y_strides = {
        FORWARD: ((block, geo.taps, taps, 0, 0, 0), (geo.rows * span, span, geo.groups * geo.rows * span)),
        INPUT: ((block, taps, geo.taps, 0, 0, 0), _input_strides(geo)),
        WEIGHT: ((geo.rows * a.strides[1], a.strides[1], a.strides[0], *a.strides[2:]), (block, geo.taps, 0)),
    }[mode]
    inner = geo.rows if mode == INPUT else geo.channels
    arguments = gathering.GATHER.pack(
        y=target, a=(a, *a_strides), b=(b, inner * b.strides[1], *b.strides), to=(y.numel, *y_strides),
        size=(geo.groups, splits, chunk, rows, cols, depth), geo=(*geo.axes, apart),
    )  # fmt: skip
    program = (mode, a.dtype, b.dtype, target.dtype, tile)
    run(y.device, gathering.gather_product_program, program, arguments, tiles * splits, tile.threads)
    if splits > 1:
        copy_into(y, add_up(target, axis=0))


def _input_strides(geo: Geometry) -> Shape:
    span = numel(geo.size)
    return geo.channels * span, span, geo.groups * geo.channels * span


# --- either -------------------------------------------------------------------------------------------------------
def forward(y: Tensor, x: Tensor, w: Tensor, geo: Geometry) -> None:
    if y.device.kind == "cpu":
        columns_forward(volumes(y), volumes(x), w, geo)
    else:
        gather(FORWARD, volumes(y), w, volumes(x), geo)


def adjoint(dx: Tensor, g: Tensor, w: Tensor, geo: Geometry) -> None:
    if dx.device.kind == "cpu":
        columns_input(volumes(dx), volumes(g), w, geo)
    else:
        gather(INPUT, volumes(dx), w, volumes(g), geo)


def weight(dw: Tensor, x: Tensor, g: Tensor, geo: Geometry) -> None:
    if dw.device.kind == "cpu":
        columns_weight(volumes(dw), volumes(x), volumes(g), geo)
    else:
        gather(WEIGHT, volumes(dw), volumes(g), volumes(x), geo)
