"""Norms, losses, activations and dropout by example: what the generated tests do not draw."""

from __future__ import annotations

import math

import numpy as np
import pytest

import flame_numba as fn
from block_of_threads import launch
from flame_numba.kernels.compiler import block
from flame_numba.kernels.rows import blocks, channel_norms, norms

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def leaf(values: np.ndarray, dtype: fn.DType = fn.float64) -> fn.Tensor:
    return fn.asarray(values, dtype=dtype).requires_grad_()


def gradients(y: fn.Tensor, *leaves: fn.Tensor) -> list[np.ndarray]:
    weights = fn.asarray(np.linspace(-1, 1, y.numel).reshape(y.shape), dtype=y.dtype)
    return [g.numpy() for g in fn.grad((y * weights).sum(), leaves, retain_graph=True)]  # type: ignore[union-attr]


# --- norms --------------------------------------------------------------------------------------------------------
def group_norm_by_ops(x: fn.Tensor, groups: int, weight: fn.Tensor, bias: fn.Tensor) -> fn.Tensor:
    parts = x.reshape((x.shape[0], groups, x.numel // (x.shape[0] * groups)))
    distance = parts - parts.mean(axis=2, keepdims=True)
    y = (distance * ((distance * distance).mean(axis=2, keepdims=True) + 1e-5).rsqrt()).reshape(x.shape)
    return y * weight.reshape((-1, 1, 1)) + bias.reshape((-1, 1, 1))


@pytest.mark.parametrize("shape, groups", [((2, 4, 100, 90), 2), ((1, 2, 9, 1), 1), ((3, 6, 20, 20), 6)])
def test_group_norm_of_long_and_short_rows(shape: tuple[int, ...], groups: int) -> None:
    x, w, b = leaf(normal(*shape) + 3), leaf(normal(shape[1])), leaf(normal(shape[1]))
    found, expected = fn.group_norm(x, groups, w, b), group_norm_by_ops(x, groups, w, b)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9, atol=1e-9)
    for mine, other in zip(gradients(found, x, w, b), gradients(expected, x, w, b), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 6, 7), (2, 3, 90, 100)])
def test_batch_norm_in_training(shape: tuple[int, ...]) -> None:
    x, w, b = leaf(normal(*shape) * 2 + 1), leaf(normal(3)), leaf(normal(3))
    running_mean, running_var = fn.zeros((3,), dtype=fn.float64), fn.ones((3,), dtype=fn.float64)
    y = fn.batch_norm(x, running_mean, running_var, w, b, training=True, momentum=0.3)
    axes = (0, *range(2, len(shape)))
    values = x.numpy()
    np.testing.assert_allclose(running_mean.numpy(), 0.3 * values.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(running_var.numpy(), 0.7 + 0.3 * values.var(axes, ddof=1), rtol=1e-12)

    def by_ops() -> fn.Tensor:
        spread = (-1, *(1,) * (len(shape) - 2))
        distance = x - x.mean(axis=axes, keepdims=True)
        normal = distance * ((distance * distance).mean(axis=axes, keepdims=True) + 1e-5).rsqrt()
        return normal * w.reshape(spread) + b.reshape(spread)

    expected = by_ops()
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-9, atol=1e-9)
    for mine, other in zip(gradients(y, x, w, b), gradients(expected, x, w, b), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-7, atol=1e-7)


def test_batch_norm_moves_the_averages_it_was_given_also_under_autocast_and_in_bf16() -> None:
    x = fn.asarray(normal(64, 3), dtype=fn.bfloat16)
    running_mean, running_var = fn.zeros((3,), dtype=fn.bfloat16), fn.ones((3,), dtype=fn.float32)
    with fn.autocast(fn.bfloat16):
        y = fn.batch_norm(x, running_mean, running_var, training=True, momentum=1.0)
    assert y.dtype is fn.float32
    np.testing.assert_allclose(running_mean.to_dtype(fn.float32).numpy(), x.numpy().astype(float).mean(0), atol=1e-3)
    np.testing.assert_allclose(running_var.numpy(), x.numpy().astype(float).var(0, ddof=1), rtol=1e-4)


