"""What the kernels of attention are made of: the place of a block, masks and dropout of a tile, products of tiles.

A block owns SIZE rows of one head and walks over the other side in tiles of SIZE; a thread holds T × T of a tile of
logits and T × TY of the result. What is wider than WIDE columns is cut into chunks, a block each, which compute the
same logits.

                 keys                     chunk
            ┌───┬───┬───┐               ┌─────────┐
    queries │   │▒▒▒│ → │  tile · v  +→ │ SIZE ×  │
            └───┴───┴───┘               │   WIDE  │
             SIZE × SIZE                └─────────┘
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..language import (
    ACROSS,
    BK,
    DROPOUT,
    GROUP,
    INF,
    KEYS_FIRST,
    KV,
    SIZE,
    STRIDE,
    THREADS,
    TY,
    WIDE,
    C,
    Number,
    Pointer,
    T,
    U,
    barrier,
    exp,
    load_bias,
    load_mask,
    load_x,
    own_left,
    own_wide,
    own_words,
    store_y,
    thread_index,
    udiv,
)
from ..random import philox
from ..tile.index import divide
from ..tile.micro import add_outer, fill, first_row, held, multiply
from ..tile.stage import Matrix, Stage, load_tile, transposed


# --- what a block works on -------------------------------------------------------------------------------------------
class Place(NamedTuple):
    """The number of a tile; of which batch and head, the head's number among all; the first column of a chunk."""

    tile: int
    b: int
    h: int
    pair: int
    c0: int


class Rules(NamedTuple):
    """What is added to the logits of a head, queries m × keys n; query i sees the keys up to i + diagonal."""

    m: int
    n: int
    diagonal: int
    has_mask: int
    mask: Matrix
    has_bias: int
    bias: Matrix


def place_of(item: int, pairs: int, heads: int, chunks: int) -> Place:
    """Chunks of the same tile follow each other; then come the same tiles of other heads."""
    rest, chunk = divide(item, chunks)
    tile, pair = divide(rest, pairs)
    b, h = divide(pair, heads)
    return Place(tile, b, h, pair, chunk * WIDE)


def head_of(x: Any, b: int, h: int, rows: int, columns: int) -> Matrix:
    return Matrix(x.data, b * x.batch + h * x.head, x.row, x.column, rows, columns)


def rules_of(mask: Any, bias: Any, b: int, h: int, size: Any, seen: Any) -> Rules:
    m, n = size.m, size.n
    masks, biases = head_of(mask, b, h, m, n), head_of(bias, b, h, m, n)
    return Rules(m, n, seen.diagonal, seen.has_mask, masks, seen.has_bias, biases)


# --- masks and dropout -----------------------------------------------------------------------------------------------
def prepare(tile: Pointer, factors: Pointer, i0: int, j0: int, first: int, rules: Any, dropout: Any) -> bool:
    """Mark and draw what a tile needs. True if it is plain: all its logits are seen, and nothing is added.

    first: the number of the first row among all rows of all heads.
    """
    inside = i0 + SIZE <= rules.m and j0 + SIZE <= rules.n and j0 + SIZE <= i0 + rules.diagonal + 1
    plain = rules.has_mask + rules.has_bias == 0 and inside
    if not plain:
        mark(tile, i0, j0, rules)
    if DROPOUT:
        draw(factors, first, j0, udiv(rules.n + 3, 4), dropout)
    return plain


def mark(tile: Pointer, i0: int, j0: int, rules: Any) -> None:
    """What is added to a tile of logits: the bias; −∞ outside, above the diagonal and where the mask is False.

    Each cell is read, and then written, by the thread that computes it.
    """
    mask, bias = rules.mask, rules.bias
    for e in range(thread_index(), SIZE * SIZE, THREADS):
        i = i0 + e // SIZE
        j = j0 + e % SIZE
        seen = i < rules.m and j < rules.n and j <= i + rules.diagonal
        value = C(0)
        if rules.has_mask != 0 and seen:
            seen = load_mask(mask.data, mask.offset + i * mask.row + j * mask.column)
        if rules.has_bias != 0 and seen:
            value = load_bias(bias.data, bias.offset + i * bias.row + j * bias.column)
        tile[(j - j0) * STRIDE + i - i0 if KEYS_FIRST else (i - i0) * STRIDE + j - j0] = value if seen else C(-INF)


def marked(value: Number, extra: Number) -> Number:
    """A logit and what `mark` left for it; what is hidden may be a NaN."""
    return value + extra if extra > C(-INF) or extra != extra else extra


