"""Ops that change their first operand, and say so to the graph: `x.add_(y)`, `x.relu_()`, `x.index_add_(…)`, `x += y`.

Each is the twin of an op without the underscore: same operands, same values, written into the memory of x. x keeps its
shape (ShapeError) and its dtype (DTypeError, where a cast would lose more than precision). The version of the storage
counts the change, so that a backward pass which needs the old value raises. While recording, x becomes the result of
the op (`mutation.py` says when it may). They are methods of Tensor; `INPLACE` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..dtypes import DType
from ..errors import DTypeError, ShapeError
from ..kernels.random import normal_program, uniform_program
from ..shapes import broadcast
from ..tensor import Tensor, expanded
from . import activations, closeness, elementwise, scatter
from .formula_op import Elementwise
from .indexing import masked_fill
from .keys import setitem
from .launch import check_number, same_device
from .lines import along, points
from .movement import copy_into, to_device, to_dtype
from .movement import fill_ as _fill
from .mutation import apart, check_grows, check_kind, check_number_kind, check_target, is_recorded, record_change
from .random import Generator, rand, randn
from .random import _fill as _generate
from .scatter import check_flat, line_source
from .scatter_primitives import as_source, line_target, point_shape, put_slice, write
from .table import TABLE

INPLACE: dict[str, Callable[..., Tensor]] = {}  # name → function; each is a method of Tensor


class InPlace:
    """`name(x, …)`: `compute` gives the new value by ops, for a recorded change; `change` writes it into x."""

    def __init__(self, name: str, compute: Callable[..., Tensor], change: Callable[..., None]) -> None:
        self.name = self.__name__ = name
        self.__doc__ = f"`{name[:-1]}` in place. Returns the tensor."
        self._compute = compute
        self._change = change

    def __call__(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        operands = (*args, *keywords.values())
        check_target(self.name, x)
        if is_recorded(x, operands):
            return record_change(self.name, x, lambda old: self._compute(old, *args, **keywords))
        for o in operands:
            if isinstance(o, Tensor):
                same_device([x, o], self.name)
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
        setattr(Tensor, name, call)


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
    closeness.clip, closeness.clamp, closeness.addcmul, closeness.addcdiv, closeness.nan_to_num, activations.prelu,
    scatter.masked_scatter, scatter.scatter_reduce,
):  # fmt: skip
    _install(_through_copy(_op), f"{_op.__name__}_")


# --- the whole tensor ---------------------------------------------------------------------------------------------
def _replaced(x: Tensor, value: Tensor) -> Tensor:
    """`value` as the value of x; no gradient goes to the old one."""
    return put_slice(x, value, (0,) * x.ndim, (1,) * x.ndim)


def _fill_change(x: Tensor, value: Any) -> None:
    if isinstance(value, Tensor):
        copy_into(x, apart(x, expanded(_scalar(x, value), x.shape)))
    else:
        check_number_kind("fill_", x.dtype, value)
        _fill(x, value)


def _scalar(x: Tensor, value: Tensor) -> Tensor:
    if value.ndim:
        raise ShapeError(f"fill_: the value must be a number or 0-d, its shape is {value.shape}; see copy_")
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
    if source.device != x.device:
        source = to_device(source, x.device)
    return _copy(x, source)


_copy = InPlace("copy_", _copied, lambda x, source: copy_into(x, apart(x, _copy_source(x, source))))
fill_ = InPlace("fill_", _filled, _fill_change)
zero_ = InPlace("zero_", lambda x: _filled(x, 0), lambda x: _fill_change(x, 0))
fill_.__doc__ = "Every element becomes a number, or the element of a 0-d tensor. Returns the tensor."
zero_.__doc__ = "Every element becomes 0. Returns the tensor."

_install(copy_, "copy_")
_install(fill_, "fill_")
_install(zero_, "zero_")


# --- random values ------------------------------------------------------------------------------------------------
def _random(name: str, make: Callable[..., Tensor], program: Any, defaults: tuple[float, float], doc: str) -> None:
    def numbers(x: Tensor, first: float, second: float) -> tuple[float, float]:
        if not x.dtype.is_floating:
            raise DTypeError(f"{name}: needs a floating tensor, this one is {x.dtype.name}")
        return float(first), float(second)

    def compute(x: Tensor, a: float = defaults[0], b: float = defaults[1], generator: Generator | None = None) -> Any:
        return _replaced(x, make(x.shape, *numbers(x, a, b), dtype=x.dtype, device=x.device, generator=generator))

    def change(x: Tensor, a: float = defaults[0], b: float = defaults[1], generator: Generator | None = None) -> None:
        given = numbers(x, a, b)
        if not x.is_contiguous:
            copy_into(x, make(x.shape, *given, dtype=x.dtype, device=x.device, generator=generator))
            return
        _generate(program, x, given, generator, 2 if x.dtype.itemsize == 8 else 4)
        x.storage.version += 1

    op = InPlace(name, compute, change)
    op.__doc__ = doc
    _install(op, name)


_random(
    "uniform_", rand, uniform_program, (0.0, 1.0),
    "uniform_(low=0, high=1, generator=None): every element drawn anew, as by `rand`. Returns the tensor.",
)  # fmt: skip
_random(
    "normal_", randn, normal_program, (0.0, 1.0),
    "normal_(mean=0, std=1, generator=None): every element drawn anew, as by `randn`. Returns the tensor.",
)  # fmt: skip


# --- computed places ----------------------------------------------------------------------------------------------
def _masked_fill_change(x: Tensor, mask: Tensor, value: Any) -> None:
    if broadcast([x.shape, mask.shape], "masked_fill_") != x.shape:
        raise ShapeError(f"masked_fill_: a mask of shape {mask.shape} does not broadcast to {x.shape}")
    compute = x.dtype if x.dtype.kind == "bool" else x.dtype.accumulator
    if isinstance(value, Tensor):
        check_kind("masked_fill_", x.dtype, value.dtype)
        check_grows("masked_fill_", x.shape, [value.shape])
        given = apart(x, value)
    else:
        check_number_kind("masked_fill_", x.dtype, value)
        given = check_number(value, compute, "masked_fill_")
    elementwise.where._kernel([apart(x, mask), given, x], (x.dtype,), compute, into=[x])


def _index_change(merge: str) -> Callable[..., None]:
    op = {"sum": "index_add_", "assign": "index_copy_", "fill": "index_fill_"}[merge]

    def change(x: Tensor, axis: int, indices: Tensor, source: Any, alpha: float = 1) -> None:
        at = check_flat(op, x, axis, indices)
        if merge == "fill" and isinstance(source, Tensor) and source.ndim:
            raise ShapeError(f"{op}: the value must be a number or 0-d, its shape is {source.shape}; see index_copy_")
        given = source.detach() if isinstance(source, Tensor) else source
        given = as_source(op, x, given, point_shape(x, indices, at))
        given = given if alpha == 1 else given * alpha
        write(x, given, points(op, x.shape, at, indices), "sum" if merge == "sum" else "assign")

    return change


def _line_change(op: str, merge: str) -> Callable[..., None]:
    def change(x: Tensor, axis: int, indices: Tensor, src: Any) -> None:
        given = src.detach() if isinstance(src, Tensor) else src
        at, source = line_source(op, x, axis, indices, given)
        target = line_target(x, indices, at)
        write(target, source, along(op, target.shape, at, indices), merge)

    return change


def _put_along_change(x: Tensor, indices: Tensor, values: Any, axis: int = -1) -> None:
    at = scatter.check_along_axis("put_along_axis_", x, indices, axis)
    shape = (*x.shape[:at], indices.shape[at], *x.shape[at + 1 :])
    given = values.detach() if isinstance(values, Tensor) else values
    source = as_source("put_along_axis_", x, given, shape)
    write(x, source, along("put_along_axis_", x.shape, at, expanded(indices.detach(), shape)))


for _name, _twin, _change in (
    ("masked_fill_", masked_fill, _masked_fill_change),
    ("index_add_", scatter.index_add, _index_change("sum")),
    ("index_copy_", scatter.index_copy, _index_change("assign")),
    ("index_fill_", scatter.index_fill, _index_change("fill")),
    ("scatter_", scatter.scatter, _line_change("scatter_", "assign")),
    ("scatter_add_", scatter.scatter_add, _line_change("scatter_add_", "sum")),
    ("put_along_axis_", scatter.put_along_axis, _put_along_change),
):
    _install(InPlace(_name, _twin, _change), _name)


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