def test_a_mean_far_from_0_keeps_its_digits() -> None:
    values = (normal(1, 2, 120, 120) + 1000).astype(np.float32)
    expected = values.astype(float)
    expected = (expected - expected.mean((2, 3), keepdims=True)) / expected.std((2, 3), keepdims=True)
    np.testing.assert_allclose(fn.group_norm(fn.asarray(values), 2, eps=0.0).numpy(), expected, atol=1e-3)
    flat = fn.layer_norm(fn.asarray(values.reshape(2, -1)), eps=0.0).numpy().reshape(expected.shape)
    np.testing.assert_allclose(flat, expected, atol=1e-3)


NORMS = {  # of n elements of one row, as (values, running variance)
    "layer_norm": lambda x, moved: fn.layer_norm(x.reshape((1, -1))),
    "group_norm": lambda x, moved: fn.group_norm(x.reshape((1, 4, -1)), 1),
    "instance_norm": lambda x, moved: fn.instance_norm(x.reshape((1, 1, -1))),
    "batch_norm": lambda x, moved: fn.batch_norm(x.reshape((-1, 1)), fn.zeros((1,)), moved, training=True, momentum=1),
    "batch_norm2d": lambda x, moved: fn.batch_norm(
        x.reshape((-1, 1, 40)), fn.zeros((1,)), moved, training=True, momentum=1
    ),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [1000, 8000, 50_000, 1_000_000])
@pytest.mark.parametrize("value", [273.15, 12345.678, 1000000.3, -1.1e6])
def test_equal_elements_become_0(norm: str, n: int, value: float) -> None:
    """A mean of equal numbers is rounded; what is left of them must not be taken for their variance."""
    x, variance = leaf(np.full(n, value), fn.float32), fn.ones((1,))
    y = NORMS[norm](x, variance)
    assert not y.detach().numpy().any()
    if norm.startswith("batch"):
        assert 0 <= variance.item() < 1e-6 * value * value
    g = np.linspace(-1, 1, n) ** 2
    (dx,) = fn.grad(y.reshape(-1), x, fn.asarray(g.astype(np.float32)))
    np.testing.assert_allclose(dx.numpy(), (g - g.mean()) / 1e-5**0.5, rtol=0.1, atol=0.05)


def by_threads(kernel, threads: int, *arguments, **names) -> None:
    """Run a norm's kernel in f32 as blocks of many threads."""
    words = {
        "C": np.float32, "combine": np.add, "rsqrt": lambda v: 1 / np.sqrt(v), "WEIGHT": 0, "BIAS": False,
        "span": lambda n: 4 * threads, "load_x": lambda p, i: p[i], "load_m": lambda p, i: p[i],
        "store_y": np.ndarray.__setitem__, "store_m": np.ndarray.__setitem__, **names,
    }  # fmt: skip
    helpers = {
        "block_sum": block.block_combine, "corrected": blocks.corrected, "moved_on": channel_norms._moved_on,
        "part_of": channel_norms._part_of,
    }  # fmt: skip
    launch(kernel, arguments, 2, threads, words, {"shared": (threads, np.float32)}, helpers)


