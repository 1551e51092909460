"""Stable sorting of indices by the keys they have. No atomics: bits repeat.

A key is an unsigned integer that is ordered as the elements are: −0 equals +0, and NaN is above all numbers. The key of
a descending order is its complement, so that equal elements keep their order in both directions.

Short rows are merged in shared memory, a block a row. Long ones are sorted by digits from the lowest up (LSD radix
sort): each pass counts the digits of each tile, scans the counts, and moves each key to its place, in order. (Satish,
Harris and Garland 2009) The one thread of a host has large digits and one tile a row; it is the same kernel.
"""

from __future__ import annotations

from ...dtypes import DType, int64, uint8, uint16, uint32, uint64
from ..compiler.compile import Program
from ..language import (
    FLOATING,
    RADIX,
    SIGNED,
    THREADS,
    WIDTH,
    Array,
    Helper,
    I,
    Load,
    Number,
    Pointer,
    Store,
    U,
    barrier,
    block_count,
    block_index,
    digit,
    fresh_index,
    fresh_key,
    grid,
    gridsize,
    key_of,
    load_bits,
    load_i,
    load_k,
    old_index,
    old_key,
    shared_counts,
    shared_partial,
    store_i,
    store_k,
    store_y,
    thread_index,
    udiv,
)

DIGIT_BITS = 4  # on a GPU: 16 counters for each of 256 threads fit in shared memory
HOST_DIGIT_BITS = 8
THREADS_PER_TILE = 256
TILE = 4096
BLOCK_ROW = 2048  # longest row that is merged in shared memory
HOST_BLOCK_ROW = 48  # beyond it, digits are faster for one thread
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


# --- keys -------------------------------------------------------------------------------------------------------------
def ordered_key(bits: Number) -> Number:
    """An element's bits as a number that is ordered as the elements are."""
    ones = U(0xFFFFFFFFFFFFFFFF) >> U(64 - WIDTH)
    top = U(1) << U(WIDTH - 1)
    key = U(bits)
    if FLOATING > 0:
        magnitude = U(key & (ones >> U(1)))
        if magnitude > U(FLOATING):
            key = ones
        elif magnitude == U(0):
            key = top
        elif (key & top) != U(0):
            key = U(ones ^ key)
        else:
            key = U(key | top)
    elif SIGNED:
        key = U(key ^ top)
    return key


def encode(keys: Pointer, order: Pointer, x: Pointer, rows: int, n: int, mask: int) -> None:
    """keys = those of the elements, ⊕ mask; order = 0 … n−1 in each row."""
    for item in range(grid(), rows * n, gridsize()):
        store_k(keys, item, key_of(load_bits(x, item)) ^ U(mask))
        store_i(order, item, item - udiv(item, n) * n)


# --- short rows -------------------------------------------------------------------------------------------------------
def merge_rows(y: Pointer, x: Pointer, rows: int, n: int, mask: int) -> None:
    """y[row] = the stable order of x[row], n ≤ LENGTH: runs of 1, 2, 4 … are merged, a block a row.

    The place of an element in the merged run is its place in its own run plus its rank in the other, by bisection.
    """
    keys = old_key()
    order = old_index()
    new_keys = fresh_key()
    new_order = fresh_index()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        for j in range(t, n, THREADS):
            keys[j] = key_of(load_bits(x, row * n + j)) ^ U(mask)
            order[j] = j
        barrier()
        width = 1
        while width < n:
            for j in range(t, n, THREADS):
                key = U(keys[j])
                pair = j & ~(2 * width - 1)  # where the two runs begin
                middle = min(pair + width, n)
                left = j < middle
                low = middle if left else pair
                high = min(pair + 2 * width, n) if left else middle
                start = low
                while low < high:
                    half = (low + high) >> 1
                    other = U(keys[half])
                    if other < key or (not left and other == key):  # of equals the left run's come first
                        low = half + 1
                    else:
                        high = half
                place = pair + (j - (pair if left else middle)) + (low - start)
                new_keys[place] = key
                new_order[place] = order[j]
            barrier()
            for j in range(t, n, THREADS):
                keys[j] = new_keys[j]
                order[j] = new_order[j]
            barrier()
            width *= 2
        for j in range(t, n, THREADS):
            store_y(y, row * n + j, I(order[j]))
        barrier()


# --- long rows --------------------------------------------------------------------------------------------------------
def digit_of(key: Number, shift: int) -> int:
    return I((U(key) >> U(shift)) & U(RADIX - 1))


def count_digits(counts: Pointer, keys: Pointer, rows: int, n: int, tile: int, tiles: int, shift: int) -> None:
    """counts[row, d, tile] = how many keys of the tile have the digit d. A block a tile."""
    own = shared_counts()
    t = thread_index()
    for item in range(block_index(), rows * tiles, block_count()):
        row = udiv(item, tiles)
        c = item - row * tiles
        for d in range(RADIX):
            own[d * THREADS + t] = 0
        for j in range(c * tile + t, min(c * tile + tile, n), THREADS):
            at = digit(load_k(keys, row * n + j), shift) * THREADS + t
            own[at] = own[at] + 1
        barrier()
        for d in range(t, RADIX, THREADS):
            total = 0
            for k in range(THREADS):
                total += own[d * THREADS + (k + d) % THREADS]  # each thread begins in another bank
            store_y(counts, (row * RADIX + d) * tiles + c, total)
        barrier()


