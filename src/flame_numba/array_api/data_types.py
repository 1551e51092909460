"""What the standard asks of dtypes: limits, kinds, casting rules, promotion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..devices import Device
from ..dtypes import DType, as_dtype, promote, promote_scalar
from ..errors import DTypeError
from ..tensor import Tensor

_KINDS = {
    "bool": ("bool",),
    "signed integer": ("int",),
    "unsigned integer": ("uint",),
    "integral": ("int", "uint"),
    "real floating": ("float",),
    "complex floating": (),
    "numeric": ("int", "uint", "float"),
}


@dataclass(frozen=True)
class FloatLimits:
    """What `finfo` says."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class IntegerLimits:
    """What `iinfo` says."""

    bits: int
    max: int
    min: int
    dtype: DType


def _dtype_of(value: Any) -> DType:
    return value.dtype if isinstance(value, Tensor) else as_dtype(value)


def finfo(type: Any, /) -> FloatLimits:
    """Limits of a floating dtype, or of a tensor's. Raises DTypeError for another."""
    dtype = _dtype_of(type)
    if not dtype.is_floating:
        raise DTypeError(f"finfo: {dtype.name} is not a floating dtype")
    known = ml_dtypes.finfo(dtype.numpy)
    bits = 8 * dtype.itemsize
    return FloatLimits(bits, dtype.eps, float(known.max), float(known.min), float(known.smallest_normal), dtype)


def iinfo(type: Any, /) -> IntegerLimits:
    """Limits of an integer dtype, or of a tensor's. Raises DTypeError for another."""
    dtype = _dtype_of(type)
    if not dtype.is_integer:
        raise DTypeError(f"iinfo: {dtype.name} is not an integer dtype")
    known = np.iinfo(dtype.numpy)
    return IntegerLimits(8 * dtype.itemsize, int(known.max), int(known.min), dtype)


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether a dtype is of a kind: another dtype, a name such as "real floating", or one of a tuple of them.

    Raises DTypeError for what is no dtype, also for a tensor: ask for `x.dtype`.
    """
    if isinstance(dtype, Tensor):
        raise DTypeError(f"isdtype: expected a dtype, got a tensor; ask for its dtype, {dtype.dtype.name}")
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise DTypeError(f"isdtype: {kind!r} is not one of {', '.join(_KINDS)}")
        return as_dtype(dtype).kind in _KINDS[kind]
    return as_dtype(dtype) is as_dtype(kind)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether promotion leads from one dtype (or a tensor's) to the other, within a kind; bool to itself only."""
    source, target = _dtype_of(from_), as_dtype(to)
    if source.is_floating != target.is_floating or source.is_integer != target.is_integer:
        return False
    try:
        return promote(source, target) is target
    except DTypeError:
        return False


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype that an op on these tensors, dtypes and Python numbers has. Raises DTypeError if there is none."""
    numbers = [v for v in arrays_and_dtypes if isinstance(v, (bool, int, float, complex))]
    found: DType | None = None
    for value in arrays_and_dtypes:
        if not isinstance(value, (bool, int, float, complex)):
            dtype = _dtype_of(value)
            found = dtype if found is None else promote(found, dtype)
    if found is None:
        raise DTypeError("result_type: needs at least one tensor or dtype")
    for number in numbers:
        if isinstance(number, complex):
            raise DTypeError("result_type: there are no complex dtypes")
        found = promote_scalar(found, number)
    return found


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True, device: Device | str | None = None) -> Tensor:
    """The values in another dtype; a copy, unless copy=False and dtype and device are the tensor's own."""
    if not isinstance(x, Tensor):
        raise DTypeError(f"astype: x must be a tensor, got {type(x).__name__}; see asarray()")
    target, place = as_dtype(dtype), x.device if device is None else Device.parse(device)
    if x.dtype is target and x.device == place:
        return x.clone() if copy else x
    result: Tensor = x.to_device(place).to_dtype(target)
    return result


__all__ = ["astype", "can_cast", "finfo", "iinfo", "isdtype", "result_type"]
