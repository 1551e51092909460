"""Tensor's operators, and methods that no entry installs: each one line over an op."""

from __future__ import annotations

from typing import Any

from ..grad import backward
from ..tensor import Tensor
from . import bitwise, closeness, creation, elementwise, inplace, keys, linalg, movement, random


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
    **{name: op for name, op in bitwise.OPERATORS.items() if name != "invert"},
}
_UNREVERSED = {
    "lt": elementwise.less,
    "le": elementwise.less_equal,
    "gt": elementwise.greater,
    "ge": elementwise.greater_equal,
    "eq": elementwise.equal,
    "ne": elementwise.not_equal,
    "neg": elementwise.negative,
    "pos": elementwise.positive,
    "abs": elementwise.abs,
    "invert": bitwise.OPERATORS["invert"],
    **inplace.OPERATORS,
}


def _method(op: Any) -> Any:
    return lambda self, *args: op(self, *args)


for _name, _op in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _method(_op))
    setattr(Tensor, f"__r{_name}__", _reversed(_op))
for _name, _op in _UNREVERSED.items():
    setattr(Tensor, f"__{_name}__", _method(_op))


def _shape_method(op: Any) -> Any:
    """x.reshape(2, 3) as well as x.reshape((2, 3))."""

    def call(self: Tensor, *shape: Any) -> Tensor:
        return op(self, shape[0] if len(shape) == 1 else shape)

    call.__doc__ = op.__doc__
    return call


_METHODS: dict[str, Any] = {
    "__getitem__": keys.getitem,
    "__setitem__": keys.setitem,
    "reshape": _shape_method(movement.reshape),
    "view": _shape_method(movement.view),
    "permute": _shape_method(movement.permute),
    "broadcast_to": _shape_method(movement.broadcast_to),
    "expand": _shape_method(movement.broadcast_to),
    "clamp": closeness.clip,
    "split": movement.split,
    "ones_like": creation.ones_like,
    "zeros_like": creation.zeros_like,
    "backward": backward,
    "dropout": random.dropout,
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
