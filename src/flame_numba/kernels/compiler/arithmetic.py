"""Primitives that no machine has as an instruction, in the words of NumPy's definitions. Compiled into kernels."""

from __future__ import annotations

from typing import Any

from ..language import INF, NAN, C, Number, copysign, exp, floor, fmod, log, pow, sqrt


def sigmoid(x: Number) -> Number:
    """1 / (1 + e⁻ˣ), by the e of a negative number: nothing overflows, and small results keep their digits."""
    e = exp(-abs(x))
    return C(1) / (C(1) + e) if x >= C(0) else e / (C(1) + e)


def rsqrt(x: Number) -> Number:
    return C(1) / sqrt(x)


def same(x: Number) -> Number:
    return x


def float_mod(a: Number, b: Number) -> Number:
    """Python's %: the result has the sign of b."""
    r = fmod(a, b)
    if r == C(0):
        return copysign(C(0), b) if b == b else b
    return r + b if (r < C(0)) != (b < C(0)) else r


def float_floordiv(a: Number, b: Number) -> Number:
    """floor(a / b), exact where the quotient is, by the remainder as NumPy does; an infinite a stays infinite."""
    if b == C(0) or abs(a) == C(INF):
        return a / b
    r = fmod(a, b)
    q = (a - r) / b
    if r != C(0) and (r < C(0)) != (b < C(0)):
        q -= C(1)
    if q == C(0):
        return copysign(C(0), a / b)
    nearest = floor(q)
    return nearest + C(1) if q - nearest > C(0.5) else nearest


