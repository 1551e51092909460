"""Bits of numbers: `bitwise_*` beyond the generated tests, `nextafter` and `signbit` in every floating dtype."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops.elementwise.bitwise import OPERATORS

FLOATS = (fn.float16, fn.bfloat16, fn.float32, fn.float64)


def values(dtype):
    info = ml_dtypes.finfo(dtype.numpy)
    numbers = [0.0, 1.0, 2.5, np.inf, np.nan, float(info.smallest_subnormal), float(info.smallest_normal)]
    numbers += [float(info.max), 1.0 - float(info.epsneg)]
    host = np.array(numbers).astype(dtype.numpy)
    return np.concatenate([host, -host])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nextafter_counts_on_the_bits(dtype):
    x = values(dtype)
    found = fn.nextafter(fn.asarray(x)[:, None], fn.asarray(x))
    assert found.dtype is dtype
    with np.errstate(all="ignore"):
        expected = np.nextafter(x[:, None], x)
        # between zeros the result is the second one; NumPy's of float16 is the first
        expected = np.where(x[:, None] == x, np.broadcast_to(x, expected.shape), expected)
    same = (found.numpy() == expected) & (np.signbit(found.numpy()) == np.signbit(expected))
    assert np.all(same | (np.isnan(found.numpy()) & np.isnan(expected)))


def test_nextafter_of_numbers_promotes_and_refuses():
    one = fn.tensor([1.0])
    assert fn.nextafter(one, 2.0).tolist() == [1 + 2.0**-23]
    assert fn.nextafter(one, fn.tensor([0.0], dtype=fn.float64)).dtype is fn.float64
    with pytest.raises(fn.DTypeError, match="not defined for int64"):
        fn.nextafter(fn.tensor([1]), fn.tensor([2]))
    with pytest.raises(fn.DTypeError, match="needs at least one tensor"):
        fn.nextafter(1.0, 2.0)
    y = fn.nextafter(one.requires_grad_(), 2.0)
    with pytest.raises(fn.GradientError, match="no derivative"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_signbit_sees_every_sign(dtype):
    x = values(dtype)
    assert np.array_equal(fn.signbit(fn.asarray(x)).numpy(), np.signbit(x))
    assert np.array_equal(fn.signbit(fn.asarray(x)[::-2]).numpy(), np.signbit(x[::-2]))


def test_bits_of_truth_values_are_logical():
    a, b = fn.tensor([True, True, False]), fn.tensor([True, False, False])
    assert OPERATORS["and"](a, b).tolist() == [True, False, False]
    assert OPERATORS["or"](a, b).tolist() == [True, True, False]
    assert OPERATORS["xor"](a, b).tolist() == [False, True, False]
    assert OPERATORS["invert"](a).tolist() == [False, False, True]
    assert all(OPERATORS[name](a, b).dtype is fn.bool for name in ("and", "or", "xor"))


def test_numbers_mixed_dtypes_and_refusals():
    x = fn.tensor([1, -2, 3], dtype=fn.int8)
    assert (fn.bitwise_left_shift(x, 6)).tolist() == [64, -128, -64]
    assert fn.bitwise_right_shift(x, 100).tolist() == [0, -1, 0]
    assert fn.bitwise_left_shift(x, -1).tolist() == [0, 0, 0]
    assert fn.bitwise_and(x, fn.tensor([1], dtype=fn.uint8)).dtype is fn.int16
    for op in (fn.bitwise_and, fn.bitwise_left_shift):
        with pytest.raises(fn.DTypeError, match="not defined for float32"):
            op(fn.tensor([1.0]), 1)
        with pytest.raises(fn.DTypeError, match="not defined for float"):
            op(x, 1.5)
    with pytest.raises(fn.DTypeError, match="bitwise_left_shift: not defined for bool"):
        fn.bitwise_left_shift(fn.tensor([True]), 1)
