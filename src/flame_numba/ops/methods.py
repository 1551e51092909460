"""Tensor's operators, and methods that no entry installs: each one line over an op."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from ..dtypes import as_dtype
from ..errors import DTypeError
from ..grad import backward
from ..scalars import CLAIMS
from ..tape.arithmetic import supply
from ..tensor import Tensor, add_methods
from . import inplace, random
from .arrange import rearrange
from .core.formula_op import add_into
from .elementwise import arithmetic, bitwise, limits
from .index import subscript
from .order import prod
from .products import linalg
from .reduce import reductions
from .shape import creation, joining, movement


def _takes_part(value: Any) -> bool:
    """Whether it looks like an operand, so that the op's own error says best what is wrong with it."""
    return isinstance(value, (Tensor, *CLAIMS, list, tuple)) or any(
        hasattr(value, name) for name in ("__array__", "__dlpack__", "__cuda_array_interface__")
    )


# Python's rule: an operand of a type that we do not know may know us (`__radd__`), and is equal only if it says so.
# To ask is slow, so only an op that has refused does: the others pay nothing.
def _binary(op: Any, swapped: bool = False) -> Any:
    def call(self: Tensor, other: Any) -> Any:
        try:
            return op(other, self) if swapped else op(self, other)
        except DTypeError:
            if _takes_part(other):
                raise
            return NotImplemented

    return call


_OPERATORS = {
    "add": arithmetic.add,
    "sub": arithmetic.subtract,
    "mul": arithmetic.multiply,
    "truediv": arithmetic.divide,
    "floordiv": arithmetic.floor_divide,
    "mod": arithmetic.remainder,
    "pow": arithmetic.pow,
    "matmul": linalg.matmul,
    **{name: op for name, op in bitwise.OPERATORS.items() if name != "invert"},
}
_UNREVERSED: dict[str, Any] = {
    "lt": arithmetic.less,
    "le": arithmetic.less_equal,
    "gt": arithmetic.greater,
    "ge": arithmetic.greater_equal,
    "eq": arithmetic.equal,
    "ne": arithmetic.not_equal,
    **inplace.OPERATORS,
}
_UNARY: dict[str, Any] = {
    "neg": arithmetic.negative,
    "pos": arithmetic.positive,
    "abs": arithmetic.abs,
    "invert": bitwise.OPERATORS["invert"],
}


def _unary(op: Any) -> Any:
    return lambda self: op(self)


add_methods({f"__{name}__": _binary(op) for name, op in (_OPERATORS | _UNREVERSED).items()})
add_methods({f"__r{name}__": _binary(op, swapped=True) for name, op in _OPERATORS.items()})
add_methods({f"__{name}__": _unary(op) for name, op in _UNARY.items()})


def _shape_method(op: Any) -> Any:
    """x.reshape(2, 3) as well as x.reshape((2, 3))."""

    def call(self: Tensor, *shape: Any) -> Tensor:
        return op(self, shape[0] if len(shape) == 1 else shape)

    call.__doc__ = op.__doc__
    return call


def _expand(self: Tensor, *shape: Any) -> Tensor:
    """`broadcast_to`, with -1 for an axis that keeps its size: x.expand(2, -1)."""
    given = shape[0] if len(shape) == 1 else shape
    if isinstance(given, (tuple, list)):
        own = (None,) * (len(given) - self.ndim) + self.shape  # a new axis has no size to keep
        given = tuple([m if n == -1 and m is not None else n for n, m in zip(given, own)])
    return movement.broadcast_to(self, given)


def _transpose(self: Tensor, axis0: Any = -2, axis1: Any = -1, *more: Any) -> Tensor:
    """Two axes exchanged (default the last two), as a view. As in NumPy, None reverses all, more axes, or a tuple of
    them, are their order."""
    if more:
        return movement.permute(self, (axis0, axis1, *more))
    if axis0 is None:
        return movement.permute(self, range(self.ndim)[::-1])
    if isinstance(axis0, (tuple, list)):
        return movement.permute(self, axis0)
    return movement.transpose(self, axis0, axis1)


# `np.sum(x)` calls `x.sum(axis=None, out=None)`, `np.std(x)` passes dtype and ddof besides
def _as_numpy_calls(op: Any) -> Any:
    @functools.wraps(inspect.unwrap(op))
    def call(self: Tensor, *args: Any, out: None = None, **keywords: Any) -> Tensor:
        _no_out(op, out)
        return op(self, *args, **keywords)

    return call


def _average_as_numpy_calls(op: Any) -> Any:
    @functools.wraps(inspect.unwrap(op))
    def call(
        self: Tensor, *args: Any, out: None = None, dtype: Any = None, ddof: float | None = None, **keywords: Any
    ) -> Tensor:
        _no_out(op, out)
        if ddof is not None:
            keywords["correction"] = ddof
        if dtype is not None:
            if not as_dtype(dtype).is_floating:
                raise DTypeError(f"{op.__name__}: dtype must be floating, got {as_dtype(dtype).name}")
            self = movement.to_dtype(self, dtype)
        return op(self, *args, **keywords)

    return call


def _no_out(op: Any, out: Any) -> None:
    if out is not None:
        raise DTypeError(f"{op.__name__}: out must be None, as results are new tensors; got {type(out).__name__}")


_METHODS: dict[str, Any] = {
    "transpose": _transpose,
    **{name: _as_numpy_calls(getattr(reductions, name)) for name in ("all", "any", "max", "min", "sum")},
    "prod": _as_numpy_calls(prod.prod),
    **{name: _average_as_numpy_calls(getattr(reductions, name)) for name in ("mean", "std", "var")},
    "__getitem__": subscript.getitem,
    "__setitem__": subscript.setitem,
    "reshape": _shape_method(movement.reshape),
    "view": _shape_method(movement.view),
    "permute": _shape_method(movement.permute),
    "broadcast_to": _shape_method(movement.broadcast_to),
    "expand": _expand,
    "clamp": limits.clip,
    "split": joining.split,
    "chunk": rearrange.chunk,
    "ones_like": creation.ones_like,
    "zeros_like": creation.zeros_like,
    "backward": backward,
    "dropout": random.dropout,
}
_MAKERS: dict[str, Any] = {
    "zeros": creation.zeros, "ones": creation.ones, "full": creation.full, "arange": creation.arange,
    "eye": creation.eye, "linspace": creation.linspace, "rand": random.rand, "randn": random.randn,
    "randint": random.randint,
}  # fmt: skip

add_methods(_METHODS)
for _name in ("T", "mT"):
    add_methods({_name: property(lambda self: movement.transpose(self, -1, -2), doc="The last two axes exchanged.")})
add_methods({name: staticmethod(make) for name, make in _MAKERS.items()})


class _Arithmetic:
    """What differentiation does with gradients, by the ops."""

    ones_like = staticmethod(creation.ones_like)
    add = staticmethod(arithmetic.add)
    add_into = staticmethod(add_into)
    clone = staticmethod(movement.clone)

    def has_nan(self, x: Tensor) -> bool:
        return bool(reductions.any(arithmetic.isnan(x)))

    def has_infinity(self, x: Tensor) -> bool:
        return bool(reductions.any(arithmetic.isinf(x)))


supply(_Arithmetic())