@pytest.mark.parametrize("threads", [1, 4, 8])
@pytest.mark.parametrize("value", [12345.678, 1000000.3])
def test_equal_elements_become_0_in_a_block_of_threads(threads: int, value: float) -> None:
    rows, n = 3, 1200
    x = np.full(rows * n, value, np.float32)
    y, (mean, scale) = np.ones_like(x), np.ones((2, rows), np.float32)
    eps = np.float32(1e-5)
    by_threads(norms.norm, threads, y, mean, scale, x, x, x, eps, rows, n, 1, CENTERED=True)
    assert not y.any() and np.isfinite(scale).all()
    runs = (rows, n, 4, n // 4, n // 4)
    y[:] = 1
    by_threads(channel_norms.channel_norm, threads, y, mean, scale, x, x, x, eps, *runs, 1, 1, 1)
    assert not y.any() and (scale >= 0).all()
    part_mean, part_spread = np.ones((2, rows * 12), np.float32)
    by_threads(channel_norms.channel_moments, threads, part_mean, part_spread, x, *runs, 100, 3)
    by_threads(channel_norms.merge_moments, threads, mean, scale, part_mean, part_spread, rows, 4, n // 4, 100, 3)
    assert (mean == x[0]).all() and (scale >= 0).all()


def test_merged_moments_are_those_of_all_elements() -> None:
    x = (normal(2, 600) + 100).astype(np.float32)
    part_mean, part_spread, (mean, variance) = *np.ones((2, 14), np.float32), np.ones((2, 2), np.float32)
    runs = (2, 600, 1, 0, 600)
    by_threads(channel_norms.channel_moments, 4, part_mean, part_spread, x.reshape(-1), *runs, 90, 7)
    by_threads(channel_norms.merge_moments, 4, mean, variance, part_mean, part_spread, 2, 1, 600, 90, 7)
    np.testing.assert_allclose(mean, x.astype(float).mean(1), rtol=1e-7)
    np.testing.assert_allclose(variance, x.astype(float).var(1), rtol=1e-6)


def test_not_a_number_is_normalised_to_not_a_number() -> None:
    for values in ([1.0, np.nan, 2.0], [np.inf, 1.0, 2.0]):
        for norm in NORMS.values():
            x = np.resize(np.array(values, np.float32), 120)
            assert np.isnan(norm(fn.asarray(x), fn.ones((1,))).numpy()).all()


LONG = {
    "softmax": (fn.softmax, lambda x: np.exp(x) / np.exp(x).sum()),
    "log_softmax": (fn.log_softmax, lambda x: x - np.log(np.exp(x).sum())),
    "rms_norm": (lambda x: fn.rms_norm(x, eps=0.0), lambda x: x / np.sqrt((x * x).mean())),
    "layer_norm": (lambda x: fn.layer_norm(x, eps=0.0), lambda x: (x - x.mean()) / x.std()),
    "cross_entropy": (
        lambda x: fn.cross_entropy(x, fn.asarray(np.array([3])), label_smoothing=0.5),
        lambda x: np.log(np.exp(x).sum()) - 0.5 * x[0, 3] - 0.5 * x.mean(),
    ),
}


@pytest.mark.parametrize("op", LONG)
@pytest.mark.parametrize("n", [4096, 100_000, 1 << 22])
def test_long_rows_keep_their_digits(op: str, n: int) -> None:
    """One sum after the other would lose four digits of the longest."""
    values = np.random.default_rng(1).random((1, n)).astype(np.float32)
    call, exact = LONG[op]
    due = exact(values.astype(float))
    error = np.abs(call(fn.asarray(values)).numpy() - due).max() / np.abs(due).max()
    assert error < 2e-6


@pytest.mark.parametrize("op", [fn.softmax, fn.log_softmax, fn.rms_norm, fn.layer_norm])
def test_gradients_of_long_rows_keep_their_digits(op) -> None:
    n = 1 << 20
    values, g = np.random.default_rng(2).random((2, 1, n)).astype(np.float32)
    found, due = (
        fn.grad(op(x), x, fn.asarray(g, dtype=x.dtype))[0].numpy()
        for x in (leaf(values, fn.float32), leaf(values, fn.float64))
    )
    assert np.abs(found - due).max() < 2e-6 * np.abs(due).max()


def test_probabilities_of_a_very_long_row_add_up_to_1() -> None:
    p = fn.softmax(fn.zeros((1, 1 << 25)))
    assert p[0, 0].item() == 2.0**-25


def test_layer_norm_over_several_axes_is_that_of_the_flattened_ones() -> None:
    x, w, b = leaf(normal(6, 3, 4)), leaf(normal(3, 4)), leaf(normal(3, 4))
    found = fn.layer_norm(x, w, b)
    expected = fn.layer_norm(x.reshape((6, 12)), w.reshape((12,)), b.reshape((12,))).reshape((6, 3, 4))
    assert np.array_equal(found.numpy(), expected.numpy())
    for mine, other in zip(gradients(found, x, w, b), gradients(expected, x, w, b), strict=True):
        assert np.array_equal(mine, other)


def test_a_frozen_weight_gets_no_gradient_and_costs_none() -> None:
    x, w = leaf(normal(4, 5)), fn.asarray(normal(5))
    for y in (fn.layer_norm(x, w), fn.rms_norm(x, w), fn.group_norm(x, 5, w), fn.layer_norm(x, w, leaf(normal(5)))):
        assert np.isfinite(gradients(y, x)[0]).all()
    w.requires_grad_()
    (dw,) = gradients(fn.rms_norm(x.detach(), w), w)
    np.testing.assert_allclose(dw, gradients(fn.rms_norm(x, w), w)[0])


def test_layer_norm_modulate_is_the_two_ops() -> None:
    x, shift, scale = leaf(normal(2, 80, 6)), leaf(normal(2, 6)), leaf(normal(2, 6))
    found, expected = fn.layer_norm_modulate(x, shift, scale), fn.modulate(fn.layer_norm(x, eps=1e-6), shift, scale)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12, atol=1e-12)
    for mine, other in zip(gradients(found, x, shift, scale), gradients(expected, x, shift, scale), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


def test_modulation_is_rounded_once() -> None:
    """A scale below half a unit of 1 in bf16 is not lost to 1 + scale."""
    x = fn.full((1, 2, 1), 64.0, dtype=fn.bfloat16)
    scale, shift = fn.full((1, 1), 0.003, dtype=fn.bfloat16), fn.full((1, 1), 0.25, dtype=fn.bfloat16)
    assert fn.modulate(x, shift, scale).tolist() == [[[64.5], [64.5]]]
    assert fn.gate_residual(x, scale, x * 2).tolist() == [[[64.5], [64.5]]]


@pytest.mark.parametrize(
    "norm",
    [
        fn.layer_norm, fn.rms_norm, lambda x: fn.group_norm(x, 1),
        lambda x: fn.batch_norm(x.reshape((4, 1)), training=True).reshape((1, 4)),
        lambda x: fn.layer_norm_modulate(x, *fn.zeros((2, 4), dtype=x.dtype)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1.0, 120.0])
def test_squares_beyond_f16_leave_the_gradient_that_is_differentiated_again(norm, size: float) -> None:
    x = leaf(np.array([[300.0, -350.0, 500.0, 20.0]]) * size, fn.float16)
    weights = fn.asarray([[1.0, 2.0, 3.0, 4.0]], dtype=fn.float16)
    (once,), (again,) = (fn.grad(norm(x), x, weights, create_graph=create) for create in (False, True))
    np.testing.assert_allclose(again.detach().numpy(), once.numpy(), rtol=2e-3, atol=1e-7)
    assert once.numpy().any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fn.group_norm(fn.ones((2, 6, 3)), 4), r"group_norm: groups=4 must divide the 6 channels"),
        (lambda: fn.group_norm(fn.ones((2,)), 1), r"group_norm: x must be \(N, C, …\), got \(2,\)"),
        (lambda: fn.group_norm(fn.ones((2, 6)), 2, fn.ones((5,))), r"weight.shape=\(5,\) must be \(6,\)"),
        (lambda: fn.batch_norm(fn.ones((1, 3)), training=True), "batch_norm: training needs more than one value"),
        (lambda: fn.instance_norm(fn.ones((2, 3))), "instance_norm: x must be"),
        (lambda: fn.layer_norm(fn.ones((2, 3)), fn.ones((2,))), r"layer_norm: the normalised axes \(2,\) must be the"),
        (lambda: fn.layer_norm(fn.ones((2, 3)), normalized_shape=(3, 2)), r"layer_norm: the normalised axes \(3, 2\)"),
        (lambda: fn.rms_norm(fn.ones(())), "rms_norm: the normalised axes"),
        (lambda: fn.modulate(fn.ones((2, 3, 4)), fn.ones((3, 4)), fn.ones((2, 4))), "modulate: "),
        (lambda: fn.gate_residual(fn.ones((2, 3)), fn.ones((3,)), fn.ones((3,))), "gate_residual: y must be"),
        (lambda: fn.prelu(fn.ones((2, 3)), fn.ones((2,))), r"prelu: weight.shape=\(2,\) must be \(3,\) or \(1,\)"),
        (lambda: fn.glu(fn.ones((2, 3))), r"glu: x.shape\[1\]=3 must be even"),
        (lambda: fn.mse_loss(fn.ones((2, 3)), fn.ones((3,))), r"mse_loss: prediction \(2, 3\) and target \(3,\)"),
        (lambda: fn.cross_entropy(fn.ones((2, 3)), fn.zeros((3,), dtype=fn.int64)), "cross_entropy: labels"),
        (lambda: fn.cross_entropy(fn.ones((2, 0)), fn.zeros((2,), dtype=fn.int64)), "cross_entropy: no classes"),
        (lambda: fn.cross_entropy(fn.ones((2, 3)), fn.ones((3, 2))), "cross_entropy: probabilities"),
    ],
)
def test_wrong_shapes(call, message: str) -> None:
    with pytest.raises(fn.ShapeError, match=message):
        call()


