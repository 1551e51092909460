"""Convolutions: the two ways to compute them agree, on any layout and in parts; what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.kernels.tile.micro import HOST_TILE, Tile
from flame_numba.kernels.windows.convolve import FORWARD, INPUT, WEIGHT
from flame_numba.ops.core.per_axis import positions, volumes
from flame_numba.ops.windows import convolution_paths as paths
from flame_numba.ops.windows.convolution_primitives import (
    adjoint_reference,
    convolve,
    convolve_adjoint,
    convolve_reference,
    convolve_weight,
    weight_reference,
)
from flame_numba.testing import LAYOUTS, with_layout

# x, weight, stride, padding, dilation, groups
SETTINGS = [
    ((2, 3, 9, 8), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 4, 9, 7), (6, 2, 3, 2), (2, 3), (2, 1), (1, 1), 2),
    ((1, 3, 11, 10), (5, 3, 3, 3), (2, 2), (0, 2), (2, 3), 1),  # some phases have no tap
    ((2, 5, 8, 8), (5, 1, 3, 3), (2, 1), (1, 1), (1, 2), 5),  # depthwise
    ((3, 4, 5, 5), (7, 4, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 2, 6, 6), (3, 2, 2, 2), (4, 3), (0, 0), (1, 1), 1),  # inputs that no window reads
    ((2, 3, 17), (2, 3, 5), (3,), (2,), (2,), 1),
    ((1, 2, 5, 4, 6), (3, 2, 3, 2, 2), (2, 1, 2), (1, 0, 1), (1, 2, 1), 1),
]
TILES = [HOST_TILE, Tile(1, 4, 2, 1, 4), Tile(4, 1, 3, 4, 1)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=[0, 1, 2, 3])
def by_gathering(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel that a GPU runs, with a tile of one thread, whole and in parts."""
    if request.param:
        tile, splits = TILES[request.param - 1], request.param

        def forward(y: Any, x: Any, w: Any, geo: Any) -> None:
            paths.gather(FORWARD, volumes(y), w, volumes(x), geo, tile, splits)

        def adjoint(dx: Any, g: Any, w: Any, geo: Any) -> None:
            paths.gather(INPUT, volumes(dx), w, volumes(g), geo, tile, splits)

        def weight(dw: Any, x: Any, g: Any, geo: Any) -> None:
            paths.gather(WEIGHT, volumes(dw), volumes(g), volumes(x), geo, tile, splits)

        for function in (forward, adjoint, weight):
            monkeypatch.setattr(paths, function.__name__, function)
    yield


