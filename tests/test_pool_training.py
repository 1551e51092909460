"""The pool does not show in results: with it, without it, and while it moves live blocks, losses agree to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import nn
from flame_numba.optim import AdamW

STEPS = 200


def losses(pool: fn.MemoryPool, between: Callable[[int], None] = lambda step: None) -> list[float]:
    """Of each training step of a small convolutional network in bf16, everything in `pool`."""
    rng = np.random.default_rng(0)
    with pool.use():
        fn.manual_seed(1)
        images = fn.asarray(rng.standard_normal((64, 1, 8, 8)).astype(np.float32))
        labels = fn.asarray(rng.integers(0, 10, 64))
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 24), nn.LayerNorm(24),
            nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 10),
        )  # fmt: skip
        optimizer = AdamW(model.parameters(), lr=0.01)
        result = []
        for step in range(STEPS):
            batch = fn.permutation(64).narrow(0, 0, 1 + int(rng.integers(16)))  # sizes differ from step to step
            with fn.autocast(fn.bfloat16):
                loss = fn.cross_entropy(model(images.take(batch)), labels.take(batch))
            between(2 * step)
            loss.backward()
            between(2 * step + 1)
            optimizer.step()
            optimizer.zero_grad()
            result.append(loss)
        return [loss.item() for loss in result]  # type: ignore[misc]


@pytest.fixture(scope="module")
def reference(device: fn.Device) -> list[float]:
    return losses(fn.MemoryPool(device))


def test_the_network_learns(reference: list[float]) -> None:
    assert len(reference) == STEPS and np.isfinite(reference).all()
    assert np.mean(reference[-20:]) < 0.5 * np.mean(reference[:20])


def test_a_pass_through_allocator_gives_the_same_losses(device: fn.Device, reference: list[float]) -> None:
    pool = fn.MemoryPool.with_config(device, fn.PoolConfig(backend="direct"))
    assert losses(pool) == reference
    assert pool.stats().driver_calls > 10 * STEPS


def test_defragmenting_at_random_moments_gives_the_same_losses(device: fn.Device, reference: list[float]) -> None:
    rng = np.random.default_rng(2)
    pool = fn.MemoryPool.with_config(device, fn.PoolConfig(segment=("64 KiB", "1 MiB")))
    moments = set(rng.choice(2 * STEPS, 60, replace=False).tolist())

    def sometimes(moment: int) -> None:
        if moment in moments:
            pool.defragment()
            if moment % 3 == 0:
                pool.trim()

    assert losses(pool, sometimes) == reference
    assert pool.stats().moves > 100