def move_keys(
    new_keys: Pointer, new_order: Pointer, keys: Pointer, order: Pointer, ends: Pointer, rows: int, n: int, tile: int,
    tiles: int, shift: int,
) -> None:  # fmt: skip
    """Each key to its place among those of its row by its digit, in order. ends: running sums of the counts.

    A thread counts the digits of neighbouring keys; running sums of these over the threads, digit by digit, say where
    its first key of each digit goes.
    """
    own = shared_counts()
    partial = shared_partial()
    t = thread_index()
    lanes = max(1, THREADS // RADIX)  # threads that sum the counts of one digit
    lane = t % lanes
    span = THREADS // lanes
    for item in range(block_index(), rows * tiles, block_count()):
        row = udiv(item, tiles)
        c = item - row * tiles
        each = udiv(tile + THREADS - 1, THREADS)
        first = c * tile + t * each
        last = min(min(first + each, c * tile + tile), n)
        for d in range(RADIX):
            own[d * THREADS + t] = 0
        for j in range(first, last):
            at = digit(load_k(keys, row * n + j), shift) * THREADS + t
            own[at] = own[at] + 1
        barrier()
        if lanes > 1:
            total = 0
            for k in range(span):
                total += own[(t // lanes) * THREADS + lane * span + k]
            partial[t] = total
        barrier()
        for d in range(t // lanes, RADIX, max(1, THREADS // lanes)):
            cell = (row * RADIX + d) * tiles + c
            place = ends[cell - 1] if d * tiles + c > 0 else 0
            for k in range(lane):
                place += partial[d * lanes + k]
            for k in range(d * THREADS + lane * span, d * THREADS + lane * span + span):
                count = own[k]
                own[k] = place
                place += count
        barrier()
        for j in range(first, last):
            key = load_k(keys, row * n + j)
            at = digit(key, shift) * THREADS + t
            place = row * n + own[at]
            own[at] = own[at] + 1
            store_k(new_keys, place, key)
            store_i(new_order, place, load_i(order, row * n + j))
        barrier()


# --- programs ---------------------------------------------------------------------------------------------------------
def key_mask(dtype: DType, descending: bool) -> int:
    """What turns keys round: all their bits, as an int64."""
    return 0 if not descending else -1 if dtype.itemsize == 8 else (1 << 8 * dtype.itemsize) - 1


def key_type(dtype: DType) -> DType:
    return {1: uint8, 2: uint16, 4: uint32, 8: uint64}[dtype.itemsize]


def _keys(dtype: DType) -> dict[str, object]:
    return {
        "load_bits": Load(key_type(dtype), uint64),
        "key_of": Helper(ordered_key, 1, uint64),
        "U": uint64,
        "WIDTH": 8 * dtype.itemsize,
        "FLOATING": INFINITY.get(dtype.name, 0),
        "SIGNED": dtype.kind == "int",
    }


def encode_program(dtype: DType, index: DType) -> Program:
    kind = key_type(dtype)
    bindings = {**_keys(dtype), "store_k": Store(kind, uint64), "store_i": Store(index, int64)}
    return Program("sort_encode", (kind, index, dtype, "int", "int", "int"), int64, bindings, function=encode)


def merge_program(dtype: DType, length: int, threads: int) -> Program:
    kind = uint64 if dtype.itemsize == 8 else uint32
    bindings = {
        **_keys(dtype),
        "I": int64,
        "store_y": Store(int64, int64),
        "old_key": Array(kind, length, shared=True),
        "old_index": Array(uint16, length, shared=True),
        "fresh_key": Array(kind, length, shared=True),
        "fresh_index": Array(uint16, length, shared=True),
    }
    return Program(
        "sort_merge", (int64, dtype, "int", "int", "int"), int64, bindings, function=merge_rows, threads=threads
    )  # fmt: skip


def _digits(kind: DType, bits: int, threads: int, places: DType) -> dict[str, object]:
    return {
        "load_k": Load(kind, uint64),
        "digit": Helper(digit_of, 2, int64),
        "U": uint64,
        "I": int64,
        "RADIX": 1 << bits,
        "store_y": Store(int64, int64),
        "shared_counts": Array(places, threads << bits, shared=True),
    }


def count_program(kind: DType, index: DType, bits: int, threads: int) -> Program:
    return Program(
        "sort_count", (int64, kind, *("int",) * 5), int64, _digits(kind, bits, threads, index), function=count_digits,
        threads=threads,
    )  # fmt: skip


def move_program(kind: DType, index: DType, target: DType, bits: int, threads: int) -> Program:
    bindings = {
        **_digits(kind, bits, threads, index),
        "store_k": Store(kind, uint64),
        "load_i": Load(index, int64),
        "store_i": Store(target, int64),
        "shared_partial": Array(int64, threads, shared=True),
    }
    return Program(
        "sort_move", (kind, target, kind, index, int64, *("int",) * 5), int64, bindings, function=move_keys,
        threads=threads,
    )  # fmt: skip
