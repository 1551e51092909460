"""Ops that change their first operand, and say so to the graph: `x.add_(y)`, `x.relu_()`, `x.index_add_(…)`, `x += y`.

Each is the twin of an op without the underscore: same operands, same values, written into the memory of x. x keeps its
shape (ShapeError) and its dtype (DTypeError, where a cast would lose more than precision). The version of the storage
counts the change, so that a backward pass which needs the old value raises. While recording, x becomes the result of
the op (`core/mutation.py` says when it may). They are methods of Tensor; `INPLACE` lists them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..dtypes import DType
from ..errors import DTypeError, ShapeError
from ..shapes import broadcast
from ..tape.anomaly import WATCH, watched_change
from ..tensor import Tensor, add_methods, expanded, new
from .core.copies import copy_into
from .core.copies import fill_ as _fill
from .core.formula_op import Elementwise
from .core.launch import check_number, same_device
from .core.mutation import apart, check_grows, check_kind, check_number_kind, check_target, is_recorded, record_change
from .core.operands import OperandCheck
from .core.table import TABLE
from .elementwise import activations, arithmetic, bitwise, limits  # noqa: F401 - their entries have twins
from .index import scatter
from .index.gather import check_single, masked_fill
from .index.launches import along, points
from .index.scatter import check_flat, line_source, scaled
from .index.scatter_primitives import as_source, line_target, point_shape, put_slice, write
from .index.subscript import setitem
from .random import Generator, draw_normal, draw_uniform
from .shape.movement import to_device, to_dtype

INPLACE: dict[str, Callable[..., Tensor]] = {}  # name → function; each is a method of Tensor


class InPlace:
    """`name(x, …)`: `compute` gives the new value by ops, for a recorded change; `change` writes it into x."""

    def __init__(
        self, name: str, compute: Callable[..., Tensor], change: Callable[..., None], like: Any = None
    ) -> None:
        """like: a function whose signature says which operands must be tensors or ints, if that is to be checked."""
        self.name = self.__name__ = name
        self.__doc__ = f"`{name[:-1]}` in place. Returns the tensor."
        self._compute = compute
        self._change = change
        self._check = None if like is None else OperandCheck(inspect.unwrap(like), name)

    def __call__(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        if self._check is not None:
            (x, *args), keywords = self._check((x, *args), keywords)  # type: ignore[assignment]
        operands = (*args, *keywords.values())
        check_target(self.name, x)
        if is_recorded(x, operands):
            return record_change(self.name, x, lambda old: self._compute(old, *args, **keywords))
        for o in operands:
            if isinstance(o, Tensor):
                same_device([x, o], self.name)
        if WATCH.open:
            watched_change(self.name, self._change, x, args, keywords)
        else:
            self._change(x, *args, **keywords)
        return x

    def __repr__(self) -> str:
        return f"<in place {self.name}>"


def _install(op: Callable[..., Tensor], *names: str) -> None:
    for name in names:
        INPLACE[name] = op

        def call(self: Tensor, *args: Any, **keywords: Any) -> Tensor:
            return op(self, *args, **keywords)

        call.__name__, call.__doc__ = name, op.__doc__
        add_methods({name: call})


# --- formulas: one kernel that writes where it reads --------------------------------------------------------------
def _formula(op: Elementwise) -> InPlace:
    def change(x: Tensor, *args: Any, **keywords: Any) -> None:
        values: list[Any] = [x, *args]
        if keywords or len(values) != len(op.names):
            values = op._complete(values, keywords)
        kinds = tuple([v.dtype if isinstance(v, Tensor) else v.__class__ for v in values])
        known = types.get(kinds)
        if known is None:
            values = [v if isinstance(v, Tensor) else op._number(v) for v in values]
            known = op._infer(kinds, values)
            check_kind(name, x.dtype, known[0])
            types[kinds] = known
        inputs: list[Any] = [x]
        for v in values[1:]:
            if not isinstance(v, Tensor):
                inputs.append(check_number(v, known[1], name))
                continue
            if v.shape != x.shape:
                check_grows(name, x.shape, [v.shape])
            inputs.append(apart(x, v, same_is_fine=True))
        op._kernel(inputs, (x.dtype,), known[1], into=[x])

    types: dict[tuple[Any, ...], tuple[DType, DType]] = {}  # kinds of operands that are fine → (result, computed in)

    name = f"{op.name}_"
    return InPlace(name, op, change)


_SHORT = {"subtract": "sub_", "multiply": "mul_", "divide": "div_", "negative": "neg_", "reciprocal": "reciprocal_"}

for _entry in list(TABLE.values()):
    _op = _entry.op
    if isinstance(_op, Elementwise) and _op.result != "bool" and not _op._truth_flags[0]:
        _install(_formula(_op), f"{_entry.name}_", *([_SHORT[_entry.name]] if _entry.name in _SHORT else ()))


# --- ops that are more than a formula: a result, then a copy ------------------------------------------------------
def _through_copy(op: Callable[..., Tensor]) -> InPlace:
    def change(x: Tensor, *args: Any, **keywords: Any) -> None:
        y = op(x, *(a.detach() if isinstance(a, Tensor) else a for a in args), **keywords)
        check_kind(name, x.dtype, y.dtype)
        if y.shape != x.shape:
            raise ShapeError(f"{name}: the result of shape {y.shape} does not fit the tensor of shape {x.shape}")
        copy_into(x, y.detach())

    name = f"{op.__name__}_"
    return InPlace(name, op, change)


for _op in (
    limits.clip, limits.addcmul, limits.addcdiv, limits.nan_to_num, activations.prelu,
    scatter.masked_scatter, scatter.scatter_reduce,
):  # fmt: skip
    _install(_through_copy(_op), f"{_op.__name__}_", *(("clamp_",) if _op is limits.clip else ()))


# --- the whole tensor ---------------------------------------------------------------------------------------------
def _replaced(x: Tensor, value: Tensor) -> Tensor:
    """`value` as the value of x; no gradient goes to the old one."""
    return put_slice(x, value, (0,) * x.ndim, (1,) * x.ndim)


def _fill_change(x: Tensor, value: Any) -> None:
    if isinstance(value, Tensor):
        copy_into(x, apart(x, expanded(_scalar(x, value), x.shape)))
    else:
        _fill(x, check_number_kind("fill_", x.dtype, value))


def _scalar(x: Tensor, value: Tensor) -> Tensor:
    check_single("fill_", value, "copy_")
    check_kind("fill_", x.dtype, value.dtype)
    return value


def _filled(x: Tensor, value: Any) -> Tensor:
    given = _scalar(x, value) if isinstance(value, Tensor) else value
    return _replaced(x, as_source("fill_", x, given, x.shape))


def _copy_source(x: Tensor, source: Tensor) -> Tensor:
    check_grows("copy_", x.shape, [source.shape])
    if source.dtype.is_floating and not x.dtype.is_floating:
        raise DTypeError(f"copy_: {source.dtype.name} does not go into a tensor of {x.dtype.name}; use to_dtype()")
    return source


def _copied(x: Tensor, source: Tensor) -> Tensor:
    given = _copy_source(x, source)
    return _replaced(x, as_source("copy_", x, to_dtype(given, x.dtype), x.shape))


def copy_(x: Tensor, source: Tensor) -> Tensor:
    """The elements of source, broadcast and cast, copied into x; also from another device. Returns x."""
    if isinstance(source, Tensor) and source.device != x.device:
        source = to_device(source, x.device)
    return _copy(x, source)


_copy = InPlace("copy_", _copied, lambda x, source: copy_into(x, apart(x, _copy_source(x, source))), copy_)
fill_ = InPlace("fill_", _filled, _fill_change)
zero_ = InPlace("zero_", lambda x: _filled(x, 0), lambda x: _fill_change(x, 0))
fill_.__doc__ = "Every element becomes a number, or the element of a 0-d tensor. Returns the tensor."
zero_.__doc__ = "Every element becomes 0. Returns the tensor."

_install(copy_, "copy_")
_install(fill_, "fill_")
_install(zero_, "zero_")


# --- random values ------------------------------------------------------------------------------------------------
def _random(draw: Callable[..., Tensor]) -> None:
    """draw(y, …) fills a floating tensor that is contiguous."""
    name = draw.__name__

    def drawn(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return draw(new(x.device, x.dtype, x.shape), *args, **keywords)

    def change(x: Tensor, *args: Any, **keywords: Any) -> None:
        if x.is_contiguous:
            draw(x, *args, **keywords)
            x.storage.version += 1
        else:
            copy_into(x, drawn(x, *args, **keywords))

    op = InPlace(name, lambda x, *args, **keywords: _replaced(x, drawn(x, *args, **keywords)), change)
    op.__doc__ = inspect.getdoc(draw)
    _install(op, name)


def uniform_(x: Tensor, low: float = 0.0, high: float = 1.0, generator: Generator | None = None) -> Tensor:
    """uniform_(low=0, high=1, generator=None): every element drawn anew, as by `rand`. Returns the tensor."""
    return draw_uniform("uniform_", x, low, high, generator)


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """normal_(mean=0, std=1, generator=None): every element drawn anew, as by `randn`. Returns the tensor."""
    return draw_normal("normal_", x, mean, std, generator)


_random(uniform_)
_random(normal_)


# --- computed places ----------------------------------------------------------------------------------------------
def _masked_fill_change(x: Tensor, mask: Tensor, value: Any) -> None:
    if broadcast([x.shape, mask.shape], "masked_fill_") != x.shape:
        raise ShapeError(f"masked_fill_: a mask of shape {mask.shape} does not broadcast to {x.shape}")
    check_single("masked_fill_", value, "where")
    compute = x.dtype if x.dtype.kind == "bool" else x.dtype.accumulator
    if isinstance(value, Tensor):
        check_kind("masked_fill_", x.dtype, value.dtype)
        given = apart(x, value)
    else:
        given = check_number(check_number_kind("masked_fill_", x.dtype, value), compute, "masked_fill_")
    arithmetic.where._kernel([apart(x, mask), given, x], (x.dtype,), compute, into=[x])


def _outside(value: Any) -> Any:
    """The operand outside the graph."""
    return value.detach() if isinstance(value, Tensor) else value


def _index_add_change(x: Tensor, axis: int, indices: Tensor, source: Any, alpha: float = 1) -> None:
    at = check_flat("index_add_", x, axis, indices)
    given = as_source("index_add_", x, _outside(source), point_shape(x, indices, at))
    write(x, scaled("index_add_", x, given, alpha), points("index_add_", x.shape, at, indices), "sum")


def _index_copy_change(x: Tensor, axis: int, indices: Tensor, source: Any) -> None:
    at = check_flat("index_copy_", x, axis, indices)
    given = as_source("index_copy_", x, _outside(source), point_shape(x, indices, at))
    write(x, given, points("index_copy_", x.shape, at, indices))


def _index_fill_change(x: Tensor, axis: int, indices: Tensor, value: Any) -> None:
    at = check_flat("index_fill_", x, axis, indices)
    check_single("index_fill_", value, "index_copy_")
    given = as_source("index_fill_", x, _outside(value), point_shape(x, indices, at))
    write(x, given, points("index_fill_", x.shape, at, indices))


def _line_change(op: str, merge: str) -> Callable[..., None]:
    def change(x: Tensor, axis: int, indices: Tensor, src: Any) -> None:
        at, source = line_source(op, x, axis, indices, _outside(src))
        target = line_target(x, indices, at)
        write(target, source, along(op, target.shape, at, indices), merge)

    return change


def _put_along_change(x: Tensor, indices: Tensor, values: Any, axis: int = -1) -> None:
    at = scatter.check_along_axis("put_along_axis_", x, indices, axis)
    shape = (*x.shape[:at], indices.shape[at], *x.shape[at + 1 :])
    source = as_source("put_along_axis_", x, _outside(values), shape)
    write(x, source, along("put_along_axis_", x.shape, at, expanded(indices.detach(), shape)))


for _name, _twin, _change in (
    ("masked_fill_", masked_fill, _masked_fill_change),
    ("index_add_", scatter.index_add, _index_add_change),
    ("index_copy_", scatter.index_copy, _index_copy_change),
    ("index_fill_", scatter.index_fill, _index_fill_change),
    ("scatter_", scatter.scatter, _line_change("scatter_", "assign")),
    ("scatter_add_", scatter.scatter_add, _line_change("scatter_add_", "sum")),
    ("put_along_axis_", scatter.put_along_axis, _put_along_change),
):
    _install(InPlace(_name, _twin, _change, _twin), _name)


def index_put_(x: Tensor, indices: Any, values: Any) -> Tensor:
    """x[indices] = values, for a tuple of index tensors or a mask. Returns x."""
    setitem(x, tuple(indices) if isinstance(indices, list) else indices, values)
    return x


_install(index_put_, "index_put_")

OPERATORS = {
    "iadd": INPLACE["add_"],
    "isub": INPLACE["sub_"],
    "imul": INPLACE["mul_"],
    "itruediv": INPLACE["div_"],
    "ifloordiv": INPLACE["floor_divide_"],
    "imod": INPLACE["remainder_"],
    "ipow": INPLACE["pow_"],
    "iand": INPLACE["bitwise_and_"],
    "ior": INPLACE["bitwise_or_"],
    "ixor": INPLACE["bitwise_xor_"],
    "ilshift": INPLACE["bitwise_left_shift_"],
    "irshift": INPLACE["bitwise_right_shift_"],
}

__all__: list[str] = []  # methods of Tensor, not functions