def draw(factors: Pointer, first: int, j0: int, each: int, dropout: Any) -> None:
    """The factors of dropout for a tile: 1 / (1 − p) or, with probability p, 0. Four neighbouring keys share a counter.

    each: counters a row.
    """
    words = own_words()
    for e in range(thread_index(), SIZE * (SIZE // 4), THREADS):
        i = e // (SIZE // 4)
        g = e % (SIZE // 4)
        philox(words, dropout.seed, dropout.offset + (first + i) * each + j0 // 4 + g)
        for w in range(4):
            at = (4 * g + w) * STRIDE + i if KEYS_FIRST else i * STRIDE + 4 * g + w
            factors[at] = factor(words, w, dropout.p, dropout.kept)


def factor(words: Pointer, w: int, p: Number, kept: Number) -> Number:
    """Of the w-th random word."""
    return kept if C(words[w] >> U(8)) * C(2.0**-24) >= p else C(0)


def dropped(value: Number, factors: Pointer, at: int) -> Number:
    return value * factors[at] if DROPOUT else value


# --- products of tiles -----------------------------------------------------------------------------------------------
def tile_column() -> int:
    """The first column of a tile that this thread holds."""
    return thread_index() % ACROSS * T


def accumulate(total: Pointer, stage: Pointer, a: Any, i0: int, b: Any, j0: int) -> None:
    """total[i, j] += Σ_p a[i0 + i, p]·b[j0 + j, p] for this thread's T × T of a tile; all threads end at a barrier."""
    left, right = Stage(stage, 0, STRIDE), Stage(stage, BK * STRIDE, STRIDE)
    rows, columns = held(T, a.rows - i0), held(T, b.rows - j0)
    for p0 in range(0, max(a.columns, 1), BK):
        load_tile(left, SIZE, BK, a, i0, p0, load_x)
        load_tile(right, SIZE, BK, b, j0, p0, load_x)
        barrier()
        multiply(total, left, right, held(BK, a.columns - p0), rows, columns)
        barrier()


def both_products(s: Pointer, u: Pointer, stage: Pointer, a: Any, c: Any, i0: int, b: Any, d: Any, j0: int) -> None:
    """s = a·bᵀ and u = c·dᵀ for a tile: logits, and gradients of probabilities."""
    fill(s, T * T, C(0))
    fill(u, T * T, C(0))
    accumulate(s, stage, a, i0, b, j0)
    accumulate(u, stage, c, i0, d, j0)


def fold(y: Pointer, tile: Pointer, stage: Pointer, rows: int, b: Any, j0: int, c0: int) -> None:
    """y[i, c] += Σ_j tile[i, j]·b[j0 + j, c0 + c] for this thread's T × TY of the chunk; all threads end at a barrier.

    rows: of the tile, that are inside. The tile was written before a barrier.
    """
    left, right, staged, columns = own_left(), own_wide(), Stage(stage, 0, WIDE), transposed(b)
    row, mine, wide = first_row(), held(T, rows), held(TY, b.columns - c0)
    for n0 in range(0, min(SIZE, b.rows - j0), KV):
        load_tile(staged, WIDE, KV, columns, c0, j0 + n0, load_x)
        barrier()
        for n in range(held(KV, b.rows - j0 - n0)):
            for i in range(T):
                left[i] = tile[(row + i) * STRIDE + n0 + n]
            for j in range(TY):
                right[j] = stage[n * WIDE + chunk_column(j)]
            add_outer(y, left, right, TY, mine, wide)
        barrier()


def chunk_column(j: int) -> int:
    """Which column of a chunk is this thread's j-th. Groups of neighbours: a warp reads whole rows of shared memory."""
    return j if THREADS == 1 else j // GROUP * (GROUP * ACROSS) + thread_index() % ACROSS * GROUP + j % GROUP


def store_chunk(x: Any, y: Pointer, i0: int, c0: int, scale: Number) -> None:
    """x[i0 + i, c0 + c] = scale·y[i, c] for this thread's T × TY of the chunk, inside of x."""
    row = first_row()
    for i in range(T):
        if i0 + row + i < x.rows:
            at = x.offset + (i0 + row + i) * x.row
            for j in range(TY):
                c = c0 + chunk_column(j)
                if c < x.columns:
                    store_y(x.data, at + c * x.column, y[i * TY + j] * scale)


def share(tile: Pointer, own: Pointer) -> None:
    """tile = what the threads hold of it, for all to read after a barrier."""
    row, column = first_row(), tile_column()
    for i in range(T):
        for j in range(T):
            tile[(row + i) * STRIDE + column + j] = own[i * T + j]


def probability(product: Number, tile: Pointer, at: int, scale: Number, plain: bool, shift: Number) -> Number:
    """exp(logit − shift), from a product of a query and a key and what `mark` left for it."""
    logit = product * scale
    return exp((logit if plain else marked(logit, tile[at])) - shift)
