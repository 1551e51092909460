"""Copies, casts and fills as plain functions, outside the graph: what every other file of the ops may use."""

from __future__ import annotations

from typing import Any

from ...dtypes import DType
from ...kernels.elementwise import formula
from ...tensor import Tensor, expanded
from .launch import MapKernel, check_element

_COPY = MapKernel("copy", ["x0"], [formula.variable("x0")])
_FILL = MapKernel("fill", ["x0"], [formula.variable("x0")])


def _compute(dtype: DType) -> DType:
    return dtype if dtype.kind == "bool" else dtype.accumulator


def copied(x: Tensor, dtype: DType | None = None) -> Tensor:
    """A contiguous copy, outside the graph."""
    return _COPY([x], (dtype or x.dtype,), _compute(x.dtype))[0]


def copy_into(target: Tensor, source: Tensor) -> None:
    """target[…] = source, broadcast and cast, outside the graph."""
    _COPY([expanded(source, target.shape)], (target.dtype,), _compute(source.dtype), into=[target])


def fill_(target: Tensor, value: Any, op: str = "fill_") -> Tensor:
    """Set every element in place; returns the tensor. Not recorded. op: what an error names."""
    _FILL([check_element(value, target.dtype, op)], (target.dtype,), _compute(target.dtype), into=[target])
    return target
