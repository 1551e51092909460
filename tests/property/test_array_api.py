"""What the array API's own tests taught, as properties that every run checks: promotion, special values, creation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flame_numba as fn
from flame_numba import array_api as xp
from flame_numba.errors import DTypeError
from flame_numba.interop import from_dlpack

STANDARD = [fn.bool, *fn.dtypes.INTEGERS, fn.float32, fn.float64]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NUMPY_NAMES = {"bitwise_invert": "invert", "bitwise_left_shift": "left_shift", "bitwise_right_shift": "right_shift"}
TRUTHS = {"logical_and", "logical_or", "logical_xor", "logical_not"}
INTEGER_ONLY = {n for n in xp.elementwise.__all__ if n.startswith("bitwise")}
UNARY = sorted({*xp.elementwise._UNARY} - INTEGER_ONLY)
BINARY = sorted({*xp.elementwise._BINARY} - INTEGER_ONLY)
# signed zeros, infinities, and numbers on both sides of the borders that the standard's special cases name
SPECIALS = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 2.5, 1e30, -1e30]


def numpy_function(name: str):
    return getattr(np, NUMPY_NAMES.get(name, name))


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations_with_replacement(STANDARD, 2)), ids=lambda d: d.name)
def test_promotion_is_numpy_s_within_a_kind(a, b):
    if {a, b} & {fn.uint64} and "int" in (a.kind, b.kind):
        with pytest.raises(DTypeError):
            xp.result_type(a, b)
    elif a.kind == b.kind or {a.kind, b.kind} == {"int", "uint"}:
        expected = np.promote_types(a.numpy, b.numpy)
        assert xp.result_type(a, b).numpy == expected == xp.result_type(b, a).numpy
        both = xp.maximum(xp.ones((1,), dtype=a), xp.ones((1,), dtype=b)) if a is not fn.bool else None
        assert both is None or both.dtype.numpy == expected


def assert_same(found: fn.Tensor, expected: np.ndarray, operands: tuple[np.ndarray, ...], rtol: float) -> None:
    host = found.numpy()
    assert host.dtype == expected.dtype
    with np.errstate(invalid="ignore"):
        close = np.isclose(host, expected, rtol=rtol, atol=0, equal_nan=True)
    signs = (np.signbit(host) == np.signbit(expected)) | np.isnan(expected) if host.dtype.kind == "f" else True
    wrong = np.argwhere(~(close & signs))
    cases = [(*(float(o[i]) for o in operands), float(host[i]), float(expected[i])) for i in map(tuple, wrong[:5])]
    assert not cases, f"(operands …, found, expected): {cases}"


@pytest.mark.parametrize("dtype", [fn.float32, fn.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", UNARY)
def test_special_values_of_one_operand(name, dtype):
    host = np.array(SPECIALS, dtype.numpy)
    with np.errstate(all="ignore"):
        expected = numpy_function(name)(host)
    assert_same(getattr(xp, name)(fn.asarray(host)), expected, (host,), 1e-6)


@pytest.mark.parametrize("dtype", [fn.float32, fn.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", BINARY)
def test_special_values_of_two_operands(name, dtype):
    a, b = (o.reshape(-1) for o in np.meshgrid(np.array(SPECIALS, dtype.numpy), np.array(SPECIALS, dtype.numpy)))
    if name == "floor_divide":  # the standard leaves open what an infinity divided by a number is
        finite = np.isfinite(a)
        a, b = a[finite], b[finite]
    with np.errstate(all="ignore"):
        expected = numpy_function(name)(a, b)
    assert_same(getattr(xp, name)(fn.asarray(a), fn.asarray(b)), expected, (a, b), 1e-5)


@given(st.integers(-(2**60), 2**60), st.integers(0, 100), st.integers(-1000, 1000).filter(bool))
def test_arange_counts_exactly(start, count, step):
    x = xp.arange(start, start + count * step, step)
    assert x.shape == (count,)
    assert x.tolist() == list(range(start, start + count * step, step))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 50), st.booleans())
def test_linspace_hits_its_ends(start, stop, num, endpoint):
    x = xp.linspace(start, stop, num, dtype=xp.float64, endpoint=endpoint).numpy()
    assert x.shape == (num,) and x[0] == start
    assert not endpoint or num == 1 or x[-1] == stop
    np.testing.assert_allclose(x, np.linspace(start, stop, num, endpoint=endpoint), rtol=1e-12, atol=1e-9)


@given(st.sampled_from(STANDARD), SHAPES, st.randoms(use_true_random=False))
def test_arrays_come_back_as_they_went_in(dtype, shape, random):
    host = np.random.default_rng(random.getrandbits(32)).integers(0, 100, shape).astype(dtype.numpy)
    x = xp.asarray(host)
    assert x.dtype is dtype and x.shape == shape
    np.testing.assert_array_equal(x.numpy(), host)
    again = xp.asarray(x.tolist(), dtype=dtype)
    assert host.size == 0 or np.array_equal(again.numpy(), host)


@given(st.sampled_from(STANDARD), SHAPES, st.randoms(use_true_random=False))
def test_dlpack_keeps_every_layout(dtype, shape, random):
    rng = np.random.default_rng(random.getrandbits(32))
    host = rng.integers(0, 100, shape).astype(dtype.numpy)
    steps = tuple(slice(None, None, int(rng.choice([-2, -1, 1, 2]))) for _ in shape)
    view = np.asarray(host.transpose(rng.permutation(len(shape)))[steps])  # of 0 dimensions: not a number
    x = from_dlpack(view)
    assert x.strides == tuple(s // dtype.itemsize for s in view.strides) or not view.size
    np.testing.assert_array_equal(x.numpy(), view)
    np.testing.assert_array_equal(np.from_dlpack(x), view)


@pytest.mark.parametrize("name", ["sum", "prod", "cumulative_sum", "cumulative_prod"])
@pytest.mark.parametrize("dtype", [*fn.dtypes.INTEGERS, fn.float32, fn.float64], ids=lambda d: d.name)
def test_sums_of_integers_are_wide(name, dtype):
    wide = {"int": fn.int64, "uint": fn.uint64, "float": dtype}[dtype.kind]
    x = xp.ones((3,), dtype=dtype)
    assert getattr(xp, name)(x).dtype is wide
    assert getattr(xp, name)(x, dtype=dtype).dtype is dtype
