"""The "Special cases" of the Array API standard for elementwise functions, in every floating dtype."""

from __future__ import annotations

import math
from itertools import product

import ml_dtypes
import numpy as np
import pytest

import flame_numba as fn

INF, NAN = math.inf, math.nan
FLOATS = (fn.float16, fn.bfloat16, fn.float32, fn.float64)
PI = math.pi

ONE = {
    "acos": [(2, NAN), (-2, NAN), (1, 0.0)],
    "acosh": [(0.5, NAN), (1, 0.0), (INF, INF)],
    "asin": [(2, NAN), (0.0, 0.0), (-0.0, -0.0)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, PI / 2), (-INF, -PI / 2)],
    "atanh": [(2, NAN), (-1, -INF), (1, INF), (0.0, 0.0), (-0.0, -0.0)],
    "ceil": [(0.0, 0.0), (-0.0, -0.0), (-0.5, -0.0), (INF, INF)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)],
    "cosh": [(0.0, 1), (INF, INF), (-INF, INF)],
    "exp": [(0.0, 1), (INF, INF), (-INF, 0.0)],
    "exp2": [(0.0, 1), (INF, INF), (-INF, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1)],
    "floor": [(0.0, 0.0), (-0.0, -0.0), (-INF, -INF)],
    "log": [(-1, NAN), (0.0, -INF), (-0.0, -INF), (1, 0.0), (INF, INF)],
    "log1p": [(-2, NAN), (-1, -INF), (-0.0, -0.0), (0.0, 0.0), (INF, INF)],
    "log2": [(-1, NAN), (0.0, -INF), (1, 0.0), (INF, INF)],
    "log10": [(-1, NAN), (0.0, -INF), (1, 0.0), (INF, INF)],
    "reciprocal": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, -0.0)],
    "round": [(0.0, 0.0), (-0.0, -0.0), (0.5, 0.0), (1.5, 2), (2.5, 2), (-0.5, -0.0), (INF, INF)],
    "sign": [(3, 1), (-3, -1), (0.0, 0), (-0.0, 0)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "sqrt": [(-1, NAN), (0.0, 0.0), (-0.0, -0.0), (INF, INF)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1)],
    "trunc": [(0.0, 0.0), (-0.0, -0.0), (-0.5, -0.0), (INF, INF)],
}  # fmt: skip
TWO = {
    "add": [(INF, -INF, NAN), (INF, INF, INF), (INF, 1, INF), (-0.0, -0.0, -0.0), (-0.0, 0.0, 0.0)],
    "atan2": [
        (1, 0.0, PI / 2), (1, -0.0, PI / 2), (0.0, 1, 0.0), (0.0, 0.0, 0.0), (0.0, -0.0, PI), (0.0, -1, PI),
        (-0.0, 1, -0.0), (-0.0, 0.0, -0.0), (-0.0, -0.0, -PI), (-0.0, -1, -PI), (-1, 0.0, -PI / 2), (1, INF, 0.0),
        (1, -INF, PI), (-1, INF, -0.0), (-1, -INF, -PI), (INF, 1, PI / 2), (-INF, 1, -PI / 2), (INF, INF, PI / 4),
        (INF, -INF, 3 * PI / 4), (-INF, INF, -PI / 4), (-INF, -INF, -3 * PI / 4),
    ],
    "copysign": [(1, -0.0, -1), (-1, 0.0, 1), (0.0, -2, -0.0), (INF, -1, -INF)],
    "divide": [
        (INF, INF, NAN), (0.0, -0.0, NAN), (1, 0.0, INF), (1, -0.0, -INF), (-1, 0.0, -INF), (0.0, -1, -0.0),
        (INF, -0.0, -INF), (1, INF, 0.0), (-1, INF, -0.0),
    ],
    "floor_divide": [
        (INF, INF, NAN), (-INF, INF, NAN), (0.0, 0.0, NAN), (0.0, -0.0, NAN), (0.0, 2, 0.0), (-0.0, 2, -0.0),
        (0.0, -2, -0.0), (2, 0.0, INF), (2, -0.0, -INF), (-2, 0.0, -INF), (-2, -0.0, INF), (INF, 2, INF),
        (INF, -2, -INF), (-INF, 2, -INF), (-INF, -2, INF), (2, INF, 0.0), (2, -INF, -1), (-2, INF, -1),
        (-2, -INF, 0.0), (1, 4, 0.0), (-1, 4, -1),
    ],
    "hypot": [(INF, NAN, INF), (NAN, -INF, INF), (1, NAN, NAN), (0.0, -2, 2), (-0.0, 0.0, 0.0)],
    "logaddexp": [(NAN, 1, NAN), (INF, 1, INF), (1, INF, INF), (-INF, -INF, -INF), (-INF, 1, 1)],
    "maximum": [(NAN, 1, NAN), (1, NAN, NAN), (INF, -INF, INF)],
    "minimum": [(NAN, 1, NAN), (1, NAN, NAN), (INF, -INF, -INF)],
    "multiply": [(INF, 0.0, NAN), (-0.0, INF, NAN), (INF, -1, -INF), (-0.0, 1, -0.0)],
    "pow": [
        (2, NAN, NAN), (NAN, 0.0, 1), (NAN, -0.0, 1), (NAN, 2, NAN), (2, INF, INF), (2, -INF, 0.0), (-2, INF, INF),
        (1, INF, 1), (-1, -INF, 1), (0.5, INF, 0.0), (0.5, -INF, INF), (INF, 2, INF), (INF, -2, 0.0), (-INF, 3, -INF),
        (-INF, 2, INF), (-INF, -3, -0.0), (-INF, -2, 0.0), (0.0, 2, 0.0), (0.0, -2, INF), (-0.0, 3, -0.0),
        (-0.0, 2, 0.0), (-0.0, -3, -INF), (-0.0, -2, INF), (-2, 0.5, NAN),
    ],
    "remainder": [
        (INF, 2, NAN), (-INF, 2, NAN), (INF, INF, NAN), (2, 0.0, NAN), (2, -0.0, NAN), (0.0, 0.0, NAN), (0.0, 2, 0.0),
        (-0.0, 2, 0.0), (0.0, -2, -0.0), (-0.0, -2, -0.0), (2, INF, 2), (2, -INF, -INF), (-2, INF, INF),
        (-2, -INF, -2), (5, -3, -1), (-5, 3, 1),
    ],
    "subtract": [(INF, INF, NAN), (INF, -INF, INF), (-0.0, 0.0, -0.0), (0.0, 0.0, 0.0)],
}  # fmt: skip


