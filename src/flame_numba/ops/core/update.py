"""Fused updates in place: one kernel that reads and rewrites several tensors, for optimizers and the like."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ...dtypes import float32, float64
from ...errors import ShapeError
from ...kernels.elementwise import formula
from ...tensor import Tensor
from .launch import MapKernel, check_number, same_device
from .mutation import check_target


class Update:
    """`update(a, b, …, numbers)`: assign the formulas' results to the first operands, elementwise, in one launch.

    Every operand is a tensor of one shape, or a number. Computed in f32, or f64 if an operand is f64. Not recorded.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = self.__name__ = function.__name__
        self.__doc__ = inspect.getdoc(function)
        names = tuple(inspect.signature(function).parameters)
        results = function(*map(formula.variable, names))
        exprs = tuple(map(formula.as_expr, results if isinstance(results, tuple) else (results,)))
        self._targets = len(exprs)
        self._kernel = MapKernel(self.name, names, exprs)

    def __call__(self, *operands: Any) -> None:
        tensors = [x for x in operands if isinstance(x, Tensor)]
        same_device(tensors, self.name)
        if any(x.shape != tensors[0].shape for x in tensors):
            raise ShapeError(f"{self.name}: operands must have one shape, got {[x.shape for x in tensors]}")
        compute = float64 if any(x.dtype is float64 for x in tensors) else float32
        inputs = [x if isinstance(x, Tensor) else check_number(x, compute, self.name) for x in operands]
        targets = list(operands[: self._targets])
        for target in targets:
            check_target(self.name, target)
        self._kernel(inputs, tuple(t.dtype for t in targets), compute, into=targets)


def update(function: Callable[..., Any]) -> Update:
    """Decorator: a scalar function of its operands that returns the new values of the first ones."""
    return Update(function)