def test_wrong_options_and_dtypes() -> None:
    integers = fn.ones((2, 3), dtype=fn.int32)
    for call in (
        lambda: fn.group_norm(integers, 1),
        lambda: fn.layer_norm(integers),
        lambda: fn.softmax(integers),
        lambda: fn.mse_loss(integers, integers),
        lambda: fn.dropout(integers),
        lambda: fn.swiglu(integers),
        lambda: fn.cross_entropy(integers, fn.zeros((2,), dtype=fn.int64)),
    ):
        with pytest.raises(fn.DTypeError):
            call()
    x = fn.ones((2, 3))
    for call in (
        lambda: fn.mse_loss(x, x, reduction="batchmean"),
        lambda: fn.huber_loss(x, x, delta=0.0),
        lambda: fn.batch_norm(x),
        lambda: fn.batch_norm(x, fn.zeros((3,)), training=True),
        lambda: fn.normalize(x, p=0.5),
        lambda: fn.dropout(x, 1.5),
        lambda: fn.cross_entropy(x, fn.zeros((2,), dtype=fn.int64), label_smoothing=2.0),
    ):
        with pytest.raises(fn.ConfigError):
            call()
    with pytest.raises(fn.GradientError, match="class weights are constants"):
        fn.cross_entropy(x, fn.zeros((2,), dtype=fn.int64), leaf(normal(3), fn.float32))


