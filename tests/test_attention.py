"""Attention: its edges (rows that see nothing, infinities, broadcasts), dropout, gradients of every operand, errors."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.kernels.attention.programs import tile_for
from flame_numba.ops import TABLE
from flame_numba.ops.attention.attention import Setting, dropout_factors

reference = TABLE["attention"].reference


def operands(*shapes, seed=0, scale=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [fn.asarray((scale * rng.standard_normal(s)).astype(dtype)).requires_grad_() for s in shapes]


def wide(*tensors):
    return [t.detach().numpy().astype(np.float64) for t in tensors]


@pytest.mark.parametrize(("causal", "diagonal"), [(True, 0), ("upper_left", 0), ("lower_right", 3)])
def test_causal_corners(causal, diagonal):
    q, k, v = operands((1, 2, 4, 3), (1, 2, 7, 3), (1, 2, 7, 5))
    y = fn.attention(q, k, v, causal=causal)
    allowed = fn.asarray(np.tri(4, 7, diagonal, dtype=bool))
    assert np.array_equal(y.numpy(), fn.attention(q, k, v, allowed).numpy())
    np.testing.assert_allclose(y.numpy(), reference(*wide(q, k, v), causal=causal), atol=1e-14)


def test_several_tiles_and_chunks_of_columns():
    q, k, v = operands((2, 4, 70, 80), (2, 2, 90, 80), (2, 2, 90, 130))
    y = fn.attention(q, k, v, causal=True)
    np.testing.assert_allclose(y.numpy(), reference(*wide(q, k, v), causal=True), atol=1e-13)
    fused = fn.grad(y, (q, k, v), [y.detach()])
    by_ops = fn.grad(fn.attention(q, k, v, causal=True), (q, k, v), [y.detach()], create_graph=True)
    for a, b in zip(fused, by_ops, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), atol=1e-12)


def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient():
    q, k, v = operands((1, 1, 5, 4), (1, 1, 3, 4), (1, 1, 3, 2))
    (bias,) = operands((5, 3))
    mask = np.ones((5, 3), bool)
    mask[1] = False
    hidden = bias.detach().numpy().copy()
    hidden[3] = -np.inf
    bias = fn.asarray(hidden).requires_grad_()
    for create_graph in (False, True):
        y = fn.attention(q, k, v, fn.asarray(mask), bias=bias)
        assert not y.detach().numpy()[0, 0, [1, 3]].any()
        found = fn.grad(y.sum(), (q, k, v, bias), create_graph=create_graph)
        assert all(np.isfinite(g.detach().numpy()).all() for g in found)
        assert not found[0].detach().numpy()[0, 0, [1, 3]].any() and not found[3].detach().numpy()[[1, 3]].any()


def test_lower_right_with_more_queries_than_keys():
    q, k, v = operands((1, 1, 6, 2), (1, 1, 2, 2), (1, 1, 2, 2))
    y = fn.attention(q, k, v, causal="lower_right").numpy()
    assert not y[0, 0, :4].any() and np.array_equal(y[0, 0, 4], v.detach().numpy()[0, 0, 0])


def test_large_logits_neither_overflow_nor_lose_the_sum():
    q, k, v = operands((1, 1, 9, 8), (1, 1, 40, 8), (1, 1, 40, 3), scale=300.0, dtype=np.float32)
    y = fn.attention(q, k, v, scale=1.0)
    np.testing.assert_allclose(y.numpy(), reference(*wide(q, k, v), scale=1.0), rtol=1e-4, atol=1e-3)
    assert all(np.isfinite(g.numpy()).all() for g in fn.grad(y.sum(), (q, k, v)))


def test_hidden_keys_may_hold_anything():
    q, k, v = operands((1, 1, 3, 4), (1, 1, 6, 4), (1, 1, 6, 2))
    dirty = k.detach().numpy().copy()
    dirty[..., 4:, :] = [[np.nan], [np.inf]]
    mask = fn.asarray(np.arange(6) < 4)
    y = fn.attention(q, fn.asarray(dirty), v, mask)
    assert np.array_equal(y.numpy(), fn.attention(q, k, v, mask).numpy())


@pytest.mark.parametrize("shape", [(5,), (4, 1), (3, 1, 1), (2, 1, 1, 5), (2, 3, 4, 5), (1, 1, 1, 1)])
def test_gradient_of_a_broadcast_bias(shape):
    q, k, v, bias = operands((2, 3, 4, 2), (2, 3, 5, 2), (2, 3, 5, 2), shape)
    y = fn.attention(q, k, v, bias=bias)
    (found,) = fn.grad(y, bias, [fn.asarray(np.arange(y.numel, dtype=float).reshape(y.shape))])
    whole = fn.asarray(np.broadcast_to(bias.detach().numpy(), (2, 3, 4, 5)).copy()).requires_grad_()
    y = fn.attention(q, k, v, bias=whole)
    (expected,) = fn.grad(y, whole, [fn.asarray(np.arange(y.numel, dtype=float).reshape(y.shape))])
    padded = (1,) * (4 - len(shape)) + shape
    axes = tuple(i for i, n in enumerate(padded) if n == 1)
    np.testing.assert_allclose(
        found.numpy(), expected.numpy().sum(axes, keepdims=True).reshape(shape), rtol=1e-12, atol=1e-12
    )


def test_heads_may_lie_inside_of_rows():
    """(batch, rows, heads, size) in memory: read as it is, and the result can be merged without a copy."""
    q, k, v = operands((2, 5, 4, 3), (2, 5, 2, 3), (2, 5, 2, 3))
    inside = [x.transpose(1, 2) for x in (q, k, v)]
    y = fn.attention(*inside)
    assert y.transpose(1, 2).is_contiguous
    np.testing.assert_allclose(y.numpy(), reference(*wide(*inside)), atol=1e-14)
    assert fn.gradcheck(lambda *x: fn.attention(*(t.transpose(1, 2) for t in x)), (q, k, v))


def test_dropout_is_replayed_by_both_gradients():
    q, k, v = operands((2, 2, 5, 3), (2, 1, 6, 3), (2, 1, 6, 3))
    generator = fn.Generator(5)
    state = generator.state()
    y = fn.attention(q, k, v, dropout=0.4, generator=generator)
    assert generator.state() != state
    scores = wide(q)[0] @ np.repeat(wide(k)[0], 2, 1).swapaxes(-1, -2) / np.sqrt(3)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    drawn = dropout_factors(fn.asarray(scores), Setting(6, 1.0, 0.4, state[0], state[1])).numpy()
    assert set(np.unique(drawn)) == {0.0, 1 / 0.6}
    np.testing.assert_allclose(y.numpy(), weights * drawn @ np.repeat(wide(v)[0], 2, 1), atol=1e-14)

    def again(q, k, v):
        generator.set_state(state)
        return fn.attention(q, k, v, dropout=0.4, generator=generator)

    assert fn.gradcheck(again, (q, k, v), order=2)


def test_dropout_drops_that_share():
    scores = fn.zeros((4, 100, 100))
    drawn = dropout_factors(scores, Setting(100, 1.0, 0.25, 7, 0)).numpy()
    assert abs((drawn == 0).mean() - 0.25) < 0.01 and abs(drawn.mean() - 1) < 0.02


def test_memory_is_linear_in_the_length():
    n = 1024
    q, k, v = operands((1, 1, n, 4), (1, 1, n, 4), (1, 1, n, 4), dtype=np.float32)
    pool = fn.current_pool(q.device)
    pool.reset_peaks()
    before = pool.stats().peak_allocated_bytes
    fn.grad(fn.attention(q, k, v).sum(), (q, k, v))
    assert pool.stats().peak_allocated_bytes - before < n * n  # a quarter of the matrix of probabilities


@pytest.mark.slow  # tests/property has a smaller one
def test_two_runs_give_the_same_bits():
    q, k, v, bias = operands((2, 4, 40, 8), (2, 2, 50, 8), (2, 2, 50, 8), (4, 1, 50), dtype=np.float32)
    runs = []
    for _ in range(2):
        y = fn.attention(q, k, v, bias=bias, dropout=0.1, generator=fn.Generator(1))
        runs.append([y.detach().numpy(), *(g.numpy() for g in fn.grad(y.sum(), (q, k, v, bias)))])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_mixed_dtypes_promote_and_autocast_lowers():
    q, k, v = operands((1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4), dtype=np.float32)
    assert fn.attention(q.to_dtype(fn.float16), k, v).dtype is fn.float32
    with fn.autocast(fn.bfloat16):
        y = fn.attention(q, k, v)
    assert y.dtype is fn.bfloat16
    assert all(g.dtype is fn.float32 for g in fn.grad(y.sum(), (q, k, v)))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 4), (2, 4), (2, 4)), "needs"),
        (((1, 2, 4), (1, 2, 5), (1, 2, 5)), r"q.shape\[-1\] must equal k.shape\[-1\]"),
        (((1, 2, 4), (1, 3, 4), (1, 2, 4)), r"k.shape\[-2\] must equal v.shape\[-2\]"),
        (((4, 2, 4), (2, 3, 4), (1, 3, 4)), "same heads"),
        (((3, 2, 4), (2, 3, 4), (2, 3, 4)), "divide"),
        (((2, 3, 4), (0, 3, 4), (0, 3, 4)), "divide"),
        (((2, 1, 2, 4), (3, 1, 2, 4), (3, 1, 2, 4)), "broadcast"),
    ],
)
def test_wrong_shapes(shapes, words):
    with pytest.raises(fn.ShapeError, match=words):
        fn.attention(*operands(*shapes))


def test_other_mistakes():
    q, k, v = operands((1, 2, 4), (1, 3, 4), (1, 3, 4))
    with pytest.raises(fn.DTypeError, match="bias="):
        fn.attention(q, k, v, fn.zeros((2, 3)))
    with pytest.raises(fn.DTypeError, match="q must be floating"):
        fn.attention(fn.zeros((1, 2, 4), dtype=fn.int64), k, v)
    with pytest.raises(fn.ShapeError, match="attention, mask"):
        fn.attention(q, k, v, fn.full((3, 2), True))
    with pytest.raises(fn.ShapeError, match="bias.shape"):
        fn.attention(q, k, v, bias=fn.zeros((2, 1, 2, 3)))
    with pytest.raises(fn.ConfigError, match="causal"):
        fn.attention(q, k, v, causal="left")
    with pytest.raises(fn.ConfigError, match="dropout"):
        fn.attention(q, k, v, dropout=1.0)
    for wrong in ({"dropout": "a"}, {"scale": "a"}, {"dropout": 0.5, "generator": 3}):
        with pytest.raises(fn.DTypeError, match=list(wrong)[-1]):
            fn.attention(q, k, v, **wrong)


def test_a_saved_operand_that_changes_is_noticed():
    q, k, v = operands((1, 2, 4), (1, 3, 4), (1, 3, 4))
    y = fn.attention(q, k, v)
    v.detach().fill_(0)
    with pytest.raises(fn.GradientError, match="changed in place"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [fn.float32, fn.float64])
@pytest.mark.parametrize("gradients", [0, 1, 2])
@pytest.mark.parametrize("columns", [1, 33, 65])
def test_tiles_share_out_evenly(dtype, gradients, columns):
    tile = tile_for("cuda", dtype, columns, gradients)
    assert tile.size * tile.depth % tile.threads == tile.wide * tile.rows % tile.threads == 0
    assert tile.threads % tile.depth == tile.threads % tile.rows == tile.threads % tile.wide == 0
    assert tile.size % tile.rows == 0


def test_the_standard_name():
    assert fn.scaled_dot_product_attention is fn.attention
