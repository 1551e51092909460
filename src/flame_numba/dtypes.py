"""Element types: what is stored, what it is computed in, and how two of them combine.

f16 and bf16 are stored in two bytes and computed in f32; every other type is computed in itself
(integers in 64 bits, wrapped on store).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from .errors import DTypeError

Kind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True, eq=False)
class DType:
    """An element type. There is exactly one object of each, so `is` and `==` agree."""

    name: str
    kind: Kind
    itemsize: int
    numpy: np.dtype[Any]

    @property
    def is_floating(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def accumulator(self) -> DType:
        """The type that sums and products of this one are kept in."""
        if self.kind == "float":
            return float64 if self.itemsize == 8 else float32
        return uint64 if self.kind == "uint" else int64

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger number; 0 for types without fractions."""
        return float(ml_dtypes.finfo(self.numpy).eps) if self.is_floating else 0.0

    def __repr__(self) -> str:
        return f"flame_numba.{self.name}"

    def __reduce__(self) -> str:
        return "bool_" if self.kind == "bool" else self.name  # its name here: one object each, also after pickling


def _dtype(name: str, kind: Kind) -> DType:
    numpy = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return DType(name, kind, numpy.itemsize, numpy)


float16 = _dtype("float16", "float")
bfloat16 = _dtype("bfloat16", "float")
float32 = _dtype("float32", "float")
float64 = _dtype("float64", "float")
int8 = _dtype("int8", "int")
int16 = _dtype("int16", "int")
int32 = _dtype("int32", "int")
int64 = _dtype("int64", "int")
uint8 = _dtype("uint8", "uint")
uint16 = _dtype("uint16", "uint")
uint32 = _dtype("uint32", "uint")
uint64 = _dtype("uint64", "uint")
bool_ = _dtype("bool", "bool")

FLOATS = (float16, bfloat16, float32, float64)
SIGNED = (int8, int16, int32, int64)
UNSIGNED = (uint8, uint16, uint32, uint64)
INTEGERS = SIGNED + UNSIGNED
ALL = FLOATS + INTEGERS + (bool_,)

default_float = float32
default_int = int64

_BY_NUMPY = {d.numpy: d for d in ALL}
BY_NAME = {d.name: d for d in ALL}


def as_dtype(value: Any) -> DType:
    """DType of a DType, a NumPy dtype or scalar type, a name, or Python's bool, int, float.

    Raises DTypeError for anything else (complex, object, string, None …).
    """
    if isinstance(value, DType):
        return value
    if value is float:
        return default_float
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    try:
        return _BY_NUMPY[np.dtype(value if value is not None else object)]  # NumPy's dtype of None is float64
    except (TypeError, ValueError, KeyError):  # ValueError: of something whose own `dtype` is not NumPy's
        names = ", ".join(d.name for d in ALL)
        raise DTypeError(f"dtype: {value!r} is not one of {names}") from None


def promote(a: DType, b: DType) -> DType:
    """The common type of two tensors' dtypes, by the Array API's table, and beyond it:

    f16 with bf16 gives f32; bool gives way to the other; an integer gives way to a floating type.
    Raises DTypeError for uint64 with a signed integer, which no type can hold.
    """
    if a is b or b.kind == "bool":
        return a
    if a.kind == "bool":
        return b
    if a.is_floating or b.is_floating:
        if not b.is_floating:
            return a
        if not a.is_floating:
            return b
        if a.itemsize == b.itemsize:
            return float32  # f16 with bf16: neither holds the other
        return a if a.itemsize > b.itemsize else b
    if a.kind == b.kind:
        return a if a.itemsize > b.itemsize else b
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    if unsigned is uint64:
        raise DTypeError(f"promote: {a.name} with {b.name} has no common integer type; cast one with to_dtype")
    if signed.itemsize > unsigned.itemsize:
        return signed
    return {1: int16, 2: int32, 4: int64}[unsigned.itemsize]


def promote_scalar(dtype: DType, value: bool | int | float) -> DType:
    """The type of `tensor ⊕ Python scalar`: the tensor's, unless only the scalar is a float or an int."""
    if isinstance(value, bool):
        return dtype
    if isinstance(value, int):
        return default_int if dtype.kind == "bool" else dtype
    return dtype if dtype.is_floating else default_float