@pytest.mark.parametrize("name, keyword", [
    ("layer_norm", "eps"), ("rms_norm", "eps"), ("normalize", "p"), ("batch_norm", "momentum"), ("dropout", "p"),
])  # fmt: skip
def test_what_is_no_number_is_refused_by_name(name: str, keyword: str) -> None:
    for wrong in ("a", None, fn.ones(1)):
        with pytest.raises(fn.DTypeError, match=f"{name}: {keyword} must be a number"):
            getattr(fn, name)(fn.ones((2, 3)), **{keyword: wrong})


def test_batch_norm_moves_only_what_can_be_moved() -> None:
    x, mean, var = leaf(normal(5, 2)), fn.zeros((2,), dtype=fn.float64), fn.ones((2,), dtype=fn.float64)
    wanted = leaf(np.ones(2))
    for running, error in (
        ((fn.broadcast_to(mean[:1], (2,)), var), fn.ShapeError),
        ((mean, wanted), fn.GradientError),
        ((mean, wanted * 2), fn.GradientError),
    ):
        with pytest.raises(error, match="batch_norm, running_"):
            fn.batch_norm(x, *running, training=True)
    assert mean.tolist() == [0, 0] and wanted.tolist() == [1, 1]
    with fn.no_grad():
        fn.batch_norm(x, mean, wanted, training=True)
    assert wanted.tolist() != [1, 1]


