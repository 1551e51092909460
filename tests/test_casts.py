"""Every dtype to every other, against NumPy and ml_dtypes; 16-bit types bit by bit. The dtypes of fused ops."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import dtypes
from flame_numba.ops import TABLE


@pytest.mark.parametrize("source", dtypes.ALL, ids=str)
@pytest.mark.parametrize("target", dtypes.ALL, ids=str)
def test_cast_of_values_that_fit(source, target):
    values = np.array([0, 1, 2, 3, 100, 127, 1, 0, 64], np.float64)
    host = (values != 0) if source.kind == "bool" else values.astype(source.numpy)
    found = fn.asarray(host).to_dtype(target)
    assert found.dtype is target
    assert np.array_equal(found.numpy(), host.astype(target.numpy))


@pytest.mark.parametrize("target", [fn.float16, fn.bfloat16], ids=str)
def test_every_16_bit_pattern_survives_widening_and_narrowing(target):
    bits = np.arange(2**16, dtype=np.uint16)
    host = bits.view(target.numpy)
    wide = fn.asarray(host).to_dtype(fn.float32)
    assert np.array_equal(wide.numpy(), host.astype(np.float32), equal_nan=True)
    back = wide.to_dtype(target).numpy()
    finite = ~np.isnan(host.astype(np.float32))
    assert np.array_equal(back.view(np.uint16)[finite], bits[finite])
    assert np.isnan(back.astype(np.float32)[~finite]).all()


@pytest.mark.parametrize("target", [fn.float16, fn.bfloat16], ids=str)
def test_f32_rounds_to_nearest_even(target):
    rng = np.random.default_rng(0)
    host = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = host.astype(target.numpy)
    found = fn.asarray(host).to_dtype(target).numpy()
    assert np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("target", [fn.float16, fn.bfloat16], ids=str)
def test_f64_rounds_once(target):
    """Just above a halfway point by less than f32 can see: rounding to f32 on the way would go down to even."""
    step = target.eps
    host = np.array([1 + step / 2 + 2.0**-40, 1 + step / 2, 1 + 3 * step / 2 - 2.0**-40, -(1 + step / 2 + 2.0**-40)])
    expected = np.array([1 + step, 1, 1 + step, -(1 + step)])
    assert np.array_equal(fn.asarray(host).to_dtype(target).numpy().astype(np.float64), expected)


def test_the_gradient_of_a_cast_comes_back_in_the_tensors_dtype():
    x = fn.asarray(np.ones(3, np.float32)).requires_grad_()
    (x.to_dtype(fn.bfloat16) * 2).sum().backward()
    assert x.grad.dtype is fn.float32
    assert x.grad.tolist() == [2, 2, 2]


TYPED = [e for e in TABLE.values() if e.kind == "elementwise" and not any(e.op._truth_flags)]


@pytest.mark.parametrize("entry", TYPED, ids=lambda e: e.name)
def test_a_fused_op_has_the_dtypes_of_the_op(entry):
    fused = fn.fuse(entry.op)
    for dtype in dtypes.ALL:
        kinds, values = (dtype,) * len(entry.parameters), [fn.zeros((1,), dtype=dtype)] * len(entry.parameters)
        if dtype in entry.op.accepts:
            assert fused._infer(kinds, values) == entry.op._infer(kinds, values), dtype


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: x * 0.5, [0.5, 1.5]),
        (lambda x, y: fn.divide(x, y), [0.5, 1.5]),
        (lambda x, y: fn.less(x, y), [True, False]),
        (lambda x, y: x * 0.5 > 1, [False, True]),
        (lambda x, y: fn.logical_and(x > 1, fn.less(y, 5)), [False, True]),
        (lambda x, y: x * y + 1, [3, 7]),
        (lambda x, y: 2 * x == y, [True, False]),
        (lambda x, y: fn.where(x != 1, 5, x), [1, 5]),
        (lambda x, y: x & y | 4, [4, 6]),
        (lambda x, y: 6 & ~x ^ y, [4, 6]),
        (lambda x, y: (x > 1) & ~(y > 5) ^ (x == 5), [False, True]),
        (lambda x, y: 7 // x + 7 % x, [7, 3]),
        (lambda x, y: x * np.float32(0.5), [0.5, 1.5]),
    ],
)
def test_fused_integers_give_what_the_ops_give(function, expected):
    x, y = fn.tensor([1, 3]), fn.tensor([2, 2])
    found, due = fn.fuse(function)(x, y), function(x, y)
    assert found.tolist() == due.tolist() == expected and found.dtype is due.dtype


@pytest.mark.parametrize("activation", ["gelu", "hardsigmoid", "relu"])
def test_an_activation_of_integers(activation):
    x, weight, bias = fn.tensor([[2]]), fn.tensor([[1]]), fn.tensor([1])
    for b, total in ((None, 2), (bias, 3)):
        found, due = fn.linear(x, weight, b, activation), getattr(fn, activation)(fn.tensor([[total]]))
        assert found.dtype is due.dtype and found.tolist() == due.tolist()


def test_a_bit_formula_beside_floats_says_what_to_write():
    x, m = fn.ones((2,)), fn.tensor([True, False])
    for formula in (lambda x, m: fn.where(~m, x, 0), lambda x, m: fn.where(m & m, x, 0)):
        with pytest.raises(fn.DTypeError, match=r"of a bool operand m write \(m != 0\)"):
            fn.fuse(formula)(x, m)
