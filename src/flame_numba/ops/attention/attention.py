"""Scaled dot-product attention in O(n) memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...dtypes import DType, bool_, promote
from ...errors import ConfigError, DTypeError, ShapeError
from ...grad import is_recording
from ...kernels.attention import gradients as backward
from ...kernels.attention import programs
from ...kernels.attention.forward import attention as forward
from ...shapes import Shape, broadcast, collapse, numel
from ...tensor import Tensor, expanded, new
from ..core.autocast import cast_target
from ..core.copies import copy_into, fill_
from ..core.kernel_op import Primitive
from ..core.launch import run, spread
from ..core.table import Booleans, Floats, case, cast_floating, composite
from ..elementwise.arithmetic import greater, less_equal, logical_and, where
from ..products.linalg import matmul
from ..random import Generator, _taken
from ..reduce.reductions import any as any_
from ..reduce.reductions import sum as sum_
from ..rows.softmax import softmax
from ..shape.creation import arange
from ..shape.movement import reshape, to_dtype, transpose, unsqueeze


@dataclass(frozen=True)
class Setting:
    """What a call computes beside its tensors: query i sees the keys up to i + diagonal; the numbers of dropout."""

    diagonal: int
    scale: float
    dropout: float
    seed: int
    offset: int

    @property
    def numbers(self) -> tuple[float, float, float]:
        return self.scale, self.dropout, 1 / (1 - self.dropout)


class Call:
    """The operands of the launches: broadcast to one batch, outside the graph."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, setting: Setting
    ) -> None:
        self.batch = broadcast([x.shape[:-3] for x in (q, k, v)], "attention")
        self.heads, self.m, self.d = q.shape[-3:]
        self.kv_heads, self.n, self.e = v.shape[-3:]
        self.rows: Shape = (*self.batch, self.heads, self.m)
        self.q, self.k, self.v = (expanded(x.detach(), self.batch + x.shape[-3:]) for x in (q, k, v))
        self.mask, self.bias = (None if x is None else expanded(x.detach(), (*self.rows, self.n)) for x in (mask, bias))
        self.device, self.dtype, self.setting = q.device, q.dtype, setting

    def statistics(self) -> Tensor:
        """Room for a number a row."""
        return new(self.device, self.dtype.accumulator, self.rows)

    def tile(self, columns: int, gradients: int = 0) -> programs.Tile:
        return programs.tile_for(self.device.kind, self.dtype, columns, gradients)

    def launch(
        self, kernel: Callable[..., None], tile: programs.Tile, results: Mapping[str, Tensor],
        given: Mapping[str, Tensor], rows: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """By the names of the kernel's parameters. rows: operands with a number a row; the others have strides."""
        shapes = [x.shape for x in results.values()]
        height, columns = shapes[0][-2], max(shape[-1] for shape in shapes)
        blocks = shapes[0][-3] * -(-height // tile.size) * -(-columns // tile.wide)  # for one of the batch
        for number, batch, piece in self.pieces({**results, **self.operands(), **given}):
            self.launch_piece(kernel, tile, batch * blocks, number, batch, piece, rows)

    def operands(self) -> dict[str, Tensor]:
        """What every kernel reads; in place of a mask or bias that is not there, something that no kernel reads."""
        mask, bias = (self.q if x is None else x for x in (self.mask, self.bias))
        return {"q": self.q, "k": self.k, "v": self.v, "mask": mask, "bias": bias}

    def pieces(self, operands: Mapping[str, Tensor]) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """(number, size of batch, operands with one batch axis), for each index of the axes that do not merge into it.

        Mostly one; more where a mask is broadcast along some of several batch axes.
        """
        sizes, walks = collapse(self.batch, [x.strides[:-3] for x in operands.values()])
        for number, index in enumerate(itertools.product(*map(range, sizes[:-1]))):
            starts = [sum(i * s for i, s in zip(index, walk, strict=False)) for walk in walks]
            yield (
                number,
                sizes[-1],
                {
                    name: x.alias((sizes[-1], *x.shape[-3:]), (walk[-1], *x.strides[-3:]), x.offset + start)
                    for (name, x), walk, start in zip(operands.items(), walks, starts, strict=True)
                },
            )

    def launch_piece(
        self, kernel: Callable[..., None], tile: programs.Tile, blocks: int, number: int, batch: int,
        piece: Mapping[str, Tensor], rows: Mapping[str, Tensor], **more: Any,
    ) -> None:  # fmt: skip
        each = batch * self.heads * self.m  # rows of a piece
        bias = self.dtype if self.bias is None else self.bias.dtype
        setting = self.setting
        scale, p, kept = setting.numbers
        arguments = programs.ARGUMENTS[kernel].pack(
            **{name: (x, *x.strides) for name, x in piece.items()},
            **{name: x.alias((each,), (1,), x.offset + number * each) for name, x in rows.items()},
            scale=scale, dropout=(p, kept, setting.seed, setting.offset + number * each * -(-self.n // 4)),
            size=(batch, self.heads, self.heads // max(1, self.kv_heads), self.m, self.n, self.d, self.e),
            seen=(setting.diagonal, self.mask is not None, self.bias is not None), **more,
        )  # fmt: skip
        variant = programs.Variant(self.dtype, bias, setting.dropout > 0, tile)
        run(self.device, programs.program, (kernel, variant), arguments, blocks, tile.threads)


def _like(x: Tensor, rows: int, columns: int) -> Tensor:
    """A new tensor (…, heads, rows, columns), in memory (…, rows, heads, columns) if x is: merging heads is a view."""
    *batch, heads = x.shape[:-2]
    if x.shape[-2] > 1 and heads > 1 and 0 < x.strides[-3] < x.strides[-2]:
        return transpose(new(x.device, x.dtype, (*batch, rows, heads, columns)), -3, -2)
    return new(x.device, x.dtype, (*batch, heads, rows, columns))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, setting: Setting
) -> tuple[Tensor, dict[str, Any]]:
    call = Call(q, k, v, mask, bias, setting)
    y, lse = _like(call.q, call.m, call.e), call.statistics()
    if y.numel:
        call.launch(forward, call.tile(call.e), {"o": y}, {}, {"lse": lse})
    return y, {"lse": lse}


def _backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, setting: Setting,
    y: Tensor, lse: Tensor, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    if is_recording():
        parts: list[Tensor | None] = list(_backward_formula(g, q, k, v, mask, bias, setting))
    else:
        call = Call(q, k, v, mask, bias, setting)
        g = to_dtype(g.detach(), q.dtype)
        delta = _delta(call, g, y)
        parts = [
            _query_gradient(call, g, lse, delta) if needs[0] else None,
            *(_key_gradients(call, g, lse, delta) if needs[1] or needs[2] else (None, None)),
            _bias_gradient(call, bias, g, lse, delta) if bias is not None and needs[-1] else None,
        ]
    return (*parts[:3], *([] if mask is None else [None]), *([] if bias is None else parts[3:]))


_attend = Primitive(_forward, _backward, None)
_attend.name = "attention"


def _delta(call: Call, g: Tensor, y: Tensor) -> Tensor:
    delta = call.statistics()
    for number, batch, piece in call.pieces({"g": g, "o": y}):
        each = batch * call.heads * call.m
        if each:
            arguments = programs.DELTA.pack(
                y=delta.alias((each,), (1,), number * each), size=(call.heads, call.m, call.e, each),
                **{name: (x, *x.strides) for name, x in piece.items()},
            )  # fmt: skip
            run(call.device, programs.delta_program, (call.dtype,), arguments, each, 32)
    return delta


def _query_gradient(call: Call, g: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    dq = _like(call.q, call.m, call.d)
    if dq.numel:
        rows = {"lse": lse, "delta": delta}
        call.launch(backward.query_gradient, call.tile(call.d, 1), {"dq": dq}, {"g": g}, rows)
    return dq


def _key_gradients(call: Call, g: Tensor, lse: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    dk, dv = _like(call.k, call.n, call.d), _like(call.v, call.n, call.e)
    if dk.numel or dv.numel:
        tile = call.tile(max(call.d, call.e), 2)
        call.launch(backward.key_gradient, tile, {"dk": dk, "dv": dv}, {"g": g}, {"lse": lse, "delta": delta})
    return dk, dv


def _bias_gradient(call: Call, bias: Tensor, g: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """In memory of the size of the bias: what it was broadcast along is summed by the kernel, in a fixed order."""
    total = fill_(new(call.device, bias.dtype, (1,) * (len(call.rows) + 1 - bias.ndim) + bias.shape), 0)
    if not total.numel or not numel((*call.rows, call.n)):
        return total
    target = expanded(total, (*call.rows, call.n))
    for number, batch, piece in call.pieces({"target": target, **call.operands(), "g": g}):
        part = piece.pop("target")
        sizes = tuple(n if s else 1 for n, s in zip(part.shape, part.strides, strict=True))
        tile = call.tile(0, 1)
        kept = sizes[0] * sizes[1] * -(-sizes[2] // tile.size) * -(-sizes[3] // tile.size)
        # few results of long sums: several blocks share a sum, and what they find is added up in order
        splits = max(1, 4 * call.device.backend.multiprocessors // kept) if sizes != part.shape else 1
        found = new(call.device, call.dtype.accumulator, (splits, *sizes))
        call.launch_piece(
            backward.bias_gradient, tile, splits * kept, number, batch, piece, {"lse": lse, "delta": delta},
            db=found, along=(splits, *(s != 0 for s in part.strides)),
        )  # fmt: skip
        into = part.alias(sizes, part.strides, part.offset)
        copy_into(into, sum_(found, axis=0) + into)
    return total


# --- the same by ops: recorded when the gradient itself is differentiated ---------------------------------------------
def _backward_formula(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, setting: Setting
) -> tuple[Tensor, ...]:
    """The gradients of q, k, v and bias from the whole matrix of probabilities."""
    compute, heads, kv_heads = q.dtype.accumulator, q.shape[-3], v.shape[-3]
    g, q, k, v = (to_dtype(x, compute) for x in (g, q, k, v))
    grouped = [reshape(x, (*x.shape[:-3], kv_heads, heads // max(1, kv_heads), *x.shape[-2:])) for x in (g, q)]
    (g, q), (k, v) = grouped, (unsqueeze(x, -3) for x in (k, v))
    scores = matmul(q, transpose(k, -1, -2)) * setting.scale
    probabilities, factors = _probabilities(_ungrouped(scores), mask, bias, setting)
    probabilities = reshape(probabilities, scores.shape)
    dropped = matmul(g, transpose(v, -1, -2))
    seen = probabilities
    if factors is not None:
        factors = reshape(factors, scores.shape)
        dropped, seen = dropped * factors, probabilities * factors
    ds = probabilities * (dropped - sum_(probabilities * dropped, axis=-1, keepdims=True))
    dq = matmul(ds, k) * setting.scale
    dk = sum_(matmul(transpose(ds, -1, -2), q), axis=-3) * setting.scale
    dv = sum_(matmul(transpose(seen, -1, -2), g), axis=-3)
    return _ungrouped(dq), dk, dv, _ungrouped(ds)


def _ungrouped(x: Tensor) -> Tensor:
    return reshape(x, (*x.shape[:-4], x.shape[-4] * x.shape[-3], *x.shape[-2:]))


def _probabilities(
    scores: Tensor, mask: Tensor | None, bias: Tensor | None, setting: Setting
) -> tuple[Tensor, Tensor | None]:
    """softmax(scores + bias) where allowed, else 0, without a NaN in rows that see nothing; and dropout's factors."""
    m, n = scores.shape[-2:]
    column = arange(n, device=scores.device)
    allowed = less_equal(column, unsqueeze(arange(m, device=scores.device), 1) + setting.diagonal)
    if mask is not None:
        allowed = logical_and(allowed, mask)
    if bias is not None:
        scores = scores + bias
        allowed = logical_and(allowed, greater(bias, float("-inf")))
    empty = where(any_(allowed, axis=-1, keepdims=True), float("-inf"), 0.0)
    probabilities = where(allowed, softmax(where(allowed, scores, empty), axis=-1), 0.0)
    return probabilities, dropout_factors(scores, setting) if setting.dropout else None


def dropout_factors(scores: Tensor, setting: Setting) -> Tensor:
    """What the kernels multiply probabilities by, as a tensor: 0 or 1 / (1 − p)."""
    y = new(scores.device, scores.dtype.accumulator, scores.shape)
    if y.numel:
        rows, n = y.numel // y.shape[-1], y.shape[-1]
        dropout = (*setting.numbers[1:], setting.seed, setting.offset)
        arguments = programs.DROPOUT_FACTORS.pack(y=y, rows=rows, n=n, dropout=dropout)
        blocks = spread(y.device.backend, rows * -(-n // 4))
        run(y.device, programs.dropout_factors_program, (y.dtype,), arguments, blocks)
    return y


# --- the op -----------------------------------------------------------------------------------------------------------
_CORNERS = {False: None, True: "upper_left", "upper_left": "upper_left", "lower_right": "lower_right"}


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> None:
    shapes = f"q: {q.shape}, k: {k.shape}, v: {v.shape}"
    if any(x.ndim < 3 for x in (q, k, v)):
        raise ShapeError(f"attention: needs (…, heads, length, size), got {shapes}")
    heads, kv_heads = q.shape[-3], k.shape[-3]
    rules = {
        "q.shape[-1] must equal k.shape[-1]": q.shape[-1] == k.shape[-1],
        "k.shape[-2] must equal v.shape[-2]": k.shape[-2] == v.shape[-2],
        "k and v must have the same heads": k.shape[-3] == v.shape[-3],
        "the heads of k must divide those of q": not heads or (kv_heads > 0 and heads % kv_heads == 0),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ShapeError(f"attention: {rule} ({shapes})")
    for name, x in (("q", q), ("k", k), ("v", v), ("bias", bias)):
        if x is not None and not x.dtype.is_floating:
            raise DTypeError(f"attention: {name} must be floating, got {x.dtype.name}")
    if mask is not None and mask.dtype is not bool_:
        raise DTypeError(f"attention: mask must be bool (True: may be seen), got {mask.dtype.name}; to add use bias=")
    batch = broadcast([x.shape[:-3] for x in (q, k, v)], "attention")
    full = (*batch, q.shape[-3], q.shape[-2], k.shape[-2])
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and broadcast([x.shape, full], f"attention, {name}") != full:
            raise ShapeError(f"attention: {name}.shape={x.shape} must broadcast to {full} ({shapes})")


def _reference(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, causal: Any = False, scale: float | None = None
) -> Any:
    k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    m, n = q.shape[-2], k.shape[-2]
    scores = q @ k.swapaxes(-1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    scores = scores + (0 if bias is None else bias)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    if causal:
        scores = np.where(np.tri(m, n, n - m if causal == "lower_right" else 0, dtype=bool), scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-1e300)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total, total, 1) @ v


_EDGE = np.where(np.arange(40) < 33, 0.0, -np.inf)  # the tail is padding
_CASES = [
    case((2, 3, 4), (2, 5, 4), (2, 5, 6)),
    case((2, 4, 3, 4), (1, 2, 5, 4), (2, 2, 5, 3), causal=True),
    case((1, 2, 5, 4), (1, 2, 3, 4), (1, 2, 3, 4), causal="lower_right", scale=0.7),
    case((2, 2, 3, 4), (2, 1, 5, 4), (2, 1, 5, 4), Booleans((2, 1, 1, 5)), (2, 3, 1)),
    case((1, 37, 2), (1, 40, 2), (1, 40, 1), None, _EDGE),
    case((2, 3, 2, 2, 3), (2, 3, 1, 4, 3), (2, 3, 1, 4, 2), Booleans((2, 1, 1, 2, 4)), (3, 2, 1, 1), causal=True),
    case((2, 1, 4), (2, 0, 4), (2, 0, 4)), case((2, 0, 4), (2, 3, 4), (2, 3, 4)), case((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    case(Floats((1, 3, 4), -40, 40), Floats((1, 5, 4), -40, 40), (1, 5, 4)),
]  # fmt: skip


@composite(
    _reference, _CASES, ulps=64, method=False,
    example=lambda q, k, v, mask=None, bias=None, **keywords: attention(q, k, v, mask, bias=bias, **keywords),
)  # fmt: skip
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool | str = False,
    bias: Tensor | None = None, scale: float | None = None, dropout: float = 0.0, generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scale·q·kᵀ + bias)·v: q (…, heads, S, d), k (…, kv_heads, T, d), v (…, kv_heads, T, e) → (…, heads, S, e)

    Each group of heads / kv_heads neighbours shares a head of k and v. mask: bool, True where a query may see a key;
    bias is added to the logits; both broadcast to (…, heads, S, T). causal: query i sees the keys j ≤ i ("upper_left",
    as True) or j ≤ i + T − S ("lower_right": the queries are the last of the keys, as with a cache). A row that sees no
    key gives 0. scale: 1/√d unless given. dropout: the probability with which each weight becomes 0, the others grow.
    Memory is O(S + T), forward and backward; the gradient of the bias has its size, that of a gradient S·T.
    Raises ShapeError, DTypeError or ConfigError. (Dao, Fu, Ermon, Rudra and Ré 2022)
    """
    target = cast_target("low")
    q, k, v = (x if target is None else cast_floating(x, target) for x in (q, k, v))
    _check(q, k, v, mask, bias)
    if not isinstance(causal, (bool, str)) or causal not in _CORNERS:
        raise ConfigError(f'attention: causal must be a bool, "upper_left" or "lower_right", got {causal!r}')
    if not 0 <= dropout < 1:
        raise ConfigError(f"attention: dropout must be in 0 ≤ p < 1, got {dropout}")
    dtype: DType = promote(promote(q.dtype, k.dtype), v.dtype)
    q, k, v = (to_dtype(x, dtype) for x in (q, k, v))
    m, n = q.shape[-2], k.shape[-2]
    diagonal = {None: n, "upper_left": 0, "lower_right": n - m}[_CORNERS[causal]]
    factor = 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(scale)
    seed = offset = 0
    if dropout:
        rows = numel(broadcast([x.shape[:-3] for x in (q, k, v)], "attention")) * q.shape[-3] * m
        seed, offset = _taken(generator, rows * -(-n // 4))
    return _attend(q, k, v, mask, bias, Setting(diagonal, factor, float(dropout), seed, offset))


scaled_dot_product_attention = attention

__all__ = ["attention", "scaled_dot_product_attention"]