# --- softmax and losses -------------------------------------------------------------------------------------------
def test_masked_logits_have_probability_and_gradient_0() -> None:
    x = leaf(np.array([[1.0, -np.inf, 2.0, -np.inf], [0.0, 1.0, 2.0, 3.0]]))
    for y in (fn.softmax(x), fn.log_softmax(x)[:, 2]):
        dx = gradients(y, x)[0]
        assert np.isfinite(dx).all() and (dx[0, [1, 3]] == 0).all()
    assert fn.softmax(x).numpy()[0, 1] == 0
    loss = fn.cross_entropy(x, fn.asarray(np.array([2, 3])))
    assert np.isfinite(loss.item()) and np.isfinite(gradients(loss, x)[0]).all()
    assert np.isnan(fn.softmax(fn.full((2, 3), -math.inf)).numpy()).all()


def test_an_offset_of_the_logits_costs_no_digits() -> None:
    for a, b in ((1e7, 1e7 + 1), (6e4, 6e4), (-1e7, -1e7 - 2)):
        x, label = leaf(np.array([[a, b]]), fn.float32), fn.asarray([0])
        p = 1 / (1 + np.exp([b - a, a - b]))
        np.testing.assert_allclose(fn.log_softmax(x).numpy(), [np.log(p)], rtol=1e-6)
        for smoothing in (0.0, 0.2):
            q = np.array([1 - smoothing / 2, smoothing / 2])
            loss = fn.cross_entropy(x, label, label_smoothing=smoothing)
            np.testing.assert_allclose(loss.item(), -(q * np.log(p)).sum(), rtol=1e-6)
            (dx,) = fn.grad(loss, x)
            np.testing.assert_allclose(dx.numpy(), [p - q], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [fn.cross_entropy, fn.nll_loss])
@pytest.mark.parametrize("weight", [None, 0.0])
def test_the_mean_over_ignored_labels_has_the_gradient_0(loss, weight: float | None) -> None:
    x, labels = leaf(normal(2, 3)), fn.asarray([2, 2])
    w = None if weight is None else fn.zeros((3,), dtype=fn.float64)
    y = loss(x, labels, w, ignore_index=2 if weight is None else -100)
    assert math.isnan(y.item())
    for create_graph in (False, True):
        assert fn.grad(y, x, create_graph=create_graph, retain_graph=True)[0].tolist() == [[0.0] * 3] * 2


def test_huber_loss_at_infinity() -> None:
    x, t = leaf(np.array([2.0, -math.inf, math.inf, 0.5])), fn.zeros((4,), dtype=fn.float64)
    for delta, values, slopes in (
        (math.inf, [2, math.inf, math.inf, 0.125], [2, -math.inf, math.inf, 0.5]),
        (1.0, [1.5, math.inf, math.inf, 0.125], [1, -1, 1, 0.5]),
    ):
        loss = fn.huber_loss(x, t, "none", delta)
        assert loss.tolist() == values
        for create_graph in (False, True):
            assert fn.grad(loss.sum(), x, create_graph=create_graph, retain_graph=True)[0].tolist() == slopes


