"""Indexing on the GPU: both ways to scatter at sizes that choose them, bits that repeat, faults, no waiting."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.ops.index import launches


@pytest.mark.parametrize(
    "n, size, inner",
    [(launches.WALK, 50, 3), (launches.WALK + 1, 50, 3), (1 << 18, 1, 1), (1 << 18, 1 << 17, 1), (100, 7, 4096)],
)
@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16, fn.int64])
def test_sums_at_computed_places(n: int, size: int, inner: int, dtype: fn.DType) -> None:
    rng = np.random.default_rng(n)
    index, source = rng.integers(-size, size, n), rng.integers(-3, 4, (n, inner))
    expected = np.zeros((size, inner))
    np.add.at(expected, index, source)
    x = fn.zeros((size, inner), dtype=dtype)
    runs = [fn.index_add(x, 0, fn.asarray(index), fn.asarray(source, dtype=dtype)).numpy() for _ in range(3)]
    rounded = expected.astype(dtype.numpy)
    assert all(np.array_equal(run, rounded) for run in runs)


@pytest.mark.parametrize("n", [100, launches.WALK + 1])
def test_the_last_value_wins(n: int) -> None:
    rng = np.random.default_rng(n)
    index, value = rng.integers(0, n // 3, n), rng.normal(size=(n, 2)).astype(np.float32)
    expected = np.zeros((n // 3, 2), np.float32)
    for j, at in enumerate(index):
        expected[at] = value[j]
    x = fn.zeros((n // 3, 2))
    x[fn.asarray(index)] = fn.asarray(value)
    assert np.array_equal(x.numpy(), expected)


@pytest.mark.parametrize("merge", ["sum", "amax", "prod"])
def test_an_index_for_each_line(merge: str) -> None:
    rng = np.random.default_rng(1)
    for rows, n in ((3, launches.WALK + 5), (5000, 20)):
        x, src = rng.uniform(0.9, 1.1, (2, rows, n))
        index = rng.integers(0, n, (rows, n))
        update = {"sum": np.add, "amax": np.maximum, "prod": np.multiply}[merge]
        expected = x.copy()
        update.at(expected, (np.arange(rows)[:, None], index), src)
        found = fn.scatter_reduce(fn.asarray(x), 1, fn.asarray(index), fn.asarray(src), merge)
        assert np.allclose(found.numpy(), expected, rtol=1e-12)


def test_bits_repeat() -> None:
    rng = np.random.default_rng(2)
    index, source = (
        fn.asarray(rng.zipf(1.5, 200_000) % 1000),
        fn.asarray(rng.normal(size=(200_000, 8)).astype(np.float32)),
    )
    weight = fn.zeros((1000, 8)).requires_grad_()
    runs = []
    for _ in range(3):
        weight.grad = None
        (fn.embedding(index, weight) * source).sum().backward()
        runs.append(weight.grad.numpy().tobytes())
    assert len(set(runs)) == 1


def test_debug_mode_raises_at_the_op(gpu: Device) -> None:
    x, bad = fn.zeros((3,)), fn.asarray([0, 1, 7])
    with fn.debug_mode():
        with pytest.raises(fn.IndexOutOfRange, match="index_add_: .*7 at 2, for axis 0 of size 3"):
            x.index_add_(0, bad, 1)
        with pytest.raises(fn.IndexOutOfRange, match="embedding: .*7 at 2"):
            fn.embedding(bad, x.reshape(3, 1))
    assert x.tolist() == [0, 0, 0]
    if gpu.kind == "cuda":
        y = x.index_add_(0, bad, 1)  # nothing waits, and nothing is written outside
        with pytest.raises(fn.IndexOutOfRange, match="index_add_: an index was out of range in a kernel queued"):
            y.numpy()
        assert x.tolist() == [1, 1, 0]


def test_keys_of_every_kind() -> None:
    host = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    i, j, m = np.array([[1], [0]]), np.array([2, -1, 0]), host[0, :, :, 0] % 3 == 0
    for key in [
        (i, j),
        (slice(None), i, slice(None), j),
        (Ellipsis, j),
        (0, m),
        (slice(None), m, j[:1]),
        (None, i, 1),
        (host > 60,),
    ]:
        x, expected = fn.asarray(host), host.copy()
        ours = tuple(fn.asarray(k) if isinstance(k, np.ndarray) else k for k in key)
        assert np.array_equal(x[ours].numpy(), expected[key])
        value = -np.arange(expected[key].size, dtype=np.float32).reshape(expected[key].shape)
        expected[key], x[ours] = value, fn.asarray(value)
        assert np.array_equal(x.numpy(), expected)


def test_no_op_waits_for_the_device(real_gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    x, index, mask = (
        fn.zeros((50, 4)),
        fn.asarray(np.arange(launches.WALK + 1) % 50),
        fn.asarray(np.arange(50) % 2 == 0),
    )
    source = fn.ones((launches.WALK + 1, 4))
    for name in ("synchronize", "synchronize_stream", "synchronize_event", "download"):
        monkeypatch.setattr(real_gpu.backend, name, None)
    (
        x[index],
        fn.index_add(x, 0, index, source),
        x.index_copy_(0, index, source),
        fn.masked_scatter(x, mask[:, None], source),
    )
    x[mask] = 1
    x[index, 0] = 2
