"""Upsampling: known values, exact places, that the adjoint is one; pixels and channels; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame_numba as fn


def test_known_values() -> None:
    x = fn.asarray(np.array([[[1.0, 2.0, 4.0]]]))
    assert fn.upsample(x, scale_factor=2).tolist() == [[[1, 1, 2, 2, 4, 4]]]
    assert fn.upsample(x, 5, mode="linear", align_corners=True).tolist() == [[[1, 1.5, 2, 3, 4]]]
    assert fn.upsample(x, 6, mode="linear").tolist() == [[[1, 1.25, 1.75, 2.5, 3.5, 4]]]
    assert fn.upsample(x, 1, mode="linear").tolist() == [[[2]]]
    assert fn.interpolate is fn.upsample


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
def test_constants_stay(mode: str, corners: bool) -> None:
    x = fn.full((1, 2, 3, 4), 2.5, dtype=fn.float64)
    assert np.allclose(fn.upsample(x, (7, 9), mode=mode, align_corners=corners).numpy(), 2.5)


def test_nearest_is_exact_for_any_size() -> None:
    """Places are fractions of integers: a quotient in f32 would be off by one here and there."""
    x = fn.arange(1000, dtype=fn.float32).reshape(1, 1, 1000)
    for m in (1, 7, 999, 1000, 1001, 4321):
        expected = np.arange(m) * 1000 // m
        assert np.array_equal(fn.upsample(x, m).numpy()[0, 0], expected)


@pytest.mark.parametrize("n, factor", [(4000, 0.37219), (10_000, 1e-4), (37, 1 / 3), (10, 12345.678), (3, 2.2)])
def test_a_factor_moves_no_place(n: int, factor: float) -> None:
    x = fn.arange(n, dtype=fn.float64).reshape(1, 1, n)
    place = (np.arange(int(n * factor)) + 0.5) / factor - 0.5
    found = fn.upsample(x, scale_factor=factor, mode="linear").numpy()[0, 0]
    np.testing.assert_allclose(found, np.clip(place, 0, n - 1), rtol=1e-12, atol=1e-12 * n)
    assert np.array_equal(found, fn.upsample(x, scale_factor=np.float64(factor), mode="linear").numpy()[0, 0])


def test_sizes_and_factors_of_numpy_or_bool() -> None:
    x = fn.ones((1, 1, 3))
    assert fn.upsample(x, scale_factor=np.float32(2)).shape == (1, 1, 6)
    assert type(fn.upsample(x, True).shape[-1]) is int


@pytest.mark.parametrize("mode, shape, size", [
    ("nearest", (2, 3, 4, 5), (9, 3)), ("bilinear", (2, 3, 4, 5), (3, 11)), ("bicubic", (2, 3, 4, 5), (9, 2)),
    ("trilinear", (1, 2, 3, 4, 2), (5, 3, 4)), ("linear", (2, 2, 1), (4,)), ("bicubic", (1, 1, 1, 2), (5, 5)),
])  # fmt: skip
@pytest.mark.parametrize("corners", [False, True])
def test_the_gradient_is_the_adjoint(mode: str, shape: Any, size: Any, corners: bool) -> None:
    if mode == "nearest" and corners:
        pytest.skip("nearest has no corners")
    rng = np.random.default_rng(0)
    x = fn.asarray(rng.normal(size=shape)).requires_grad_()
    y = fn.upsample(x, size, mode=mode, align_corners=corners)
    g, e = rng.normal(size=y.shape), rng.normal(size=shape)
    y.backward(fn.asarray(g))
    moved = fn.upsample(fn.asarray(e), size, mode=mode, align_corners=corners).numpy()
    assert np.isclose((moved * g).sum(), (x.grad.numpy() * e).sum())


def test_pixels_and_channels() -> None:
    x = fn.arange(24).reshape(1, 4, 2, 3)
    y = fn.pixel_shuffle(x, 2)
    assert y.shape == (1, 1, 4, 6) and y.tolist()[0][0][0] == [0, 6, 1, 7, 2, 8]
    assert fn.pixel_unshuffle(y, 2).tolist() == x.tolist()
    assert fn.pixel_shuffle(x[0], 2).shape == (1, 4, 6)  # no batch, or several


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x: fn.upsample(x), fn.ConfigError, "one of them"),
        (lambda x: fn.upsample(x, 2, 2.0), fn.ConfigError, "one of them"),
        (lambda x: fn.upsample(x, 2, mode="linear"), fn.ConfigError, "does not fit 2 axes"),
        (lambda x: fn.upsample(x, 2, mode="lanczos"), fn.ConfigError, "modes: nearest"),
        (lambda x: fn.upsample(x, 2, align_corners=True), fn.ConfigError, "align_corners"),
        (lambda x: fn.upsample(x, 0), fn.ShapeError, "size=0"),
        (lambda x: fn.upsample(x, scale_factor=0.1), fn.ShapeError, "leaves nothing"),
        (lambda x: fn.upsample(x, scale_factor=-1), fn.ShapeError, "scale_factor"),
        (lambda x: fn.upsample(x, scale_factor=float("inf")), fn.ShapeError, "scale_factor=inf must be a finite"),
        (lambda x: fn.upsample(x, scale_factor=(2, float("nan"))), fn.ShapeError, "finite"),
        (lambda x: fn.upsample(x, scale_factor="2"), fn.DTypeError, "scale_factor must be a number, got '2'"),
        (lambda x: fn.upsample(x, 2, mode=["nearest"]), fn.ConfigError, "modes: nearest"),
        (lambda x: fn.pixel_shuffle(x, None), fn.DTypeError, "factor"),
        (lambda x: fn.upsample(x[:, :, :0], 2), fn.ShapeError, "nothing to resample"),
        (lambda x: fn.upsample(x.to_dtype(fn.int32), 2), fn.DTypeError, "floating"),
        (lambda x: fn.upsample(x[0, 0], 2), fn.ShapeError, "needs signals"),
        (lambda x: fn.pixel_shuffle(x, 2), fn.ShapeError, "multiple of factor"),
        (lambda x: fn.pixel_unshuffle(x, 3), fn.ShapeError, "multiples of factor"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(fn.ones((1, 2, 4, 4)))