def test_ignored_labels_count_for_nothing() -> None:
    x, labels = leaf(normal(4, 5)), np.array([1, -100, 3, -100])
    found = fn.cross_entropy(x, fn.asarray(labels))
    kept = fn.cross_entropy(fn.asarray(x.numpy()[::2].copy()), fn.asarray(labels[::2].copy()))
    assert abs(found.item() - kept.item()) < 1e-12
    assert (gradients(found, x)[0][1::2] == 0).all()
    assert math.isnan(fn.cross_entropy(x, fn.asarray(np.full(4, -100))).item())
    assert fn.cross_entropy(x, fn.asarray(np.full(4, -100)), reduction="sum").item() == 0
    with pytest.raises(fn.IndexOutOfRange, match="cross_entropy"):
        fn.cross_entropy(x, fn.asarray(np.array([1, -1, 3, 2]))).item()


def test_one_hot_probabilities_are_labels() -> None:
    x, labels, w = leaf(normal(4, 5)), np.array([1, 0, 3, 4]), fn.asarray(np.array([1.0, 2.0, 0.5, 1.5, 1.0]))
    for smoothing in (0.0, 0.2):
        hard = fn.cross_entropy(x, fn.asarray(labels), w, reduction="none", label_smoothing=smoothing)
        soft = fn.cross_entropy(x, fn.asarray(np.eye(5)[labels]), w, reduction="none", label_smoothing=smoothing)
        np.testing.assert_allclose(hard.numpy(), soft.numpy(), rtol=1e-12)
        np.testing.assert_allclose(gradients(hard, x)[0], gradients(soft, x)[0], rtol=1e-9, atol=1e-12)


def test_losses_of_two_byte_numbers_do_not_overflow_on_the_way() -> None:
    x, t = fn.full((1000,), 300.0, dtype=fn.float16), fn.zeros((1000,), dtype=fn.float16)
    x.requires_grad_()
    assert math.isinf(fn.mse_loss(x, t).item())  # 90,000 is beyond f16
    assert fn.mse_loss(x * 0.5, t).item() == np.float16(22500)  # but not the sum of a thousand of 22,500
    assert fn.cosine_similarity(x.detach(), x.detach() * 2).item() == 1.0
    assert fn.normalize(x.detach()).numpy()[0] == np.float16(1000**-0.5)


def test_extreme_probabilities_give_finite_losses_and_gradients() -> None:
    p, t = leaf(np.array([0.0, 1.0, 0.0, 1.0])), fn.asarray(np.array([0.0, 1.0, 1.0, 0.0]))
    loss = fn.binary_cross_entropy(p, t, reduction="none")
    assert loss.tolist() == [0.0, 0.0, 100.0, 100.0] and np.isfinite(gradients(loss, p)[0]).all()
    x = leaf(np.array([-1e4, 1e4, 0.0]))
    loss = fn.binary_cross_entropy_with_logits(x, fn.asarray(np.array([1.0, 0.0, 0.5])), reduction="none")
    np.testing.assert_allclose(loss.numpy(), [1e4, 1e4, math.log(2)])
    (first,) = fn.grad(loss.sum(), x, create_graph=True)
    (second,) = fn.grad(first.sum(), x)
    np.testing.assert_allclose(second.numpy(), [0, 0, 0.25], atol=1e-12)  # at a logit of exactly 0, too
    target, logs = leaf(np.array([0.0, 1.0])), leaf(np.array([-np.inf, -0.5]))
    divergence = fn.kl_div(logs, target, "sum")
    assert divergence.item() == 0.5 and np.isfinite(gradients(divergence, logs, target)).all()


def test_the_mean_of_no_losses_is_nan() -> None:
    empty = fn.ones((0, 3))
    assert math.isnan(fn.mse_loss(empty, empty).item()) and fn.mse_loss(empty, empty, "sum").item() == 0


