"""Matrix products."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from ...dtypes import FLOATS, INTEGERS, DType, promote
from ...errors import ConfigError, ShapeError
from ...kernels.products.matmul import MATMUL, cuda_tile, matmul_program
from ...kernels.tile.micro import HOST_TILE
from ...shapes import broadcast, collapse, numel
from ...tensor import Tensor, expanded, new
from ..core.copies import copied, copy_into, fill_
from ..core.formula_op import Elementwise, fuse
from ..core.kernel_op import primitive
from ..core.launch import run
from ..core.table import TABLE, case, composite
from ..shape.movement import reshape, transpose


def general_matmul(y: Tensor, a: Tensor, b: Tensor, compute: DType) -> None:
    """y = a @ b for operands (batch…, m, k) and (batch…, k, n) of equal batch, by the kernel that takes any strides."""
    batch, (m, n), k = y.shape[:-2], y.shape[-2:], a.shape[-1]
    sizes, (walk_a, walk_b) = collapse(batch, [a.strides[:-2], b.strides[:-2]])
    if len(sizes) > 2:  # batches that no two strides can walk
        a, b = copied(a), copied(b)
        sizes, (walk_a, walk_b) = collapse(batch, [a.strides[:-2], b.strides[:-2]])
    lead = 2 - len(sizes)
    sizes, walk_a, walk_b = (1,) * lead + sizes, (0,) * lead + walk_a, (0,) * lead + walk_b
    tile = HOST_TILE if y.device.kind == "cpu" else cuda_tile(m, n)
    batches = numel(batch)
    blocks = batches * -(-m // tile.m) * -(-n // tile.n)
    arguments = MATMUL.pack(
        y=y, a=(a, *walk_a, *a.strides[-2:]), b=(b, *walk_b, *b.strides[-2:]), size=(batches, sizes[1], m, n, k)
    )
    run(y.device, matmul_program, (a.dtype, b.dtype, y.dtype, compute, tile), arguments, blocks, tile.threads)


def _host_view(x: Tensor) -> np.ndarray[Any, Any]:
    """A NumPy array over host memory that a tensor lives in; valid while the device's lock is held."""
    raw = (ctypes.c_char * x.storage.nbytes).from_address(x.storage.block.address)
    flat: np.ndarray[Any, Any] = np.frombuffer(raw, x.dtype.numpy)  # type: ignore[call-overload]
    return np.lib.stride_tricks.as_strided(flat[x.offset :], x.shape, [s * x.dtype.itemsize for s in x.strides])


def blas_matmul(y: Tensor, a: Tensor, b: Tensor, compute: DType) -> None:
    """The host's specialisation of `general_matmul`: NumPy's BLAS, on f32 or f64 operands."""
    a, b = (x if x.dtype is compute else copied(x, compute) for x in (a, b))
    target = y if y.dtype is compute else new(y.device, compute, y.shape)
    with y.device.backend.lock:
        np.matmul(_host_view(a), _host_view(b), out=_host_view(target))
    if target is not y:
        copy_into(y, target)


