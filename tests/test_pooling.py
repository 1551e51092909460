"""Pools: places of the winners, NaN and ties, windows beyond the end; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame_numba as fn


def test_where_the_winners_are() -> None:
    x = fn.asarray(np.arange(16.0).reshape(1, 1, 4, 4)).requires_grad_()
    y, index = fn.max_pool2d(x, 2, return_indices=True)
    assert y.tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]] and index.tolist() == [[[[5, 7], [13, 15]]]]
    assert index.dtype is fn.int64
    y.sum().backward()
    assert np.flatnonzero(x.grad.numpy()).tolist() == [5, 7, 13, 15]
    y, index = fn.adaptive_max_pool2d(x, (1, None), return_indices=True)
    assert index.tolist() == [[[[12, 13, 14, 15]]]]


def test_nan_wins_and_ties_go_to_the_first() -> None:
    x = fn.asarray(np.array([[[1.0, np.nan, 3.0, 2.0, 2.0, 1.0]]])).requires_grad_()
    y, index = fn.max_pool1d(x, 3, return_indices=True)
    assert np.isnan(y.numpy()[0, 0, 0]) and y.numpy()[0, 0, 1] == 2 and index.tolist() == [[[1, 3]]]
    y.sum().backward()
    assert x.grad.tolist() == [[[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]]


def test_minus_infinity_has_a_place() -> None:
    y, index = fn.max_pool1d(fn.full((1, 1, 4), -np.inf), 2, padding=1, return_indices=True)
    assert index.tolist() == [[[0, 1, 3]]] and np.all(np.isneginf(y.numpy()))


def test_integers_pool_too() -> None:
    x = fn.asarray(np.array([[[-7, -3, -9, -1]]], np.int8))
    assert fn.max_pool1d(x, 2).tolist() == [[[-3, -1]]] and fn.max_pool1d(x, 2).dtype is fn.int8


def test_overlapping_windows_add_their_gradients() -> None:
    x = fn.asarray(np.array([[[0.0, 5.0, 0.0, 0.0]]])).requires_grad_()
    fn.max_pool1d(x, 2, stride=1).sum().backward()
    assert x.grad.tolist() == [[[0.0, 2.0, 1.0, 0.0]]]


def test_a_last_window_beyond_the_end() -> None:
    x = fn.asarray(np.array([[[1.0, 2.0, 3.0, 4.0, 6.0]]]))
    assert fn.avg_pool1d(x, 2).shape == (1, 1, 2)
    assert fn.avg_pool1d(x, 2, ceil_mode=True).tolist() == [[[1.5, 3.5, 6.0]]]  # what is beyond never counts
    assert fn.avg_pool1d(x, 3, padding=1).tolist() == [[[1.0, 3.0 + 4 / 3]]]
    assert fn.avg_pool1d(x, 3, padding=1, count_include_pad=False).tolist() == [[[1.5, 3.0 + 4 / 3]]]


def test_one_sample_without_a_batch() -> None:
    x = fn.asarray(np.random.default_rng(0).normal(size=(3, 6, 4)))
    for pool in (lambda v: fn.avg_pool2d(v, 2), lambda v: fn.max_pool2d(v, 2), lambda v: fn.adaptive_avg_pool2d(v, 3)):
        assert np.array_equal(pool(x).numpy(), pool(x.unsqueeze(0)).numpy()[0])


def test_global_pool_is_a_mean() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    y = fn.adaptive_avg_pool2d(fn.asarray(x), 1).numpy()
    assert np.allclose(y, x.mean((2, 3), keepdims=True))


@pytest.mark.parametrize("shape", [(1, 2, 2048, 1024), (1, 1, 2000, 1000)])
@pytest.mark.parametrize("window", ["whole", "adaptive", "half", "rows", "padded"])
def test_means_of_large_windows_keep_their_digits(shape: tuple[int, ...], window: str) -> None:
    h, w = shape[2:]
    x = np.random.default_rng(0).random(shape, np.float32)
    wide = x.astype(float)
    call, due = {
        "whole": (lambda v: fn.avg_pool2d(v, (h, w)), wide.mean((2, 3), keepdims=True)),
        "adaptive": (lambda v: fn.adaptive_avg_pool2d(v, 1), wide.mean((2, 3), keepdims=True)),
        "half": (lambda v: fn.avg_pool2d(v, (h // 2, w)), wide.reshape(*shape[:2], 2, -1).mean(3)[..., None]),
        "rows": (lambda v: fn.adaptive_avg_pool2d(v, (4, 1)), wide.reshape(*shape[:2], 4, -1).mean(3)[..., None]),
        "padded": (
            lambda v: fn.avg_pool2d(v, (h, w), padding=(h // 2, 0)), wide[:, :, : h // 2].sum((2, 3))[..., None] / h / w
        ),
    }[window]  # fmt: skip
    found = call(fn.asarray(x)).numpy()[:, :, : due.shape[2] if window != "padded" else 1, :1]
    np.testing.assert_allclose(found.reshape(-1), due.reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [fn.float16, fn.float32, fn.float64], ids=lambda d: d.name)
def test_the_mean_of_a_whole_plane_is_a_pool(dtype: fn.DType) -> None:
    """The same values, dtype and gradients as by windows, also without a batch and under autocast."""
    for axes, pool in ((1, fn.adaptive_avg_pool1d), (2, fn.adaptive_avg_pool2d), (3, fn.adaptive_avg_pool3d)):
        size = (6, 4, 8)[:axes]
        plain = getattr(fn, f"avg_pool{axes}d")
        x = fn.asarray(np.random.default_rng(0).normal(size=(3, *size)), dtype=dtype).requires_grad_()
        due = x.detach().numpy().astype(float).mean(tuple(range(1, axes + 1)), keepdims=True)
        for call in (lambda v, pool=pool: pool(v, 1), lambda v, plain=plain, size=size: plain(v, size)):
            y = call(x)
            assert y.shape == (3, *(1,) * axes) and y.dtype is dtype
            np.testing.assert_allclose(y.detach().numpy(), due, rtol=4 * dtype.eps, atol=dtype.eps)
            (g,) = fn.grad(y.sum(), x)
            np.testing.assert_allclose(g.numpy(), 1 / np.prod(size), rtol=dtype.eps)
            with fn.autocast(fn.bfloat16):
                assert call(x).dtype is dtype


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x: fn.max_pool2d(x, 9), fn.ShapeError, "does not fit"),
        (lambda x: fn.max_pool2d(x, 0), fn.ShapeError, "kernel=0"),
        (lambda x: fn.max_pool2d(x, 2, padding=2), fn.ShapeError, "at most half"),
        (lambda x: fn.max_pool2d(x, 2, padding=1, dilation=5), fn.ShapeError, "padding alone"),
        (lambda x: fn.max_pool1d(x, 2), fn.ShapeError, "needs signals"),
        (lambda x: fn.max_pool2d(x > 0, 2), fn.DTypeError, "numeric"),
        (lambda x: fn.avg_pool2d(x.to_dtype(fn.int32), 2), fn.DTypeError, "floating"),
        (lambda x: fn.avg_pool2d(x, (2, 2, 2)), fn.ShapeError, "kernel"),
        (lambda x: fn.adaptive_avg_pool2d(x, 0), fn.ShapeError, "size"),
        (lambda x: fn.adaptive_avg_pool2d(x, (1, 2, 3)), fn.ShapeError, "size"),
        (lambda x: fn.adaptive_avg_pool2d(x[:, :, :0], 2), fn.ShapeError, "empty"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(fn.ones((1, 2, 4, 4)))
