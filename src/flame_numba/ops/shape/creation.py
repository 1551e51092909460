"""New tensors from values: zeros, ones, full, arange, linspace, eye, asarray."""

from __future__ import annotations

from math import ceil, isfinite
from typing import Any

import numpy as np

from ...devices import Device, current_device
from ...dtypes import DType, as_dtype, bool_, default_float, default_int, float64
from ...errors import ConfigError, DTypeError, ShapeError, ShareError
from ...interop import adopt_array, from_cuda_array, from_dlpack
from ...kernels.index.gather import iota_program
from ...scalars import PYTHON, as_number
from ...shapes import as_int, as_shape
from ...tensor import Tensor, new
from ..core.copies import fill_
from ..core.launch import run, spread
from .joining import stack

_PYTHON = frozenset(PYTHON)


def place_of(device: Device | str | None) -> Device:
    """The device that is meant, by default the current one."""
    return current_device() if device is None else Device.parse(device)


def _is_finite(value: bool | int | float) -> bool:
    return isinstance(value, int) or isfinite(value)  # isfinite() of a long int overflows


def full(shape: Any, value: Any, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of `shape` with every element `value`; the dtype follows the value unless given.

    As for asarray: Python floats give float32, ints int64, bools bool; a tensor or a NumPy scalar brings its own dtype.
    Raises DTypeError for a number that does not fit an integer dtype.
    """
    number = as_number("full", "value", value)
    if dtype is not None:
        kind = as_dtype(dtype)
    elif isinstance(value, (Tensor, np.generic, np.ndarray)):
        kind = as_dtype(value.dtype)
    else:
        kind = bool_ if isinstance(number, bool) else default_int if isinstance(number, int) else default_float
    return fill_(new(place_of(device), kind, as_shape(shape)), number, "full")


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
    y = new(place_of(device), dtype, (n,))
    if n:
        number = float if dtype.is_floating else int
        run(y.device, iota_program, (dtype,), (y, number(start), number(step), n), spread(y.device.backend, n))
    return y


def arange(
    start: float, stop: float | None = None, step: float = 1, *, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """start, start + step, … below stop; arange(n) counts from 0. int64 for ints, else float32, unless given."""
    names = ("start", "stop", "step")
    given = (0, start, step) if stop is None else (start, stop, step)
    first, last, step = (as_number("arange", n, v) for n, v in zip(names, given, strict=True))
    if step == 0:
        raise ShapeError("arange: step must not be 0")
    if not all(map(_is_finite, (first, last, step))):
        raise ConfigError(f"arange: start={first}, stop={last} and step={step} must be finite")
    whole = all(isinstance(v, int) for v in (first, last, step))
    kind = as_dtype(dtype) if dtype is not None else default_int if whole else default_float
    # whole numbers are counted exactly; a quotient of floats holds no more than 53 bits
    count = -((first - last) // step) if whole else ceil((last - first) / step)
    return _counted(first, step, max(0, int(count)), kind, device, whole)


def _counted(
    start: float, step: float, n: int, dtype: DType, device: Device | str | None, whole: bool = False
) -> Tensor:
    """A ramp; one of fractions that is to be of integers is computed in float64 first."""
    if dtype.is_floating or (whole and dtype.is_integer):
        return _ramp(start, step, n, dtype, device)
    return _ramp(start, step, n, float64, device).to_dtype(dtype)


def linspace(
    start: float, stop: float, num: int, *, endpoint: bool = True, dtype: Any = None,
    device: Device | str | None = None,
) -> Tensor:  # fmt: skip
    """`num` evenly spaced numbers from start to stop (included, unless endpoint=False)."""
    start, stop = as_number("linspace", "start", start), as_number("linspace", "stop", stop)
    num = as_int("linspace", "num", num)
    if num < 0:
        raise ShapeError(f"linspace: num must be ≥ 0, got {num}")
    kind = as_dtype(dtype) if dtype is not None else default_float
    intervals = num - 1 if endpoint else num
    y = _counted(start, (stop - start) / intervals if intervals else 0, num, kind, device)
    if endpoint and num > 1:
        fill_(y.alias((1,), (1,), num - 1), stop)  # exactly, not by rounding
    return y


def eye(
    rows: int, columns: int | None = None, *, k: int = 0, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere."""
    rows, k = as_int("eye", "rows", rows), as_int("eye", "k", k)
    n = rows if columns is None else as_int("eye", "columns", columns)
    if rows < 0 or n < 0:
        raise ShapeError(f"eye: rows={rows} and columns={n} must be ≥ 0")
    beyond = min(max(k, -rows), n)  # further out there are no diagonals, and k may be any number
    i = arange(rows, device=device).reshape((rows, 1)) + beyond
    return (i == arange(n, device=device)).to_dtype(dtype or default_float)


def asarray(
    value: Any,
    *,
    dtype: Any = None,
    device: Device | str | None = None,
    copy: bool | None = None,
    non_blocking: bool = False,
) -> Tensor:
    """A tensor from a tensor, a NumPy array, an array of another library, or nested lists of numbers.

    Python floats give float32, ints int64, bools bool; arrays keep their dtype, unless one is given. A tensor is
    returned as it is where dtype and device fit, and memory of another library (`__dlpack__`,
    `__cuda_array_interface__`) is shared, unless copy is True; NumPy arrays and lists are copied, unless it is False:
    then an array on the CPU device is shared, and what needs a copy raises ShareError. `non_blocking`: a page-locked
    array may be copied later, on the current stream; see `Tensor.from_numpy`.
    """
    kind = None if dtype is None else as_dtype(dtype)
    if isinstance(value, Tensor):
        return _fitted(value, kind, device, copy)
    if isinstance(value, (list, tuple)) and _holds_tensor(value):
        if copy is False:
            raise ShareError("asarray: a list of tensors cannot become one tensor without a copy")
        return _fitted(stack([asarray(v) for v in value]), kind, device, None)
    if not isinstance(value, (np.ndarray, np.generic)):
        if hasattr(value, "__dlpack__"):
            return _fitted(from_dlpack(value), kind, device or _default_place(value, copy), copy)
        if hasattr(value, "__cuda_array_interface__"):
            return _fitted(from_cuda_array(value), kind, device, copy)
    return _from_host(value, kind, device, copy, non_blocking)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, Tensor)