@pytest.mark.parametrize("x_shape, w_shape, stride, padding, dilation, groups", SETTINGS)
def test_products(
    x_shape: Any, w_shape: Any, stride: Any, padding: Any, dilation: Any, groups: int, by_gathering: None,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    settings = (stride, padding, dilation, groups)
    out = positions(x_shape[2:], w_shape[2:], stride, padding, dilation, "test")
    x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
    g = rng.normal(size=(x_shape[0], w_shape[0], *out))
    tx, tw, tg = (with_layout(v, str(rng.choice(LAYOUTS))) for v in (x, w, g))
    assert np.allclose(convolve(tx, tw, *settings).numpy(), convolve_reference(x, w, *settings))
    expected = adjoint_reference(g, w, x_shape[2:], *settings)
    assert np.allclose(convolve_adjoint(tg, tw, x_shape[2:], *settings).numpy(), expected)
    expected = weight_reference(x, g, w_shape[2:], *settings)
    assert np.allclose(convolve_weight(tx, tg, w_shape[2:], *settings).numpy(), expected)


def test_columns_are_bounded(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """The host unfolds a few lines at a time, down to one: results agree, the memory does not grow with the image."""
    x, w = rng.normal(size=(2, 4, 24, 20)), rng.normal(size=(3, 4, 5, 3))
    found = []
    for limit in (1 << 30, 60_000, 1):
        monkeypatch.setattr(paths, "COLUMN_BYTES", limit)
        tx, tw = fn.asarray(x).requires_grad_(), fn.asarray(w).requires_grad_()
        fn.conv2d(tx, tw, stride=(2, 1), padding=2).sum().backward()
        found.append((tx.grad.numpy(), tw.grad.numpy()))
    for dx, dw in found[1:]:
        assert np.allclose(dx, found[0][0]) and np.allclose(dw, found[0][1])


def test_memory_of_a_large_image() -> None:
    x, w = fn.zeros((1, 16, 512, 512)), fn.zeros((4, 16, 3, 3))
    pool = fn.current_pool(x.device)
    pool.reset_peaks()
    before = pool.stats().allocated_bytes
    y = fn.conv2d(x, w, padding=1)
    assert pool.stats().peak_allocated_bytes - before < y.nbytes + 3 * paths.COLUMN_BYTES  # all columns were 151 MB


@pytest.mark.parametrize("dtype", [fn.float16, fn.bfloat16])
def test_low_precision_is_rounded_once(dtype: Any, rng: np.random.Generator) -> None:
    x, w = (rng.normal(size=s).astype(dtype.numpy) for s in ((2, 8, 6, 6), (4, 8, 3, 3)))
    exact = convolve_reference(x.astype(float), w.astype(float), (1, 1), (1, 1), (1, 1), 1)
    y = fn.conv2d(fn.asarray(x), fn.asarray(w), padding=1).numpy().astype(float)
    assert np.max(np.abs(y - exact) / np.maximum(np.abs(exact), 1)) <= 0.51 * dtype.eps


def test_same_bits_twice(rng: np.random.Generator) -> None:
    def gradients() -> list[bytes]:
        x, w = (fn.asarray(v).requires_grad_() for v in (a, b))
        y = fn.conv_transpose2d(x, w, stride=2, groups=2)
        (y * y).sum().backward()
        return [t.numpy().tobytes() for t in (y, x.grad, w.grad)]

    a, b = rng.normal(size=(3, 4, 7, 9)).astype("f"), rng.normal(size=(4, 3, 3, 3)).astype("f")
    assert gradients() == gradients()


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "adjoint", None)  # calling it would be an error
    w = fn.ones((2, 1, 3, 3)).requires_grad_()
    fn.conv2d(fn.ones((1, 1, 5, 5)), w).sum().backward()
    assert w.grad.tolist() == fn.full((2, 1, 3, 3), 9.0).tolist()


X, W = (2, 4, 6, 6), (6, 4, 3, 3)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x, w: fn.conv2d(x, w.to_dtype(fn.float32).reshape(6, 4, 9)), fn.ShapeError, "do not fit with groups=1"),
        (lambda x, w: fn.conv2d(x, w, groups=4), fn.ShapeError, "groups=4"),
        (lambda x, w: fn.conv2d(x, w, groups=0), fn.ShapeError, "groups=0"),
        (lambda x, w: fn.conv2d(x, w, fn.ones((5,))), fn.ShapeError, r"bias.shape=\(5,\) must be \(6,\)"),
        (lambda x, w: fn.conv2d(x, w, stride=0), fn.ShapeError, "stride=0"),
        (lambda x, w: fn.conv2d(x, w, padding=(1, 1, 1)), fn.ShapeError, "padding"),
        (lambda x, w: fn.conv2d(x, w, padding="full"), fn.ShapeError, "padding='full'"),
        (lambda x, w: fn.conv2d(x, w, padding="same", stride=2), fn.ShapeError, "with stride 1"),
        (lambda x, w: fn.conv2d(x, w, dilation=3), fn.ShapeError, "does not fit"),
        (lambda x, w: fn.conv1d(x, w), fn.ShapeError, "needs signals"),
        (lambda x, w: fn.conv2d(x.to_dtype(fn.int32), w), fn.DTypeError, "floating"),
        (lambda x, w: fn.conv_transpose2d(x, w), fn.ShapeError, "do not fit"),
        (lambda x, w: fn.conv_transpose2d(x, w[:4], output_padding=1), fn.ShapeError, "output_padding"),
        (lambda x, w: fn.conv_transpose2d(x, w[:4], padding=9), fn.ShapeError, "not empty"),
        (lambda x, w: fn.conv_transpose2d(x, fn.ones(())), fn.ShapeError, "do not fit"),
        (lambda x, w: fn.conv2d(x, w[:, :, :0]), fn.ShapeError, "must not be empty"),
        (lambda x, w: fn.conv_transpose2d(x, w[:4, :, :0]), fn.ShapeError, "must not be empty"),
        (lambda x, w: fn.conv2d(x, w, groups="1"), fn.DTypeError, "groups"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(fn.ones(X), fn.ones(W))
