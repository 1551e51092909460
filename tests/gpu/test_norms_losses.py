"""Norms, class losses, gates and dropout on the GPU at sizes that take each kernel: against the CPU device in f64."""

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

Array = npt.NDArray[Any]
CPU = Device.cpu()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def outcome(op: Callable[..., Any], arrays: list[Array], dtype: DType, device: Device) -> list[Array]:
    """The result and the gradients of all operands, for a gradient of alternating ones."""
    leaves = [fn.asarray(a, dtype=dtype, device=device).requires_grad_() for a in arrays]
    y = op(*leaves)
    signs = np.where(np.arange(y.numel).reshape(y.shape) % 3 == 0, 1.0, -0.5)
    y.backward(fn.asarray(signs, dtype=y.dtype, device=device))
    return [y.numpy().astype(np.float64), *(x.grad.numpy().astype(np.float64) for x in leaves)]


def agrees(op: Callable[..., Any], arrays: list[Array], dtype: DType, gpu: Device, ulps: float = 64) -> None:
    """In `dtype` on the GPU as in f64 on the CPU, from the same rounded operands; and twice the same bits."""
    rounded = [a.astype(dtype.numpy) for a in arrays]
    expected = outcome(op, [a.astype(np.float64) for a in rounded], fn.float64, CPU)
    found, again = (outcome(op, rounded, dtype, gpu) for _ in range(2))
    for got, repeated, want in zip(found, again, expected, strict=True):
        assert np.array_equal(got, repeated, equal_nan=True)
        unit = ulps * dtype.accumulator.eps + (2 * dtype.eps if dtype.itemsize == 2 else 0)
        allowed = unit * (np.abs(want) + np.sqrt(np.mean(want * want)) + 1e-3)
        assert np.all(np.abs(got - want) <= allowed), float(np.max(np.abs(got - want) / allowed))


def named(dtypes: Any) -> Any:
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda d: d.name)


@named(FLOATS)
@pytest.mark.parametrize(
    "shape, groups",
    [((2, 32, 8, 8), 32), ((3, 6, 5), 2), ((4, 8, 1), 2), ((160, 8, 40, 61), 1), ((1, 4, 150, 151), 2), ((5, 7, 1), 7)],
)
def test_group_norm(shape: tuple[int, ...], groups: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x, w, b = rng.normal(1, 2, shape), rng.normal(1, 1, shape[1]), rng.normal(0, 1, shape[1])
    agrees(lambda x, w, b: fn.group_norm(x, groups, w, b), [x, w, b], dtype, gpu, 256)


@named(FLOATS)
@pytest.mark.parametrize("shape", [(64, 7), (5, 33, 3), (4, 6, 40), (3, 5, 100, 101), (2, 150, 33, 8)])
def test_batch_norm(shape: tuple[int, ...], dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x, w, b = rng.normal(1, 2, shape), rng.normal(1, 1, shape[1]), rng.normal(0, 1, shape[1])
    agrees(lambda x, w, b: fn.batch_norm(x, None, None, w, b, training=True), [x, w, b], dtype, gpu, 256)
    running = [fn.zeros((shape[1],), device=gpu), fn.ones((shape[1],), device=gpu)]
    fn.batch_norm(fn.asarray(x, device=gpu), *running, training=True, momentum=1.0)
    axes = (0, *range(2, len(shape)))
    np.testing.assert_allclose(running[0].numpy(), x.mean(axes), atol=1e-4)
    np.testing.assert_allclose(running[1].numpy(), x.var(axes, ddof=1), rtol=1e-4)


@named(FLOATS)
@pytest.mark.parametrize("rows, n", [(1, 3), (3, 31), (1000, 33), (7, 257), (5000, 300), (64, 4096)])
def test_parameters_of_row_norms(rows: int, n: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x, w, b = rng.normal(1, 2, (rows, n)), rng.normal(1, 1, n), rng.normal(0, 1, n)
    agrees(lambda x, w: fn.rms_norm(x, w), [x, w], dtype, gpu, 256)
    agrees(lambda x, w, b: fn.layer_norm(x, w, b), [x, w, b], dtype, gpu, 256)
    agrees(lambda x, b: fn.layer_norm(x, None, b), [x, b], dtype, gpu, 256)


@named(FLOATS)
def test_a_row_of_one(dtype: DType, gpu: Device) -> None:
    """x / √(x² + eps): the gradient in x is what two terms of about 1/x leave, so the error is one of the terms."""
    for value in (0.5, -3.0):
        arrays = [np.array([[value]]), np.array([2.0])]
        expected = outcome(fn.rms_norm, arrays, fn.float64, CPU)
        found, again = (outcome(fn.rms_norm, arrays, dtype, gpu) for _ in range(2))
        for got, repeated, want in zip(found, again, expected, strict=True):
            assert np.array_equal(got, repeated)
            term = max(2 / abs(value), float(np.abs(want).max()))
            assert np.all(np.abs(got - want) <= (8 * dtype.accumulator.eps + dtype.eps * (np.abs(want) > 1e-3)) * term)


@named(FLOATS)
@pytest.mark.parametrize("batch, tokens, n", [(1, 1, 8), (3, 100, 65), (2, 1024, 320)])
def test_modulation(batch: int, tokens: int, n: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x, shift, scale = rng.normal(1, 2, (batch, tokens, n)), rng.normal(0, 1, (batch, n)), rng.normal(0, 1, (batch, n))
    agrees(fn.layer_norm_modulate, [x, shift, scale], dtype, gpu, 256)
    agrees(fn.modulate, [x, shift, scale], dtype, gpu, 256)
    agrees(fn.gate_residual, [x, shift, x * 2], dtype, gpu, 256)


@named(FLOATS)
@pytest.mark.parametrize("n", [1, 31, 257, 5000])
def test_class_losses(n: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x, labels, weights = rng.normal(0, 3, (65, n)), rng.integers(0, n, 65), rng.uniform(0.5, 2, n).astype(dtype.numpy)
    labels[::7] = -100

    def loss(op: Any, weighted: bool, **keywords: Any) -> Callable[..., Any]:
        def call(x: fn.Tensor) -> Any:
            w = fn.asarray(weights, dtype=x.dtype, device=x.device) if weighted else None
            return op(x, fn.asarray(labels, device=x.device), w, **keywords)

        return call

    for weighted in (False, True):
        for reduction in ("mean", "none"):
            for smoothing in (0.0, 0.1):
                op = loss(fn.cross_entropy, weighted, reduction=reduction, label_smoothing=smoothing)
                agrees(op, [x], dtype, gpu, 256)
            agrees(loss(fn.nll_loss, weighted, reduction=reduction), [x], dtype, gpu)


@named(FLOATS)
@pytest.mark.parametrize("shape", [(3, 2), (33, 514), (5, 7, 62)])
def test_gates(shape: tuple[int, ...], dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    x = rng.normal(0, 2, shape)
    for op in (fn.glu, fn.swiglu, fn.geglu, fn.reglu):
        agrees(op, [x], dtype, gpu)


@named(FLOATS)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 1023, 100_003])
def test_dropout_keeps_the_same_elements_on_both_devices(n: int, dtype: DType, gpu: Device) -> None:
    here, there = (
        fn.dropout(fn.ones((n,), dtype=dtype, device=device), 0.3, generator=fn.Generator(5)) for device in (CPU, gpu)
    )
    assert np.array_equal(here.numpy(), there.numpy())
