"""The names of FLAME's documents, each one line over an op or a method that has the standard name.

docs/migration-from-flame.md has a row for each. Nothing else in the library uses them.
"""

from __future__ import annotations

import functools
from typing import Any

from ..shapes import as_int
from ..tensor import Parameter, Tensor, add_methods
from . import methods as methods  # the constructors that it gives Tensor come first
from .arrange.rearrange import moveaxis
from .elementwise import arithmetic
from .index import gather
from .reduce import reductions
from .shape import creation, joining, movement


def _slice(self: Tensor, dim: int, start: int, end: int) -> Tensor:
    first = as_int("slice", "start", start)
    sliced: Tensor = movement.narrow(self, dim, first, as_int("slice", "end", end) - first)
    return sliced


METHODS: dict[str, Any] = {
    "add_scalar": lambda self, value: arithmetic.add(self, value),
    "sub_scalar": lambda self, value: arithmetic.subtract(self, value),
    "mul_scalar": lambda self, value: arithmetic.multiply(self, value),
    "div_scalar": lambda self, value: arithmetic.divide(self, value),
    "powf": lambda self, value: arithmetic.pow(self, value),
    "sub": lambda self, other: arithmetic.subtract(self, other),
    "mul": lambda self, other: arithmetic.multiply(self, other),
    "div": lambda self, other: arithmetic.divide(self, other),
    "sum_dim": lambda self, dim, keep_dim=False: reductions.sum(self, axis=dim, keepdims=keep_dim),
    "mean_dim": lambda self, dim, keep_dim=False: reductions.mean(self, axis=dim, keepdims=keep_dim),
    "max_dim": lambda self, dim, keep_dim=False: reductions.max(self, axis=dim, keepdims=keep_dim),
    "min_dim": lambda self, dim, keep_dim=False: reductions.min(self, axis=dim, keepdims=keep_dim),
    "transpose_dims": lambda self, a, b: movement.transpose(self, a, b),
    "squeeze_dim": lambda self, dim: movement.squeeze(self, dim),
    "slice": _slice,
    "index_select": lambda self, dim, indices: gather.take(self, indices, dim),
    "broadcast_as": lambda self, shape: movement.broadcast_to(self, shape),
    "move_dim": lambda self, source, target: moveaxis(self, source, target),
    "to_scalar": lambda self: self.item(),
    "to_vec": lambda self: movement.flatten(self).tolist(),
    "to_cpu": lambda self: movement.to_device(self, "cpu"),
}

STATICS: dict[str, Any] = {
    "from_vec": lambda data, shape, device=None, dtype="float32": movement.reshape(
        creation.asarray(data, dtype=dtype, device=device), shape
    ),
    "scalar": lambda value, device=None, dtype="float32": creation.full((), value, dtype=dtype, device=device),
    "cat": lambda tensors, dim=0: joining.concat(tensors, dim),
    "stack": lambda tensors, dim=0: joining.stack(tensors, dim),
}

PARAMETERS = (  # what makes a tensor of nothing: of this class it makes a Parameter, or refuses integers
    "arange", "empty", "eye", "from_numpy", "from_vec", "full", "linspace", "ones", "rand", "randint", "randn",
    "scalar", "zeros",
)  # fmt: skip


def _as_parameter(make: Any) -> Any:
    @functools.wraps(make)
    def call(*args: Any, **keywords: Any) -> Parameter:
        return Parameter(make(*args, **keywords))

    return call


add_methods({name: method for name, method in METHODS.items() if not hasattr(Tensor, name)})
add_methods({name: staticmethod(make) for name, make in STATICS.items()})
add_methods({name: staticmethod(_as_parameter(getattr(Tensor, name))) for name in PARAMETERS}, Parameter)