def _matrix_product_gradient(
    g: Tensor, a: Tensor, b: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    return (
        matrix_product(g, transpose(b, -1, -2)) if needs[0] else None,
        matrix_product(transpose(a, -1, -2), g) if needs[1] else None,
    )


_SHAPES = [
    case((3, 4), (4, 5)), case((2, 3, 4), (2, 4, 5)), case((2, 1, 3, 4), (5, 4, 2)), case((3, 0), (0, 2)),
    case((1, 1), (1, 1)), case((17, 67), (67, 70)),
]  # fmt: skip


@primitive(
    np.matmul, _SHAPES, gradient=_matrix_product_gradient, autocast="low", test_dtypes=FLOATS + INTEGERS, ulps=8,
    method=False,
)  # fmt: skip
def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """(…, m, k) @ (…, k, n) → (…, m, n), batches broadcast, accumulated in f32 (f64 for f64). See matmul."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: a.shape[-1]={a.shape[-1] if a.ndim else None} must equal "
            f"b.shape[-2]={b.shape[-2] if b.ndim > 1 else None} (a: {a.shape}, b: {b.shape})"
        )
    batch = broadcast([a.shape[:-2], b.shape[:-2]], "matmul")
    dtype = promote(a.dtype, b.dtype)
    y = new(a.device, dtype, (*batch, a.shape[-2], b.shape[-1]))
    if a.shape[-1] == 0 or y.numel == 0:
        return fill_(y, 0)
    a = expanded(a.detach(), batch + a.shape[-2:])
    b = expanded(b.detach(), batch + b.shape[-2:])
    compute = dtype.accumulator
    multiply = blas_matmul if y.device.kind == "cpu" and compute.is_floating else general_matmul
    multiply(y, a, b, compute)
    return y


@composite(
    np.matmul, [*_SHAPES, case((4,), (4,)), case((4,), (2, 4, 3)), case((2, 3, 4), (4,)), case((2, 3, 4), (4, 5))],
    ulps=8,
)  # fmt: skip
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product as NumPy's: vectors are rows or columns, leading axes are batches and broadcast.

    Transposed and strided operands are read as they are. Raises ShapeError if the inner sizes differ.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: needs at least one axis, got shapes {a.shape} and {b.shape}; use * for scalars")
    if a.ndim == 1:
        y = matmul(reshape(a, (1, a.shape[0])), b)
        return reshape(y, y.shape[:-1] if b.ndim == 1 else y.shape[:-2] + y.shape[-1:])
    if b.ndim == 1:
        y = matmul(a, reshape(b, (b.shape[0], 1)))
        return reshape(y, y.shape[:-1])
    if b.ndim == 2 and a.ndim > 2 and a.shape[-1] == b.shape[0]:
        # one large product instead of a batch of small ones
        flat = reshape(a, (numel(a.shape[:-1]), a.shape[-1]))
        return reshape(matrix_product(flat, b), (*a.shape[:-1], b.shape[1]))
    return matrix_product(a, b)


def _linear_reference(x: Any, w: Any, b: Any = None, activation: str | None = None) -> Any:
    y = x @ w.T + (0 if b is None else b)
    return np.maximum(y, 0) if activation == "relu" else y / (1 + np.exp(-y)) if activation == "silu" else y


@functools.cache
def _epilogue(activation: str, biased: bool) -> Elementwise:
    """Bias and activation in one kernel."""
    entry = TABLE.get(activation)
    if entry is None or entry.kind != "elementwise" or len(entry.parameters) != 1:
        raise ConfigError(f"linear: activation={activation!r} is no elementwise op of one operand")
    op = entry.op
    return fuse(lambda y, b: op(y + b)) if biased else fuse(lambda y: op(y))


@composite(
    _linear_reference,
    [
        case((3, 4), (5, 4), (5,)), case((2, 3, 4), (5, 4)), case((4,), (5, 4), (5,)),
        case((3, 4), (5, 4), (5,), activation="silu"), case((3, 4), (5, 4), activation="silu"),
    ],
    ulps=8, method=False, autocast="low",
)  # fmt: skip
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """x·weightᵀ + bias: x (…, in), weight (out, in), bias (out) → (…, out).

    activation: the name of an elementwise op, such as "gelu"; bias and activation are then one kernel.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: x.shape[-1] must equal weight.shape[1] (x: {x.shape}, weight: {weight.shape})")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear: bias.shape must be {weight.shape[:1]}, it is {bias.shape} (weight: {weight.shape})")
    if not isinstance(activation, str | None):
        raise ConfigError(f"linear: activation must be the name of an op or None, got {activation!r}")
    y = matmul(x, transpose(weight, 0, 1))
    if activation is not None:
        return _epilogue(activation, bias is not None)(*((y,) if bias is None else (y, bias)))
    return y if bias is None else y + bias


@composite(lambda x, y: np.outer(x, y), [case((3,), (4,))])
def outer(x: Tensor, y: Tensor) -> Tensor:
    """Products of every pair: (m), (n) → (m, n)."""
    if x.ndim != 1 or y.ndim != 1:
        raise ShapeError(f"outer: needs two vectors, got shapes {x.shape} and {y.shape}")
    return reshape(x, (x.shape[0], 1)) * y


@composite(np.matmul, [case((2, 3, 4), (2, 4, 5)), case((0, 3, 4), (0, 4, 5))], ulps=8)
def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Products of two batches of matrices: (n, i, k), (n, k, j) → (n, i, j). Raises ShapeError if batches differ."""
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0]:
        raise ShapeError(f"bmm: needs two batches of as many matrices, got shapes {a.shape} and {b.shape}")
    return matrix_product(a, b)


@composite(
    lambda c, a, b, beta=1, alpha=1: beta * c + alpha * (a @ b), [case((3, 5), (3, 4), (4, 5), alpha=0.5)], ulps=8
)
def addmm(c: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta·c + alpha·(a @ b), c broadcast to the product's shape. c is not read if beta is 0."""
    product = matmul(a, b)
    if broadcast([c.shape, product.shape], "addmm") != product.shape:
        raise ShapeError(f"addmm: c {c.shape} must broadcast to {product.shape}, the shape of a @ b")
    if alpha != 1:
        product = product * alpha
    return product if beta == 0 else product + (c if beta == 1 else c * beta)


@composite(np.dot, [case((4,), (4,)), case((0,), (0,))], ulps=8)
def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b of two vectors, 0-d. Raises ShapeError for anything else."""
    if a.ndim != 1 or a.shape != b.shape:
        raise ShapeError(f"dot: needs two vectors of one length, got shapes {a.shape} and {b.shape}")
    return matmul(a, b)


__all__ = ["addmm", "bmm", "dot", "linear", "matmul", "outer"]
