"""Gather and scatter beyond the generated tests: both ways to scatter, bits that repeat, shapes at large, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flame_numba as fn
from flame_numba.dtypes import INTEGERS
from flame_numba.ops.index import launches
from flame_numba.testing import LAYOUTS, with_layout


def at_once():
    """On CUDA an index is known to be out of range only later, unless in debug mode."""
    return fn.debug_mode(fn.default_device().kind == "cuda")


MERGES = {"assign": None, "sum": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}


def choose(way, patch):
    """Both ways on any device: a walk of threads over the index, and a sort of it; and the walk cut up as for a GPU."""
    patch.setattr(launches, "wants_sort", lambda *_: way == "sort")
    if way == "walk of many":
        gather, walk = launches._gather_plan, launches._walk_plan
        patch.setattr(launches, "_gather_plan", lambda *shapes: gather(*shapes[:-1], False))
        patch.setattr(launches, "_walk_plan", lambda *shapes: walk(*shapes[:-1], False))


WAYS = ("walk", "walk of many", "sort")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    choose(request.param, monkeypatch)


def expected(y, g, index, axis, merge):
    """One entry of the index after the other, in f64."""
    y, g = np.moveaxis(y.astype(np.float64), axis, 0).copy(), np.moveaxis(g.astype(np.float64), axis, 0)
    for j, at in enumerate(index):
        y[at] = g[j] if merge == "assign" else MERGES[merge](y[at], g[j])
    return np.moveaxis(y, 0, axis)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 70, 300])
def test_both_ways_scatter_alike(way, merge, n, monkeypatch):
    """Runs within a chunk (of 32 here), from one chunk to the next, and over many."""
    monkeypatch.setattr(launches, "isqrt", lambda n: 1)
    rng = np.random.default_rng(n)
    for size, index in (
        (7, rng.integers(-7, 7, n)),
        (1, np.zeros(n, int)),
        (n, np.arange(n)[::-1]),
        (3, np.repeat([2, 0, 1], n)[:n]),
    ):
        y, g = rng.uniform(0.5, 1.5, (2, size, 3)), rng.uniform(0.9, 1.1, (2, n, 3))
        found = fn.asarray(y)
        spec = launches.points("scatter", found.shape, 1, fn.asarray(index))
        launches.scatter_lines(found, fn.asarray(g), spec, merge)
        assert np.allclose(found.numpy(), expected(y, g, index, 1, merge), rtol=1e-12)


@settings(max_examples=40)
@given(data=st.data())
def test_layouts_and_lines(data):
    """Along an axis, with any layout of target, index and source; the sum and the last one."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.sampled_from([(5,), (3, 4), (2, 3, 4), (2, 1, 3, 2), (3, 0)]))
    axis = data.draw(st.integers(0, len(shape) - 1))
    index_shape = [data.draw(st.integers(0, n)) for n in shape]
    index_shape[axis] = data.draw(st.integers(0, 6)) if shape[axis] else 0
    x, src = rng.normal(size=shape), rng.normal(size=index_shape)
    index = rng.integers(-shape[axis], max(shape[axis], 1), index_shape) if shape[axis] else np.zeros(index_shape, int)
    last, total = x.copy(), x.copy()
    for at in np.ndindex(*index_shape):
        target = list(at)
        target[axis] = index[at]
        last[tuple(target)] = src[at]
        total[tuple(target)] += src[at]
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    a, i, b = (with_layout(v, layout) for v, layout in zip((x, index, src), layouts, strict=True))
    in_place = with_layout(x, layouts[0] if layouts[0] != "broadcast" else "permuted")
    with pytest.MonkeyPatch.context() as patch:
        choose(data.draw(st.sampled_from(WAYS)), patch)
        assert np.allclose(fn.scatter_add(a, axis, i, b).numpy(), total)
        assert np.array_equal(fn.scatter(a, axis, i, b).numpy(), last)
        in_place.scatter_(axis, i, b)
        if all(n == m for a_, (n, m) in enumerate(zip(shape, index_shape, strict=True)) if a_ != axis):
            assert np.array_equal(fn.gather(a, axis, i).numpy(), np.take_along_axis(x, index, axis))
    assert np.array_equal(in_place.numpy(), last)


