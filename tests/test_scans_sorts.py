"""Scans, sorting and searching: what the generated tests do not draw, paths for long rows, blocks of threads."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn
from block_of_threads import launch
from flame_numba.kernels.order import scan as scan_kernels
from flame_numba.kernels.order import sort as sort_kernels
from flame_numba.ops.index import orders
from flame_numba.ops.order import scans


@pytest.fixture
def many_pieces(monkeypatch):
    """Lines in pieces and rows in tiles, as on a GPU."""
    monkeypatch.setattr(orders, "scan_plan", lambda x, rows, n, inner: (inner >= 16, 1, 7, -(-n // 7)))
    monkeypatch.setattr(scans, "scan_chunks", lambda x, items, n, shortest: (5, -(-n // 5)))
    monkeypatch.setattr(orders, "radix_plan", lambda x, n: (4, 1, 100))


# --- scans ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shape", "axis"), [((100,), 0), ((3, 50), 1), ((30, 17), 0), ((2, 40, 3), 1), ((7,), 0)])
@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_of_a_line_agree_with_the_whole(many_pieces, shape, axis, reverse):
    x = np.random.default_rng(0).integers(-5, 6, shape)
    expected = np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)
    assert np.array_equal(scans.running_sum(fn.asarray(x), axis, reverse).numpy(), expected)
    values, _ = fn.cummax(fn.asarray(x), axis)
    assert np.array_equal(values.numpy(), np.maximum.accumulate(x, axis))
    a, b = (np.random.default_rng(i).uniform(-1, 1, shape) for i in (1, 2))
    found = fn.linear_recurrence(fn.asarray(a), fn.asarray(b), axis, reverse)
    assert np.allclose(found.numpy(), scans._recurrence_reference(a, b, axis, reverse), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [2, 8, 32])
@pytest.mark.parametrize("totals", [False, True])
def test_scan_by_a_block_of_threads(threads, totals):
    rows, n, chunk, chunks = 2, 100, 60, 2
    x = np.random.default_rng(0).integers(-9, 10, (rows, n))
    y, starts = np.zeros_like(x), np.zeros((rows, chunks), np.int64)
    starts[:, 0] = x[:, :chunk].sum(1)
    launch(
        scan_kernels.scan_rows,
        (y.reshape(-1), x.reshape(-1), starts.reshape(-1), rows, n, 1, n, 1, n, 1, chunk, chunks),
        3, threads,
        {"C": int, "IDENTITY": 0, "ITEMS": 2, "TOTALS": totals, "combine": lambda a, b: a + b, "transform": int,
         "load_x": lambda p, i: p[i], "store_y": lambda p, i, v: p.__setitem__(i, v)},
        {"shared": (threads, np.int64)}, {},
    )  # fmt: skip
    if totals:
        assert np.array_equal(starts, np.stack([x[:, :chunk].sum(1), x[:, chunk:].sum(1)], 1))
    else:
        assert np.array_equal(y, np.cumsum(x, 1))


def test_long_sums_keep_their_digits():
    x = fn.full((1 << 20,), 0.1, dtype=fn.float32)
    exact = float(np.float32(0.1)) * (1 << 20)
    assert abs(fn.cumsum(x, 0)[-1].item() - exact) < 1e-4 * exact
    assert abs(np.cumsum(x.numpy())[-1] - exact) > 1e-3 * exact  # one sum after the other


def test_products_have_a_gradient_at_zeros():
    x = fn.tensor([2.0, 0.0, 3.0, 0.0], dtype=fn.float64).requires_grad_()
    fn.cumprod(x, 0).sum().backward()
    assert x.grad.tolist() == [1.0, 8.0, 0.0, 0.0]


def test_extremes_name_the_last_of_equals_and_keep_nan():
    values, indices = fn.cummax(fn.tensor([1.0, 3.0, 3.0, 2.0, float("nan"), 9.0, float("nan")]))
    assert values.tolist()[:4] == [1, 3, 3, 3] and np.isnan(values.numpy()[4:]).all()
    assert indices.tolist() == [0, 1, 2, 2, 4, 4, 6]
    assert [v.tolist() for v in fn.cummin(fn.tensor([[3, 1], [1, 2]]), axis=None)] == [[3, 1, 1, 1], [0, 1, 2, 2]]


def test_logcumsumexp_of_infinities():
    inf = float("inf")
    x = fn.tensor([-inf, -inf, 1.0, -inf, 800.0], dtype=fn.float64).requires_grad_()
    y = fn.logcumsumexp(x)
    assert y.tolist() == [-inf, -inf, 1.0, 1.0, 800.0]
    fn.grad(y.narrow(0, 2, 3).sum(), x)
    (g,) = fn.grad(fn.logcumsumexp(x).narrow(0, 2, 3).sum(), x)
    assert g.tolist() == [0.0, 0.0, 2.0, 0.0, 1.0]


def test_scan_errors():
    x = fn.zeros((2, 3))
    with pytest.raises(fn.AxisError, match="cumulative_sum: axis=None"):
        fn.cumulative_sum(x)
    with pytest.raises(fn.AxisError, match="cumsum: axis=2"):
        fn.cumsum(x, 2)
    with pytest.raises(fn.ShapeError, match="linear_recurrence"):
        fn.linear_recurrence(x, fn.zeros((3, 2)))
    with pytest.raises(fn.DTypeError, match="logcumsumexp: needs a floating tensor, got int64"):
        fn.logcumsumexp(fn.arange(3))
    with pytest.raises(fn.DTypeError, match="cummax"):
        fn.cummax(fn.zeros((3,), dtype=fn.bool))
    with pytest.raises(fn.ConfigError, match="diff: n must be"):
        fn.diff(x, n=-1)


# --- sorting ----------------------------------------------------------------------------------------------------------
SPECIAL = [0.0, -0.0, np.nan, 1.0, -np.inf, np.inf, -np.nan, -1.0, 0.0, 1e-40, -1e-40]


def test_special_numbers_in_order():
    x = fn.tensor(SPECIAL, dtype=fn.float64)
    assert fn.argsort(x).tolist() == [4, 7, 10, 0, 1, 8, 9, 3, 5, 2, 6]
    assert fn.argsort(x, descending=True).tolist() == [2, 6, 5, 3, 9, 0, 1, 8, 10, 7, 4]
    assert fn.argsort(fn.concat([x] * 9)).tolist() == np.argsort(np.tile(SPECIAL, 9), kind="stable").tolist()


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint16", "int64", "uint64", "bool"]
)
@pytest.mark.parametrize("descending", [False, True])
def test_digits_of_tiles_agree_with_numpy(many_pieces, dtype, descending):
    rng = np.random.default_rng(0)
    x = fn.asarray(rng.integers(0, 250, (2, 333)) - (100 if dtype[0] in "fbi" else 0)).to_dtype(dtype)
    wide = x.numpy().astype(np.float64)
    expected = np.argsort(-wide if descending else wide, -1, kind="stable")
    assert np.array_equal(fn.argsort(x, descending=descending).numpy(), expected)


def test_low_bits_are_enough_for_small_numbers(many_pieces):
    x = np.random.default_rng(0).integers(0, 1000, (1, 500))
    assert np.array_equal(orders.order_rows(fn.asarray(x), bits=10).numpy(), np.argsort(x, kind="stable"))


@pytest.mark.parametrize(("n", "threads"), [(1, 2), (17, 4), (64, 8), (100, 32)])
def test_merge_by_a_block_of_threads(n, threads):
    x = np.random.default_rng(n).integers(0, 20, (3, n)).astype(np.uint64)
    y = np.zeros((3, n), np.int64)
    keys, index = (128, np.uint64), (128, np.uint16)
    launch(
        sort_kernels.merge_rows, (y.reshape(-1), x.reshape(-1), 3, n, 0), 2, threads,
        {"key_of": int, "load_bits": lambda p, i: int(p[i]), "store_y": lambda p, i, v: p.__setitem__(i, v)},
        {"old_key": keys, "old_index": index, "fresh_key": keys, "fresh_index": index}, {},
    )  # fmt: skip
    assert np.array_equal(y, np.argsort(x, -1, kind="stable"))


@pytest.mark.parametrize("threads", [4, 8, 32])
def test_a_digit_by_blocks_of_threads(threads):
    rows, n, tile, tiles, radix = 2, 150, 64, 3, 4
    keys = np.random.default_rng(0).integers(0, 16, (rows, n))
    order = np.tile(np.arange(n), (rows, 1))
    counts, new_keys, new_order = np.zeros((rows, radix * tiles), np.int64), np.zeros_like(keys), np.zeros_like(keys)
    store = lambda p, i, v: p.__setitem__(i, v)  # noqa: E731
    names = {"RADIX": radix, "load_k": lambda p, i: int(p[i]), "store_y": store, "store_k": store, "store_i": store,
             "load_i": lambda p, i: int(p[i])}  # fmt: skip
    shared = {"shared_counts": (radix * threads, np.int64), "shared_partial": (threads, np.int64)}
    helpers = {"digit": sort_kernels.digit_of}
    flat = (counts.reshape(-1), keys.reshape(-1), rows, n, tile, tiles, 2)
    launch(sort_kernels.count_digits, flat, 4, threads, names, shared, helpers)
    ends = np.cumsum(counts, 1).reshape(-1)
    given = (new_keys.reshape(-1), new_order.reshape(-1), keys.reshape(-1), order.reshape(-1), ends, *flat[2:])
    launch(sort_kernels.move_keys, given, 4, threads, names, shared, helpers)
    expected = np.argsort(keys >> 2, -1, kind="stable")
    assert np.array_equal(new_order, expected)
    assert np.array_equal(new_keys, np.take_along_axis(keys, expected, -1))


def test_gradient_of_topk_goes_to_the_chosen():
    x = fn.tensor([[1.0, 5.0, 3.0], [9.0, 7.0, 8.0]]).requires_grad_()
    values, indices = fn.topk(x, 2)
    assert values.tolist() == [[5, 3], [9, 8]] and indices.tolist() == [[1, 2], [0, 2]]
    values.sum().backward()
    assert x.grad.tolist() == [[0, 1, 1], [1, 0, 1]]


def test_quantiles_of_nan_and_infinities():
    x = fn.tensor([[1.0, float("nan"), 3.0], [1.0, 2.0, float("inf")]])
    assert np.isnan(fn.median(x, axis=1).numpy()[0]) and fn.median(x, axis=1).tolist()[1] == 2.0
    assert fn.quantile(x[1], fn.tensor([0.5, 1.0])).tolist() == [2.0, float("inf")]
    assert fn.median(fn.tensor([1, 2, 3, 4])).item() == 2.5


def test_sort_errors():
    x = fn.zeros((2, 3))
    for call, error, text in (
        (lambda: fn.topk(x, 4), fn.ShapeError, "topk: k=4 must be in 0 … 3"),
        (lambda: fn.kthvalue(x, 0), fn.ShapeError, "kthvalue: k=0 must be in 1 … 3"),
        (lambda: fn.sort(x, axis=2), fn.AxisError, "axis=2"),
        (lambda: fn.sort(fn.zeros(())), fn.AxisError, "argsort"),
        (lambda: fn.quantile(x, 1.5), fn.ConfigError, "quantile: q=1.5"),
        (lambda: fn.quantile(x, 0.5, method="cubic"), fn.ConfigError, "method='cubic'"),
        (lambda: fn.median(fn.zeros((0,))), fn.ShapeError, "no elements"),
    ):
        with pytest.raises(error, match=text):
            call()


# --- searching --------------------------------------------------------------------------------------------------------
def test_places(many_pieces):
    mask = np.random.default_rng(0).random((5, 6, 7)) < 0.3
    found = fn.nonzero(fn.asarray(mask))
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(found, np.nonzero(mask), strict=True))
    turned = fn.permute(fn.asarray(mask), (2, 0, 1))
    assert np.array_equal(fn.argwhere(turned).numpy(), np.argwhere(mask.transpose(2, 0, 1)))
    assert [len(i) for i in fn.nonzero(fn.zeros((3, 4)))] == [0, 0]
    assert fn.nonzero(fn.tensor([float("nan"), -0.0, 1.0]))[0].tolist() == [0, 2]
    with pytest.raises(fn.ShapeError, match="0-d"):
        fn.nonzero(fn.tensor(1.0))


def test_searchsorted_with_a_sorter_and_mixed_dtypes():
    x = fn.tensor([3, 1, 2])
    assert fn.searchsorted(x, fn.tensor([1.5, 2.0, 9.0]), sorter=fn.argsort(x)).tolist() == [1, 1, 3]
    for bad in (
        lambda: fn.searchsorted(fn.zeros((2, 3)), fn.zeros((3, 2))),
        lambda: fn.searchsorted(fn.zeros(()), fn.zeros((3,))),
        lambda: fn.searchsorted(x, x, sorter=fn.zeros((3,))),
        lambda: fn.bucketize(x, fn.zeros((2, 2))),
    ):
        with pytest.raises(fn.ShapeError):
            bad()
    with pytest.raises(fn.ConfigError, match="side='middle'"):
        fn.searchsorted(x, x, side="middle")


def test_distinct_elements():
    x = fn.tensor([[2.0, -0.0, float("nan")], [0.0, float("nan"), 2.0]])
    found = fn.unique_all(x)
    assert found.values.tolist()[:2] == [-0.0, 2.0] and np.isnan(found.values.numpy()[2:]).all()
    assert found.indices.tolist() == [1, 0, 2, 4] and found.counts.tolist() == [2, 2, 1, 1]
    assert found.inverse_indices.tolist() == [[1, 0, 2], [0, 3, 1]]
    assert fn.unique(fn.tensor([3, 1, 3])).tolist() == [1, 3]
    assert fn.isin(fn.tensor([1, 5]), 5).tolist() == [False, True]
    assert fn.isin(5, fn.tensor([1, 5])).item() is True
    with pytest.raises(fn.DTypeError, match="isin"):
        fn.isin(1, 2)


def test_counts():
    x = fn.tensor([1, 3, 1, 0])
    assert fn.bincount(x).tolist() == [1, 2, 0, 1]
    assert fn.bincount(x, length=2).tolist() == [1, 2] and fn.bincount(x, minlength=6).tolist() == [1, 2, 0, 1, 0, 0]
    assert fn.bincount(fn.zeros((0,), dtype=fn.int64)).tolist() == []
    assert fn.bincount(x.to_dtype("uint8"), fn.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [4, 4, 0, 2]
    with pytest.raises(fn.ConfigError, match="below 0"):
        fn.bincount(fn.tensor([1, -1]))
    with pytest.raises(fn.DTypeError, match="integers"):
        fn.bincount(fn.zeros((3,)))
    with pytest.raises(fn.ShapeError, match="weights"):
        fn.bincount(x, fn.zeros((3,)))


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_histogram_as_numpys(density, weighted):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(200), rng.random(200)
    for bins, limits in ((10, None), (7, (-1.0, 1.5)), (np.array([-2.0, 0.0, 0.1, 3.0]), None)):
        given = bins if isinstance(bins, int) else fn.asarray(bins)
        found = fn.histogram(fn.asarray(x), given, limits, fn.asarray(w) if weighted else None, density)
        expected = np.histogram(x, bins, limits, weights=w if weighted else None, density=density)
        for a, b in zip(found, expected, strict=True):
            assert np.allclose(a.numpy(), b, rtol=1e-12)
    assert fn.histogram(fn.tensor([2.0, 2.0]), 2)[0].tolist() == [0, 2]
    for bad in (lambda: fn.histogram(fn.asarray(x), 0), lambda: fn.histogram(fn.asarray(x), 3, (1.0, 0.0))):
        with pytest.raises(fn.ConfigError, match="histogram"):
            bad()


# --- random orders ----------------------------------------------------------------------------------------------------
def test_permutation_is_one_and_repeats():
    generator = fn.Generator(3)
    state = generator.state()
    first = fn.permutation(1000, generator=generator).numpy()
    assert sorted(first) == list(range(1000)) and not np.array_equal(first, np.arange(1000))
    assert not np.array_equal(first, fn.permutation(1000, generator=generator).numpy())
    generator.set_state(state)
    assert np.array_equal(first, fn.permutation(1000, generator=generator).numpy())
    assert [fn.permutation(n).tolist() for n in (0, 1)] == [[], [0]]
    with pytest.raises(fn.ConfigError, match="permutation"):
        fn.permutation(-1)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("weights", [[-1.0, 2, 1], [1, np.nan, 1], [0, 0, 0], [1e308] * 3, [np.inf, 1, 1]])
def test_multinomial_refuses_what_are_no_weights(weights, replacement):
    p = fn.asarray(np.array([[1.0, 2, 3], weights]))
    with pytest.raises(fn.ConfigError, match="multinomial: weights"):
        fn.multinomial(p, 2, replacement).tolist()  # on a GPU the error comes with the values
    assert fn.multinomial(p[:1], 2, replacement).shape == (1, 2)  # no fault is left behind


def test_multinomial_follows_the_weights():
    generator = fn.Generator(1)
    p = fn.tensor([[0.0, 1.0, 3.0, 0.0], [2.0, 0.0, 0.0, 2.0]])
    drawn = fn.multinomial(p, 20000, replacement=True, generator=generator).numpy()
    shares = np.stack([np.bincount(row, minlength=4) for row in drawn]) / 20000
    assert np.abs(shares - [[0, 0.25, 0.75, 0], [0.5, 0, 0, 0.5]]).max() < 0.02
    firsts = np.array([fn.multinomial(p, 2, generator=generator).numpy() for _ in range(200)])
    assert set(firsts[:, 0].reshape(-1)) == {1, 2} and (np.sort(firsts[:, 1]) == [0, 3]).all()
    assert 0.6 < (firsts[:, 0, 0] == 2).mean() < 0.9
    with pytest.raises(fn.ShapeError, match="cannot draw 5 of 4"):
        fn.multinomial(p, 5)
    with pytest.raises(fn.DTypeError, match="multinomial"):
        fn.multinomial(fn.arange(3), 1)
