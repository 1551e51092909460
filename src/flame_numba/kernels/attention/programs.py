"""What the kernels of attention are compiled with: tiles, dtypes, dropout."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...dtypes import DType, bool_, float64, uint64
from ..compiler.compile import Program
from ..language import Array, Load, Store
from ..tile.arguments import Arguments, Group, group, integers, operand
from ..tile.micro import micro_tile
from .forward import attention
from .gradients import bias_gradient, delta, dropout_factors, key_gradient, query_gradient


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


_AXES = "batch head row column"
_GROUPS: dict[str, str | Group] = {  # what the kernels are called with, by the names of their parameters
    **{name: operand("x", _AXES) for name in ("o", "dq", "dk", "dv", "q", "k", "v", "g")},
    "mask": operand("mask", _AXES), "bias": operand("bias", _AXES),
    "lse": "c", "delta": "c", "db": "c", "scale": "number",
    "dropout": group(p="number", kept="number", seed="int", offset="int"),
    "size": integers("batches heads group m n d e"),  # group: heads of q for each of k
    "seen": integers("diagonal has_mask has_bias"),
    "along": integers("splits b h i j"),  # b … j: whether the bias has the axis, or is broadcast along it
}  # fmt: skip


def _arguments(kernel: Callable[..., None]) -> Arguments:
    return Arguments(kernel, **{name: _GROUPS[name] for name in inspect.signature(kernel).parameters})


ARGUMENTS = {kernel: _arguments(kernel) for kernel in (attention, query_gradient, key_gradient, bias_gradient)}
DELTA = Arguments(
    delta, y="c", g=operand("x", _AXES), o=operand("x", _AXES), size=integers("heads m e rows")
)  # fmt: skip
DROPOUT_FACTORS = Arguments(dropout_factors, y="c", rows="int", n="int", dropout=_GROUPS["dropout"])


def _bindings(variant: Variant, keys_first: bool) -> dict[str, Any]:
    dtype, tile = variant.dtype, variant.tile
    c, across, ty = dtype.accumulator, tile.size // tile.t, tile.wide * tile.t // tile.size
    staged = max(2 * tile.depth * tile.stride, tile.rows * tile.wide, tile.size * across)
    private = {
        "own_s": tile.t**2, "own_u": tile.t**2, "own_top": tile.t, "own_total": tile.t, "own_wide": ty,
        "own_first": tile.t * max(ty, tile.t), "own_second": tile.t * ty,
    }  # fmt: skip
    return {
        "load_x": Load(dtype, c), "load_bias": Load(variant.bias, c), "load_mask": Load(bool_, bool_),
        "load_s": Load(c, c), "store_s": Store(c, c), "store_y": Store(dtype, c),
        "shared_stage": Array(c, staged, shared=True), "shared_tile": Array(c, tile.size * tile.stride, shared=True),
        "shared_factors": Array(c, tile.size * tile.stride if variant.dropout else 1, shared=True),
        **{name: Array(c, length, shared=False) for name, length in private.items()},
        **micro_tile(c, tile.t, tile.t, across),
        "SIZE": tile.size, "T": tile.t, "BK": tile.depth, "KV": tile.rows, "STRIDE": tile.stride,
        "WIDE": tile.wide, "TY": ty, "GROUP": min(4, ty),
        "DROPOUT": variant.dropout, "KEYS_FIRST": keys_first, **_RANDOM,
    }  # fmt: skip


_RANDOM: dict[str, Any] = {"own_words": Array(uint64, 4, shared=False), "U": uint64}


def program(kernel: Callable[..., None], variant: Variant) -> Program:
    """`attention`, or a kernel of `gradients`."""
    name = "attention" if kernel is attention else f"attention_{kernel.__name__}"
    c = variant.dtype.accumulator
    elements = {"x": variant.dtype, "c": c, "mask": bool_, "bias": variant.bias}
    bindings = _bindings(variant, keys_first=kernel is key_gradient)
    return ARGUMENTS[kernel].program(name, elements, c, bindings, variant.tile.threads)


def delta_program(dtype: DType) -> Program:
    c = dtype.accumulator
    bindings = {"load_x": Load(dtype, c), "store_s": Store(c, c), "shared_tile": Array(c, 32, shared=True)}
    return DELTA.program("attention_delta", {"x": dtype, "c": c}, c, bindings, threads=32)


def dropout_factors_program(dtype: DType) -> Program:
    bindings = {"store_s": Store(dtype, dtype), **_RANDOM}
    return DROPOUT_FACTORS.program("attention_dropout", {"c": dtype}, dtype, bindings)