def test_a_bfloat_sum_is_rounded_once(way):
    """1 + 256 · 2⁻⁹: in bf16, each step would be lost."""
    x = fn.ones((2,), dtype=fn.bfloat16)
    y = fn.index_add(x, 0, fn.asarray(np.zeros(256, np.int64)), fn.full((256,), 2.0**-9, dtype=fn.bfloat16))
    assert y.tolist() == [1.5, 1.0]
    assert x.index_add_(0, fn.asarray(np.zeros(256, np.int32)), fn.full((), 2.0**-9, dtype=fn.bfloat16)) is x
    assert x.tolist() == [1.5, 1.0]


def test_bits_repeat_with_many_equal_indices(way):
    rng = np.random.default_rng(0)
    x, index = fn.zeros((3, 5)), fn.asarray(rng.integers(0, 3, 5000))
    source = fn.asarray(rng.normal(size=(5000, 5)).astype(np.float32))
    runs = [fn.index_add(x, 0, index, source).numpy().tobytes() for _ in range(3)]
    assert len(set(runs)) == 1


def test_a_padding_row_gets_no_gradient():
    for padding, dtype in ((-2, fn.int8), (2, fn.int64), (2, fn.uint8)):
        weight = fn.ones((4, 2)).requires_grad_()
        last = 2 if dtype is fn.uint8 else -2  # the same row, counted from its end
        fn.embedding(fn.asarray([1, 2, last, 0], dtype=dtype), weight, padding_idx=padding).sum().backward()
        assert weight.grad.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("own", [False, True])
def test_a_mean_of_16_bits_is_of_a_sum_beyond_them(own):
    x, index = fn.asarray([100.0], dtype=fn.float16), fn.asarray([0] * 3000)
    y = fn.scatter_reduce(x, 0, index, fn.full((3000,), 100.0, dtype=fn.float16), "mean", include_self=own)
    assert y.dtype is fn.float16 and y.item() == 100


def test_a_mask_that_takes_nothing_needs_no_source():
    x, none = fn.asarray([1.0, 2.0]), fn.zeros((0,))
    y = fn.masked_scatter(x, fn.asarray([False, False]), none)
    assert y.tolist() == [1, 2] and y.storage is not x.storage
    with pytest.raises(fn.IndexOutOfRange, match="masked_scatter"), at_once():
        fn.masked_scatter(x, fn.asarray([False, True]), none)


def test_one_hot_takes_every_integer():
    for dtype in INTEGERS:
        assert fn.one_hot(fn.asarray([1], dtype=dtype), 3).tolist() == [[0, 1, 0]]


def test_a_number_may_be_the_source():
    x, index = fn.asarray([1.0, 2.0]).requires_grad_(), fn.asarray([1])
    assert fn.index_add(x, 0, index, 3.0).tolist() == x.detach().clone().index_add_(0, index, 3.0).tolist() == [1, 5]
    assert fn.index_copy(x, 0, index, 3.0).tolist() == x.detach().clone().index_copy_(0, index, 3.0).tolist() == [1, 3]


def test_equal_extremes_share_the_gradient():
    x, src = fn.asarray([1.0, 5.0]).requires_grad_(), fn.asarray([1.0, 1.0, 4.0]).requires_grad_()
    fn.scatter_reduce(x, 0, fn.asarray([0, 0, 1]), src, "amax").sum().backward()
    assert np.allclose(x.grad.numpy(), [1 / 3, 1]) and np.allclose(src.grad.numpy(), [1 / 3, 1 / 3, 0])


def test_reductions_of_integers():
    x, index = fn.asarray(np.array([7, 7], np.int8)), fn.asarray([0, 0])
    src = fn.asarray(np.array([-3, 5], np.int8))
    for reduce, value in {"sum": 2, "prod": -15, "amax": 5, "amin": -3}.items():
        assert fn.scatter_reduce(x, 0, index, src, reduce, include_self=False).tolist() == [value, 7]