def check(name, operands, expected, dtype):
    found = getattr(fn, name)(*(fn.tensor([float(v)], dtype=dtype) for v in operands))
    assert found.dtype is dtype
    value = found.tolist()[0]
    note = f"{name}{operands} in {dtype.name}: {value}, expected {expected}"
    if math.isnan(expected):
        assert math.isnan(value), note
    elif expected in (0, INF, -INF) or float(expected).is_integer():
        assert value == expected, note
        assert name == "sign" or np.signbit(value) == np.signbit(float(expected)), note
    else:
        assert abs(value - expected) <= 4 * max(dtype.eps, 1e-15) * abs(expected), note


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_special_cases(name):
    cases = [((x,), y) for x, y in ONE.get(name, [])] + [((x, y), z) for x, y, z in TWO.get(name, [])]
    if name in ONE:
        cases.append(((NAN,), NAN))
    for dtype, (operands, expected) in product(FLOATS, cases):
        check(name, operands, expected, dtype)


def test_integers_never_trap():
    """What has no answer in integers is 0; what does not fit wraps."""
    lowest = fn.tensor([-(2**63), 7, -7], dtype=fn.int64)
    zero, minus = fn.zeros_like(lowest), fn.full((3,), -1, dtype=fn.int64)
    assert (lowest // zero).tolist() == [0, 0, 0] == (lowest % zero).tolist()
    assert (lowest // minus).tolist() == [-(2**63), -7, 7] and (lowest % minus).tolist() == [0, 0, 0]
    assert fn.abs(lowest).tolist() == [-(2**63), 7, 7] and fn.pow(lowest, minus).tolist() == [0, 0, 0]
    units = fn.tensor([1, -1, -1, 2**63 - 1, -(2**63 - 1)])  # squares wrap: the last two have a square of 1
    assert fn.pow(units, fn.tensor([-2, -3, -4, -1, -1])).tolist() == [1, -1, 1, 0, 0]
    small = fn.tensor([-128, 100], dtype=fn.int8)
    assert (small // fn.tensor([-1], dtype=fn.int8)).tolist() == [-128, -100]
    assert fn.floor(small).dtype is fn.int8 and fn.round(small).tolist() == [-128, 100]
    assert fn.isfinite(small).tolist() == [True, True] and fn.isinf(small).tolist() == [False, False]


def test_clip_keeps_dtype_and_layout_rules():
    x = fn.tensor([[1, 5, 9]], dtype=fn.int16)
    assert fn.clip(x, 2, 6).tolist() == [[2, 5, 6]] and fn.clip(x, 2, 6).dtype is fn.int16
    assert fn.clip(x, max=fn.tensor([[3], [7]], dtype=fn.int16)).tolist() == [[1, 3, 3], [1, 5, 7]]
    assert x.clip(4).tolist() == [[4, 5, 9]] and fn.clamp is fn.clip
    y = fn.tensor([0.0, 1.0, 2.0, 3.0]).requires_grad_()
    y.clip(1.0, 2.0).sum().backward()
    assert y.grad.tolist() == [0, 1, 1, 0]


def test_closeness_stays_on_the_device():
    x = fn.tensor([1.0, NAN])
    assert fn.allclose(x, x, equal_nan=True).shape == () and not fn.allclose(x, x)
    assert fn.array_equal(fn.tensor([1, 2]), fn.tensor([1, 2])) and not fn.array_equal(
        fn.tensor([1]), fn.tensor([1, 2])
    )
    assert fn.isclose(fn.tensor([2**53], dtype=fn.int64), fn.tensor([2**53 - 2**40]), rtol=0.0).tolist() == [False]
    with pytest.raises(fn.DeviceMismatch):
        fn.array_equal(x, fn.Tensor.empty((2,), device=fn.Device.simulated(1 << 20)))


def largest(dtype: fn.DType) -> float:
    return float(ml_dtypes.finfo(dtype.numpy).max)


# --- interpolation --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_lerp_ends_at_its_ends_and_does_not_overflow_between(dtype: fn.DType) -> None:
    big, small = largest(dtype), 0.125
    pairs = [(big, small), (small, -big), (-big, big), (INF, 1.0), (-INF, -5.0), (INF, INF), (-INF, INF), (3.0, 3.0)]
    for a, b in pairs:
        x, y = fn.tensor([a], dtype=dtype), fn.tensor([b], dtype=dtype)
        assert fn.lerp(x, y, 0.0).tolist() == x.tolist() and fn.lerp(x, y, 1.0).tolist() == y.tolist(), (a, b)
        middle = fn.lerp(x, y, 0.5).item()
        expected = 0.5 * x.item() + 0.5 * y.item()
        assert middle == pytest.approx(expected, rel=2 * dtype.eps, nan_ok=True), (a, b)


def test_lerp_never_steps_beyond_its_end() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(20_000).astype(np.float32) * 10.0 ** rng.integers(-6, 6, 20_000) for _ in range(2))
    t = np.nextafter(np.float32(1), np.float32(0))
    y = fn.lerp(fn.tensor(a.astype(np.float32)), fn.tensor(b.astype(np.float32)), float(t)).numpy()
    low, high = np.minimum(a, b).astype(np.float32), np.maximum(a, b).astype(np.float32)
    assert np.all((low <= y) & (y <= high))


def test_lerp_has_the_derivatives_of_what_it_means_also_at_its_ends() -> None:
    a, b, t = (
        fn.tensor(v, dtype=fn.float64).requires_grad_() for v in ([1.0, 2.0, 4.0], [5.0, 2.0, 3.0], [0.0, 1.0, 1.0])
    )
    ga, gb, gt = fn.grad(fn.lerp(a, b, t).sum(), [a, b, t])
    assert (ga.tolist(), gb.tolist(), gt.tolist()) == ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [4.0, 0.0, -1.0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("method", ["linear", "lower", "higher", "midpoint", "nearest"])
def test_quantiles_beside_infinities_and_across_the_range(dtype: fn.DType, method: str) -> None:
    big = largest(dtype)
    for values in ([5.0, INF], [-INF, -5.0], [-INF, -INF, 1.0], [-big, big], [1.0, INF, INF], [-INF, INF, 0.0]):
        for q in (0.0, 0.3, 0.5, 1.0):
            given = fn.tensor(values, dtype=dtype)
            with np.errstate(all="ignore"):
                exact = np.sort(given.numpy().astype(np.longdouble))
                at = q * (len(values) - 1)
                place = {"lower": np.floor(at), "higher": np.ceil(at), "nearest": np.round(at)}.get(method, at)
                low, high, share = exact[int(place)], exact[min(int(place) + 1, len(values) - 1)], place - int(place)
                if method == "midpoint" and share:
                    share = 0.5
                expected = low if share == 0 else (1 - share) * low + share * high
            found = fn.quantile(given, q, method=method).item()
            assert found == pytest.approx(float(expected), rel=8 * dtype.eps, abs=big * 4 * dtype.eps, nan_ok=True), (
                values, q, found, float(expected),
            )  # fmt: skip


# --- digamma ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [fn.float32, fn.float64], ids=str)
def test_digamma_and_its_derivative_just_below_zero(dtype: fn.DType) -> None:
    special = pytest.importorskip("scipy.special")
    x = -(10.0 ** np.linspace(-17 if dtype is fn.float64 else -18, np.log10(0.4), 200))
    given = fn.tensor(x, dtype=dtype).requires_grad_()
    exact = given.numpy().astype(np.float64)
    y = fn.digamma(given)
    (slope,) = fn.grad(y.sum(), given)
    # ψ(x) = ψ(1 + x) − 1/x, and its derivative: no digit of x is lost
    assert np.allclose(y.numpy(), special.digamma(1 + exact) - 1 / exact, rtol=64 * dtype.eps)
    assert np.allclose(slope.numpy(), special.polygamma(1, 1 + exact) + 1 / exact**2, rtol=64 * dtype.eps)


# --- losses and variances ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weight", [None, 3.0])
def test_an_infinite_logit_of_the_right_sign_costs_nothing(dtype: fn.DType, weight: float | None) -> None:
    logits = fn.tensor([INF, -INF, INF, -INF, INF, -INF, NAN], dtype=dtype).requires_grad_()
    target = fn.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 1.0], dtype=dtype)
    q = None if weight is None else fn.full((7,), weight, dtype=dtype)
    loss = fn.binary_cross_entropy_with_logits(logits, target, pos_weight=q, reduction="none")
    assert np.array_equal(loss.tolist(), [0, 0, INF, INF, INF, INF, NAN], equal_nan=True)
    (slope,) = fn.grad(loss[:4].sum(), logits)
    assert slope.tolist()[:4] == [0.0, 0.0, 1.0, -(weight or 1.0)]


@pytest.mark.parametrize("op", ["var", "std"])
@pytest.mark.parametrize("correction", [2, 3])
def test_no_degrees_of_freedom_are_as_in_numpy(op: str, correction: int) -> None:
    for values in ([1.0, 2.0], [3.0, 3.0]):
        with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
            expected = getattr(np.array(values), op)(ddof=correction)
        found = getattr(fn, op)(fn.tensor(values), correction=correction).item()
        assert np.array_equal(found, expected, equal_nan=True)


# --- bins -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [*FLOATS, fn.int32, fn.uint8, fn.int64], ids=str)
@pytest.mark.parametrize("bins", [3, 7, 10, 49, 100])
def test_bins_between_whole_numbers_begin_at_whole_numbers(dtype: fn.DType, bins: int) -> None:
    """Every bin holds its lower edge, the last both, as with the same limits given: nothing is off by a rounding."""
    x = fn.arange(bins + 1, dtype=dtype)
    counts, edges = fn.histogram(x, bins=bins)
    given, same = fn.histogram(x, bins=bins, range=(0, bins))
    assert counts.tolist() == given.tolist() == [1] * (bins - 1) + [2]
    assert edges.tolist() == same.tolist() == list(range(bins + 1))


def test_bins_of_any_data_are_numpy_s() -> None:
    rng = np.random.default_rng(3)
    for scale in (1.0, 1e-300, 1e300, 1e5):
        x = rng.standard_normal(1000) * scale + scale / 3
        counts, edges = fn.histogram(fn.asarray(x), bins=37)
        expected, limits = np.histogram(x, bins=37)
        assert counts.tolist() == expected.tolist() and edges.tolist() == limits.tolist()
