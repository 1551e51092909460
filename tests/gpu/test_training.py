"""Training steps on the GPU: as on the CPU device, in every precision, and without a call of the allocator's driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import nn
from flame_numba.devices import Device
from flame_numba.tensor import Tensor

STEPS = 6


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def data(shape: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, *shape)).astype(np.float32), rng.integers(0, 10, 32)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (64,)),
    "convolutional": (convolutional, (1, 8, 8)),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: fn.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: fn.optim.AdamW(p, lr=3e-3),
}


def losses(device: Device, model: str, optimizer: str, precision: fn.DType | None) -> tuple[list[float], Any]:
    """The loss of each step, and the parameters after the last."""
    make, shape = MODELS[model]
    with device:
        fn.manual_seed(1)
        net = make()
        # the generator is the same everywhere, but its logarithm may differ in the last bit: start from one place
        rng = np.random.default_rng(5)
        with fn.no_grad():
            for p in net.parameters():
                p[...] = fn.asarray(rng.normal(size=p.shape).astype(np.float32) / np.sqrt(p.shape[-1]))
        x, labels = (fn.asarray(v) for v in data(shape))
        optim = OPTIMIZERS[optimizer](net.parameters())
        scaler = fn.GradScaler(enabled=precision is fn.float16)
        found = []
        for _ in range(STEPS):
            with fn.autocast(precision or fn.bfloat16, enabled=precision is not None):
                loss = fn.cross_entropy(net(x), labels)
            scaler.scale(loss).backward()
            scaler.step(optim)
            scaler.update()
            optim.zero_grad()
            found.append(loss.item())
        return found, [p.numpy().astype(np.float64) for p in net.parameters()]


@pytest.mark.parametrize("precision", [None, fn.bfloat16, fn.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_as_on_the_cpu_device(model: str, optimizer: str, precision: fn.DType | None, gpu: Device) -> None:
    ours, parameters = losses(gpu, model, optimizer, precision)
    theirs, reference = losses(Device.cpu(), model, optimizer, precision)
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4 if precision is None else 3e-2)
    for a, b in zip(parameters, reference, strict=True):
        assert np.linalg.norm(a - b) <= (2e-3 if precision is None else 5e-2) * np.linalg.norm(b) + 1e-3


@pytest.mark.parametrize("precision", [None, fn.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_the_same_bits_again(model: str, precision: fn.DType | None, gpu: Device) -> None:
    first, a = losses(gpu, model, "adamw", precision)
    second, b = losses(gpu, model, "adamw", precision)
    assert first == second
    assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))


def test_a_step_asks_the_driver_for_no_memory(gpu: Device) -> None:
    """After a warm-up every block comes from what the pool holds; and no step leaves anything behind."""
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig()).use() as pool:
        net = perceptron()
        optimizer = fn.optim.AdamW(net.parameters())
        x, labels = (fn.asarray(v) for v in data((64,)))

        def step() -> Tensor:
            with fn.autocast(fn.bfloat16):
                loss: Tensor = fn.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        for _ in range(3):
            loss = step()
        before = pool.stats()
        for _ in range(20):
            loss = step()
        after = pool.stats()
        assert after.driver_calls == before.driver_calls
        assert after.live_blocks == before.live_blocks
        assert after.allocations > before.allocations
        assert np.isfinite(loss.item())


def test_moving_memory_while_training_changes_nothing(gpu: Device) -> None:
    """Losses with the pool compacted at random steps are those without, bit for bit; and those without caching."""
    results = []
    for backend, moves in (("auto", False), ("auto", True), ("segments", True), ("direct", False)):
        with fn.MemoryPool.with_config(gpu, fn.PoolConfig(backend=backend)).use() as pool:
            rng = np.random.default_rng(9)
            fn.manual_seed(3)
            net = perceptron()
            optimizer = fn.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            x, labels = (fn.asarray(v) for v in data((64,)))
            found, junk = [], []
            for step in range(30):
                junk.append(fn.zeros((int(rng.integers(1, 5000)),)))
                loss = fn.cross_entropy(fn.dropout(net(x), 0.1), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
                if step % 3 == 0:
                    junk.pop(int(rng.integers(len(junk))))
                if moves and rng.random() < 0.5:
                    pool.defragment()
            results.append(found)
    assert results[0] == results[1] == results[2]