# --- activations --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    ["relu", "relu6", "hardtanh", "hardswish", "elu", "selu", "celu", "silu", "mish", "gelu", "gelu_tanh", "softsign"],
)
@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16, fn.float64])
def test_derivatives_are_finite_where_a_branch_overflows(name: str, dtype: fn.DType) -> None:
    x = leaf(np.array([-1e30, -1e20, -1e3, -90.0, 0.0, 90.0, 1e3, 1e15, 1e20, 1e30]), dtype)
    (dx,) = fn.grad(getattr(fn, name)(x).sum(), x, create_graph=True)
    assert np.isfinite(dx.detach().numpy().astype(float)).all()
    if name != "softsign" and dx.requires_grad:  # its second derivative is 1/∞³ there
        (ddx,) = fn.grad(dx.sum(), x)
        assert np.isfinite(ddx.numpy().astype(float)).all()


@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "gelu_tanh"])
def test_derivatives_at_infinity(name: str) -> None:
    x = leaf(np.array([-math.inf, math.inf]))
    y = getattr(fn, name)(x)
    assert y.numpy()[0] in (0, -1) and not math.isnan(y.numpy()[1])
    assert fn.grad(y.sum(), x)[0].tolist() == [0, 1 if name in ("relu", "hardswish", "gelu_tanh") else 0]


def test_defaults_and_names_of_an_elementwise_op() -> None:
    x = fn.tensor([-1.0, 2.0])
    assert fn.leaky_relu(x).tolist() == fn.leaky_relu(x, 0.01).tolist() == fn.leaky_relu(x, slope=0.01).tolist()
    assert x.elu(alpha=2.0).tolist() == fn.elu(x, 2.0).tolist() and fn.relu(x=x).tolist() == [0, 2]
    for wrong in (lambda: fn.elu(x, 1.0, alpha=2.0), lambda: fn.elu(x, beta=2.0), lambda: fn.elu(), lambda: fn.add(x)):
        with pytest.raises(TypeError, match=r"takes x"):
            wrong()


def test_gates_read_and_write_the_halves_where_they_lie() -> None:
    x = leaf(normal(3, 8))
    a, b = x[:, :4], x[:, 4:]
    for found, expected in (
        (fn.swiglu(x), a * fn.silu(b)),
        (fn.glu(x), a * fn.sigmoid(b)),
        (fn.geglu(x), a * fn.gelu(b)),
        (fn.reglu(x), a * fn.relu(b)),
        (fn.swiglu(a, b), a * fn.silu(b)),
    ):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)
        np.testing.assert_allclose(gradients(found, x)[0], gradients(expected, x)[0], rtol=1e-12)
    assert fn.swish is fn.silu


# --- dropout ------------------------------------------------------------------------------------------------------
def test_dropout_draws_its_mask_again_in_the_backward_pass() -> None:
    x, generator = leaf(np.ones((40, 25))), fn.Generator(3)
    state = generator.state()
    y = fn.dropout(x, 0.3, generator=generator)
    (dx,) = fn.grad(y.sum(), x, create_graph=True)
    assert np.array_equal(dx.numpy(), y.numpy())
    generator.set_state(state)
    mask = fn.dropout_mask(x.shape, 0.3, generator=generator)
    assert mask.dtype is fn.bool and np.array_equal(mask.numpy(), y.numpy() != 0)
    assert not np.array_equal(mask.numpy(), fn.dropout_mask(x.shape, 0.3, generator=generator).numpy())
    assert abs(mask.numpy().mean() - 0.7) < 0.06
    assert fn.dropout(x, 0.3, training=False) is x and fn.dropout(x, 1.0).sum().item() == 0


def test_the_mask_is_the_same_in_every_dtype_and_layout() -> None:
    values = np.ones((6, 5))
    masks = [
        fn.dropout(fn.asarray(values, dtype=dtype), 0.4, generator=fn.Generator(1)).numpy() != 0
        for dtype in (fn.float16, fn.bfloat16, fn.float32, fn.float64)
    ]
    masks.append(fn.dropout(fn.asarray(np.ones((5, 6))).T, 0.4, generator=fn.Generator(1)).numpy() != 0)
    assert all(np.array_equal(masks[0], m) for m in masks)
