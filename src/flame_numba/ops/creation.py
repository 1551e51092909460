"""New tensors from values: zeros, ones, full, arange, linspace, eye, asarray."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from ..devices import Device, current_device
from ..dtypes import DType, as_dtype, bool_, default_float, default_int
from ..errors import ShapeError
from ..kernels.index import iota_program
from ..shapes import as_shape
from ..tensor import Tensor, new
from .launch import run, spread
from .movement import fill_, stack


def _place(device: Device | str | None) -> Device:
    return current_device() if device is None else Device.parse(device)


def full(shape: Any, value: Any, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of `shape` with every element `value`; the dtype follows the value unless given."""
    if dtype is None:
        kind = bool_ if isinstance(value, bool) else default_int if isinstance(value, int) else default_float
    else:
        kind = as_dtype(dtype)
    return fill_(new(_place(device), kind, as_shape(shape)), value)


def zeros(shape: Any, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of zeros, float32 by default."""
    return full(shape, 0, dtype=dtype or default_float, device=device)


def ones(shape: Any, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of ones, float32 by default."""
    return full(shape, 1, dtype=dtype or default_float, device=device)


def empty(shape: Any, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """An uninitialised tensor, float32 by default."""
    return Tensor.empty(shape, dtype=dtype, device=device)


def full_like(x: Tensor, value: Any, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of x's shape, dtype and device with every element `value`."""
    return full(x.shape, value, dtype=dtype or x.dtype, device=device or x.device)


def zeros_like(x: Tensor, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """Zeros of x's shape, dtype and device."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Tensor, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """Ones of x's shape, dtype and device."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Tensor, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """An uninitialised tensor of x's shape, dtype and device."""
    return Tensor.empty(x.shape, dtype=dtype or x.dtype, device=device or x.device)


def _ramp(start: float, step: float, n: int, dtype: DType, device: Device | str | None) -> Tensor:
    y = new(_place(device), dtype, (n,))
    if n:
        number = float if dtype.is_floating else int
        run(y.device, iota_program, (dtype,), (y, number(start), number(step), n), spread(y.device.backend, n))
    return y


def arange(
    start: float, stop: float | None = None, step: float = 1, *, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """start, start + step, … below stop; arange(n) counts from 0. int64 for ints, else float32, unless given."""
    first, last = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ShapeError("arange: step must not be 0")
    whole = all(isinstance(v, int) for v in (first, last, step))
    kind = as_dtype(dtype) if dtype is not None else default_int if whole else default_float
    return _ramp(first, step, max(0, ceil((last - first) / step)), kind, device)


def linspace(
    start: float, stop: float, num: int, *, endpoint: bool = True, dtype: Any = None,
    device: Device | str | None = None,
) -> Tensor:  # fmt: skip
    """`num` evenly spaced numbers from start to stop (included, unless endpoint=False)."""
    if num < 0:
        raise ShapeError(f"linspace: num must be ≥ 0, got {num}")
    kind = as_dtype(dtype) if dtype is not None else default_float
    intervals = num - 1 if endpoint else num
    y = _ramp(start, (stop - start) / intervals if intervals else 0, num, kind, device)
    if endpoint and num > 1:
        fill_(y.alias((1,), (1,), num - 1), stop)  # exactly, not by rounding
    return y


def eye(
    rows: int, columns: int | None = None, *, k: int = 0, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere."""
    n = rows if columns is None else columns
    i = arange(rows, device=device).reshape((rows, 1)) + k
    return (i == arange(n, device=device)).to_dtype(dtype or default_float)


def asarray(
    value: Any,
    *,
    dtype: Any = None,
    device: Device | str | None = None,
    copy: bool | None = None,
    non_blocking: bool = False,
) -> Tensor:
    """A tensor from a tensor, a NumPy array, or nested lists of numbers.

    Python floats give float32, ints int64, bools bool; NumPy arrays keep their dtype, unless one is given.
    A tensor is returned as it is where dtype and device fit and copy is not True. `non_blocking`: a page-locked
    array may be copied later, on the current stream; see `Tensor.from_numpy`.
    """
    if isinstance(value, Tensor):
        result = value if device is None else value.to_device(device)
        result = result if dtype is None or result.dtype is as_dtype(dtype) else result.to_dtype(dtype)
        return result.clone() if copy and result.storage is value.storage else result
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        return asarray(stack([asarray(v) for v in value]), dtype=dtype, device=device)
    host = np.asarray(value)
    if host.dtype == np.float64 and not isinstance(value, (np.ndarray, np.generic)):
        host = host.astype(np.float32)
    result = Tensor.from_numpy(host, device, non_blocking)
    return result if dtype is None or result.dtype is as_dtype(dtype) else result.to_dtype(dtype)


tensor = asarray


__all__ = [
    "arange",
    "asarray",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
]
