"""Bits: and, or, xor, not and shifts of integers and truth values; sign and neighbours of floating numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import dtypes
from ...dtypes import DType, bool_
from ...errors import DTypeError
from ...kernels.elementwise import formula as f
from ...shapes import broadcast
from ...tensor import Tensor, new
from ..core.formula_op import Elementwise, elementwise
from ..core.kernel_op import primitive
from ..core.launch import same_device
from ..core.table import Floats, case

_BITS = (*dtypes.INTEGERS, bool_)
_DISCRETE = "its operands are integers or truth values"


@elementwise(np.bitwise_and, accepts=_BITS, non_differentiable=_DISCRETE)
def bitwise_and(x, y):
    """x & y, bit by bit; of truth values: both."""
    return f.bit_and(x, y)


@elementwise(np.bitwise_or, accepts=_BITS, non_differentiable=_DISCRETE)
def bitwise_or(x, y):
    """x | y, bit by bit; of truth values: one of them, or both."""
    return f.bit_or(x, y)


@elementwise(np.bitwise_xor, accepts=_BITS, non_differentiable=_DISCRETE)
def bitwise_xor(x, y):
    """x ^ y, bit by bit; of truth values: one of them alone."""
    return f.bit_xor(x, y)


@elementwise(np.bitwise_not, accepts=_BITS, non_differentiable=_DISCRETE)
def bitwise_invert(x):
    """~x: every bit the other way; of truth values: not."""
    return f.invert(x)


@elementwise(np.left_shift, accepts=dtypes.INTEGERS, non_differentiable=_DISCRETE)
def bitwise_left_shift(x, y):
    """x · 2ʸ, wrapped to the dtype; 0 where y is negative, or at least the number of bits."""
    return f.shl(x, y)


@elementwise(np.right_shift, accepts=dtypes.INTEGERS, non_differentiable=_DISCRETE)
def bitwise_right_shift(x, y):
    """⌊x / 2ʸ⌋; where y is negative, or at least the number of bits: 0, or −1 for negative x."""
    return f.shr(x, y)


OPERATORS = {
    "and": bitwise_and,
    "or": bitwise_or,
    "xor": bitwise_xor,
    "lshift": bitwise_left_shift,
    "rshift": bitwise_right_shift,
    "invert": bitwise_invert,
}


# --- the bits of floating numbers -----------------------------------------------------------------------------------
def _bits(x: Tensor) -> Tensor:
    """The same memory, read as signed integers of the same size."""
    alias = x.detach()
    alias.dtype = {2: dtypes.int16, 4: dtypes.int32, 8: dtypes.int64}[x.dtype.itemsize]
    return alias


def _run_on_bits(op: Elementwise, x: Any, y: Any, result: DType, *constants: int) -> Tensor:
    """A formula on the bits of two tensors or numbers, promoted to one floating dtype; its result as `result`."""
    tensors = [v for v in (x, y) if isinstance(v, Tensor)]
    if not tensors:
        raise DTypeError(f"{op.name}: needs at least one tensor")
    device = same_device(tensors, op.name)
    common = tensors[0].dtype if len(tensors) == 1 else dtypes.promote(tensors[0].dtype, tensors[1].dtype)
    if not common.is_floating:
        raise DTypeError(f"{op.name}: not defined for {common.name}")
    operands = [_bits(_as(v, common, device)) for v in (x, y)]
    out = new(device, result, broadcast([v.shape for v in operands], op.name))
    into = _bits(out) if result.is_floating else out
    op._kernel([*operands, *constants], (into.dtype,), dtypes.int64, into=[into])
    return out


def _as(value: Any, dtype: DType, device: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.dtype is dtype else value.detach().to_dtype(dtype)
    from ..shape.creation import full

    return full((), float(value), dtype=dtype, device=device)


def _neighbour(x: Any, y: Any, lowest: Any, infinity: Any, nan: Any) -> Any:
    # sign and magnitude → numbers in the order of the values: −0 and +0 are both 0, the next ones are ±1
    a, b = (f.where(v >= 0, v, lowest - v) for v in (x, y))
    up = a + f.where(b > a, 1, -1)
    back = f.where(up > 0, up, f.where(up < 0, lowest - up, f.where(a < 0, lowest, 0)))
    strange = f.logical_or(f.apply("abs", a) > infinity, f.apply("abs", b) > infinity)
    return f.where(strange, nan, f.where(f.equal(a, b), y, back))


def _formula(name: str, function: Any, *names: str) -> Elementwise:
    return Elementwise(name, names, f.trace(function, names), accepts=_BITS)


_NEXTAFTER = _formula("nextafter", _neighbour, "x", "y", "lowest", "infinity", "nan")


def _nextafter_reference(x: Any, y: Any) -> Any:
    return np.nextafter(x, y)  # in the tested dtype: see `nextafter`'s cases


_VALUES = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 1e308, 2.5], np.float64)


@primitive(
    _nextafter_reference, [case(_VALUES, _VALUES[::-1].copy()), case(_VALUES[:, None], _VALUES)], ulps=0,
    test_dtypes=(dtypes.float64,), non_differentiable="it moves by one unit in the last place",
)  # fmt: skip
def nextafter(x: Tensor | float, y: Tensor | float) -> Tensor:
    """The next number after x towards y in their common floating dtype; y where they are equal, NaN if either is.

    Exact in every dtype: it counts on the bits. Raises DTypeError unless the operands are floating.
    """
    tensors = [v.dtype for v in (x, y) if isinstance(v, Tensor)]
    common = dtypes.promote(tensors[0], tensors[-1]) if tensors else dtypes.float32
    half = 1 << (8 * common.itemsize - 1)
    infinity = _bit_pattern(common, np.inf)
    return _run_on_bits(_NEXTAFTER, x, y, common, -half, infinity, _bit_pattern(common, np.nan) & (half - 1))


def _bit_pattern(dtype: DType, value: float) -> int:
    number = np.array(value, dtype.numpy) if dtype.is_floating else np.zeros((), dtype.numpy)
    return int(number.view(f"i{dtype.itemsize}"))


_SIGNBIT = _formula("signbit", lambda x, y: x < 0, "x", "y")


@primitive(
    np.signbit, [case(_VALUES), case((3, 4)), case(()), case((0,)), case(Floats((5,), -1.0, 0.0))], ulps=0,
    non_differentiable="its result is a truth value",
)  # fmt: skip
def signbit(x: Tensor) -> Tensor:
    """Whether the sign bit is set: below 0, −0, and a NaN that carries a minus. Raises DTypeError unless floating."""
    return _run_on_bits(_SIGNBIT, x, x, bool_)


__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "nextafter",
    "signbit",
]
