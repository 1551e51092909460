"""Optimizers against the published formulas in NumPy, in f64; f32 masters; saving; accumulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import nn
from flame_numba.optim import SGD, AdamW

Array = np.ndarray[Any, Any]
STEPS = 5
RNG = np.random.default_rng(7)
START = RNG.standard_normal((3, 5))
GRADIENTS = [RNG.standard_normal((3, 5)) for _ in range(STEPS)]


def sgd(lr: float, momentum: float = 0, weight_decay: float = 0, nesterov: bool = False) -> Array:
    p, v = START.copy(), np.zeros_like(START)
    for g in GRADIENTS:
        g = g + weight_decay * p
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
    return p


def adamw(
    lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
) -> Array:
    p, m, v = START.copy(), np.zeros_like(START), np.zeros_like(START)
    for t, g in enumerate(GRADIENTS, 1):
        p = p - lr * weight_decay * p
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


CASES: list[tuple[type, Callable[..., Array], dict[str, Any]]] = [
    (SGD, sgd, {"lr": 0.1}),
    (SGD, sgd, {"lr": 0.1, "weight_decay": 0.3}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (AdamW, adamw, {}),
    (AdamW, adamw, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.5}),
]


def parameter(dtype: fn.DType, value: Array = START) -> fn.Parameter:
    return fn.Parameter(fn.asarray(value).to_dtype(dtype))


def run(optimizer: Any, p: fn.Parameter, gradients: list[Array] = GRADIENTS) -> None:
    for g in gradients:
        p.grad = fn.asarray(g).to_dtype(p.dtype)
        optimizer.step()


@pytest.mark.parametrize(("kind", "reference", "settings"), CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(fn.float64, 1e-12), (fn.float32, 1e-5)])
def test_steps_follow_the_formula(
    kind: Any, reference: Callable[..., Array], settings: dict[str, Any], dtype: fn.DType, rtol: float
) -> None:
    p = parameter(dtype)
    run(kind([p], **settings), p)
    np.testing.assert_allclose(p.numpy(), reference(**settings), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("kind", "reference", "settings"), CASES)
@pytest.mark.parametrize("dtype", [fn.bfloat16, fn.float16])
def test_low_precision_keeps_an_exact_master(
    kind: Any, reference: Callable[..., Array], settings: dict[str, Any], dtype: fn.DType
) -> None:
    low, full = parameter(dtype), parameter(fn.float32, START.astype(dtype.numpy).astype(np.float32))
    optimizer = kind([low], **settings)
    run(optimizer, low)
    run(kind([full], **settings), full, [g.astype(dtype.numpy).astype(np.float32) for g in GRADIENTS])
    master = optimizer.state_dict()["slots"][0]["state"]["master"]
    np.testing.assert_array_equal(master, full.numpy())  # as if the parameter were f32
    np.testing.assert_array_equal(low.numpy(), full.numpy().astype(dtype.numpy))  # … and rounded once


def test_steps_below_a_bf16_ulp_add_up() -> None:
    p = fn.Parameter(fn.ones((4,), dtype=fn.bfloat16))
    optimizer = SGD([p], lr=1e-4)
    run(optimizer, p, [np.ones(4)] * 300)  # each step is 1/39 of the distance to the next bf16 below 1
    np.testing.assert_allclose(p.numpy().astype(float), 0.97, atol=0.004)


def test_a_master_follows_when_the_parameter_is_written() -> None:
    model = nn.Linear(2, 2).to_dtype(fn.bfloat16)
    optimizer = SGD(model.parameters(), lr=0.5)
    model(fn.ones((1, 2), dtype=fn.bfloat16)).sum().backward()
    optimizer.step()
    model.load_state_dict({"weight": np.full((2, 2), 8.0), "bias": np.zeros(2)})
    optimizer.step()
    np.testing.assert_array_equal(model.weight.numpy().astype(float), 7.5)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    used, unused = parameter(fn.float32), parameter(fn.float32)
    optimizer = AdamW([used, unused], weight_decay=0.5)
    used.grad = fn.ones((3, 5))
    optimizer.step()
    np.testing.assert_array_equal(unused.numpy(), START.astype(np.float32))
    assert optimizer.state_dict()["slots"][1] is None
    optimizer.zero_grad()
    assert used.grad is None


def test_a_gradient_may_be_a_broadcast_view() -> None:
    p = parameter(fn.float32)
    p.sum().backward()
    assert p.grad is not None
    SGD([p], lr=1.0).step()
    np.testing.assert_allclose(p.numpy(), START - 1, rtol=1e-5, atol=1e-6)


def test_a_step_counts_as_a_write() -> None:
    p = parameter(fn.float32)
    loss = (p * p).sum()
    p.grad = fn.ones((3, 5))
    SGD([p], lr=1.0).step()
    with pytest.raises(fn.GradientError, match="changed in place"):
        loss.backward()


def test_micro_batches_equal_one_batch() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 6)), rng.integers(0, 3, 12)
    results = []
    for parts in (1, 4):
        fn.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 8, dtype=fn.float64), nn.Tanh(), nn.Linear(8, 3, dtype=fn.float64))
        optimizer = AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            for xs, ys in zip(np.split(x, parts), np.split(y, parts), strict=True):
                (fn.cross_entropy(model(fn.asarray(xs)), fn.asarray(ys)) / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "settings"), [(AdamW, {"lr": 0.1}), (SGD, {"lr": 0.1, "momentum": 0.9})])
@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16])
def test_saved_and_restored_steps_go_on_the_same(kind: Any, settings: dict[str, Any], dtype: fn.DType) -> None:
    p = parameter(dtype)
    optimizer = kind([p], **settings)
    run(optimizer, p, GRADIENTS[:2])
    q = parameter(dtype, p.numpy().astype(np.float32))
    other = kind([q], lr=99.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0.1 and repr(other) == repr(optimizer)
    for o, x in ((optimizer, p), (other, q)):
        run(o, x, GRADIENTS[2:])
    np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    p = parameter(fn.float32)
    optimizer = AdamW([p])
    run(optimizer, p)
    state = optimizer.state_dict()
    other = AdamW([fn.Parameter(fn.ones((2,)))], lr=5.0)
    with pytest.raises(fn.ShapeError, match=r"mean of parameter 0 has shape \(3, 5\), not \(2,\)"):
        other.load_state_dict(state)
    assert other.lr == 5.0
    with pytest.raises(fn.ConfigError, match="SGD: the state is of 'AdamW'"):
        SGD([p], lr=1).load_state_dict(state)
    with pytest.raises(fn.ConfigError, match="the state is of 1 parameters, not of 2"):
        AdamW([p, parameter(fn.float32)]).load_state_dict(state)


def _short(p: fn.Tensor) -> None:
    p._grad = fn.zeros((5,))  # the setter would refuse it


def _shared(p: fn.Tensor) -> None:
    p.strides, p._contiguous = (0,), None


@pytest.mark.parametrize("spoil", [_short, _shared])
def test_a_step_that_cannot_be_taken_changes_nothing(spoil: Callable[[fn.Tensor], None]) -> None:
    parameters = [fn.ones((4,)).requires_grad_() for _ in range(3)]
    for p in parameters:
        p.grad = fn.ones((4,))
    optimizer = AdamW(parameters)
    optimizer.step()
    before = [p.tolist() for p in parameters[:2]]
    spoil(parameters[2])
    with pytest.raises(fn.ShapeError):
        optimizer.step()
    assert [p.tolist() for p in parameters[:2]] == before
    assert [slot.steps for slot in optimizer._slots if slot] == [1, 1, 1]


def test_a_kernel_that_was_not_launched_is_no_step() -> None:
    p = fn.ones((4,)).requires_grad_()
    p.grad = fn.ones((4,))
    optimizer = AdamW([p])
    optimizer.step()
    optimizer.eps = "small"  # type: ignore[assignment]
    with pytest.raises(fn.DTypeError):
        optimizer.step()
    assert optimizer._slots[0] is not None and optimizer._slots[0].steps == 1


def test_another_dtype_needs_another_optimizer() -> None:
    model = nn.Linear(2, 2)
    optimizer = AdamW(model.parameters())
    x = fn.ones((1, 2))
    model(x).sum().backward()
    optimizer.step()
    model.to_dtype(fn.float64)
    model(x.to_dtype(fn.float64)).sum().backward()
    with pytest.raises(fn.GradientError, match=r"was float32 and is now float64; make a new optimizer"):
        optimizer.step()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: SGD([p], lr=-1), r"SGD: lr=-1 must be ≥ 0"),
        (lambda p: SGD([p], lr=float("nan")), r"lr=nan must be ≥ 0"),
        (lambda p: SGD([p], lr=1, momentum=1), r"momentum=1 must be in 0 ≤ momentum < 1"),
        (lambda p: SGD([p], lr=1, nesterov=True), "nesterov=True needs momentum > 0"),
        (lambda p: AdamW([p], betas=(0.9, 1.0)), r"beta2=1.0 must be in"),
        (lambda p: AdamW([p], eps=-1.0), r"eps=-1.0 must be ≥ 0"),
        (lambda p: AdamW([]), "the list of parameters is empty"),
        (lambda p: AdamW(p), "got a single tensor"),
        (lambda p: AdamW([p, p]), "listed twice"),
        (lambda p: AdamW([p * 2]), "parameter 0 must be a leaf tensor of floating dtype, but is the result of an op"),
        (lambda p: AdamW([fn.tensor([1, 2])]), "parameter 0 must be a leaf tensor of floating dtype, but is int64"),
        (lambda p: AdamW(nn.Linear(2, 2)), r"got Linear; pass module\.parameters\(\)"),
        (lambda p: AdamW({"p": p}), r"got dict; pass module\.parameters\(\)"),
        (lambda p: AdamW(None), "got NoneType; pass"),
        (lambda p: AdamW(nn.Linear(2, 2).named_parameters()), r"parameter 0 .* got tuple; pass module\.parameters\(\)"),
        (lambda p: AdamW([{"params": [p]}]), "parameter 0 must be a leaf tensor, got dict; pass"),
        (lambda p: AdamW([p], betas=0.9), "betas=0.9 must be two numbers"),
        (lambda p: AdamW([p], lr=float("inf")), "lr=inf must be ≥ 0 and finite"),
    ],
)
def test_settings_that_make_no_sense(build: Any, message: str) -> None:
    with pytest.raises(fn.ConfigError, match=message):
        build(parameter(fn.float32))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("lr", -1.0, fn.ConfigError),
        ("lr", float("nan"), fn.ConfigError),
        ("lr", "a", fn.DTypeError),
        ("lr", None, fn.DTypeError),
        ("lr", fn.ones((2,)), fn.DTypeError),
        ("momentum", 1.0, fn.ConfigError),
        ("nesterov", "no", fn.DTypeError),
    ],
)
def test_a_setting_is_checked_when_it_is_given_and_at_the_next_step(name: str, value: Any, error: Any) -> None:
    p = parameter(fn.float32)
    p.grad = fn.ones((3, 5))
    given: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    with pytest.raises(error, match=f"SGD: {name}"):
        SGD([p], **{**given, name: value})
    optimizer = SGD([p], **given)
    setattr(optimizer, name, value)
    with pytest.raises(error, match=f"SGD: {name}"):
        optimizer.step()
    np.testing.assert_array_equal(p.numpy(), START.astype(np.float32))


@pytest.mark.parametrize("rate", [np.float32(0.5), np.asarray(0.5), fn.tensor(0.5)], ids=["scalar", "array", "tensor"])
def test_a_rate_may_be_whatever_holds_one_number(rate: Any) -> None:
    p = parameter(fn.float32)
    p.grad = fn.ones((3, 5))
    optimizer = SGD([p], lr=1.0)
    optimizer.lr = rate
    optimizer.step()
    np.testing.assert_allclose(p.numpy(), START - 0.5, rtol=1e-5, atol=1e-6)
    assert type(optimizer.state_dict()["settings"]["lr"]) is float


def test_frozen_parameters_are_taken_and_left_alone_until_they_train() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    optimizer = AdamW(model.parameters(), lr=0.1)
    before = model.state_dict()
    for trained in (False, True):
        model[0].weight.requires_grad_(trained)
        optimizer.zero_grad()
        model(fn.ones((1, 2))).sum().backward()
        optimizer.step()
        assert np.array_equal(model[0].weight.numpy(), before["0.weight"]) is not trained
        other = AdamW(model.parameters())  # a run that was saved at any time goes on
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s: None, fn.DTypeError, "the state must be a mapping as .* got NoneType"),
        (lambda s: {}, fn.ConfigError, "the state has no kind"),
        (lambda s: {"kind": "AdamW"}, fn.ConfigError, "the state has no settings, slots"),
        (lambda s: {**s, "settings": {}}, fn.ConfigError, "settings has no lr, betas"),
        (lambda s: {**s, "settings": 3}, fn.DTypeError, "settings must be a mapping"),
        (lambda s: {**s, "settings": {**s["settings"], "lr": "a"}}, fn.DTypeError, "lr must be a number"),
        (lambda s: {**s, "slots": 3}, fn.DTypeError, "slots must be a list, got int"),
        (lambda s: {**s, "slots": [{}]}, fn.ConfigError, "the slot of parameter 0 has no steps, state"),
        (lambda s: {**s, "slots": [{"steps": 1, "state": None}]}, fn.DTypeError, "state of parameter 0 must be a map"),
        (lambda s: {**s, "slots": [{**s["slots"][0], "steps": 1.5}]}, fn.DTypeError, "steps of parameter 0 must be an"),
        (lambda s: {**s, "slots": [{**s["slots"][0], "steps": -1}]}, fn.ConfigError, "steps=-1 of parameter 0"),
        (lambda s: {**s, "slots": [{"steps": 1, "state": {"mean": "a", "square": "b"}}]}, fn.DTypeError, "mean of"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(spoil: Any, error: Any, message: str) -> None:
    p = parameter(fn.float32)
    optimizer = AdamW([p], lr=0.5)
    run(optimizer, p, GRADIENTS[:1])
    before = optimizer.state_dict()
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(spoil(AdamW.state_dict(optimizer)))
    after = optimizer.state_dict()
    assert after["settings"] == before["settings"] and after["slots"][0]["steps"] == 1
    np.testing.assert_array_equal(after["slots"][0]["state"]["mean"], before["slots"][0]["state"]["mean"])


@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16], ids=str)
def test_momentum_may_be_set_between_steps(dtype: fn.DType) -> None:
    """Its velocity starts at 0 then; it rests while there is none, and the state is accepted at each point."""
    p, q = (fn.Parameter(fn.ones(1, dtype=dtype)) for _ in range(2))
    optimizer, saved = SGD([p, q], lr=0.25), []
    for momentum, expected in ((0.0, [0.75, 1.0]), (0.5, [0.5, 0.75]), (0.0, [0.25, 0.5]), (0.5, [-0.125, 0.125])):
        optimizer.momentum = momentum
        saved.append(optimizer.state_dict())  # the setting is new, the state of before
        p.grad, q.grad = fn.ones(1, dtype=dtype), None if expected[1] == 1 else fn.ones(1, dtype=dtype)
        optimizer.step()
        assert [p.item(), q.item()] == expected
        saved.append(optimizer.state_dict())
    for state in saved:
        again = SGD([p, q], lr=1.0)
        again.load_state_dict(state)
        assert again.momentum == state["settings"]["momentum"]
        p.grad = q.grad = fn.ones(1, dtype=dtype)
        again.step()


@pytest.mark.parametrize("dtype", [fn.float16, fn.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_masters_are_kept_whichever_is_loaded_first(kind: Any, dtype: fn.DType) -> None:
    def made() -> tuple[nn.Module, Any]:
        module = nn.Module()
        module.p = fn.Parameter(fn.ones((3,), dtype=dtype))
        return module, kind([module.p], lr=2.0**-11)

    def steps(module: nn.Module, optimizer: Any, count: int) -> None:
        for _ in range(count):
            module.p.grad = fn.ones((3,), dtype=dtype)
            optimizer.step()

    def master(optimizer: Any) -> Array:
        return np.asarray(optimizer.state_dict()["slots"][0]["state"]["master"])

    module, optimizer = made()
    steps(module, optimizer, 5)
    saved = module.state_dict(), optimizer.state_dict()
    steps(module, optimizer, 4)
    for first in ("module", "optimizer"):
        m, o = made()
        for load in (m, o) if first == "module" else (o, m):
            load.load_state_dict(saved[0] if load is m else saved[1])
        steps(m, o, 4)
        assert np.array_equal(master(o), master(optimizer)), first
        with fn.no_grad():
            m.p[0] = 4.0  # what somebody writes is taken over; the rest keeps its digits
        m.p.grad = fn.zeros((3,), dtype=dtype)
        o.lr = 0.0
        o.step()
        assert master(o).tolist() == [4.0, *master(optimizer)[1:].tolist()]
