"""The public tools for gradients: checks against differences, and derivatives of functions."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn


def leaf(*shape: int, seed: int = 0) -> fn.Tensor:
    return fn.asarray(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


def wrong(factor):
    """sin with a gradient that is `factor(g · cos x)`."""

    def forward(ctx, x):
        ctx.save(x)
        return x.sin()

    return fn.custom_op(forward, lambda ctx, g: factor(g * ctx.saved[0].cos()), name="wrong")


def test_gradcheck_finds_a_wrong_gradient():
    half = fn.fuse(lambda x: x * x)
    half._partials = lambda y, x: (x,)  # half of what it should be
    with pytest.raises(
        fn.GradientError, match=r"input 0 at \(0,\): .* differences give .* cosine 1.000000, size × 0.5"
    ):
        fn.gradcheck(lambda x: half(x).sum(), [leaf(3)])
    with pytest.raises(fn.GradientError, match="cosine -1.000000, size × 1"):
        fn.gradcheck(wrong(lambda g: -g), leaf(3))


def test_a_wrong_direction_is_found_where_sizes_are_within_the_tolerance():
    tiny = lambda x: wrong(lambda g: g.flip(0))(x) * 1e-6  # noqa: E731
    with pytest.raises(fn.GradientError, match="points elsewhere than the differences"):
        fn.gradcheck(tiny, leaf(5), atol=1e-3)
    assert fn.gradcheck(lambda x: x.sin() * 1e-6, leaf(5), atol=1e-3)


def test_several_results_and_operands_that_are_not_tensors():
    def f(x, n, w):
        return x * w, [x], x > 0, (x * n).exp()

    assert fn.gradcheck(lambda x, n, w: f(x, n, w)[::3], [leaf(3), 2, leaf(3, seed=1)], order=2)
    with pytest.raises(fn.GradientError, match="input 0"):
        fn.gradcheck(lambda x: (x.sin(), wrong(lambda g: g * 3)(x)), leaf(3))


def test_gradgradcheck_looks_at_second_derivatives_only():
    def forward(ctx, x):
        ctx.save(x)
        return x**3

    # right where it is, but what it is made of has no derivative: the second one is lost
    op = fn.custom_op(forward, lambda ctx, g: 3 * g * ctx.saved[0].detach() ** 2)
    assert fn.gradcheck(op, leaf(3))
    with pytest.raises(fn.GradientError):
        fn.gradgradcheck(op, leaf(3))
    assert fn.gradgradcheck(lambda x: x**3, leaf(3))


def test_what_gradcheck_refuses():
    with pytest.raises(fn.DTypeError, match="gradcheck: needs float64 inputs"):
        fn.gradcheck(lambda x: x, fn.ones(3).requires_grad_())
    with pytest.raises(fn.DTypeError, match="numerical_gradient: needs float64"):
        fn.numerical_gradient(lambda x: x, [leaf(3).detach()])
    with pytest.raises(fn.GradientError, match="does not require a gradient: an op was not recorded"):
        fn.gradcheck(lambda x: x.detach() * 2, leaf(3))


def test_gradients_are_compared_without_judgement():
    (right,) = fn.compare_gradients(lambda x: x.exp(), leaf(4))
    assert abs(right.cosine - 1) < 1e-9 and abs(right.size - 1) < 1e-6 and right.error < 1e-6
    (doubled,) = fn.compare_gradients(wrong(lambda g: g * 2), leaf(4))
    assert abs(doubled.cosine - 1) < 1e-9 and abs(doubled.size - 2) < 1e-6 and doubled.at in np.ndindex(4)
    assert str(doubled).startswith("input 0: cosine 1.000000, size × 2")


def test_numerical_gradient():
    x, w = leaf(3), leaf(3, seed=1)
    gx, gw = fn.numerical_gradient(lambda x, w: (x * w, x.sum()), [x, w])
    assert np.allclose(gx, w.numpy() + 1) and np.allclose(gw, x.numpy())
    (weighted,) = fn.numerical_gradient(lambda x: x * x, x, np.array([1.0, 2.0, 3.0]))
    assert np.allclose(weighted, 2 * x.numpy() * [1, 2, 3])
    with pytest.raises(fn.ShapeError, match="numerical_gradient: gradients have shapes"):
        fn.numerical_gradient(lambda x: x * x, x, np.ones(2))


# --- derivatives of functions -------------------------------------------------------------------------------------
A = np.random.default_rng(9).normal(size=(3, 3))


def f(x):
    return (fn.asarray(A) @ x).tanh() * x


def f_jacobian(x):
    t = np.tanh(A @ x)
    return np.diag(t) + (x * (1 - t * t))[:, None] * A


def test_products_with_the_jacobian_from_both_sides():
    x, t = leaf(3), leaf(3, seed=1).detach()
    expected = f_jacobian(x.numpy())
    value, pull = fn.vjp(f, x)
    assert np.allclose(value.numpy(), f(x).numpy()) and not value.requires_grad
    assert np.allclose(pull(t)[0].numpy(), t.numpy() @ expected)
    assert np.allclose(pull(t * 2)[0].numpy(), 2 * t.numpy() @ expected)
    value, moved = fn.jvp(f, x, t)
    assert np.allclose(moved.numpy(), expected @ t.numpy()) and not moved.requires_grad
    assert x.grad is None


def test_products_for_several_operands_and_results():
    x, w = leaf(3), leaf(3, seed=1)

    def g(x, w):
        return x * w, x.sum(), w.detach()

    (_, total, _), (product, slope, nothing) = fn.jvp(g, (x, w), (fn.ones_like(x), 2 * fn.ones_like(w)))
    assert np.allclose(product.numpy(), w.numpy() + 2 * x.numpy())
    assert slope.item() == 3 and np.all(nothing.numpy() == 0) and np.allclose(total.item(), x.numpy().sum())
    _, pull = fn.vjp(g, x, w)
    one = fn.ones((3,), dtype=fn.float64)
    gx, gw = pull(one, fn.asarray(1.0, dtype=fn.float64), one)
    assert np.allclose(gx.numpy(), w.numpy() + 1) and np.allclose(gw.numpy(), x.numpy())


def test_jacobian_and_hessian():
    x = leaf(3)
    assert np.allclose(fn.jacobian(f, x).numpy(), f_jacobian(x.numpy()))
    assert fn.jacobian(lambda x: fn.stack([x, x * 2]), x).shape == (2, 3, 3)
    assert fn.jacobian(lambda x: x[:0], x).shape == (0, 3)
    assert fn.gradcheck(lambda x: fn.jacobian(f, x, create_graph=True), x)

    def s(x):
        return (x * (fn.asarray(A) @ x)).sum().sin()

    q, symmetric = x.numpy() @ A @ x.numpy(), A + A.T
    slope = symmetric @ x.numpy()
    expected = np.cos(q) * symmetric - np.sin(q) * np.outer(slope, slope)
    assert np.allclose(fn.hessian(s, x).numpy(), expected)
    t = leaf(3, seed=1).detach()
    value, product = fn.hvp(s, x, t)
    assert np.allclose(product.numpy(), expected @ t.numpy()) and np.allclose(value.item(), np.sin(q))
    assert np.all(fn.hessian(lambda x: x.sum(), x).numpy() == 0)
    with fn.no_grad():  # they record whatever the mode around them
        assert np.allclose(fn.jacobian(f, x).numpy(), f_jacobian(x.numpy()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fn.jvp(f, x, x[:2]), fn.ShapeError, r"jvp: tangents \[\(2,\)\] for primals"),
        (lambda x: fn.vjp(f, x > 0), fn.DTypeError, "vjp: needs floating tensors"),
        (lambda x: fn.jacobian(lambda x: x > 0, x), fn.DTypeError, "jacobian: the function must return one floating"),
        (lambda x: fn.hessian(f, x), fn.ShapeError, "hessian: the function must return one number"),
        (lambda x: fn.hvp(f, x, x[:1]), fn.ShapeError, "hvp: direction"),
        (lambda x: fn.vjp(f, x)[1](x, x), fn.GradientError, "vjp: 2 weights for 1 results"),
    ],
)
def test_what_they_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(leaf(3).detach())
