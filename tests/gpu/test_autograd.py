"""The engine on the GPU: checkpoints, accumulation in place, other threads and streams."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device


def leaf(device: Device, *shape: int, seed: int = 0) -> fn.Tensor:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return fn.asarray(values, device=device).requires_grad_()


@pytest.mark.parametrize("low", [None, fn.bfloat16, fn.float16], ids=["f32", "bf16", "f16"])
def test_checkpointed_blocks_give_the_same_bits_with_less_memory(gpu: Device, low) -> None:
    x, weights = leaf(gpu, 256, 128), [leaf(gpu, 128, 128, seed=i) for i in range(6)]

    def block(x, w):
        return fn.dropout((x @ w * 0.05).tanh().exp(), 0.2) * 0.5 + x

    def run(call):
        fn.manual_seed(3)
        with fn.current_pool(gpu).scope("blocks") as scope, fn.autocast(low or fn.bfloat16, enabled=low is not None):
            y = x
            for w in weights:
                y = call(block, y, w)
            loss = (y * y).mean()
            del y
        with fn.current_pool(gpu).scope("backward"):
            loss.backward()
        grads = [p.grad.numpy().tobytes() for p in (x, *weights)]
        for p in (x, *weights):
            p.grad = None
        return grads, scope.left_bytes

    (plain, much), (kept, little) = run(lambda f, *args: f(*args)), run(fn.checkpoint)
    assert plain == kept
    assert little < 0.6 * much  # in bf16 the arguments, in f32, weigh more


def test_accumulation_in_place_gives_the_bits_of_sums(gpu: Device) -> None:
    w = leaf(gpu, 64, 64)
    batches = [leaf(gpu, 32, 64, seed=i + 1).detach() for i in range(4)]
    parts = []
    for batch in batches:
        loss = ((batch @ w).tanh() ** 2).sum()
        parts.append(fn.grad(loss, w, retain_graph=True)[0])
        loss.backward()
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert w.grad.numpy().tobytes() == expected.numpy().tobytes()


def test_backward_in_another_thread_and_on_another_stream(gpu: Device) -> None:
    w = leaf(gpu, 64, 64)
    loss = (w @ w).tanh().sum()
    expected = fn.grad(loss, w, retain_graph=True)[0].numpy()
    made = gpu.current_stream().record()
    found: list[np.ndarray] = []

    def work() -> None:
        stream = gpu.new_stream()
        stream.wait(made)
        with stream:
            loss.backward()
            found.append(w.grad.numpy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.array_equal(found[0], expected)


def test_a_nan_on_the_gpu_is_named(gpu: Device) -> None:
    x = fn.asarray(np.array([0.0, 1.0], np.float32), device=gpu).requires_grad_()
    with fn.detect_anomaly():
        with pytest.raises(fn.NonFinite, match="log: its result"):
            (x - 1).log()
        with pytest.raises(fn.NonFinite, match="backward of sqrt"):
            (x.sqrt() * 0.0).sum().backward()
