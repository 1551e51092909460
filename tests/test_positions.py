"""Rotary embedding, timestep embedding, sinusoidal positions: conventions, layouts, gradients, errors."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn


def random(*shape, seed=0, dtype=np.float64):
    return fn.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def test_the_two_layouts_are_a_permutation_of_each_other():
    x = random(2, 3, 8)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    half = fn.rope(x, layout="half").numpy()
    interleaved = fn.rope(fn.asarray(x.numpy()[..., order])).numpy()
    np.testing.assert_allclose(interleaved, half[..., order], atol=1e-15)


def test_rotation_keeps_lengths_and_depends_on_differences_of_positions():
    q, k = random(1, 6, 4), random(1, 6, 4, seed=1)
    np.testing.assert_allclose(np.linalg.norm(fn.rope(q).numpy()), np.linalg.norm(q.numpy()), rtol=1e-14)
    for shift in (0, 1000):
        positions = fn.arange(6) + shift
        scores = (fn.rope(q, positions=positions) @ fn.rope(k, positions=positions).transpose(-1, -2)).numpy()
        if shift == 0:
            first = scores
    np.testing.assert_allclose(scores, first, atol=1e-11)


def test_position_zero_is_left_as_it_is():
    x = random(3, 1, 4)
    assert np.array_equal(fn.rope(x).numpy(), x.numpy())


def test_a_part_of_the_axis():
    x = random(2, 3, 6)
    y = fn.rope(x, dim=4)
    assert np.array_equal(y.numpy()[..., 4:], x.numpy()[..., 4:])
    assert np.array_equal(y.numpy()[..., :4], fn.rope(fn.asarray(x.numpy()[..., :4])).numpy())


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_gradients_of_all_operands(layout):
    x, cos, sin = (t.requires_grad_() for t in (random(2, 3, 6), random(3, 2, seed=1), random(3, 2, seed=2)))
    assert fn.gradcheck(lambda *a: fn.rope(*a, layout=layout), (x, cos, sin), order=2)


def test_the_gradient_is_the_rotation_back():
    x = random(2, 5, 8).requires_grad_()
    cos, sin = fn.rope_tables(fn.arange(5), 8, dtype=fn.float64)
    (g,) = fn.grad(fn.rope(x, cos, sin), x, [fn.rope(x.detach(), cos, sin)])
    np.testing.assert_allclose(g.numpy(), x.detach().numpy(), atol=1e-14)


def test_rotary_embedding_rounds_once():
    x = random(4, 6, dtype=np.float32).to_dtype(fn.bfloat16)
    exact = fn.rope(x.to_dtype(fn.float64)).to_dtype(fn.bfloat16)
    assert np.array_equal(fn.rope(x).to_dtype(fn.float32).numpy(), exact.to_dtype(fn.float32).numpy())


def test_heads_before_or_after_positions():
    x = random(2, 3, 5, 4)
    steps = fn.asarray(np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]))
    y = fn.rope(x, positions=steps)
    assert np.array_equal(y.numpy(), fn.rope(x.transpose(1, 2), positions=steps, axis=1).transpose(1, 2).numpy())
    assert np.array_equal(
        y.numpy()[1], fn.rope(fn.asarray(x.numpy()[1]), positions=fn.asarray(np.arange(7, 12))).numpy()
    )


def test_tables_of_far_positions_are_exact():
    cos, _ = fn.rope_tables(fn.asarray(np.array([1_000_003])), 2)
    assert cos.dtype is fn.float32 and cos.numpy()[0, 0] == np.float32(np.cos(1_000_003.0))


def test_timestep_embedding_conventions():
    t = fn.asarray(np.array([0.0, 3.0]))
    y = fn.timestep_embedding(t, 4).numpy()
    np.testing.assert_allclose(y, [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]], atol=1e-15)
    assert np.array_equal(fn.timestep_embedding(t, 4, flip=True).numpy(), y[:, [2, 3, 0, 1]])
    assert fn.timestep_embedding(fn.arange(3), 5).dtype is fn.float32
    assert not fn.timestep_embedding(fn.arange(3), 5).numpy()[:, 4].any()
    assert fn.timestep_embedding(t, 4, dtype=fn.bfloat16).dtype is fn.bfloat16


def test_mistakes():
    x = random(2, 3, 4)
    with pytest.raises(fn.ConfigError, match="layout"):
        fn.rope(x, layout="neox")
    with pytest.raises(fn.ConfigError, match="both cos and sin"):
        fn.rope(x, fn.zeros((3, 2)))
    with pytest.raises(fn.ConfigError, match="even"):
        fn.rope(random(3, 5))
    with pytest.raises(fn.ShapeError, match="rope, cos"):
        fn.rope(x, fn.zeros((4, 2)), fn.zeros((4, 2)))
    with pytest.raises(fn.ShapeError, match="half"):
        fn.rope(x, fn.zeros((3, 3)), fn.zeros((3, 3)))
    for table in (fn.zeros(()), fn.zeros((2,)), fn.zeros((1, 2))):
        with pytest.raises(fn.ShapeError, match="rope"):
            fn.rope(x, table, table)
    for steps in (fn.zeros((1,)), fn.zeros((2, 1)), fn.zeros(())):
        with pytest.raises(fn.ShapeError, match=r"rope: positions .* S=3"):
            fn.rope(x, positions=steps)
    with pytest.raises(fn.ConfigError, match="sinusoidal_positions: n"):
        fn.sinusoidal_positions(-1, 4)
    with pytest.raises(fn.AxisError, match="last"):
        fn.rope(x, axis=-1)
    with pytest.raises(fn.ShapeError, match="needs"):
        fn.rope(random(4))
    with pytest.raises(fn.DTypeError, match="floating"):
        fn.rope(fn.zeros((3, 4), dtype=fn.int64))
    with pytest.raises(fn.ConfigError, match="base"):
        fn.rope_tables(fn.arange(3), 4, base=0.0)
    with pytest.raises(fn.DTypeError, match="floating dtype"):
        fn.rope_tables(fn.arange(3), 4, dtype=fn.int32)
    with pytest.raises(fn.ConfigError, match="dim"):
        fn.timestep_embedding(fn.arange(3), 1)
    with pytest.raises(fn.ConfigError, match="even"):
        fn.sinusoidal_positions(4, 3)
