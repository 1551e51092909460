"""`detect_anomaly`, `unused_parameters` and `graph_stats`: finding out what went wrong in a graph."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import flame_numba as fn


def tensor(*values: float) -> fn.Tensor:
    return fn.asarray(np.array(values)).requires_grad_()


def test_the_first_nan_of_the_forward_pass_is_named_with_its_line():
    x = tensor(-1.0, 2.0)
    with fn.detect_anomaly(), pytest.raises(fn.NonFinite) as error:
        y = x.log() * 2  # the culprit
        y.sum()
    text = str(error.value)
    assert text.startswith("log: its result of shape (2,) holds a NaN; its operands held none; called at ")
    assert "test_anomaly.py:" in text and text.endswith("y = x.log() * 2  # the culprit")
    assert (x.log()).numpy()[1] > 0  # outside, nothing is looked at


def test_an_operand_that_was_bad_already_is_named():
    x, bad = tensor(1.0, 2.0), fn.asarray(np.array([1.0, np.nan]))
    with (
        fn.detect_anomaly(),
        pytest.raises(fn.NonFinite, match=r"multiply: .* its operand 1 of shape \(2,\) held a NaN"),
    ):
        x * bad


def test_ops_that_are_not_recorded_are_watched_too():
    with fn.detect_anomaly(), fn.no_grad(), pytest.raises(fn.NonFinite, match="sqrt"):
        fn.asarray(np.array([-1.0])).sqrt()


def test_primitives_and_custom_ops_are_watched():
    op = fn.custom_op(lambda ctx, x: fn.asarray(np.array([np.nan])), lambda ctx, g: g, name="broken")
    with fn.detect_anomaly():
        with pytest.raises(fn.NonFinite, match="broken: its result"):
            op(tensor(1.0))
        with pytest.raises(fn.NonFinite, match="^softmax: its result"):
            tensor(-np.inf, -np.inf).softmax()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda z: z.mul_(float("inf")), r"multiply_|mul_"),
        (lambda z: z.sqrt_(), "sqrt_"),
        (lambda z: z.fill_(float("nan")), "fill_"),
        (lambda z: z.copy_(tensor(1.0, float("nan"), 0.0)), "copy_"),
        (lambda z: z.masked_fill_(z == 0, float("nan")), "masked_fill_"),
        (lambda z: z.index_add_(0, fn.asarray([0]), tensor(float("nan"))), "index_add_"),
        (lambda z: z.__setitem__(0, float("nan")), r"x\[key\] = value"),
        (lambda z: z.__setitem__(fn.asarray([0, 1]), np.array([1, np.nan])), r"x\[key\] = value"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_changes_in_place_are_watched(change, name, recorded):
    z = tensor(0.0, -1.0, 0.0) * 1 if recorded else fn.asarray([0.0, -1.0, 0.0])
    with fn.detect_anomaly(), pytest.raises(fn.NonFinite, match=None if recorded else name):
        change(z)


def test_a_change_in_place_blames_what_was_bad_before():
    z = fn.asarray([float("nan"), 1.0])
    with fn.detect_anomaly():
        z[1] = 2.0  # the rest may never have been written
        with pytest.raises(fn.NonFinite, match=r"multiply_: .* operand 0 of shape \(2,\) held a NaN already"):
            z.multiply_(2.0)
        with pytest.raises(fn.NonFinite, match=r"its operand 1 \(nan\) held a NaN already"):
            tensor(1.0) * float("nan")
        assert z.zero_().tolist() == [0.0, 0.0]


def test_infinities_count_if_asked_for():
    x = tensor(0.0)
    with fn.detect_anomaly():
        assert (1 / x).item() == np.inf
    with fn.detect_anomaly(infinities=True), pytest.raises(fn.NonFinite, match="divide: .* holds an infinity"):
        1 / x


def test_the_first_nan_of_the_backward_pass_is_named_with_the_line_of_its_op():
    x = tensor(0.0, 4.0)
    with fn.detect_anomaly():
        y = x.sqrt() * 0.0  # slope ∞, times 0
        with pytest.raises(fn.NonFinite) as error:
            y.sum().backward()
    text = str(error.value)
    assert text.startswith("backward of sqrt: the gradient of operand 0 holds a NaN; the one that came in held none;")
    assert text.endswith("y = x.sqrt() * 0.0  # slope ∞, times 0") and "test_anomaly.py:" in text
    assert x.grad is None


def test_a_backward_pass_alone_can_be_watched():
    x = tensor(0.0)
    y = x.sqrt() * 0.0
    with fn.detect_anomaly(), pytest.raises(fn.NonFinite, match="backward of sqrt: .* a line not known"):
        y.sum().backward()


def test_a_nan_that_came_in_is_not_blamed_on_the_op():
    x = tensor(1.0)
    with fn.detect_anomaly():
        y = x * 2
        with pytest.raises(fn.NonFinite, match="backward of multiply: .* the one that came in held a NaN already"):
            y.backward(fn.asarray(np.array([np.nan])))


def test_watching_belongs_to_a_thread_and_ends_with_its_block():
    seen = []
    with fn.detect_anomaly():
        thread = threading.Thread(target=lambda: seen.append(fn.asarray(np.array([-1.0])).log().numpy()))
        thread.start()
        thread.join()
    assert np.isnan(seen[0][0])
    with pytest.raises(ZeroDivisionError), fn.detect_anomaly():
        raise ZeroDivisionError
    fn.asarray(np.array([-1.0])).log()


# --- reports ------------------------------------------------------------------------------------------------------
class Net(fn.nn.Module):
    def __init__(self):
        self.used = fn.nn.Linear(3, 3)
        self.lost = [fn.nn.Linear(3, 3)]
        self.frozen = fn.nn.Linear(3, 3)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.used(x)) + self.lost[0](x).detach()


@pytest.mark.parametrize("after", [False, True])
def test_parameters_without_a_gradient_are_reported_by_name(after):
    net = Net()
    loss = net(fn.ones((2, 3))).sum()
    if after:
        loss.backward()
    report = fn.unused_parameters(loss, net)
    assert [(p.name, p.reason) for p in report] == [
        ("lost.0.weight", "the loss does not depend on it"),
        ("lost.0.bias", "the loss does not depend on it"),
        ("frozen.weight", "it does not require a gradient"),
        ("frozen.bias", "it does not require a gradient"),
    ]
    assert str(report[0]) == "lost.0.weight (3, 3): the loss does not depend on it"


def test_parameters_may_be_a_mapping_or_a_sequence():
    a, b = tensor(1.0), tensor(2.0)
    loss = (a * a).sum()
    assert [p.name for p in fn.unused_parameters(loss, {"a": a, "b": b})] == ["b"]
    assert [p.name for p in fn.unused_parameters(loss, [a, b])] == ["1"]
    assert fn.unused_parameters(loss, a) == []
    for arguments, words in (
        ((5, a), "loss must be a tensor"),
        ((loss, 5), "got int"),
        ((loss, [5]), "parameter 0 must"),
    ):
        with pytest.raises(fn.DTypeError, match=f"unused_parameters: .*{words}"):
            fn.unused_parameters(*arguments)
    with pytest.raises(fn.GradientError, match="unused_parameters: the loss does not require"):
        fn.unused_parameters(fn.ones(1), [a])


def test_graph_stats_count_nodes_and_what_they_keep():
    gc.collect()
    before = fn.graph_stats()
    x = fn.asarray(np.ones(1000)).requires_grad_()
    y = (x * 2).exp()
    z = (y * y).sum()
    now = fn.graph_stats()
    assert now.nodes - before.nodes == 4
    assert now.saved_bytes - before.saved_bytes == 8000  # y: as exp's result and as an operand, one storage
    assert now.by_op["multiply"] - before.by_op.get("multiply", 0) == 2
    z.backward()
    assert fn.graph_stats().saved_bytes == before.saved_bytes
    del y, z
    assert fn.graph_stats() == before
