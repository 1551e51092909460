"""Mixed precision: what autocast lowers, and that GradScaler scales, skips and recovers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import nn
from flame_numba.optim import SGD


def test_autocast_lowers_products_and_keeps_parameters() -> None:
    model = nn.Linear(4, 3)
    x = fn.ones((2, 4))
    with fn.autocast(fn.bfloat16):
        y = model(x)
        loss = fn.cross_entropy(y, fn.asarray([0, 2]))
    assert y.dtype is fn.bfloat16 and loss.dtype is fn.float32
    assert model(x).dtype is fn.float32
    loss.backward()
    assert model.weight.dtype is fn.float32 and model.weight.grad.dtype is fn.float32
    with fn.autocast(fn.bfloat16, enabled=False):
        assert model(x).dtype is fn.float32


def step(scaler: fn.GradScaler, optimizer: SGD, p: fn.Parameter, factor: float) -> bool:
    optimizer.zero_grad()
    scaler.scale((p * factor).sum()).backward()
    return scaler.step(optimizer)


def test_gradients_are_unscaled() -> None:
    p = fn.Parameter(fn.zeros((3,)))
    assert step(fn.GradScaler(init_scale=1024), SGD([p], lr=1.0), p, 0.5)
    np.testing.assert_array_equal(p.numpy(), -0.5)


def test_small_f16_gradients_survive() -> None:
    tiny = 2.0**-30  # f16 ends at 2⁻²⁴
    for scaler, expected in ((fn.GradScaler(enabled=False), 0.0), (fn.GradScaler(), -tiny)):
        p = fn.Parameter(fn.ones((2,)))
        optimizer = SGD([p], lr=1.0)
        hidden = p.to_dtype(fn.float16) * 1.0  # its gradient is f16
        scaler.scale(hidden.to_dtype(fn.float32).sum() * tiny).backward()
        assert scaler.step(optimizer)
        gradient = p.grad.numpy()
        np.testing.assert_array_equal(-gradient, expected)
        scaler.update()


def test_low_gradients_become_f32_when_unscaled() -> None:
    p = fn.Parameter(fn.zeros((2,), dtype=fn.float16))
    scaler, optimizer = fn.GradScaler(init_scale=2.0**12), SGD([p], lr=1.0)
    p.grad = fn.full((2,), 2.0**-14, dtype=fn.float16)
    scaler.unscale_(optimizer)
    assert p.grad.dtype is fn.float32
    np.testing.assert_array_equal(p.grad.numpy(), 2.0**-26)
    assert scaler.step(optimizer)
    master = optimizer.state_dict()["slots"][0]["state"]["master"]
    np.testing.assert_array_equal(master, -(2.0**-26))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_step_with_a_bad_gradient_is_skipped(bad: float) -> None:
    good, p = fn.Parameter(fn.zeros((50,))), fn.Parameter(fn.zeros((7,)))
    scaler, optimizer = fn.GradScaler(init_scale=8.0), SGD([good, p], lr=1.0)
    good.grad = fn.ones((50,))
    gradient = np.ones(7, np.float32)
    gradient[5] = bad
    p.grad = fn.asarray(gradient)
    assert not scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    np.testing.assert_array_equal(good.numpy(), 0)
    p.grad = good.grad = None
    assert step(scaler, optimizer, p, 1.0)
    np.testing.assert_array_equal(p.numpy(), -1)


def test_the_scale_grows_after_good_steps_and_starts_again_after_a_bad_one() -> None:
    p = fn.Parameter(fn.zeros((1,)))
    scaler, optimizer = fn.GradScaler(init_scale=4.0, growth_interval=2), SGD([p], lr=0.1)
    scales = []
    for factor in (1, 1, 1, float("inf"), 1, 1):
        step(scaler, optimizer, p, factor)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [4, 8, 8, 4, 4, 8]


def test_the_scale_never_becomes_infinite() -> None:
    p = fn.Parameter(fn.zeros((1,)))
    scaler, optimizer = fn.GradScaler(init_scale=2.0**126, growth_interval=1), SGD([p], lr=0.0)
    for _ in range(4):
        step(scaler, optimizer, p, 1e-30)
        scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_a_loss_in_f16_is_scaled_in_f32() -> None:
    loss = fn.full((), 3.0, dtype=fn.float16)
    assert fn.GradScaler().scale(loss).item() == 3 * 2.0**16


def test_unscaling_for_clipping_happens_once() -> None:
    p = fn.Parameter(fn.zeros((2,)))
    scaler, optimizer = fn.GradScaler(init_scale=16.0), SGD([p], lr=1.0)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    np.testing.assert_array_equal(p.grad.numpy(), 1)
    with pytest.raises(fn.GradientError, match="unscaled already"):
        scaler.unscale_(optimizer)
    p.grad = p.grad * 0.5
    assert scaler.step(optimizer)
    np.testing.assert_array_equal(p.numpy(), -0.5)


def test_disabled_it_changes_nothing() -> None:
    p = fn.Parameter(fn.zeros((2,)))
    scaler, optimizer = fn.GradScaler(enabled=False), SGD([p], lr=1.0)
    loss = p.sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0
    loss.backward()
    assert scaler.step(optimizer)
    scaler.update()
    np.testing.assert_array_equal(p.numpy(), -1)


def test_its_state_is_saved_and_restored() -> None:
    p = fn.Parameter(fn.zeros((1,)))
    scaler, optimizer = fn.GradScaler(init_scale=4.0, growth_interval=2), SGD([p], lr=0.1)
    step(scaler, optimizer, p, 1)
    scaler.update()
    other = fn.GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    step(other, optimizer, p, 1)
    other.update()
    assert other.get_scale() == 8.0


def test_misuse_says_so() -> None:
    with pytest.raises(fn.ConfigError, match="init_scale=0"):
        fn.GradScaler(init_scale=0)
    with pytest.raises(fn.ConfigError, match=r"backoff_factor=1.0 in 0 … 1"):
        fn.GradScaler(backoff_factor=1.0)
    with pytest.raises(fn.GradientError, match=r"no step\(\) since the last update"):
        fn.GradScaler().update()


def test_one_value_a_step_comes_to_the_host(device: fn.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, labels = fn.ones((3, 4)), fn.asarray([0, 1, 1])
    sizes: list[int] = []
    download = device.backend.download

    def counted(host: int, source: int, nbytes: int, stream: int = 0) -> None:
        sizes.append(nbytes)
        download(host, source, nbytes, stream)

    monkeypatch.setattr(device.backend, "download", counted)
    for enabled, expected in ((True, [1]), (False, [])):
        scaler, optimizer = fn.GradScaler(enabled=enabled), SGD(model.parameters(), lr=0.1)
        sizes.clear()
        with fn.autocast(fn.float16):
            loss = fn.cross_entropy(model(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert sizes == expected


def test_a_second_step_needs_an_update() -> None:
    p, q = (fn.Parameter(fn.zeros((2,))) for _ in range(2))
    scaler, first, second = fn.GradScaler(init_scale=4.0), SGD([p], lr=1.0), SGD([q], lr=1.0)
    scaler.scale((p + q).sum()).backward()
    assert scaler.step(first) and scaler.step(second)
    for again in (scaler.step, scaler.unscale_):
        with pytest.raises(fn.GradientError, match=r"step\(\) was called for this optimizer already; call update"):
            again(first)
    np.testing.assert_array_equal(p.grad.numpy(), 1)
    scaler.update()
    assert scaler.step(first)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda s: s.scale(5.0), fn.DTypeError, "scale: the loss must be a tensor, got float"),
        (lambda s: s.step(5), fn.DTypeError, "step: expected an optimizer, got int"),
        (lambda s: s.unscale_(5), fn.DTypeError, "unscale_: expected an optimizer"),
        (lambda s: s.load_state_dict({}), fn.ConfigError, "the state of the GradScaler lacks backoff_factor, good_st"),
        (
            lambda s: s.load_state_dict({**s.state_dict(), "good_steps": 1.5}),
            fn.DTypeError,
            "good_steps must be an int",
        ),
        (lambda s: fn.GradScaler(init_scale="x"), fn.DTypeError, "init_scale must be a number, got 'x'"),
        (lambda s: fn.GradScaler(growth_factor=None), fn.DTypeError, "growth_factor must be a number"),
        (lambda s: fn.GradScaler(growth_interval=1.5), fn.DTypeError, "growth_interval must be an int, got 1.5"),
    ],
)
def test_arguments_of_a_wrong_type(wrong, error, message) -> None:  # type: ignore[no-untyped-def]
    scaler = fn.GradScaler(init_scale=4.0)
    before = scaler.state_dict()
    with pytest.raises(error, match=message):
        wrong(scaler)
    assert scaler.state_dict() == before


def test_the_scale_has_a_floor_and_recovers_from_it() -> None:
    """It falls to 2⁻²⁴ in silence; then each bad step is told, skipped, and the next good one is taken."""
    p = fn.Parameter(fn.ones(1))
    optimizer, scaler = SGD([p], lr=0.5), fn.GradScaler(growth_interval=1)
    told = 0
    for _ in range(60):
        p.grad = fn.full((1,), float("nan"))
        assert not scaler.step(optimizer)
        try:
            scaler.update()
        except fn.NonFinite as error:
            assert "detect_anomaly" in str(error)
            told += 1
    assert told == 60 - 40 and scaler.get_scale() == 2.0**-24 and p.item() == 1.0
    assert step(scaler, optimizer, p, 1.0)
    scaler.update()
    assert p.item() == 0.5 and scaler.get_scale() == 2.0**-23


def test_a_scale_below_the_floor_stays_what_it_was() -> None:
    p = fn.Parameter(fn.ones(1))
    optimizer, scaler = SGD([p], lr=0.5), fn.GradScaler(init_scale=2.0**-30)
    p.grad = fn.full((1,), float("inf"))
    scaler.step(optimizer)
    with pytest.raises(fn.NonFinite):
        scaler.update()
    assert scaler.get_scale() == 2.0**-30


@pytest.mark.parametrize("copied", [lambda s: pickle.loads(pickle.dumps(s)), copy.copy, copy.deepcopy])
def test_scalers_are_copied_and_pickled(copied) -> None:
    p = fn.Parameter(fn.ones(1))
    optimizer, scaler = SGD([p], lr=0.5), fn.GradScaler(init_scale=8.0, growth_factor=4.0, growth_interval=2)
    assert step(scaler, optimizer, p, 1.0)
    scaler.update()
    again = copied(scaler)
    assert again.state_dict() == scaler.state_dict() and again.enabled
    assert step(again, optimizer, p, 1.0)
    again.update()
    assert (again.get_scale(), scaler.get_scale()) == (32.0, 8.0)
    assert copied(fn.GradScaler(enabled=False)).get_scale() == 1.0
