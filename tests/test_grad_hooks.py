"""Hooks of leaves and inner tensors, `retain_grad`, and hooks after accumulation."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn


def leaf(*shape: int) -> fn.Tensor:
    return fn.asarray(np.random.default_rng(0).normal(size=shape)).requires_grad_()


def test_a_hook_sees_the_whole_gradient_once():
    x = leaf(3)
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(("y", g.numpy())))
    x.register_hook(lambda g: seen.append(("x", g.numpy())))
    (y * y + y + x).sum().backward()
    assert [name for name, _ in seen] == ["y", "x"]
    assert np.allclose(seen[0][1], 2 * y.numpy() + 1)
    assert np.allclose(seen[1][1], 4 * y.numpy() + 3)


def test_hooks_replace_gradients_in_the_order_they_were_registered():
    x = leaf(3)
    y = x.exp()
    y.register_hook(lambda g: g * 2)
    handle = y.register_hook(lambda g: g + 1)
    x.register_hook(lambda g: g * 10)
    y.sum().backward(retain_graph=True)
    assert np.allclose(x.grad.numpy(), 30 * np.exp(x.numpy()))
    handle.remove()
    handle.remove()
    (found,) = fn.grad(y.sum(), x)
    assert np.allclose(found.numpy(), 20 * np.exp(x.numpy()))


def test_a_handle_is_a_context_manager():
    x = leaf(3)
    with x.register_hook(lambda g: g * 0):
        (x * 2).sum().backward()
    assert np.all(x.grad.numpy() == 0)
    (x * 2).sum().backward()
    assert np.all(x.grad.numpy() == 2)


def test_a_hook_that_is_made_of_ops_is_differentiated():
    x = leaf(3)
    y = x * x
    with y.register_hook(lambda g: g * y):
        (first,) = fn.grad(y.sum(), x, create_graph=True)
    (second,) = fn.grad(first.sum(), x)
    assert np.allclose(first.numpy(), 2 * x.numpy() ** 3)
    assert np.allclose(second.numpy(), 6 * x.numpy() ** 2)


def test_a_hook_lives_with_the_graph_and_not_with_the_tensor():
    x, seen = leaf(3), []
    y = x * 2
    y.register_hook(lambda g: seen.append(1))
    z = y.sum()
    del y
    z.backward()
    assert seen == [1]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda g: 3.0, fn.GradientError, "returned float"),
        (lambda g: g[:1], fn.ShapeError, r"returned shape \(1,\)"),
        (lambda g: g.to_dtype(fn.float32), fn.DTypeError, "returned float32"),
    ],
)
def test_what_a_hook_returns_must_fit(result, error, message):
    x = leaf(3)
    x.register_hook(result)
    with pytest.raises(error, match=message):
        (x * 2).sum().backward()
    assert x.grad is None


def test_a_hook_must_be_a_function():
    x = leaf(3)
    for register in (x.register_hook, x.register_post_accumulate_grad_hook):
        with pytest.raises(fn.DTypeError, match=f"{register.__name__}: expected a function"):
            register(5)
    x.sum().backward()
    assert x.grad is not None


def test_hooks_need_a_gradient():
    with pytest.raises(fn.GradientError, match="does not require"):
        fn.ones(2).register_hook(print)
    with pytest.raises(fn.GradientError, match="only a leaf"):
        (leaf(2) * 2).register_post_accumulate_grad_hook(print)


@pytest.mark.parametrize("change", [lambda y: y.add_(1), lambda y: y.mul_(3), lambda y: y.__setitem__(0, 5.0)])
def test_retain_grad_follows_a_change_in_place(change):
    """The tensor stands for its new value, and so does its `.grad`; hooks stay with the value they were given for."""
    x, seen = leaf(3), []
    y = (x * 2).retain_grad()
    y.register_hook(lambda g: seen.append(g.numpy()))
    change(y)
    y.sum().backward()
    assert y.grad.tolist() == [1, 1, 1]
    assert np.allclose(2 * seen[0], x.grad.numpy())


def test_retain_grad_fills_grad_of_an_inner_tensor():
    x = leaf(3)
    y = (x * 2).retain_grad()
    (y * y).sum().backward(retain_graph=True)
    assert np.allclose(y.grad.numpy(), 2 * y.numpy())
    (y * y).sum().backward(inputs=[y])
    assert np.allclose(y.grad.numpy(), 4 * y.numpy())  # added once, although it is named as well
    z = (x * 2).retain_grad()
    fn.grad((z * z).sum(), x)
    assert z.grad is None
    assert x.retain_grad() is x  # a leaf does so anyway


def test_a_leaf_is_updated_as_soon_as_its_gradient_is_complete():
    w = [leaf(3) for _ in range(3)]
    order = []

    def update(p):
        order.append(next(i for i, q in enumerate(w) if q is p))
        assert p.grad is not None
        p.grad = None  # used up, and freed

    for p in w:
        p.register_post_accumulate_grad_hook(update)
    y = w[0] * 2
    y.register_hook(lambda g: order.append("y"))
    ((y * w[1]).exp() * w[2] * w[2]).sum().backward()
    assert order == [2, 1, "y", 0]
    assert all(p.grad is None for p in w)
