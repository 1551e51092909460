"""Primitives that no machine has as an instruction, in the words of NumPy's definitions. Compiled into kernels."""

from __future__ import annotations

from .language import C, Number, copysign, exp, floor, fmod, sqrt


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
    """floor(a / b), exact where the quotient is; by the remainder, as NumPy does."""
    if b == C(0):
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
        if a * a == C(1):
            return C(1) if (b & C(1)) == C(0) else a
        return C(0)
    result = C(1)
    while b > C(0):
        if (b & C(1)) == C(1):
            result = C(result * a)
        a = C(a * a)
        b = C(b >> C(1))
    return result
