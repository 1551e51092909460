"""Scans, stable orders and places of non-zero elements as plain functions, outside the graph.

What the ops of `ops/order/` and indexing by masks are made of. Imports none of them.
"""

from __future__ import annotations

from math import prod as product

from ...dtypes import DType, int32, int64
from ...errors import DTypeError
from ...kernels.order import search
from ...kernels.order import sort as kernels
from ...kernels.order.scan import scan_program
from ...kernels.reduce.associative import COUNT, SUM, Associative
from ...shapes import Shape, row_major
from ...tensor import Tensor, new
from ..core.launch import run, same_device, spread
from ..shape.movement import contiguous, flip, reshape

_CHUNK = 4096  # elements of a line that a block scans at least, before others take a part of it
_COLUMN_CHUNK = 256


def scan_axis(x: Tensor, what: Associative, axis: int, reverse: bool, out: DType, compute: DType) -> Tensor:
    """x[…, 0, …] ∘ … ∘ x[…, j, …] along an axis (from its end if reverse) in dtype `out`; outside the graph."""
    y = new(x.device, out, x.shape)
    if y.numel == 0:
        return y
    source, target = contiguous(x.detach()), y
    outer, n, inner = product(x.shape[:axis]), x.shape[axis], product(x.shape[axis + 1 :])
    if reverse:
        source, target = flip(source, axis), flip(y, axis)
    step = -inner if reverse else inner
    _scan(what, target, source, outer * inner, n, inner, (n * inner, step, n * inner, step), compute)
    return y


def _scan(
    what: Associative, y: Tensor, x: Tensor, rows: int, n: int, inner: int, strides: tuple[int, ...], compute: DType
) -> None:
    columns, threads, chunk, chunks = scan_plan(y, rows, n, inner)
    blocks = spread(y.device.backend, rows * chunks, threads) if columns else rows * chunks
    starts = y  # not read if there is one chunk
    choices = (what, x.dtype, y.dtype, compute, threads, columns)
    if chunks > 1:
        totals = new(y.device, compute, (rows, chunks))
        run(
            y.device, scan_program, (*choices, True), (y, x, totals, rows, n, inner, *strides, chunk, chunks),
            blocks, threads,
        )  # fmt: skip
        starts = new(y.device, compute, (rows, chunks))
        _scan(what.of_results, starts, totals, rows, chunks, 1, (chunks, 1, chunks, 1), compute)
    run(
        y.device, scan_program, (*choices, False), (y, x, starts, rows, n, inner, *strides, chunk, chunks),
        blocks, threads,
    )  # fmt: skip