def signed_floordiv(a: Number, b: Number) -> Number:
    """floor(a / b); 0 for b = 0, and the wrapped -a for b = -1, which traps on some processors."""
    if b == C(0):
        return C(0)
    if b == C(-1):
        return -a
    q = C(a // b)
    return q


def signed_mod(a: Number, b: Number) -> Number:
    if b == C(0) or b == C(-1):
        return C(0)
    return C(a % b)


def unsigned_floordiv(a: Number, b: Number) -> Number:
    return C(0) if b == C(0) else C(a // b)


def unsigned_mod(a: Number, b: Number) -> Number:
    return C(0) if b == C(0) else C(a % b)


def integer_pow(a: Number, b: Number) -> Number:
    """a to the power b ≥ 0, wrapped; 0 for negative b unless |a| is 1."""
    if b < C(0):
        if a == C(1):
            return C(1)
        if a == C(-1):  # not by a square, which wraps: that of 2⁶³ − 1 is 1
            return C(1) if (b & C(1)) == C(0) else a
        return C(0)
    result = C(1)
    while b > C(0):
        if (b & C(1)) == C(1):
            result = C(result * a)
        a = C(a * a)
        b = C(b >> C(1))
    return result


def integer_invert(x: Number) -> Number:
    return ~x


def truth_invert(x: Number) -> Number:
    return not x


def integer_shl(a: Number, n: Number) -> Number:
    """a · 2ⁿ, wrapped; 0 from 64 bits on and for negative n, as NumPy has it."""
    return C(a << n) if C(0) <= n < C(64) else C(0)


def signed_shr(a: Number, n: Number) -> Number:
    """⌊a / 2ⁿ⌋; the sign alone from 64 bits on and for negative n, as NumPy has it."""
    return C(a >> n) if C(0) <= n < C(64) else C(a >> C(63))


def unsigned_shr(a: Number, n: Number) -> Number:
    return C(a >> n) if n < C(64) else C(0)


_PI = 3.141592653589793


def sin_pi(r: Number) -> Number:
    """sin(π·r) for |r| ≤ ½, by its series: the machine's sine reduces its argument, which costs a stack and f64."""
    x = C(_PI) * r
    z = x * x
    y = C(1) - z * C(1 / 156) * (C(1) - z * C(1 / 210) * (C(1) - z * C(1 / 272) * (C(1) - z * C(1 / 342))))
    y = C(1) - z * C(1 / 42) * (C(1) - z * C(1 / 72) * (C(1) - z * C(1 / 110) * y))
    return x * (C(1) - z * C(1 / 6) * (C(1) - z * C(1 / 20) * y))


def digamma(x: Number) -> Number:
    """The derivative of log Γ: by recurrence up to 10, then the asymptotic series; by reflection below 0.

    Just below 0 by recurrence too: x − ⌊x⌋, which reflection needs, is 1 − |x| there, rounded.
    """
    result = C(0)
    if x == C(0):
        return copysign(C(INF), -x)
    if x < C(-0.125):
        fraction = x - floor(x)
        if fraction == C(0):
            return C(NAN)
        sine = sin_pi(fraction if fraction <= C(0.5) else C(1) - fraction)
        result = -C(_PI) * sin_pi(C(0.5) - fraction) / sine
        x = C(1) - x
    while x < C(10):
        result -= C(1) / x
        x += C(1)
    z = C(1) / (x * x)
    tail = C(1 / 240) - z * (C(1 / 132) - z * C(691 / 32760))
    tail = z * (C(1 / 12) - z * (C(1 / 120) - z * (C(1 / 252) - z * tail)))
    return result + log(x) - C(0.5) / x - tail


def polygamma(n: Number, x: Number) -> Number:
    """The n-th derivative of `digamma`, n ≥ 1: (−1)ⁿ⁺¹ n! ζ(n + 1, x), by Euler and Maclaurin's sum from 10 on.

    For x ≤ 0 the first by reflection; the others are NaN there.
    """
    scale, addend = C(-1), C(0)
    k = C(1)
    while k <= n:
        scale *= -k
        k += C(1)
    if x <= C(0) and (n > C(1) or x == floor(x)):
        return C(INF) if n == C(1) else C(NAN)
    if x < C(-0.125):  # just below 0 by recurrence, as `digamma`
        fraction = x - floor(x)
        sine = sin_pi(fraction if fraction <= C(0.5) else C(1) - fraction)
        addend, scale, x = C(_PI * _PI) / (sine * sine), C(-1), C(1) - x
    total = C(0)
    while x < C(10):
        total += pow(x, -n - C(1))
        x += C(1)
    z = C(1) / (x * x)
    term = (n + C(1)) * pow(x, -n - C(1)) / x
    series = term * C(1 / 12)
    term *= (n + C(2)) * (n + C(3)) * z
    series -= term * C(1 / 720)
    term *= (n + C(4)) * (n + C(5)) * z
    series += term * C(1 / 30240)
    term *= (n + C(6)) * (n + C(7)) * z
    series -= term * C(1 / 1209600)
    term *= (n + C(8)) * (n + C(9)) * z
    series += term * C(1 / 47900160)
    term *= (n + C(10)) * (n + C(11)) * z
    series -= term * C(691 / 1307674368000)
    return addend + scale * (total + series + pow(x, -n - C(1)) * (x / n + C(0.5)))


# What formulas and kernels may call beyond the machine's own functions, with the number of operands, by kind of dtype.
# One may call those above it.
_ROUNDINGS: dict[str, tuple[Any, int]] = dict.fromkeys(("floor", "ceil", "trunc", "rint"), (same, 1))
_INTEGER = {"pow": (integer_pow, 2), "invert": (integer_invert, 1), "shl": (integer_shl, 2), **_ROUNDINGS}
FUNCTIONS: dict[str, dict[str, tuple[Any, int]]] = {
    "float": {
        "mod": (float_mod, 2),
        "floordiv": (float_floordiv, 2),
        "sigmoid": (sigmoid, 1),
        "rsqrt": (rsqrt, 1),
        "sin_pi": (sin_pi, 1),
        "digamma": (digamma, 1),
        "polygamma": (polygamma, 2),
    },
    "int": {"mod": (signed_mod, 2), "floordiv": (signed_floordiv, 2), "shr": (signed_shr, 2), **_INTEGER},
    "uint": {
        "mod": (unsigned_mod, 2),
        "floordiv": (unsigned_floordiv, 2),
        "shr": (unsigned_shr, 2),
        "abs": (same, 1),
        **_INTEGER,
    },
    "bool": {"invert": (truth_invert, 1)},
}
