"""Modules: what they collect, how they start, what they save, and each layer against NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import nn


def values(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3, bias=False))


class Tied(nn.Module):
    """A list of layers, a buffer, and a weight used in two places."""

    def __init__(self) -> None:
        self.blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]
        self.heads = {"main": nn.Linear(4, 2)}
        self.blocks[1].weight = self.blocks[0].weight
        self.shift = fn.ones((4,))
        self.scale = fn.Parameter(fn.ones((4,)))

    def forward(self, x: fn.Tensor) -> fn.Tensor:
        for block in self.blocks:
            x = block(x) * self.scale + self.shift
        return self.heads["main"](x)


# --- what a module holds ------------------------------------------------------------------------------------------
def test_parameters_come_by_path_and_once() -> None:
    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    assert names == [
        "blocks.0.weight",
        "blocks.0.bias",
        "blocks.1.bias",
        "heads.main.weight",
        "heads.main.bias",
        "scale",
    ]
    assert len(list(model.parameters())) == 6
    assert set(model.state_dict()) == {*names, "blocks.1.weight", "shift"}  # every name, and buffers


def test_sequential_is_named_by_position_and_reads_well() -> None:
    model = network()
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight"]
    assert len(model) == 4 and model[1] is list(model)[1]
    assert repr(model).splitlines() == [
        "Sequential(", "  (0): Linear(6 → 8)", "  (1): ReLU()", "  (2): LayerNorm(8, eps=1e-05)",
        "  (3): Linear(8 → 3, no bias)", ")",
    ]  # fmt: skip


def test_train_and_eval_reach_every_part() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(0.5)))
    x = fn.ones((1000,))
    assert set(np.unique(model(x).numpy())) == {0.0, 2.0}
    assert model.eval() is model
    np.testing.assert_array_equal(model(x).numpy(), 1)
    model.train()
    assert 0 < model(x).sum().item() / 1000 < 2


def test_zero_grad_forgets_gradients() -> None:
    model = network()
    model(fn.asarray(values(5, 6))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_gradients_reach_a_shared_weight_from_both_places() -> None:
    model = Tied()
    x = values(3, 4)
    model(fn.asarray(x)).sum().backward()
    got = model.blocks[0].weight.grad.numpy()
    step, name = 1e-2, "blocks.0.weight"

    def loss(delta: float) -> float:
        state = model.state_dict()
        state[name][1, 2] += delta
        state["blocks.1.weight"] = state[name]
        other = Tied()
        other.load_state_dict(state)
        return other(fn.asarray(x)).sum().item()

    assert got[1, 2] == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-3)


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Module has no forward"):
        nn.Module()(1)


def test_what_is_no_parameter_does_not_take_a_parameters_place() -> None:
    layer = nn.Linear(2, 2)
    for value in (layer.weight * 2, fn.ones((2, 2)), np.ones((2, 2))):
        with pytest.raises(fn.DTypeError, match="Linear: weight is a Parameter, a plain (Tensor|ndarray) in its place"):
            layer.weight = value
    layer.weight = fn.Parameter(layer.weight * 2)
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_a_result_that_is_kept_is_no_buffer() -> None:
    class Probed(nn.Module):
        def __init__(self) -> None:
            self.inner = nn.Linear(2, 3)
            self.count = fn.zeros(())

        def forward(self, x: fn.Tensor) -> fn.Tensor:
            self.last = self.inner(x)
            return self.last

    model = Probed()
    names = list(model.state_dict())
    model(fn.ones((1, 2)))
    assert list(model.state_dict()) == names == ["inner.weight", "inner.bias", "count"]
    Probed().load_state_dict(model.state_dict())


def test_references_back_are_not_followed() -> None:
    child, parent = nn.Linear(2, 2, bias=False), nn.Module()
    parent.child, parent.parts = child, [child]
    child.parent = parent
    parent.parts.append(parent.parts)
    parent.shelf = {"own": nn.ReLU(), "all": [parent]}
    assert list(parent.state_dict()) == ["child.weight", "parts.0.weight"]
    assert list(child.state_dict()) == ["weight"]
    assert len(list(parent.parameters())) == len(list(child.parameters())) == 1
    assert len(list(parent.modules())) == 3 and "(child): Linear(" in repr(parent)


# --- saving and moving --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16, fn.float16])
def test_save_load_forward_is_the_same(dtype: fn.DType, tmp_path: Path) -> None:
    model = network().to_dtype(dtype)
    x = fn.asarray(values(5, 6)).to_dtype(dtype)
    np.savez(tmp_path / "model.npz", **model.state_dict())
    other = network().to_dtype(dtype)
    assert not np.array_equal(other(x).numpy(), model(x).numpy())
    with np.load(tmp_path / "model.npz") as state:
        other.load_state_dict(state)
    np.testing.assert_array_equal(other(x).numpy(), model(x).numpy())


@pytest.mark.parametrize("dtype", [fn.float32, fn.float16])
def test_a_file_of_bfloat16_loads_into_another_dtype(dtype: fn.DType, tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3).to_dtype(fn.bfloat16), nn.Linear(2, 3).to_dtype(dtype)
    np.savez(tmp_path / "model.npz", **model.state_dict())
    with np.load(tmp_path / "model.npz") as state:
        other.load_state_dict(state)
    np.testing.assert_array_equal(other.weight.numpy().astype(np.float32), model.weight.numpy().astype(np.float32))


def test_state_dict_is_a_snapshot_and_tensors_load_too() -> None:
    model = nn.Linear(2, 2)
    before = model.state_dict()
    tensors = {name: fn.asarray(array) * 2 for name, array in before.items()}
    model.load_state_dict(tensors)
    np.testing.assert_array_equal(model.weight.numpy(), before["weight"] * 2)


def test_weights_of_pytorch_load_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    theirs, model = torch.nn.Linear(3, 2), nn.Linear(3, 2)
    low = {name: x.to(torch.bfloat16) for name, x in theirs.state_dict().items()}
    for state in (dict(theirs.named_parameters()), theirs.state_dict(), low):
        model.load_state_dict(state)
        for name, x in state.items():
            np.testing.assert_array_equal(model.state_dict()[name], x.detach().to(torch.float32).numpy())
    model.weight.detach().fill_(7.0)
    assert not (theirs.weight == 7).any()  # copied, not shared


def test_load_says_what_does_not_fit_and_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    before = model.state_dict()
    for state, error, message in (
        ({"weight": before["weight"]}, fn.ConfigError, "names do not fit Linear; missing: bias"),
        ({**before, "more": before["bias"]}, fn.ConfigError, "unknown: more"),
        ({"weight": before["weight"] * 0, "bias": np.zeros(3)}, fn.ShapeError, r"bias has shape \(3,\).*\(2,\)"),
        ({"weight": before["weight"], "bias": np.zeros(2, int)}, fn.DTypeError, "bias has dtype int64"),
        ({"weight": before["weight"], "bias": "ab"}, fn.DTypeError, "bias is no array of numbers"),
        ({"weight": before["weight"], "bias": None}, fn.DTypeError, "bias is no array of numbers"),
    ):
        with pytest.raises(error, match=message):
            model.load_state_dict(state)
    np.testing.assert_array_equal(model.weight.numpy(), before["weight"])


def test_to_dtype_and_to_device_keep_the_objects() -> None:
    model = Tied()
    parameters = list(model.parameters())
    model.count = fn.asarray([1, 2])  # integers stay what they are
    assert model.to_dtype(fn.float64).to_device("cpu") is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {x.dtype for x in parameters} == {fn.float64} and model.count.dtype is fn.int64
    assert model.shift.dtype is fn.float64 and model.blocks[1].weight is model.blocks[0].weight
    assert model(fn.zeros((1, 4), dtype=fn.float64, device="cpu")).dtype is fn.float64
    with pytest.raises(fn.DTypeError, match="floating, not int32"):
        model.to_dtype(fn.int32)


# --- first values -------------------------------------------------------------------------------------------------
def spread(x: fn.Tensor) -> tuple[float, float]:
    host = x.numpy()
    return float(np.abs(host).max()), float(host.std())


@pytest.mark.parametrize(
    "build",
    [lambda: nn.Linear(400, 300), lambda: nn.Conv2d(16, 64, 5), lambda: nn.Conv2d(32, 64, 5, groups=2)],
)
def test_linear_and_convolution_start_uniform(build: Callable[[], Any]) -> None:
    layer, bound = build(), 1 / 20  # each output has 400 inputs
    for x in (layer.weight, layer.bias):
        largest, deviation = spread(x)
        assert largest <= bound and deviation == pytest.approx(bound / np.sqrt(3), rel=0.2)


def test_other_first_values() -> None:
    assert spread(nn.Embedding(300, 100).weight)[1] == pytest.approx(1, rel=0.02)
    x = fn.empty((300, 200))
    largest, deviation = spread(nn.init.xavier_uniform_(x))
    assert largest <= np.sqrt(6 / 500) and deviation == pytest.approx(np.sqrt(2 / 500), rel=0.02)
    largest, _ = spread(nn.init.kaiming_uniform_(x))
    assert np.sqrt(6 / 200) * 0.99 < largest <= np.sqrt(6 / 200)
    assert spread(nn.init.normal_(x, std=3.0))[1] == pytest.approx(3, rel=0.02)
    assert nn.init.zeros_(x) is x and spread(x) == (0, 0)
    with pytest.raises(fn.ShapeError, match="at least two axes"):
        nn.init.xavier_uniform_(fn.empty((3,)))


def test_the_seed_decides_the_start() -> None:
    fn.manual_seed(3)
    first = network().state_dict()
    fn.manual_seed(3)
    again = network().state_dict()
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])


# --- layers against NumPy -----------------------------------------------------------------------------------------
def test_linear() -> None:
    layer, x = nn.Linear(4, 3), values(2, 5, 4)
    expected = x @ layer.weight.numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(layer(fn.asarray(x)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_convolution() -> None:
    layer, x = nn.Conv2d(3, 4, (3, 2), stride=2, padding=1), values(2, 3, 7, 6)
    w, b = layer.weight.numpy(), layer.bias.numpy()
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 2), (2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows[:, :, ::2, ::2], w) + b[:, None, None]
    np.testing.assert_allclose(layer(fn.asarray(x)).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert repr(layer) == "Conv2d(3 → 4, kernel (3, 2), stride=2, padding=1)"


def test_norms_and_embedding() -> None:
    x = values(3, 8)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(nn.LayerNorm(8)(fn.asarray(x)).numpy(), normal, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(nn.LayerNorm(8, affine=False)(fn.asarray(x)).numpy(), normal, rtol=1e-4, atol=1e-5)
    scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(nn.RMSNorm(8)(fn.asarray(x)).numpy(), scaled, rtol=1e-4, atol=1e-5)
    table, rows = nn.Embedding(5, 3), np.array([[0, 4], [2, 2]])
    np.testing.assert_array_equal(table(fn.asarray(rows)).numpy(), table.weight.numpy()[rows])


def test_layers_without_parameters() -> None:
    x = values(2, 3, 4, 4)
    given = fn.asarray(x)
    blocks = x.reshape(2, 3, 2, 2, 2, 2)
    for layer, expected in (
        (nn.ReLU(), np.maximum(x, 0)),
        (nn.Sigmoid(), 1 / (1 + np.exp(-x))),
        (nn.SiLU(), x / (1 + np.exp(-x))),
        (nn.Tanh(), np.tanh(x)),
        (nn.Flatten(), x.reshape(2, -1)),
        (nn.AvgPool2d(2), blocks.mean((3, 5))),
        (nn.MaxPool2d(2), blocks.max((3, 5))),
    ):
        np.testing.assert_allclose(layer(given).numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=repr(layer))
    assert nn.GELU()(fn.asarray([1.0])).item() == pytest.approx(0.8413447, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(0, 3), "Linear: in_features=0 must be an int ≥ 1"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide"),
        (lambda: nn.Conv2d(2, 4, 0), "Conv2d: kernel_size=0 must be an int ≥ 1"),
        (lambda: nn.Conv2d(2, 4, (3,)), r"Conv2d: kernel_size=\(3,\) must be"),
        (lambda: nn.Conv2d(2, 4, 3, stride=0), "Conv2d: stride=0"),
        (lambda: nn.MaxPool2d(2, padding=-1), "MaxPool2d: padding=-1 must be an int ≥ 0"),
        (lambda: nn.Dropout(1.0), r"Dropout: p=1.0 must be in 0 ≤ p < 1"),
        (lambda: nn.Sequential(nn.ReLU(), fn.relu), "layer 1 must be a Module"),
    ],
)
def test_settings_that_make_no_sense(build: Any, message: str) -> None:
    with pytest.raises(fn.ConfigError, match=message):
        build()


def test_what_is_no_number_tensor_or_mapping_is_refused() -> None:
    for call, words in (
        (lambda: nn.Dropout("a"), "Dropout: p must be a number, got 'a'"),
        (lambda: nn.init.uniform_(np.ones(3)), "uniform_: operands must be tensors"),
        (lambda: nn.init.kaiming_uniform_(np.ones(3)), "fans: operands must be tensors"),
        (lambda: nn.Linear(2, 3).load_state_dict(3), "load_state_dict: state must map"),
    ):
        with pytest.raises(fn.DTypeError, match=words):
            call()


def test_parts_in_nested_containers_are_found() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            self.a = [[nn.Linear(2, 3)], [nn.Linear(3, 2, bias=False)]]
            self.b = {"x": (nn.Linear(1, 1, bias=False), {"y": fn.zeros((2,))})}

    model = Nested()
    names = ["a.0.0.weight", "a.0.0.bias", "a.1.0.weight", "b.x.0.weight"]
    assert [name for name, _ in model.named_parameters()] == names
    assert [*model.state_dict()] == [*names, "b.x.1.y"]
    assert not model.eval().a[1][0].training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16])
def test_a_copied_module_computes_the_same_and_stays_tied(copied: Any, dtype: fn.DType) -> None:
    model = nn.Sequential(Tied().to_dtype(dtype), nn.Dropout(0.5)).eval()
    x = fn.asarray(values(3, 4), dtype=dtype)
    other = copied(model)
    assert np.array_equal(other(x).numpy(), model(x).numpy())
    assert not other.training and other[0].blocks[0].weight is other[0].blocks[1].weight
    assert not {id(t.storage) for t in model._tensors()} & {id(t.storage) for t in other._tensors()}
    assert [type(t) for t in other._tensors()] == [type(t) for t in model._tensors()]
    for parameter in other.parameters():
        parameter.detach().fill_(0)
    assert other(x).numpy().any() == 0 and model(x).numpy().any()


@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16])  # bfloat16 has a master
def test_a_module_and_its_optimizer_are_copied_together(dtype: fn.DType) -> None:
    model = network().to_dtype(dtype)
    optimizer = fn.optim.AdamW(model.parameters(), lr=1e-3)

    def step(model: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        (model(fn.asarray(values(5, 6), dtype=dtype)) ** 2).sum().backward()
        optimizer.step()

    step(model, optimizer)
    for other, its in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        before = model.state_dict()
        step(other, its)
        assert all(np.array_equal(x, before[name]) for name, x in model.state_dict().items())
        found = other.state_dict()
    step(model, optimizer)
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x, found[name])
