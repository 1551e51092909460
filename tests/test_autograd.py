"""The graph: accumulation, freeing, stale saves, refusals, second derivatives, lifetimes."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import flame_numba as fn


def leaf(*shape: int) -> fn.Tensor:
    rng = np.random.default_rng(0)
    return fn.asarray(rng.normal(size=shape)).requires_grad_()


def test_backward_returns_what_it_adds_to_grad():
    x = leaf(3)
    first = (x * x).sum().backward()
    assert np.allclose(first[x].numpy(), 2 * x.numpy())
    second = (3 * x).sum().backward()
    assert np.allclose(second[x].numpy(), 3)
    assert np.allclose(x.grad.numpy(), 2 * x.numpy() + 3)
    assert x in second and len(second) == 1


def test_a_tensor_used_twice_gets_both_gradients():
    x = leaf(4)
    y = x * 2
    (y * y + y).sum().backward()
    assert np.allclose(x.grad.numpy(), 8 * x.numpy() + 2)


def test_grad_leaves_grad_alone_and_reaches_inner_tensors():
    x = leaf(3)
    y = x * x
    gx, gy = fn.grad((y * 3).sum(), [x, y])
    assert x.grad is None
    assert np.allclose(gy.numpy(), 3)
    assert np.allclose(gx.numpy(), 6 * x.numpy())


def test_an_unused_input_is_named_or_none():
    x, z = leaf(2), leaf(2)
    with pytest.raises(fn.GradientError, match="no output depends"):
        fn.grad(x.sum(), [x, z])
    assert fn.grad(x.sum(), [x, z], allow_unused=True)[1] is None


def test_a_second_backward_needs_retain_graph():
    x = leaf(2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(fn.GradientError, match="retain_graph"):
        y.backward()


def test_a_saved_tensor_changed_in_place_is_noticed():
    x, w = leaf(3), fn.Tensor.ones((3,), dtype=fn.float64)
    y = (x * w).sum()
    w[0] = 5.0
    with pytest.raises(fn.GradientError, match="changed in place"):
        y.backward()


def test_an_op_without_a_derivative_says_so_when_asked():
    x = leaf(3)
    y = (x // 2).sum()
    with pytest.raises(fn.GradientError, match=r"floor_divide: it has no derivative"):
        y.backward()
    (x.detach() // 2 + x).sum().backward()
    assert np.allclose(x.grad.numpy(), 1)


def test_no_grad_records_nothing_and_enable_grad_records_inside_it():
    x = leaf(2)
    with fn.no_grad():
        assert (x * 2).node is None
        with fn.enable_grad():
            assert (x * 2).node is not None
    assert (x * 2).requires_grad


def test_gradients_flow_through_views_indexing_and_broadcasting():
    x, row = leaf(4, 6), leaf(6)

    def f(x, row):
        y = x.T[1:5:2].reshape(4, 2) + 0
        return (y * y).sum() + (x[:, None, ::-1] * row).sum() + x[fn.asarray(np.array([0, 3, 0]))].sum()

    assert fn.gradcheck(f, [x, row], order=2)


def test_gradcheck_finds_a_wrong_gradient():
    wrong = fn.fuse(lambda x: x * x)
    wrong._partials = lambda y, x: (x,)  # half of what it should be
    with pytest.raises(fn.GradientError, match="differences give"):
        fn.gradcheck(lambda x: wrong(x).sum(), [leaf(3)])


def test_graphs_are_freed_with_their_outputs_at_once():
    pool = fn.current_pool(fn.default_device())
    x = leaf(1000)
    gc.collect()
    gc.disable()
    try:
        before = pool.stats().live_blocks
        y = x.tanh().exp().softmax().sum()
        assert pool.stats().live_blocks > before
        del y
        assert pool.stats().live_blocks == before
        z = x.tanh().sum()
        z.backward()
        x.grad = None
        del z
        assert pool.stats().live_blocks == before
    finally:
        gc.enable()


def test_a_long_chain_neither_overflows_nor_leaks():
    pool = fn.current_pool(fn.default_device())
    x = leaf(1)
    before = pool.stats().live_blocks
    y = x
    for _ in range(10_000):
        y = y + 1
    y.sum().backward()
    assert x.grad.item() == 1
    del y
    assert pool.stats().live_blocks == before + 1  # x.grad


def test_the_third_derivative_of_a_formula():
    x = leaf(5)
    (first,) = fn.grad(x.sin().sum(), x, create_graph=True)
    (second,) = fn.grad(first.sum(), x, create_graph=True)
    (third,) = fn.grad(second.sum(), x)
    assert np.allclose(third.numpy(), -np.cos(x.numpy()))


@pytest.mark.parametrize("bad", [lambda x: x.backward(), lambda x: fn.Tensor.ones((2,)).sum().backward()])
def test_backward_of_what_has_no_gradient(bad):
    with pytest.raises(fn.GradientError):
        bad(leaf(2) * 2)
