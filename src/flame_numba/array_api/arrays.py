"""Creation, shapes, indexing, linear algebra and sets, with the standard's signatures."""

from __future__ import annotations

from typing import Any

from ..errors import ShapeError
from ..ops import public as fn
from ..tensor import Tensor


# --- creation -----------------------------------------------------------------------------------------------------
def arange(
    start: float, /, stop: float | None = None, step: float = 1, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """`flame_numba.arange`."""
    return fn.arange(start, stop, step, dtype=dtype, device=device)


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """`flame_numba.asarray`."""
    return fn.asarray(obj, dtype=dtype, device=device, copy=copy)


def empty(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.empty`."""
    return fn.empty(shape, dtype=dtype, device=device)


def empty_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.empty_like`."""
    return fn.empty_like(x, dtype=dtype, device=device)


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.eye`."""
    return fn.eye(n_rows, n_cols, k=k, dtype=dtype, device=device)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """`flame_numba.from_dlpack`."""
    return fn.from_dlpack(x, device=device, copy=copy)


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.full`."""
    return fn.full(shape, fill_value, dtype=dtype, device=device)


def full_like(x: Tensor, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.full_like`."""
    return fn.full_like(x, fill_value, dtype=dtype, device=device)


def linspace(
    start: float, stop: float, /, num: int, *, dtype: Any = None, device: Any = None, endpoint: bool = True
) -> Tensor:
    """`flame_numba.linspace`."""
    return fn.linspace(start, stop, num, endpoint=endpoint, dtype=dtype, device=device)


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> list[Tensor]:
    """`flame_numba.meshgrid`, as a list."""
    return list(fn.meshgrid(*arrays, indexing=indexing))


def ones(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.ones`."""
    return fn.ones(shape, dtype=dtype, device=device)


def ones_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.ones_like`."""
    return fn.ones_like(x, dtype=dtype, device=device)


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """`flame_numba.tril`."""
    return fn.tril(x, k)


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """`flame_numba.triu`."""
    return fn.triu(x, k)


def zeros(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.zeros`."""
    return fn.zeros(shape, dtype=dtype, device=device)


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`flame_numba.zeros_like`."""
    return fn.zeros_like(x, dtype=dtype, device=device)


# --- shapes -------------------------------------------------------------------------------------------------------
def broadcast_arrays(*arrays: Tensor) -> list[Tensor]:
    """`flame_numba.broadcast_tensors`, as a list."""
    return list(fn.broadcast_tensors(*arrays))


def broadcast_to(x: Tensor, /, shape: Any) -> Tensor:
    """`flame_numba.broadcast_to`."""
    return fn.broadcast_to(x, shape)


def concat(arrays: Any, /, *, axis: int | None = 0) -> Tensor:
    """`flame_numba.concat`; with axis=None, of the flattened arrays."""
    if axis is None:
        return fn.concat([fn.reshape(x, (-1,)) for x in arrays])
    return fn.concat(arrays, axis)


def expand_dims(x: Tensor, /, axis: int) -> Tensor:
    """`flame_numba.unsqueeze`."""
    return fn.unsqueeze(x, axis)


def flip(x: Tensor, /, *, axis: Any = None) -> Tensor:
    """`flame_numba.flip`."""
    return fn.flip(x, axis)


def moveaxis(x: Tensor, source: Any, destination: Any, /) -> Tensor:
    """`flame_numba.moveaxis`."""
    return fn.moveaxis(x, source, destination)


def permute_dims(x: Tensor, /, axes: tuple[int, ...]) -> Tensor:
    """`flame_numba.permute`."""
    return fn.permute(x, axes)


def repeat(x: Tensor, repeats: Any, /, *, axis: int | None = None) -> Tensor:
    """`flame_numba.repeat`."""
    return fn.repeat(x, repeats, axis)


def reshape(x: Tensor, /, shape: Any, *, copy: bool | None = None) -> Tensor:
    """`flame_numba.reshape`; copy=False: `flame_numba.view`, which raises ShapeError where a copy is needed."""
    if copy is False:
        return fn.view(x, shape)
    result = fn.reshape(x, shape)
    return result.clone() if copy and result.storage is x.storage else result


def roll(x: Tensor, /, shift: Any, *, axis: Any = None) -> Tensor:
    """`flame_numba.roll`."""
    return fn.roll(x, shift, axis)


def squeeze(x: Tensor, /, axis: Any) -> Tensor:
    """`flame_numba.squeeze`."""
    return fn.squeeze(x, axis)


def stack(arrays: Any, /, *, axis: int = 0) -> Tensor:
    """`flame_numba.stack`."""
    return fn.stack(arrays, axis)


def tile(x: Tensor, repetitions: tuple[int, ...], /) -> Tensor:
    """`flame_numba.tile`."""
    return fn.tile(x, repetitions)


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """`flame_numba.unstack`."""
    return tuple(fn.unstack(x, axis))


# --- indexing and searching ---------------------------------------------------------------------------------------
def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """`flame_numba.take`; the axis may be left out of a 1-d tensor only."""
    if axis is None:
        if x.ndim != 1:
            raise ShapeError(f"take: axis must be given for a tensor of {x.ndim} dimensions")
        axis = 0
    return fn.take(x, indices, axis)


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """`flame_numba.take_along_axis`."""
    return fn.take_along_axis(x, indices, axis)


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.argmax`."""
    return fn.argmax(x, axis=axis, keepdims=keepdims)


def argmin(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """`flame_numba.argmin`."""
    return fn.argmin(x, axis=axis, keepdims=keepdims)


def argsort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """`flame_numba.argsort`."""
    return fn.argsort(x, axis=axis, descending=descending, stable=stable)


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """`flame_numba.sort`."""
    return fn.sort(x, axis=axis, descending=descending, stable=stable)


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """`flame_numba.nonzero`."""
    return fn.nonzero(x)


def searchsorted(x1: Tensor, x2: Any, /, *, side: str = "left", sorter: Tensor | None = None) -> Tensor:
    """`flame_numba.searchsorted`."""
    return fn.searchsorted(x1, x2, side=side, sorter=sorter)


def unique_all(x: Tensor, /) -> Any:
    """`flame_numba.unique_all`."""
    return fn.unique_all(x)


def unique_counts(x: Tensor, /) -> Any:
    """`flame_numba.unique_counts`."""
    return fn.unique_counts(x)


def unique_inverse(x: Tensor, /) -> Any:
    """`flame_numba.unique_inverse`."""
    return fn.unique_inverse(x)


def unique_values(x: Tensor, /) -> Tensor:
    """`flame_numba.unique_values`."""
    return fn.unique_values(x)


# --- linear algebra -----------------------------------------------------------------------------------------------
def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """`flame_numba.matmul`."""
    return fn.matmul(x1, x2)


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two axes exchanged, as a view."""
    return fn.transpose(x, -1, -2)


def tensordot(x1: Tensor, x2: Tensor, /, *, axes: Any = 2) -> Tensor:
    """`flame_numba.tensordot`."""
    return fn.tensordot(x1, x2, axes)


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """`flame_numba.vecdot`."""
    return fn.vecdot(x1, x2, axis)


__all__ = [
    "arange", "argmax", "argmin", "argsort", "asarray", "broadcast_arrays", "broadcast_to", "concat", "empty",
    "empty_like", "expand_dims", "eye", "flip", "from_dlpack", "full", "full_like", "linspace", "matmul",
    "matrix_transpose", "meshgrid", "moveaxis", "nonzero", "ones", "ones_like", "permute_dims", "repeat", "reshape",
    "roll", "searchsorted", "sort", "squeeze", "stack", "take", "take_along_axis", "tensordot", "tile", "tril", "triu",
    "unique_all", "unique_counts", "unique_inverse", "unique_values", "unstack", "vecdot", "zeros", "zeros_like",
]  # fmt: skip
