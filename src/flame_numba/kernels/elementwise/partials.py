"""Derivatives of formulas: a rule for each primitive, and the sweep that multiplies and adds them.

The derivative of a graph is again a graph, so second and higher derivatives need no rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...errors import GradientError
from .formula import (
    INFIX,
    Expr,
    apply,
    constant,
    cos,
    cosh,
    digamma,
    equal,
    exp,
    floor,
    hypot,
    log,
    rsqrt,
    sin,
    sinh,
    topological,
    where,
)

_ZERO, _ONE = constant(0), constant(1)
_HALF = constant(0.5)
_LN2, _LN10 = constant(math.log(2.0)), constant(math.log(10.0))
_TWO_OVER_SQRT_PI = constant(2.0 / math.sqrt(math.pi))

# Partial derivatives of a primitive: (result, arguments…) → one expression an argument; None where it is zero
# almost everywhere. At a tie or a kink the choice is the usual one: half to each side of minimum and maximum.
_PARTIALS: dict[str, Callable[..., tuple[Expr | None, ...]]] = {
    "add": lambda y, a, b: (_ONE, _ONE),
    "sub": lambda y, a, b: (_ONE, constant(-1)),
    "mul": lambda y, a, b: (b, a),
    "div": lambda y, a, b: (_ONE / b, -(y / b)),
    "neg": lambda y, a: (constant(-1),),
    "abs": lambda y, a: (where(a > _ZERO, _ONE, where(a < _ZERO, constant(-1), _ZERO)),),
    "pow": lambda y, a, b: _power_partials(y, a, b),
    "exp": lambda y, a: (y,),
    "expm1": lambda y, a: (exp(a),),
    "log": lambda y, a: (_ONE / a,),
    "log1p": lambda y, a: (_ONE / (a + _ONE),),
    "exp2": lambda y, a: (y * _LN2,),
    "log2": lambda y, a: (_ONE / (a * _LN2),),
    "log10": lambda y, a: (_ONE / (a * _LN10),),
    "lgamma": lambda y, a: (digamma(a),),
    "digamma": lambda y, a: (apply("polygamma", _ONE, a),),
    "polygamma": lambda y, n, a: (None, apply("polygamma", constant(n.value + 1), a)),
    "sqrt": lambda y, a: (_HALF / y,),
    "rsqrt": lambda y, a: (-(_HALF * y / a),),
    "erf": lambda y, a: (_TWO_OVER_SQRT_PI * exp(-(a * a)),),
    "erfc": lambda y, a: (-(_TWO_OVER_SQRT_PI * exp(-(a * a))),),
    "sigmoid": lambda y, a: (y * (_ONE - y),),
    "sin": lambda y, a: (cos(a),),
    "cos": lambda y, a: (-sin(a),),
    "tan": lambda y, a: (_ONE + y * y,),
    "sinh": lambda y, a: (cosh(a),),
    "cosh": lambda y, a: (sinh(a),),
    "tanh": lambda y, a: (_ONE - y * y,),
    "asin": lambda y, a: (rsqrt(_ONE - a * a),),
    "acos": lambda y, a: (-rsqrt(_ONE - a * a),),
    "atan": lambda y, a: (_ONE / (_ONE + a * a),),
    "asinh": lambda y, a: (rsqrt(_ONE + a * a),),
    "acosh": lambda y, a: (rsqrt(a * a - _ONE),),
    "atanh": lambda y, a: (_ONE / (_ONE - a * a),),
    # at the origin the slope depends on the direction: 0
    "atan2": lambda y, a, b: _angle_partials(a, b),
    "hypot": lambda y, a, b: (where(equal(y, _ZERO), _ZERO, a / y), where(equal(y, _ZERO), _ZERO, b / y)),
    "copysign": lambda y, a, b: (where(equal(a, _ZERO), _ZERO, where(equal(a, y), _ONE, constant(-1))), None),
    "floor": lambda y, a: (None,),
    "ceil": lambda y, a: (None,),
    "trunc": lambda y, a: (None,),
    "rint": lambda y, a: (None,),
    "mod": lambda y, a, b: (_ONE, -floor(a / b)),
    "floordiv": lambda y, a, b: (None, None),
    "minimum": lambda y, a, b: (_share(a > b, a, b), _share(b > a, a, b)),
    "maximum": lambda y, a, b: (_share(a < b, a, b), _share(b < a, a, b)),
    "where": lambda y, c, a, b: (None, where(c, _ONE, _ZERO), where(c, _ZERO, _ONE)),
}


def _share(loses: Expr, a: Expr, b: Expr) -> Expr:
    # beside a NaN neither loses: the gradient goes to both, so it is not lost in silence
    return where(equal(a, b), _HALF, where(loses, _ZERO, _ONE))


def _angle_partials(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    length = hypot(a, b)  # its square might overflow, or vanish
    origin = equal(length, _ZERO)
    return where(origin, _ZERO, b / length / length), where(origin, _ZERO, -(a / length / length))


def _power_partials(y: Expr, a: Expr, b: Expr) -> tuple[Expr, Expr | None]:
    # d/da at b = 0 is 0 even where a is 0 (0·0⁻¹ would be NaN); d/db at a = 0 is 0 (0·log 0 would be NaN)
    base = where(equal(b, _ZERO), _ZERO, b * a ** (b - _ONE))
    if b.op == "const":
        return base, None
    return base, where(equal(a, _ZERO), _ZERO, y * log(a))


def times(a: Expr, b: Expr) -> Expr:
    """A gradient times a partial derivative."""
    if a.op == "const" and a.value == -1:
        return -b
    if b.op == "const" and b.value == -1:
        return -a
    if b.op == "where" and b.args[1].op == "const" and b.args[2].op == "const":
        # a choice, not a product: 0·inf must not make a NaN on the side that was not taken
        condition, yes, no = b.args
        return where(condition, _scaled(a, yes), _scaled(a, no))
    return a * b


def _scaled(a: Expr, factor: Expr) -> Expr:
    return _ZERO if factor.value == 0 else times(a, factor)


def vjp(output: Expr, gradient: Expr, wrt: Sequence[Expr]) -> list[Expr]:
    """gradient · ∂output/∂v for each variable v, by the reverse sweep over the graph."""
    adjoint: dict[int, Expr] = {id(output): gradient}
    for expr in reversed(topological([output])):
        received = adjoint.get(id(expr))
        if received is None or not expr.args:
            continue
        rule = _PARTIALS.get(expr.op)
        if rule is None:
            continue  # comparisons and logic: no derivative flows through a truth value
        for arg, partial in zip(expr.args, rule(expr, *expr.args), strict=True):
            if partial is not None and arg.op != "const":
                term = times(received, partial)
                known = adjoint.get(id(arg))
                adjoint[id(arg)] = term if known is None else known + term
    return [adjoint.get(id(v), _ZERO) for v in wrt]


def check_differentiable(expr: Expr, op: str) -> None:
    """Raise GradientError if a primitive of the formula has no derivative rule and is not a truth value."""
    for node in topological([expr]):
        if node.args and node.op not in _PARTIALS and node.op not in INFIX and node.op != "not":
            raise GradientError(f"{op}: no derivative is known for {node.op}")
