"""Convolution, pools and upsampling on the GPU: every tile of the kernels, against NumPy in f64 or the CPU device."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.dtypes import FLOATS, DType
from flame_numba.ops.core.per_axis import positions
from flame_numba.ops.windows.convolution_primitives import (
    adjoint_reference,
    convolve,
    convolve_adjoint,
    convolve_reference,
    convolve_weight,
    weight_reference,
)
from flame_numba.tensor import Tensor

Array = npt.NDArray[Any]

DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)

# x, weight, stride, padding, dilation, groups: rows of 1, 16, 32, 64 and 128 to a tile, cut sums, phases
SETTINGS = [
    ((2, 6, 19, 23), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 6),
    ((3, 6, 18, 17), (12, 2, 3, 2), (2, 3), (1, 0), (1, 1), 3),
    ((2, 5, 17, 16), (20, 5, 5, 3), (1, 1), (2, 1), (1, 2), 1),
    ((2, 70, 9, 9), (67, 70, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 6, 20, 20), (4, 6, 4, 4), (2, 2), (1, 1), (1, 1), 1),
    ((16, 3, 64, 64), (8, 3, 3, 3), (2, 2), (1, 1), (2, 2), 1),
    ((4, 33), (5, 4, 7), (3,), (3,), (2,), 1),
    ((2, 4, 6, 7, 5), (6, 4, 3, 2, 3), (1, 2, 1), (1, 1, 0), (1, 1, 1), 1),
]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def near(found: Tensor, expected: Array, terms: int) -> None:
    """Within a rounding of the dtype, and what a sum of so many products of numbers around 1 may lose."""
    error = np.abs(found.numpy().astype(np.float64) - expected)
    allowed = found.dtype.eps * np.abs(expected) + 8 * found.dtype.accumulator.eps * np.sqrt(terms) * 4 + 1e-7
    assert np.all(error <= allowed), f"off by {np.max(error / allowed):.1f} × what is allowed"


@DTYPES
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_products_of_a_convolution(setting: Any, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x_shape, w_shape, *settings = setting
    if len(x_shape) == len(w_shape) - 1:
        x_shape = (3, *x_shape)
    stride, padding, dilation, _ = settings
    out = positions(x_shape[2:], w_shape[2:], stride, padding, dilation, "test")
    shapes = (x_shape, w_shape, (x_shape[0], w_shape[0], *out))
    x, w, g = (rng.normal(size=s).astype(dtype.numpy) for s in shapes)
    tx, tw, tg = (fn.asarray(v) for v in (x, w, g))
    wide = [v.astype(np.float64) for v in (x, w, g)]
    taps = int(np.prod(w_shape[2:]))
    y = convolve(tx, tw, *settings)
    near(y, convolve_reference(wide[0], wide[1], *settings), w_shape[1] * taps)
    expected = adjoint_reference(wide[2], wide[1], x_shape[2:], *settings)
    near(convolve_adjoint(tg, tw, x_shape[2:], *settings), expected, w_shape[0] * taps)
    expected = weight_reference(wide[0], wide[2], w_shape[2:], *settings)
    dw = convolve_weight(tx, tg, w_shape[2:], *settings)
    near(dw, expected, x_shape[0] * int(np.prod(out)))
    # any strides are read in place, and give the same bits
    turned = fn.asarray(np.moveaxis(x, 1, -1).copy()).permute((0, x.ndim - 1, *range(1, x.ndim - 1)))
    back = fn.asarray(np.flip(g, -1).copy()).flip(-1)
    assert np.array_equal(convolve(turned, tw, *settings).numpy(), y.numpy())
    assert np.array_equal(convolve_weight(turned, back, w_shape[2:], *settings).numpy(), dw.numpy())


def test_the_large_tile(gpu: Device, rng: np.random.Generator) -> None:
    x, w = rng.normal(size=(1, 3, 33_001)).astype("f"), rng.normal(size=(130, 3, 3)).astype("f")
    y = fn.conv1d(fn.asarray(x), fn.asarray(w), padding=1)
    near(y, convolve_reference(x.astype(float), w.astype(float), (1,), (1,), (1,), 1), 9)


POOLS: list[Callable[[Tensor], Tensor]] = [
    lambda x: fn.max_pool2d(x, 3, 2, 1),
    lambda x: fn.max_pool2d(x, (2, 3), 1, dilation=(3, 2), ceil_mode=True),
    lambda x: fn.avg_pool2d(x, 2),
    lambda x: fn.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    lambda x: fn.adaptive_avg_pool2d(x, (5, 30)),
    lambda x: fn.adaptive_max_pool2d(x, (5, 30)),
    lambda x: fn.upsample(x, scale_factor=2),
    lambda x: fn.upsample(x, (40, 11), mode="bilinear"),
    lambda x: fn.upsample(x, (11, 40), mode="bicubic"),
    lambda x: fn.upsample(x, (11, 40), mode="bicubic", align_corners=True),
]


@DTYPES
@pytest.mark.parametrize("pool", POOLS, ids=map(str, range(len(POOLS))))
def test_pools_and_upsampling(
    pool: Callable[[Tensor], Tensor], dtype: DType, gpu: Device, rng: np.random.Generator
) -> None:
    """The CPU device runs the same kernels, a row at a time: its results are checked against NumPy."""
    host = rng.normal(size=(3, 5, 19, 22)).astype(dtype.numpy)
    found = []
    for device in (gpu, Device.cpu()):
        x = fn.asarray(host, device=device).requires_grad_()
        y = pool(x)
        y.backward(fn.asarray(np.cos(np.arange(y.numel)).reshape(y.shape).astype(dtype.numpy), device=device))
        assert x.grad is not None
        found.append((y, x.grad))
    for mine, other in zip(*found, strict=True):
        near(mine, other.numpy().astype(np.float64), 16)
