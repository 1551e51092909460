"""`custom_op`: operands and results of all kinds, second derivatives, and mistakes."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import flame_numba as fn


def leaf(*shape: int, seed: int = 0) -> fn.Tensor:
    return fn.asarray(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


@fn.custom_op
def cube(ctx, x):
    """x³"""
    ctx.save(x)
    return x * x * x


@cube.backward
def _cube_backward(ctx, g):
    (x,) = ctx.saved
    return 3 * x * x * g


def test_a_decorated_function_is_an_op_of_any_order():
    x = leaf(4)
    y = cube(x)
    assert y.node.name == "cube" and cube.__doc__ == "x³" and cube.__name__ == "cube"
    assert fn.gradcheck(cube, x, order=2)
    assert cube(x.detach()).node is None
    with fn.no_grad():
        assert cube(x).node is None


def mix_forward(ctx, a, b, scale=2.0, *rest):
    total, difference, positive = a * b * scale, a - b, a > b
    ctx.save(a, b, total)
    ctx.scale = scale
    return total, difference, positive


def mix_backward(ctx, g_total, g_difference, g_positive):
    a, _, total = ctx.saved
    assert g_positive is None
    ga = g_total * total / a + g_difference if ctx.needs_input_grad[0] else None
    gb = g_total * a * ctx.scale - g_difference if ctx.needs_input_grad[1] else None
    return ga, gb


mix = fn.custom_op(mix_forward, mix_backward, name="mix")


@pytest.mark.parametrize("pick", [lambda t, d: t * t + d, lambda t, d: t, lambda t, d: d.exp()])
def test_several_results_used_or_not(pick):
    def f(a, b):
        total, difference, positive = mix(a, b, scale=3.0)
        assert positive.dtype is fn.bool and not positive.requires_grad
        return pick(total, difference)

    assert fn.gradcheck(f, [leaf(4), leaf(4, seed=1)], order=2)


def test_an_operand_without_a_gradient_gets_none():
    a, b = leaf(4), leaf(4, seed=1)
    (found,) = fn.grad(mix(a.detach(), b)[0].sum(), b)
    assert np.allclose(found.numpy(), 2 * a.numpy())


def test_an_inner_result_can_be_asked_for():
    a, b = leaf(4), leaf(4, seed=1)
    total, difference, _ = mix(a, b)
    found = fn.grad((total * difference).sum(), [total, difference, a])
    assert np.allclose(found[0].numpy(), difference.numpy())
    assert np.allclose(found[1].numpy(), total.numpy())
    assert repr(total).endswith("grad_op=mix)")


def test_results_marked_without_gradient_and_gradients_left_out():
    seen = []

    def forward(ctx, x):
        mask, y = (x > 0).to_dtype(x.dtype), x * 2
        ctx.mark_non_differentiable(mask)
        ctx.materialize_grads = False
        return mask, y, x * 3

    op = fn.custom_op(forward, lambda ctx, *gs: (seen.append(gs), gs[1] * 2)[1])
    x = leaf(3)
    mask, y, _ = op(x)
    assert not mask.requires_grad and y.requires_grad
    y.sum().backward()
    assert seen[0][0] is None and seen[0][2] is None
    assert np.all(x.grad.numpy() == 2)


def test_keywords_are_operands_where_they_have_a_place():
    a, b = leaf(4), leaf(4, seed=1)
    fn.gradcheck(lambda a, b: mix(b=b, a=a)[0], [a, b])

    op = fn.custom_op(lambda ctx, x, *, weight: x * weight, lambda ctx, g: g)
    with pytest.raises(fn.GradientError, match="weight requires a gradient, so it cannot be keyword-only"):
        op(a, weight=b)


def test_an_operand_may_be_returned():
    x = leaf(3)
    inner = x * 2
    op = fn.custom_op(lambda ctx, x: x, lambda ctx, g: -g, name="reverse")
    y = op(inner)
    assert y is not inner and inner.node.name == "multiply"
    (y + inner).sum().backward()
    assert np.all(x.grad.numpy() == 0)


def test_gradients_are_summed_over_broadcast_axes_and_cast():
    op = fn.custom_op(lambda ctx, x: x + fn.zeros((4, 3), dtype=x.dtype), lambda ctx, g: g.to_dtype(fn.float32))
    assert fn.gradcheck(op, leaf(1, 3), rtol=1e-4, atol=1e-4)
    x = leaf(3)
    op(x).sum().backward()
    assert x.grad.dtype is fn.float64 and np.all(x.grad.numpy() == 4)


def by_hand(ctx, g):
    (x,) = ctx.saved
    return fn.asarray(2 * x.numpy() * g.numpy())


def square(ctx, x):
    ctx.save(x)
    return x * x


@pytest.mark.parametrize("once", [False, True])
def test_a_backward_that_is_not_recorded_refuses_a_second_derivative(once):
    op = fn.custom_op(square, by_hand, name="square", once_differentiable=once)
    x = leaf(3)
    assert fn.gradcheck(op, x)
    (first,) = fn.grad(op(x).sum(), x, create_graph=True)
    assert np.allclose(first.numpy(), 2 * x.numpy())
    with pytest.raises(fn.GradientError, match="square backward: it has no derivative"):
        fn.grad(first.sum(), x)


def test_once_differentiable_refuses_although_backward_is_made_of_ops():
    op = fn.custom_op(square, lambda ctx, g: 2 * ctx.saved[0] * g, once_differentiable=True)
    x = leaf(3)
    (first,) = fn.grad(op(x).sum(), x, create_graph=True)
    with pytest.raises(fn.GradientError, match="once_differentiable"):
        fn.grad(first.sum(), x)


def test_without_a_backward_it_says_so():
    op = fn.custom_op(name="lonely")(lambda ctx, x: x * 2)
    with pytest.raises(fn.GradientError, match="lonely: it has no derivative: no backward"):
        op(leaf(2)).sum().backward()


@pytest.mark.parametrize(
    ("gives", "error", "message"),
    [
        (lambda ctx, g: (g, g), fn.GradientError, "bad: backward gave 2 gradients for 1 operands"),
        (lambda ctx, g: (), fn.GradientError, "bad: backward gave 0 gradients; operand 0 needs one"),
        (lambda ctx, g: 1.0, fn.DTypeError, "bad: backward's gradient of operand 0 is float"),
        (lambda ctx, g: g > 0, fn.DTypeError, "bad: backward's gradient of operand 0 is bool"),
        (lambda ctx, g: g[:2], fn.ShapeError, r"operand 0 has shape \(2,\), expected \(3,\)"),
    ],
)
def test_what_backward_returns_must_fit(gives, error, message):
    op = fn.custom_op(lambda ctx, x: x * 2, gives, name="bad")
    with pytest.raises(error, match=message):
        op(leaf(3)).sum().backward()


def test_none_means_zero():
    op = fn.custom_op(lambda ctx, x: x * 2, lambda ctx, g: None)
    assert fn.grad(op(leaf(3)).sum(), x := leaf(3), allow_unused=True) == (None,) and x.grad is None


def test_what_was_saved_is_watched():
    x, w = leaf(3), fn.ones((3,), dtype=fn.float64)

    def forward(ctx, x, w):
        ctx.save(w)
        return x * w

    op = fn.custom_op(forward, lambda ctx, g: (g * ctx.saved[0],), name="scaled")
    y = op(x, w).sum()
    w[0] = 5.0
    with pytest.raises(fn.GradientError, match="scaled: a tensor of shape .* changed in place"):
        y.backward()
    with pytest.raises(fn.DTypeError, match="save: expected tensors, got float"):
        fn.custom_op(lambda ctx, x: ctx.save(1.0), by_hand)(x)


def test_forward_must_not_write_to_what_requires_a_gradient():
    def forward(ctx, x):
        x[0] = 0.0
        return x * 2

    op = fn.custom_op(forward, lambda ctx, g: g, name="writer")
    with pytest.raises(fn.GradientError, match="writer: forward wrote to an operand"):
        op(leaf(3))


def test_saved_results_make_no_cycle():
    def forward(ctx, x):
        y = x.exp()
        ctx.save(y)
        return y

    op = fn.custom_op(forward, lambda ctx, g: g * ctx.saved[0])
    pool = fn.current_pool(fn.default_device())
    x = leaf(100)
    gc.collect()
    gc.disable()
    try:
        before = pool.stats().live_blocks
        y = op(x)
        del y
        assert pool.stats().live_blocks == before
    finally:
        gc.enable()
    assert fn.gradcheck(op, leaf(3), order=2)
    assert fn.gradcheck(lambda x: fn.checkpoint(op, x * 1), leaf(3), order=2)


def test_forward_needs_ctx():
    with pytest.raises(fn.GradientError, match="forward must take ctx"):
        fn.custom_op(lambda: None, by_hand)


def test_a_result_that_is_the_callers_tensor_is_a_view_of_it():
    x, n, constant = leaf(3), fn.ones((3,), dtype=fn.float64), fn.ones((3,), dtype=fn.float64)
    op = fn.custom_op(lambda ctx, a, n: (n, constant), lambda ctx, g, h: (g + h, None))
    y, z = op(x, n)
    assert y is not n and z is not constant and not n.requires_grad and not constant.requires_grad
    (y + z).sum().backward()
    assert np.all(x.grad.numpy() == 2)


NO_TENSORS = {
    "list": lambda y: [y], "dict": lambda y: {"y": y}, "inner": lambda y: (y, [y]), "array": lambda y: y.numpy(),
    "nothing": lambda y: None, "inner nothing": lambda y: (y, None), "number": lambda y: (y, 3),
}  # fmt: skip


@pytest.mark.parametrize("wrap", NO_TENSORS.values(), ids=NO_TENSORS)
def test_forward_returns_tensors(wrap):
    op = fn.custom_op(lambda ctx, x: wrap(x * 2), lambda ctx, g: g, name="packed")
    for x in (leaf(3), leaf(3).detach()):
        with pytest.raises(fn.DTypeError, match=r"packed: forward returned a \w+; return a tensor or a tuple"):
            op(x)


@pytest.mark.parametrize("wrap", [lambda a: [a, 1], lambda a: (0, (a,)), lambda a: {"a": a}, lambda a: [{"x": [a]}]])
def test_a_gradient_is_not_lost_inside_an_operand(wrap):
    op = fn.custom_op(lambda ctx, xs, c, *, more=None: c * 2, lambda ctx, g: (None, g), name="packed")
    for arguments, keywords in (((wrap(leaf(3)), leaf(3)), {}), (((), leaf(3)), {"more": wrap(leaf(3))})):
        with pytest.raises(fn.GradientError, match="packed: a tensor inside a list, tuple or dict requires a gradient"):
            op(*arguments, **keywords)
        with fn.no_grad():
            op(*arguments, **keywords)
    op(wrap(leaf(3).detach()), leaf(3))


def test_threads_may_share_a_graph():
    x, meet = leaf(3), threading.Barrier(4)

    def backward(ctx, g):
        meet.wait(5)  # all are inside
        ctx.passes = getattr(ctx, "passes", 0) + 1
        first = ctx.saved
        meet.wait(5)
        return 3 * g * ctx.saved[0] ** 2 + 0 * first[0]

    def forward(ctx, x):
        ctx.save(x)
        return x**3

    y, found = fn.custom_op(forward, backward)(x), []

    def work():
        found.append(fn.grad(y, x, fn.ones_like(y), retain_graph=True)[0].numpy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.allclose(g, 3 * x.numpy() ** 2) for g in found)


def test_backward_may_run_the_same_graph_again():
    def backward(ctx, g):
        if not ctx.inner:
            ctx.inner = True
            fn.grad(y, x, g, retain_graph=True)
        return 2 * g * ctx.saved[0]

    def forward(ctx, x):
        ctx.inner = False
        ctx.save(x)
        return x * x

    x = leaf(3)
    y = fn.custom_op(forward, backward)(x)
    (found,) = fn.grad(y, x, fn.ones_like(y), retain_graph=True)
    assert np.allclose(found.numpy(), 2 * x.numpy())


def test_what_is_no_op():
    op = fn.custom_op(lambda ctx, a, b=1: a * b, lambda ctx, g: g, name="scaled")
    for args, keywords in (((), {}), ((1, 2, 3), {}), ((1,), {"c": 2})):
        with pytest.raises(TypeError, match=r"scaled: takes \(a, b=1\): "):
            op(*args, **keywords)
    with pytest.raises(fn.DTypeError, match="custom_op: forward must be a function, got 5"):
        fn.custom_op(5)
    with pytest.raises(fn.DTypeError, match="scaled: backward must be a function, got 5"):
        op.backward(5)
    with pytest.raises(fn.DTypeError, match="backward must be a function, got 5"):
        fn.custom_op(lambda ctx, a: a, 5)
