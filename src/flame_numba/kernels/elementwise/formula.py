"""Scalar formulas as small expression graphs: traced, and emitted as Python source for Numba.

A formula is an ordinary function of scalars, `lambda x: x / (1 + exp(-x))`. Called with `Expr`s it builds a graph;
equal subexpressions are one object, so common ones are computed once. `partials.py` differentiates graphs. Constants
are emitted as `C(0.5)`, where `C` is the type that the kernel computes in: a bare literal would turn an f32 kernel into
an f64 one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from ...errors import DTypeError
from ...scalars import PYTHON, plain

_INTERNED: WeakValueDictionary[tuple[Any, ...], Expr] = WeakValueDictionary()


class Expr:
    """One value of a formula: a variable, a constant, or a primitive applied to other values."""

    __slots__ = ("__weakref__", "args", "op", "value")
    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operator to us
    op: str
    args: tuple[Expr, ...]
    value: Any  # a constant's number, a variable's name

    def __new__(cls, op: str, args: tuple[Expr, ...] = (), value: Any = None) -> Expr:
        key = (op, tuple(map(id, args)), type(value), repr(value))
        found = _INTERNED.get(key)
        if found is not None:
            return found
        self = object.__new__(cls)
        self.op, self.args, self.value = op, args, value
        _INTERNED[key] = self
        return self

    def __add__(self, other: Operand) -> Expr:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return apply("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return apply("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return apply("mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return apply("div", other, self)

    def __floordiv__(self, other: Operand) -> Expr:
        return apply("floordiv", self, other)

    def __rfloordiv__(self, other: Operand) -> Expr:
        return apply("floordiv", other, self)

    def __mod__(self, other: Operand) -> Expr:
        return apply("mod", self, other)

    def __rmod__(self, other: Operand) -> Expr:
        return apply("mod", other, self)

    def __pow__(self, other: Operand) -> Expr:
        return apply("pow", self, other)

    def __rpow__(self, other: Operand) -> Expr:
        return apply("pow", other, self)

    def __neg__(self) -> Expr:
        return apply("neg", self)

    def __abs__(self) -> Expr:
        return apply("abs", self)

    def __lt__(self, other: Operand) -> Expr:
        return apply("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return apply("le", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return apply("gt", self, other)

    def __ge__(self, other: Operand) -> Expr:
        return apply("ge", self, other)

    # two expressions are the same if they are one object (`is`); == compares what they will be
    def __eq__(self, other: Operand) -> Expr:  # type: ignore[override]
        return apply("eq", self, other)

    def __ne__(self, other: Operand) -> Expr:  # type: ignore[override]
        return apply("ne", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Operand) -> Expr:
        return _bits_or_logic("&", self, other)

    def __rand__(self, other: Operand) -> Expr:
        return _bits_or_logic("&", other, self)

    def __or__(self, other: Operand) -> Expr:
        return _bits_or_logic("|", self, other)

    def __ror__(self, other: Operand) -> Expr:
        return _bits_or_logic("|", other, self)

    def __xor__(self, other: Operand) -> Expr:
        return _bits_or_logic("^", self, other)

    def __rxor__(self, other: Operand) -> Expr:
        return _bits_or_logic("^", other, self)

    def __invert__(self) -> Expr:
        return _bits_or_logic("~", self)

    def __bool__(self) -> bool:
        raise DTypeError("formula: a value is not known while tracing; write where(condition, a, b) for a choice")

    def __repr__(self) -> str:
        body, (name,) = emit([self])
        return "; ".join([*body, name])


Operand = Expr | int | float | bool


def variable(name: str) -> Expr:
    return Expr("var", (), name)


def constant(value: float | int | bool) -> Expr:
    return Expr("const", (), value)


def as_expr(value: Any) -> Expr:
    """An expression as it is, a number as a constant. Raises DTypeError for anything else."""
    if isinstance(value, Expr):
        return value
    value = plain(value)
    if isinstance(value, PYTHON):
        if not isinstance(value, float) and not -(2**63) <= value < 2**63:
            raise DTypeError(
                f"formula: a constant of {value.bit_length()} bits does not fit int64; write it with a decimal point"
            )
        return constant(value)
    raise DTypeError(f"formula: expected a scalar expression or a number, got {type(value).__name__}")


def apply(op: str, *args: Operand) -> Expr:
    """A primitive of `PRIMITIVES` on values or numbers, simplified only where no bit of the result can change."""
    given = tuple(map(as_expr, args))
    if op == "mul" and given[1] is _ONE:
        return given[0]
    if op == "mul" and given[0] is _ONE:
        return given[1]
    if op == "div" and given[1] is _ONE:
        return given[0]
    if op == "neg" and given[0].op == "neg":
        return given[0].args[0]
    return Expr(op, given)


# an operator on truth values, and on numbers
_OPERATORS = {"&": ("and", "bit_and"), "|": ("or", "bit_or"), "^": ("ne", "bit_xor"), "~": ("not", "invert")}


def _bits_or_logic(sign: str, *args: Operand) -> Expr:
    given = tuple(map(as_expr, args))
    truths = sum(map(is_truth, given))
    if 0 < truths < len(given):
        raise DTypeError(f"formula: {sign} of a truth value and a number; compare the number first: (x != 0)")
    return apply(_OPERATORS[sign][0 if truths else 1], *given)


_ONE = constant(1)


def _function(op: str) -> Callable[..., Expr]:
    def call(*args: Operand) -> Expr:
        return apply(op, *args)

    call.__name__ = call.__qualname__ = op
    return call


exp, expm1, log, log1p, exp2, log2, log10 = map(_function, ("exp", "expm1", "log", "log1p", "exp2", "log2", "log10"))
lgamma, digamma = map(_function, ("lgamma", "digamma"))
sqrt, rsqrt, erf, erfc, sigmoid = map(_function, ("sqrt", "rsqrt", "erf", "erfc", "sigmoid"))
sin, cos, tan, sinh, cosh, tanh = map(_function, ("sin", "cos", "tan", "sinh", "cosh", "tanh"))
asin, acos, atan, asinh, acosh, atanh = map(_function, ("asin", "acos", "atan", "asinh", "acosh", "atanh"))
floor, ceil, trunc, rint = map(_function, ("floor", "ceil", "trunc", "rint"))
minimum, maximum, atan2, hypot, copysign = map(_function, ("minimum", "maximum", "atan2", "hypot", "copysign"))
bit_and, bit_or, bit_xor, shl, shr, invert = map(_function, ("bit_and", "bit_or", "bit_xor", "shl", "shr", "invert"))
equal, not_equal, where = map(_function, ("eq", "ne", "where"))
logical_and, logical_or, logical_not = map(_function, ("and", "or", "not"))


def isnan(x: Operand) -> Expr:
    return not_equal(x, x)


# A primitive's text in a kernel. The bare names (exp, minimum, floordiv …) are bound for the machine and type.
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
          "ne": "!=", "and": "and", "or": "or", "bit_and": "&", "bit_or": "|", "bit_xor": "^"}  # fmt: skip
_CALLS = (
    "exp expm1 log log1p exp2 log2 log10 lgamma digamma sqrt rsqrt erf erfc sin cos tan sinh cosh tanh "
    "asin acos atan asinh acosh atanh sigmoid floor ceil trunc rint abs invert"
).split()

_CALLS_OF_TWO = ("pow", "atan2", "floordiv", "mod", "hypot", "copysign", "polygamma", "shl", "shr")

PRIMITIVES: dict[str, str] = {
    **{op: f"{{0}} {sign} {{1}}" for op, sign in INFIX.items()},
    **{op: f"{op}({{0}})" for op in _CALLS},
    **{op: f"{op}({{0}}, {{1}})" for op in _CALLS_OF_TWO},
    # a NaN on either side is the result: NaN fails every comparison but !=
    "minimum": "{0} if {0} < {1} or {0} != {0} else {1}",
    "maximum": "{0} if {0} > {1} or {0} != {0} else {1}",
    "neg": "-{0}",
    "not": "not {0}",
    "where": "{1} if {0} else {2}",
}


def trace(function: Callable[..., Any], names: Sequence[str]) -> Expr:
    """The graph of a scalar function. Raises DTypeError if it returns anything but one scalar expression."""
    return as_expr(function(*(variable(name) for name in names)))


def topological(outputs: Sequence[Expr]) -> list[Expr]:
    """All values that the outputs are made of, each behind its operands."""
    order: list[Expr] = []
    seen: set[int] = set()
    stack = [(expr, False) for expr in reversed(outputs)]
    while stack:
        expr, ready = stack.pop()
        if ready:
            order.append(expr)
        elif id(expr) not in seen:
            seen.add(id(expr))
            stack.append((expr, True))
            stack.extend((arg, False) for arg in reversed(expr.args))
    return order


def variables(*outputs: Expr) -> set[str]:
    """Names of the variables that the expressions depend on."""
    return {expr.value for expr in topological(outputs) if expr.op == "var"}


_OF_FLOATS = {"div", "atan2", "hypot", "copysign", "polygamma", *_CALLS} - {
    "floor", "ceil", "trunc", "rint", "abs", "invert"
}  # fmt: skip
_OF_INTEGERS = {"bit_and", "bit_or", "bit_xor", "shl", "shr", "invert"}
_TRUTHS = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}


def needs_floats(expr: Expr) -> bool:
    """Whether it means something in a floating dtype only: there is a fraction, a division, an exponential …"""
    return any(e.op in _OF_FLOATS or (e.op == "const" and type(e.value) is float) for e in topological([expr]))


def needs_integers(expr: Expr) -> bool:
    """Whether bits are counted or moved in it: it means something in integers, and mostly in truth values, only."""
    return any(e.op in _OF_INTEGERS for e in topological([expr]))


def is_truth(expr: Expr) -> bool:
    """Whether the formula's value is a truth value: a comparison, logic, or a choice between such."""
    if expr.op == "where":
        return is_truth(expr.args[1]) and is_truth(expr.args[2])
    return expr.op in _TRUTHS or (expr.op == "const" and type(expr.value) is bool)