I, J = fn.asarray([0, 1]), fn.asarray([[0, 1]])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: fn.take(x, fn.asarray([0.5])), fn.DTypeError, "take: indices must be integers, got float32"),
        (lambda x: fn.take(x, [0]), fn.DTypeError, "take: indices must be a tensor, got list"),
        (lambda x: fn.take(x, I, 2), fn.AxisError, "take: axis=2"),
        (
            lambda x: fn.take(x, fn.asarray([[0], [-4]])),
            fn.IndexOutOfRange,
            r"take: .*-4 at \(1, 0\), for axis 0 of size 3",
        ),
        (lambda x: fn.take(x[:0], I), fn.IndexOutOfRange, "axis 0 of shape .0, 4. is empty"),
        (lambda x: fn.take_along_axis(x, I), fn.ShapeError, "must have as many axes"),
        (lambda x: fn.take_along_axis(x, fn.asarray([[0], [0]])), fn.ShapeError, "do not broadcast"),
        (lambda x: fn.gather(x, 0, fn.asarray([[0, 0, 0, 0, 0]])), fn.ShapeError, "must not be longer"),
        (lambda x: fn.gather(x, 0, fn.asarray([[0, 3]])), fn.IndexOutOfRange, "gather: .*3 at .0, 1., for axis 0"),
        (lambda x: fn.index_select(x, 0, J), fn.ShapeError, "index_select: indices must have one axis"),
        (lambda x: fn.select(x, 1, 4), fn.IndexOutOfRange, "select: 4 is out of range for axis 1 of size 4"),
        (lambda x: fn.scatter(x, 0, J, fn.ones((1, 1))), fn.ShapeError, "scatter: indices .* longer than src"),
        (lambda x: fn.scatter(fn.arange(3), 0, I, 0.5), fn.DTypeError, "scatter: the number 0.5 does not go"),
        (
            lambda x: fn.scatter_add(x, 0, fn.asarray([[7]]), 1),
            fn.IndexOutOfRange,
            "scatter_add: .*7 at .0, 0., for axis 0",
        ),
        (lambda x: fn.index_add(x, 0, J, x), fn.ShapeError, "index_add: indices must have one axis"),
        (lambda x: fn.index_add(x, 0, I, x), fn.ShapeError, "index_add"),
        (lambda x: fn.index_add(x, 0, fn.asarray([3]), x[:1]), fn.IndexOutOfRange, "index_add: .*3 at 0, for axis 0"),
        (lambda x: fn.index_add(fn.arange(3), 0, I, I, 0.5), fn.DTypeError, "index_add: the number 0.5 does not go"),
        (lambda x: fn.arange(3).index_add_(0, I, I, 0.5), fn.DTypeError, "index_add_: the number 0.5 does not go into"),
        (lambda x: fn.index_copy(x, 0, fn.asarray([3]), x[:1]), fn.IndexOutOfRange, "index_copy: .*3 at 0, for axis 0"),
        (lambda x: fn.index_fill(x, 0, fn.asarray([3]), 1), fn.IndexOutOfRange, "index_fill: .*3 at 0, for axis 0"),
        (
            lambda x: x.scatter_reduce_(0, fn.asarray([[7]]), x, "mean", include_self=False),
            fn.IndexOutOfRange,
            "scatter_reduce: .*7 at .0, 0., for axis 0",
        ),
        (lambda x: fn.masked_fill(x, x > 0, fn.ones((2, 3, 4))), fn.ShapeError, "masked_fill: the value must be"),
        (lambda x: fn.embedding(I, x, 99), fn.IndexOutOfRange, "padding_idx=99"),
        (lambda x: fn.index_fill(x, 0, I, fn.ones((2,))), fn.ShapeError, "must be a number or 0-d"),
        (lambda x: fn.scatter_reduce(x, 0, J, 1.0, "median"), fn.ConfigError, "reduce must be one of"),
        (lambda x: fn.scatter_reduce(fn.arange(3), 0, I, 1, "mean"), fn.DTypeError, "mean of int64"),
        (lambda x: fn.put_along_axis(x, I, 0), fn.ShapeError, "as many axes"),
        (lambda x: fn.masked_select(x, x), fn.DTypeError, "masked_select: the mask must be bool"),
        (
            lambda x: fn.masked_scatter(x, x > -1, fn.ones((2,))),
            fn.IndexOutOfRange,
            "masked_scatter: .*2 at 2 .and 9 more., for axis 0 of size 2",
        ),
        (lambda x: fn.masked_fill(x, fn.asarray([True]).reshape(1, 1, 1), 0), fn.ShapeError, "masked_fill"),
        (lambda x: fn.embedding(fn.asarray([5]), x), fn.IndexOutOfRange, "embedding: .*5 at 0, for axis 0 of size 3"),
        (lambda x: fn.embedding(I, fn.ones((3,))), fn.ShapeError, "embedding: weight must have 2 axes"),
        (lambda x: fn.embedding(I, x.requires_grad_(), 3), fn.IndexOutOfRange, "padding_idx=3"),
        (lambda x: fn.one_hot(I, -1), fn.ConfigError, "classes must be ≥ 0"),
        (lambda x: fn.one_hot(x, 2), fn.DTypeError, "one_hot: indices must be integers"),
    ],
)
def test_errors(call, error, message):
    with at_once(), pytest.raises(error, match=message):
        call(fn.zeros((3, 4)))
