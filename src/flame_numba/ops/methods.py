"""Tensor's operators, and the spellings of FLAME's documents: each one line over an op."""

from __future__ import annotations

from typing import Any

from ..grad import backward
from ..tensor import Tensor
from . import creation, elementwise, indexing, linalg, movement, random, reductions


def _reversed(op: Any) -> Any:
    return lambda self, other: op(other, self)


_OPERATORS = {
    "add": elementwise.add,
    "sub": elementwise.subtract,
    "mul": elementwise.multiply,
    "truediv": elementwise.divide,
    "floordiv": elementwise.floor_divide,
    "mod": elementwise.remainder,
    "pow": elementwise.pow,
    "matmul": linalg.matmul,
}
_COMPARISONS = {
    "lt": elementwise.less,
    "le": elementwise.less_equal,
    "gt": elementwise.greater,
    "ge": elementwise.greater_equal,
    "eq": elementwise.equal,
    "ne": elementwise.not_equal,
    "and": elementwise.logical_and,
    "or": elementwise.logical_or,
}


def _method(op: Any) -> Any:
    return lambda self, *args: op(self, *args)


for _name, _op in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _method(_op))
    setattr(Tensor, f"__r{_name}__", _reversed(_op))
for _name, _op in _COMPARISONS.items():
    setattr(Tensor, f"__{_name}__", _method(_op))
for _name, _op in {"neg": elementwise.negative, "abs": elementwise.abs, "invert": elementwise.logical_not}.items():
    setattr(Tensor, f"__{_name}__", _method(_op))


def _shape_method(op: Any) -> Any:
    """x.reshape(2, 3) as well as x.reshape((2, 3))."""

    def call(self: Tensor, *shape: Any) -> Tensor:
        return op(self, shape[0] if len(shape) == 1 else shape)

    call.__doc__ = op.__doc__
    return call


_METHODS: dict[str, Any] = {
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
    "reshape": _shape_method(movement.reshape),
    "view": _shape_method(movement.view),
    "permute": _shape_method(movement.permute),
    "broadcast_to": _shape_method(movement.broadcast_to),
    "expand": _shape_method(movement.broadcast_to),
    "split": movement.split,
    "fill_": movement.fill_,
    "ones_like": creation.ones_like,
    "zeros_like": creation.zeros_like,
    "backward": backward,
    "dropout": random.dropout,
    # FLAME's names
    "sum_dim": lambda self, dim, keep_dim=False: reductions.sum(self, axis=dim, keepdims=keep_dim),
    "mean_dim": lambda self, dim, keep_dim=False: reductions.mean(self, axis=dim, keepdims=keep_dim),
    "max_dim": lambda self, dim, keep_dim=False: reductions.max(self, axis=dim, keepdims=keep_dim),
    "add_scalar": lambda self, value: elementwise.add(self, value),
    "mul_scalar": lambda self, value: elementwise.multiply(self, value),
    "sub": lambda self, other: elementwise.subtract(self, other),
    "mul": lambda self, other: elementwise.multiply(self, other),
    "div": lambda self, other: elementwise.divide(self, other),
    "bmm": lambda self, other: linalg.matmul(self, other),
    "index_select": lambda self, dim, indices: indexing.take(self, indices, dim),
}
for _name, _op in _METHODS.items():
    setattr(Tensor, _name, _op)

for _name in ("T", "mT"):
    setattr(Tensor, _name, property(lambda self: movement.transpose(self, -1, -2), doc="The last two axes exchanged."))

for _name, _op in {
    "zeros": creation.zeros, "ones": creation.ones, "full": creation.full, "arange": creation.arange,
    "eye": creation.eye, "linspace": creation.linspace, "rand": random.rand, "randn": random.randn,
    "randint": random.randint,
}.items():  # fmt: skip
    setattr(Tensor, _name, staticmethod(_op))  # type: ignore[arg-type]
