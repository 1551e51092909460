"""Scans, sorts and searches on the GPU at the sizes where their kernels change: tiles, pieces of lines, digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.dtypes import DType

LENGTHS = (1, 31, 32, 33, 128, 129, 256, 1023, 1025, 4097, 70_001)
SIZES = (2, 33, 64, 65, 512, 513, 2048, 2049, 4096, 4097, 50_000)
KINDS = (fn.float16, fn.bfloat16, fn.float32, fn.float64, fn.int8, fn.int64, fn.uint32, fn.bool)


def integers(shape: Any, low: int = -9, high: int = 10) -> Any:
    return np.random.default_rng(7).integers(low, high, shape)


@pytest.mark.parametrize("n", LENGTHS)
def test_running_sums_of_every_length(gpu: Device, n: int) -> None:
    for shape, axis in (((n,), 0), ((3, n), 1), ((n, 40), 0), ((2, n, 3), 1)):
        x = integers(shape)
        with gpu:
            found = fn.cumsum(fn.asarray(x), axis).numpy()
            back = fn.flip(fn.cumsum(fn.flip(fn.asarray(x), axis), axis), axis).numpy()
            top = fn.cummax(fn.asarray(x), axis)[0].numpy()
        assert np.array_equal(found, np.cumsum(x, axis))
        assert np.array_equal(back, np.flip(np.cumsum(np.flip(x, axis), axis), axis))
        assert np.array_equal(top, np.maximum.accumulate(x, axis))


def test_a_long_line(gpu: Device) -> None:
    x = np.random.default_rng(0).standard_normal(1 << 22)
    with gpu:
        y = fn.cumsum(fn.asarray(x), 0)
        again = fn.cumsum(fn.asarray(x), 0)
        low = fn.logcumsumexp(fn.asarray(x))
    assert np.allclose(y.numpy(), np.cumsum(x), rtol=1e-10, atol=1e-8)
    assert np.allclose(low.numpy(), np.log(np.cumsum(np.exp(x))), rtol=1e-12)
    assert y.numpy().tobytes() == again.numpy().tobytes()


@pytest.mark.parametrize("n", (1, 64, 65, 1000, 70_001))
def test_recurrences(gpu: Device, n: int) -> None:
    a, b = (np.random.default_rng(i).uniform(-1, 1, (2, n, 3)) for i in range(2))
    expected = np.zeros_like(b)
    for j in range(n):
        expected[:, j] = b[:, j] + (a[:, j] * expected[:, j - 1] if j else 0)
    with gpu:
        found = fn.linear_recurrence(fn.asarray(a), fn.asarray(b), 1)
        back = fn.linear_recurrence(fn.flip(fn.asarray(a), 1), fn.flip(fn.asarray(b), 1), 1, reverse=True)
    assert np.allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)
    assert np.allclose(fn.flip(back, 1).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
def test_orders_of_every_size(gpu: Device, dtype: DType) -> None:
    for n in SIZES:
        with gpu:
            x = fn.asarray(integers((3, n), 0, 200) - (0 if dtype.kind in ("uint", "bool") else 100)).to_dtype(dtype)
            up, down = fn.argsort(x), fn.argsort(x, descending=True)
        wide = x.numpy().astype(np.float64)
        assert np.array_equal(up.numpy(), np.argsort(wide, -1, kind="stable")), n
        assert np.array_equal(down.numpy(), np.argsort(-wide, -1, kind="stable")), n


def test_many_elements_in_order(gpu: Device) -> None:
    x = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32)
    x[::1000] = np.nan
    with gpu:
        found = fn.argsort(fn.asarray(x))
    assert np.array_equal(found.numpy(), np.argsort(x, kind="stable"))


@pytest.mark.parametrize("n", LENGTHS)
def test_places_and_sets(gpu: Device, n: int) -> None:
    x = integers((n,), 0, 50)
    with gpu:
        t = fn.asarray(x)
        places = fn.nonzero(t > 20)[0]
        distinct = fn.unique_all(t)
        counts, found = fn.bincount(t, minlength=50), fn.searchsorted(fn.sort(t), t, side="right")
        order = fn.permutation(n)
    assert np.array_equal(places.numpy(), np.nonzero(x > 20)[0])
    for a, b in zip(distinct, np.unique_all(x), strict=True):
        assert np.array_equal(a.numpy(), b)
    assert np.array_equal(counts.numpy(), np.bincount(x, minlength=50))
    assert np.array_equal(found.numpy(), np.searchsorted(np.sort(x), x, "right"))
    assert np.array_equal(np.sort(order.numpy()), np.arange(n))


def test_random_orders_are_the_same_on_every_device(gpu: Device) -> None:
    for n in (10, 3000):
        here = fn.permutation(n, device="cpu", generator=fn.Generator(5))
        there = fn.permutation(n, device=gpu, generator=fn.Generator(5))
        assert np.array_equal(here.numpy(), there.numpy())
    p = np.random.default_rng(0).random((4, 30))
    for replacement in (False, True):
        here = fn.multinomial(fn.asarray(p), 8, replacement, generator=fn.Generator(5))
        with gpu:
            there = fn.multinomial(fn.asarray(p), 8, replacement, generator=fn.Generator(5))
        assert np.mean(here.numpy() == there.numpy()) > 0.9  # sums in another order may round otherwise