def substitute(expr: Expr, values: dict[str, Expr]) -> Expr:
    """The same graph with variables replaced."""
    done: dict[int, Expr] = {}
    for node in topological([expr]):
        if node.op == "var":
            done[id(node)] = values.get(node.value, node)
        elif node.args:
            done[id(node)] = Expr(node.op, tuple(done[id(arg)] for arg in node.args))
        else:
            done[id(node)] = node
    return done[id(expr)]


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "C(NAN)" if math.isnan(value) else f"C({'-' if value < 0 else ''}INF)"
    return f"C({value!r})"


def emit(outputs: Sequence[Expr], suffix: str = "") -> tuple[list[str], list[str]]:
    """Python statements, one a shared value, and the text of each output. Variables keep their names + suffix."""
    order = topological(outputs)
    texts: dict[int, str] = {}
    lines: list[str] = []
    for expr in order:
        if expr.op == "var":
            texts[id(expr)] = expr.value + suffix
        elif expr.op == "const":
            texts[id(expr)] = _literal(expr.value)
        else:
            name = f"t{len(lines)}{suffix}"
            lines.append(f"{name} = " + PRIMITIVES[expr.op].format(*(texts[id(arg)] for arg in expr.args)))
            texts[id(expr)] = name
    return lines, [texts[id(expr)] for expr in outputs]