def scan_plan(x: Tensor, rows: int, n: int, inner: int) -> tuple[bool, int, int, int]:
    """(a thread a line or a block, threads of a block, length and number of the pieces of a line)."""
    if x.device.kind == "cpu":
        return False, 1, n, 1
    if inner >= 16:  # neighbouring threads read neighbouring lines
        return True, 256, *scan_chunks(x, -(-rows // 256), n, _COLUMN_CHUNK)
    return False, 256 if n > 128 else 32, *scan_chunks(x, rows, n, _CHUNK)


def scan_chunks(x: Tensor, items: int, n: int, shortest: int) -> tuple[int, int]:
    """(length, number) of the pieces that a line is cut in, of `items` blocks: work for every multiprocessor."""
    if x.device.kind == "cpu":
        return n, 1
    wanted = max(1, 8 * x.device.backend.multiprocessors // items)
    chunk = max(-(-n // wanted), shortest)
    return (n, 1) if chunk >= n else (chunk, -(-n // chunk))


# --- orders ----------------------------------------------------------------------------------------------------------
def order_rows(x: Tensor, descending: bool = False, bits: int | None = None) -> Tensor:
    """The stable order of each row of a contiguous (…, n), int64; outside the graph.

    bits: that many low bits of the keys decide, for unsigned numbers, or numbers ≥ 0, known to be below 2^bits.
    """
    n = x.shape[-1] if x.ndim else 1
    y = new(x.device, int64, x.shape)
    if y.numel == 0:
        return y
    rows, host = y.numel // n, x.device.kind == "cpu"
    longest = kernels.HOST_BLOCK_ROW if host else kernels.BLOCK_ROW
    mask = kernels.key_mask(x.dtype, descending)
    if n <= longest:
        length = longest if host else next(size for size in (64, 512, longest) if size >= n)
        threads = 1 if host else max(32, length // 8)
        run(x.device, kernels.merge_program, (x.dtype, length, threads), (y, x, rows, n, mask), rows, threads)
    else:
        _radix(y, x, rows, n, mask, bits)
    return y


def radix_plan(x: Tensor, n: int) -> tuple[int, int, int]:
    """(bits of a digit, threads of a block, keys of a tile)."""
    if x.device.kind == "cpu":
        return kernels.HOST_DIGIT_BITS, 1, n
    return kernels.DIGIT_BITS, kernels.THREADS_PER_TILE, kernels.TILE


def _radix(y: Tensor, x: Tensor, rows: int, n: int, mask: int, bits: int | None) -> None:
    """Passes over the digits from the lowest up, between two buffers; the last writes the order to y."""
    device = x.device
    kind: DType = kernels.key_type(x.dtype)
    index = int32 if n < 2**31 else int64
    digit_bits, threads, tile = radix_plan(x, n)
    tiles = -(-n // tile)
    width = 8 * x.dtype.itemsize if x.dtype.kind != "bool" else 1
    passes = -(-min(width, bits or width) // digit_bits)
    keys, spare = (new(device, kind, (rows * n,)) for _ in range(2))
    order, spare_order = (new(device, index, (rows * n,)) for _ in range(2))
    run(
        device, kernels.encode_program, (x.dtype, index), (keys, order, x, rows, n, mask),
        spread(device.backend, rows * n),
    )  # fmt: skip
    counts = new(device, int64, (rows, tiles << digit_bits))
    for p in range(passes):
        target = y if p == passes - 1 else spare_order
        place = rows, n, tile, tiles, p * digit_bits
        run(
            device,
            kernels.count_program,
            (kind, index, digit_bits, threads),
            (counts, keys, *place),
            rows * tiles,
            threads,
        )
        ends = scan_axis(counts, SUM, 1, False, int64, int64)
        run(
            device, kernels.move_program, (kind, index, target.dtype, digit_bits, threads),
            (spare, target, keys, order, ends, *place), rows * tiles, threads,
        )  # fmt: skip
        keys, spare, order, spare_order = spare, keys, spare_order, order


# --- places ----------------------------------------------------------------------------------------------------------
def flat_nonzero(x: Tensor) -> Tensor:
    """Places in row-major order of the elements that are not 0, int64, ascending; outside the graph.

    The shape depends on values: waits for the device, to learn how many there are.
    """
    line = reshape(contiguous(x.detach()), (-1,))
    n = line.numel
    if n == 0:
        return new(x.device, int64, (0,))
    ends = scan_axis(line, COUNT, 0, False, int64, int64)
    y = new(x.device, int64, (int(ends.alias((), (), n - 1).item()),))
    if y.numel:
        run(x.device, search.collect_program, (line.dtype,), (y, line, ends, n), spread(x.device.backend, n))
    return y


def coordinates(flat: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    """The index along each axis of a tensor of `shape` for places in row-major order."""
    if len(shape) == 1:
        return (flat,)
    out = []
    for size, stride in zip(shape, row_major(shape), strict=True):
        y = new(flat.device, int64, flat.shape)
        if y.numel:
            blocks = spread(flat.device.backend, y.numel)
            run(flat.device, search.coordinate_program, (), (y, flat, y.numel, stride, size), blocks)
        out.append(y)
    return tuple(out)


# --- search -----------------------------------------------------------------------------------------------------------
def search_rows(x: Tensor, values: Tensor, right: bool) -> Tensor:
    """Where each value would go in its sorted row, after equal elements if right: x (n), or as values but for n."""
    if x.dtype is not values.dtype:  # the kernel reads both as one
        raise DTypeError(f"searchsorted: rows of {x.dtype.name} and values of {values.dtype.name} must have one dtype")
    y = new(same_device([x, values], "searchsorted"), int64, values.shape)
    if y.numel:
        each = y.numel if x.ndim == 1 else values.shape[-1]
        run(
            y.device, search.search_program, (x.dtype, right),
            (y, contiguous(x.detach()), contiguous(values.detach()), x.shape[-1], each, y.numel),
            spread(y.device.backend, y.numel),
        )  # fmt: skip
    return y
