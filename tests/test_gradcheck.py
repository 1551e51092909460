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
    for check in (fn.gradcheck, fn.gradgradcheck):
        with pytest.raises(fn.GradientError, match="does not require a gradient: an op was not recorded"):
            check(lambda x: x.detach() * 2, leaf(3))
    for inputs, words in (
        (np.ones(3), "got ndarray"),
        ({"x": leaf(3)}, "got dict"),
        (leaf(3).detach(), "no input requires a gradient"),
        ([3, fn.ones(3).requires_grad_()], "input 1 is float32, which is too coarse"),
    ):
        with pytest.raises(fn.DTypeError, match=f"gradcheck: needs float64 inputs with .*{words}"):
            fn.gradcheck(lambda x: x, inputs)
    for check in (fn.gradcheck, fn.gradgradcheck, fn.numerical_gradient):
        with pytest.raises(fn.DTypeError, match="function must return floating tensors, it returned NoneType"):
            check(lambda x: None, leaf(3))
    sizes = iter(range(3, 9))
    with pytest.raises(fn.ShapeError, match=r"gave results of shapes \[\(4,\)\], before \[\(3,\)\]"):
        fn.gradcheck(lambda x: x.sum() * fn.ones((next(sizes),), dtype=fn.float64), leaf(2))


@pytest.mark.parametrize(
    "setting", [{"eps": 0}, {"eps": -1e-6}, {"eps": "x"}, {"rtol": -1.0}, {"atol": np.nan}, {"order": 3}, {"order": 0}]
)
def test_settings_that_make_no_sense(setting):
    ((name, _),) = setting.items()
    for check in (fn.gradcheck, *((fn.gradgradcheck,) if name != "order" else ())):
        with pytest.raises(fn.ConfigError, match=f"{check.__name__}: {name}="):
            check(lambda x: x.sin(), leaf(3), **setting)


def test_results_in_dicts_and_nested_tuples_are_checked():
    bad = wrong(lambda g: g * 3)
    for f in (lambda x: {"y": bad(x)}, lambda x: (x, [bad(x)]), lambda x: {"a": {"b": (bad(x),)}}):
        with pytest.raises(fn.GradientError, match="input 0"):
            fn.gradcheck(f, leaf(3))
    assert fn.gradcheck(lambda x: {"y": x.sin(), "n": 3}, leaf(3), order=2)
    assert fn.gradgradcheck(lambda x, w: w * 2, [leaf(3).requires_grad_(), leaf(3)])


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
    x, t = leaf(3).detach(), leaf(3, seed=1).detach()
    expected = f_jacobian(x.numpy())
    value, pull = fn.vjp(f, x)
    assert np.allclose(value.numpy(), f(x).numpy()) and not value.requires_grad
    assert np.allclose(pull(t)[0].numpy(), t.numpy() @ expected)
    assert np.allclose(pull(t * 2)[0].numpy(), 2 * t.numpy() @ expected)
    value, moved = fn.jvp(f, x, t)
    assert np.allclose(moved.numpy(), expected @ t.numpy()) and not moved.requires_grad
    assert not pull(t)[0].requires_grad


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


def cube(x):
    return x**3


