"""Reductions and norms where a tolerance hides what goes wrong: small numbers, ties, zeros, casts, long sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

import flame_numba as fn
from block_of_threads import launch
from flame_numba.kernels.reduce import reduce

INF, NAN = math.inf, math.nan
HALVES = (fn.float16, fn.bfloat16)


def slopes(op, values, dtype=fn.float32):
    """The gradient of op(x).sum() at x."""
    x = fn.tensor(values, dtype=dtype).requires_grad_()
    op(x).sum().backward()
    return x.grad.tolist()


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.name)
@pytest.mark.parametrize("values", [[-300, 300], [1e-4, -1e-4], [1000, 1004] * 4, [2, 2]], ids=str)
def test_deviations_are_rounded_once(dtype, values):
    x = fn.tensor(values, dtype=dtype)
    exact = x.numpy().astype(np.float64)
    assert fn.std(x).item() == pytest.approx(exact.std(), rel=dtype.eps)
    with np.errstate(over="ignore"):
        variance = float(exact.var().astype(dtype.numpy))
    assert fn.var(x).item() == pytest.approx(
        variance, rel=dtype.eps, abs=float(np.finfo(np.float16).smallest_subnormal)
    )


@pytest.mark.parametrize(
    ("op", "values", "expected"),
    [
        (fn.std, [2, 2, 2], [0, 0, 0]),
        (lambda x: fn.std(x, axis=1), [[2, 2], [1, 3]], [[0, 0], [-0.5, 0.5]]),
        (fn.max, [1, NAN, 3], [0, 1, 0]),
        (fn.max, [1, 2, 2], [0, 0.5, 0.5]),
        (fn.min, [1, 1, 2, 1], [1 / 3, 1 / 3, 0, 1 / 3]),
        (fn.median, [INF, INF], None),
        (lambda x: fn.maximum(x, fn.tensor([NAN, 1.0, 2.0])), [1, NAN, 1], [1, 1, 0]),
        (lambda x: fn.minimum(fn.tensor([NAN, 1.0, 2.0]), x), [1, NAN, 1], [1, 1, 1]),
        (lambda x: fn.atan2(x, fn.tensor([0.0, 0.0, 1e-30])), [0, 1, 1e-30], [0, 0, 5e29]),
        (lambda x: fn.atan2(fn.tensor([0.0, 1.0]), x), [0, 0], [0, -1]),
        (fn.prod, [0, 2, 3], [6, 0, 0]),
        (fn.prod, [1e-30, 1e-30, 1e30], [1, 1, 0]),  # the product itself vanishes
    ],
)  # fmt: skip
def test_slopes_where_formulas_divide_by_nothing(op, values, expected):
    found = slopes(op, values)
    if expected is None:
        assert not np.isnan(found).any()
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("values", [[0, 2, 3], [0, 0, 3], [1, 2, 3], [0, 0, 0]], ids=str)
def test_the_second_derivative_of_a_product_holds_at_zeros(values):
    found = fn.hessian(fn.prod, fn.tensor(values, dtype=fn.float64)).tolist()
    others = [[0 if i == j else math.prod(np.delete(values, [i, j])) for j in range(3)] for i in range(3)]
    assert found == others


@pytest.mark.parametrize("op", [fn.max, fn.min, lambda x: fn.vector_norm(x, ord=INF)], ids=["max", "min", "norm"])
def test_more_ties_than_f16_can_count(op):
    assert slopes(op, np.ones(70000), fn.float16)[:2] == [float(np.float16(1 / 70000))] * 2


def test_log_sum_exp_of_much_and_of_nothing():
    many = fn.zeros((70000,), dtype=fn.float16)
    assert fn.logsumexp(many).item() == float(np.float16(math.log(70000)))
    assert slopes(fn.logsumexp, np.zeros(70000), fn.float16)[0] == float(np.float16(1 / 70000))
    assert fn.logsumexp(fn.zeros((2, 0)), axis=1).tolist() == [-INF, -INF]
    assert fn.logsumexp(fn.tensor([-100, 100], dtype=fn.int8)).item() == 100
    assert fn.logsumexp(fn.tensor([INF, 1.0])).item() == INF


@pytest.mark.parametrize("dtype", [fn.int32, fn.uint8, fn.bool], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["sum", "prod", "cumsum", "cumprod"])
def test_elements_are_cast_before_they_are_combined(name, dtype):
    for values in ([0.6] * 10, [1.0, -1.0], [1.5, 2.5, 300.7], [2, -2]):
        found = getattr(fn, name)(fn.asarray(np.array(values)), dtype=dtype)
        due = getattr(np, name)(np.array(values), dtype=dtype.numpy)
        assert found.dtype is dtype and found.tolist() == due.tolist(), values


@pytest.mark.parametrize("n", [300, 8192, 10**6])
def test_long_sums_keep_their_digits(n):
    x = fn.full((n,), 0.1)
    due = float(np.float32(0.1))
    assert fn.sum(x).item() == pytest.approx(n * due, rel=1.2e-6)
    assert fn.mean(fn.broadcast_to(x, (3, n)), axis=1).tolist() == pytest.approx([due] * 3, rel=1.2e-6)


@pytest.mark.parametrize("shape", [(1 << 20, 32), (1 << 14, 4096)])
def test_long_sums_of_columns_keep_their_digits(shape):
    x = fn.full(shape, 0.1)
    assert fn.sum(x, axis=0).numpy() == pytest.approx(shape[0] * float(np.float32(0.1)), rel=1.2e-6)


def test_long_sums_of_columns_by_a_block_of_threads():
    n, lanes, threads = 20_000, 2, 4
    x, y = np.full(n * lanes, 0.1, np.float32), np.zeros(lanes, np.float32)
    names = {
        "C": np.float32, "IDENTITY": 0, "LANES": lanes, "PIECE": 64, "combine": np.add, "transform": np.float32,
        "load_x": lambda p, i: p[i], "store_y": np.ndarray.__setitem__,
    }  # fmt: skip
    launch(reduce.reduce_columns, (y, x, np.float32(1), lanes, lanes, 0, lanes, 1, n, n, 1), 1, threads, names,
           {"shared": (threads, np.float32)}, {})  # fmt: skip
    assert y == pytest.approx(n * float(np.float32(0.1)), rel=2e-6)


def test_quantiles_between_infinities_and_of_nan():
    assert fn.median(fn.tensor([INF, INF])).item() == INF
    assert math.isnan(fn.median(fn.tensor([-INF, INF])).item())
    assert fn.quantile(fn.tensor([1.0, INF, INF]), 0.75).item() == INF
    found = fn.quantile(fn.tensor([1.0, 2.0, 3.0]), fn.tensor([NAN, 0.5])).tolist()
    assert math.isnan(found[0]) and found[1] == 2


@pytest.mark.parametrize("values", [[1, INF, 2], [1, NAN, 2], [INF, INF]], ids=str)
def test_a_histogram_without_limits_is_empty(values):
    counts, edges = fn.histogram(fn.tensor(values, dtype=fn.float32), 3)
    assert counts.tolist() == [0, 0, 0] and np.isnan(edges.numpy()).all()


def test_histograms_of_edges_that_descend_or_are_infinite():
    x = fn.tensor([1.0, 1.5, 0.0])
    for weights in (None, fn.ones((3,))):
        assert fn.histogram(x, fn.tensor([2.0, 1.0, 0.0]), weights=weights)[0].tolist() == [0, 0]
        assert fn.histogram(x, fn.tensor([-INF, 1.0, INF]), weights=weights)[0].tolist() == [1, 2]