def _default_place(value: Any, copy: bool | None) -> Device | None:
    """Host memory goes to the default device, as NumPy's does; what is on a GPU stays there."""
    on_host = int(value.__dlpack_device__()[0]) not in (2, 13)
    return current_device() if on_host and copy is not False else None


def _fitted(x: Tensor, dtype: DType | None, device: Device | str | None, copy: bool | None) -> Tensor:
    """The tensor itself where device and dtype fit, else a copy that does."""
    target = x.device if device is None else Device.parse(device)
    if copy is False and (target != x.device or dtype not in (None, x.dtype)):
        raise ShareError(f"asarray: {x.dtype.name} on {x.device} needs a copy, which copy=False forbids")
    result = x if target == x.device else x.to_device(target)
    result = result if dtype in (None, result.dtype) else result.to_dtype(dtype)
    return result.clone() if copy and result.storage is x.storage else result


def _from_host(
    value: Any, dtype: DType | None, device: Device | str | None, copy: bool | None, non_blocking: bool
) -> Tensor:
    if isinstance(value, (np.ndarray, np.generic)):
        host = np.asarray(value)
        if copy is False and isinstance(value, np.ndarray) and place_of(device).kind == "cpu":
            return _fitted(adopt_array(host), dtype, None, copy)
    else:
        host = _numbers(value, dtype)
    if copy is False:
        raise ShareError(f"asarray: a {type(value).__name__} needs a copy, which copy=False forbids")
    result = Tensor.from_numpy(host, device, non_blocking)
    return result if dtype in (None, result.dtype) else result.to_dtype(dtype)


def _numbers(value: Any, dtype: DType | None) -> Any:
    """Python numbers as a NumPy array: at once in the dtype wanted, since float32 would round what float64 holds."""
    try:
        host = np.asarray(value) if dtype is None else np.asarray(value, dtype.numpy)
    except OverflowError as error:
        raise DTypeError(f"asarray: {error}") from None
    except TypeError as error:
        raise DTypeError(f"asarray: {type(value).__name__} as {dtype.name if dtype else 'numbers'}: {error}") from None
    except ValueError as error:
        kind = ShapeError if "sequence" in str(error) else DTypeError  # rows of several lengths, or no numbers
        raise kind(f"asarray: {error}") from None
    if dtype is None and host.dtype == np.float64 and not _brings_float64(value):
        return host.astype(np.float32)
    return host


def _brings_float64(value: Any) -> bool:
    """Whether nested lists hold anything of dtype float64: of Python's floats alone they are float32 by default."""
    if not isinstance(value, (list, tuple)):
        return type(value) not in _PYTHON and np.asarray(value).dtype == np.float64
    kinds = {*map(type, value)}
    return not kinds <= _PYTHON and any(_brings_float64(v) for v in value)


__all__ = [
    "arange",
    "asarray",
    "empty",
    "empty_like",
    "eye",
    "from_cuda_array",
    "from_dlpack",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]