NESTED = {  # each is 6 · a at a, or a sum of that
    "jvp of jvp": lambda a, v: fn.jvp(lambda a: fn.jvp(cube, a, v)[1], a, v)[1],
    "jvp of vjp": lambda a, v: fn.jvp(lambda a: fn.vjp(cube, a)[1](v)[0], a, v)[1],
    "jacobian of jvp": lambda a, v: fn.jacobian(lambda a: fn.jvp(cube, a, v)[1], a).sum(0),
    "jacobian of vjp": lambda a, v: fn.jacobian(lambda a: fn.vjp(cube, a)[1](v)[0], a).sum(0),
    "jacobian of jacobian": lambda a, v: fn.jacobian(lambda a: fn.jacobian(cube, a), a).sum((0, 1)),
    "jacobian of hvp": lambda a, v: fn.jacobian(lambda a: fn.hvp(lambda a: (a**4 / 4).sum(), a, v)[1], a).sum(0),
    "hessian of the value": lambda a, v: fn.hessian(lambda a: fn.jvp(cube, a, v)[0].sum(), a).sum(0),
    "hvp of vjp's value": lambda a, v: fn.hvp(lambda a: fn.vjp(cube, a)[0].sum(), a, v)[1],
    "by the direction": lambda a, v: fn.jacobian(lambda t: fn.jvp(lambda a: 3 * a * a, a, t)[1], v).sum(0),
    "by the weight": lambda a, v: fn.jacobian(lambda t: fn.vjp(lambda a: 3 * a * a, a)[1](t)[0], v).sum(0),
    "by what is taken from around": lambda a, v: 2 * fn.jacobian(
        lambda b: fn.jvp(lambda c: c * b * b * 1.5, v, v)[1], a).sum(0),
    "mixed": lambda a, v: fn.jacobian(lambda b: fn.jacobian(lambda c: (c * b * b * 3).sum(), v), a).sum(0),
}  # fmt: skip


@pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED)
def test_derivatives_of_derivatives(nested):
    a = leaf(3).detach()
    v = fn.ones((3,), dtype=fn.float64)
    found = nested(a, v)
    assert np.allclose(found.numpy(), 6 * a.numpy()) and not found.requires_grad
    with fn.no_grad():
        assert np.allclose(nested(a, v).numpy(), 6 * a.numpy())


def test_results_are_in_the_graph_like_those_of_any_op():
    x, v = leaf(3), fn.ones((3,), dtype=fn.float64)
    fn.jvp(cube, x, v)[1].sum().backward()
    assert np.allclose(x.grad.numpy(), 6 * x.numpy())
    fn.vjp(cube, x)[0].sum().backward()
    assert np.allclose(x.grad.numpy(), 6 * x.numpy() + 3 * x.numpy() ** 2)
    assert fn.jacobian(cube, x).requires_grad and not fn.jacobian(cube, x, create_graph=False).requires_grad
    with fn.no_grad():
        assert not any(y.requires_grad for y in (*fn.jvp(cube, x, v), fn.jacobian(cube, x), fn.vjp(cube, x)[1](v)[0]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fn.jvp(f, x, x[:2]), fn.ShapeError, r"jvp: a tangent has shape \(2,\), it must be \(3,\)"),
        (lambda x: fn.jvp(f, x, x.numpy()), fn.DTypeError, "jvp: a tangent must be a tensor, got ndarray"),
        (lambda x: fn.jvp(f, x, (x, x)), fn.ShapeError, "jvp: 2 tangents for 1 primals"),
        (lambda x: fn.jvp(f, 1.0, 1.0), fn.DTypeError, "jvp: needs floating tensors"),
        (lambda x: fn.jacobian(f, [x]), fn.DTypeError, "jacobian: needs floating tensors"),
        (lambda x: fn.jacobian(f, x, create_graph=True), fn.GradientError, "jacobian: create_graph=True needs an x"),
        (lambda x: fn.hvp(f, x, x.numpy()), fn.DTypeError, "hvp: direction must be a tensor"),
        (lambda x: fn.vjp(f, x)[1](x.numpy()), fn.DTypeError, "vjp: a weight must be a tensor, got ndarray"),
        (
            lambda x: fn.vjp(f, x)[1](x.to_dtype("float32")),
            fn.DTypeError,
            "vjp: a weight is float32, it must be float64",
        ),
        (lambda x: fn.vjp(f, x > 0), fn.DTypeError, "vjp: needs floating tensors"),
        (lambda x: fn.jacobian(lambda x: x > 0, x), fn.DTypeError, "jacobian: the function must return floating"),
        (lambda x: fn.hessian(f, x), fn.ShapeError, "hessian: the function must return one number"),
        (lambda x: fn.hvp(f, x, x[:1]), fn.ShapeError, "hvp: direction"),
        (lambda x: fn.vjp(f, x)[1](x, x), fn.GradientError, "vjp: 2 weights for 1 results"),
    ],
)
def test_what_they_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(leaf(3).detach())
