"""What the kernels of attention are compiled with: tiles, dtypes, dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...dtypes import DType, bool_, float64, uint64
from ..compiler.compile import Program
from ..language import Array, Helper, Load, Store
from ..random import philox
from .forward import accumulate, attention, bring, draw, fold, mark, marked
from .gradients import delta, dropout_factors


@dataclass(frozen=True)
class Tile:
    """size × size logits a block, t × t a thread; `depth` columns of two operands, or `rows` of `wide`, are staged."""

    size: int
    t: int
    depth: int
    rows: int
    wide: int

    @property
    def threads(self) -> int:
        return (self.size // self.t) ** 2

    @property
    def stride(self) -> int:
        """Of a staged column: padded on GPUs, where neighbours in memory become columns of shared memory."""
        return self.size + (4 if self.threads > 1 else 0)


def tile_for(kind: str, dtype: DType, columns: int, gradients: int = 0) -> Tile:
    """For a result of so many columns on a device of this kind; gradients: how many a thread holds at once.

    The more it holds in registers, the less it stages: else the compiler spills.
    """
    if kind == "cpu":
        return Tile(32, 32, 64, 32, 64)
    depth, rows = (8, 8 // gradients) if gradients else (16, 16)
    if dtype is float64:
        return Tile(32, 2, depth, rows, 64)
    wide = 32 if columns <= 32 else 64 if columns <= 64 or gradients > 1 else 128
    return Tile(64, 4, depth, max(rows, 256 // wide), wide)  # each of 256 threads brings something


@dataclass(frozen=True)
class Variant:
    """What is compiled in: dtypes, whether there is dropout, and the tile."""

    dtype: DType
    bias: DType
    dropout: bool
    tile: Tile


_CALL = {  # by kernel: its pointers, integers and operands with strides
    "attention": ("y" + "xxx" + "c" + "mb", 12, 6),
    "query_gradient": ("y" + "xxxx" + "cc" + "mb", 12, 7),
    "key_gradient": ("yy" + "xxxx" + "cc" + "mb", 12, 8),
    "bias_gradient": ("xxxx" + "ccc" + "mb", 17, 6),
}


def _bindings(variant: Variant, keys_first: bool) -> dict[str, Any]:
    dtype, tile = variant.dtype, variant.tile
    c, side, ty = dtype.accumulator, tile.size // tile.t, tile.wide * tile.t // tile.size
    staged = max(2 * tile.depth * tile.stride, tile.rows * tile.wide, tile.size * side)
    private = {
        "own_s": tile.t**2, "own_u": tile.t**2, "own_top": tile.t, "own_total": tile.t, "own_left": tile.t,
        "own_right": tile.t, "own_wide": ty, "own_first": tile.t * max(ty, tile.t), "own_second": tile.t * ty,
    }  # fmt: skip
    return {
        "load_x": Load(dtype, c), "load_bias": Load(variant.bias, c), "load_mask": Load(bool_, bool_),
        "load_s": Load(c, c), "store_s": Store(c, c), "store_y": Store(dtype, c),
        "shared_stage": Array(c, staged, shared=True), "shared_tile": Array(c, tile.size * tile.stride, shared=True),
        "shared_factors": Array(c, tile.size * tile.stride if variant.dropout else 1, shared=True),
        **{name: Array(c, length, shared=False) for name, length in private.items()},
        "SIZE": tile.size, "T": tile.t, "SIDE": side, "BK": tile.depth, "KV": tile.rows, "STRIDE": tile.stride,
        "WIDE": tile.wide, "TY": ty, "GROUP": min(4, ty),
        "DROPOUT": variant.dropout, "KEYS_FIRST": keys_first, **random_words(),
        "bring": Helper(bring, 3, None), "accumulate": Helper(accumulate, 3, None),
        "fold": Helper(fold, 3, None), "mark": Helper(mark, 3, None), "marked": Helper(marked, 2, c),
        "draw": Helper(draw, 3, None),
    }  # fmt: skip


def random_words() -> dict[str, Any]:
    """The generator, and what it is called with."""
    return {"own_words": Array(uint64, 4, shared=False), "U": uint64, "philox": Helper(philox, 3, None)}


def program(function: Any, variant: Variant) -> Program:
    """`attention`, or a kernel of `attention_gradients`."""
    pointers, integers, operands = _CALL[function.__name__]
    kinds: dict[str, DType] = {
        "x": variant.dtype,
        "y": variant.dtype,
        "c": variant.dtype.accumulator,
        "m": bool_,
        "b": variant.bias,
    }
    arguments: tuple[DType | str, ...] = (
        *(kinds[p] for p in pointers),
        *("number",) * 3,
        *("int",) * (integers + 4 * operands),
    )
    name = "attention" if function is attention else f"attention_{function.__name__}"
    bindings = _bindings(variant, keys_first=function.__name__ == "key_gradient")
    c = variant.dtype.accumulator
    return Program(name, arguments, c, bindings, function=function, threads=variant.tile.threads)


def delta_program(dtype: DType) -> Program:
    c = dtype.accumulator
    bindings = {"load_x": Load(dtype, c), "store_s": Store(c, c), "shared_tile": Array(c, 32, shared=True)}
    arguments = (c, dtype, dtype, *("int",) * 12)
    return Program("attention_delta", arguments, c, bindings, function=delta, threads=32)


def dropout_factors_program(dtype: DType) -> Program:
    arguments = (dtype, "number", "number", *("int",) * 4)
    bindings = {"store_s": Store(dtype, dtype), **random_words()}
    return Program("attention_dropout", arguments, dtype, bindings, function=dropout_factors)
