"""The graph: accumulation, freeing, stale saves, refusals, second derivatives, lifetimes, other threads."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops.core.kernel_op import Primitive


def leaf(*shape: int, seed: int = 0) -> fn.Tensor:
    rng = np.random.default_rng(seed)
    return fn.asarray(rng.normal(size=shape)).requires_grad_()


# --- what backward gives ------------------------------------------------------------------------------------------
def test_backward_returns_what_it_adds_to_grad():
    x = leaf(3)
    first = (x * x).sum().backward()
    assert np.allclose(first[x].numpy(), 2 * x.numpy())
    second = (3 * x).sum().backward()
    assert np.allclose(second[x].numpy(), 3)
    assert np.allclose(x.grad.numpy(), 2 * x.numpy() + 3)
    assert np.allclose(first[x].numpy(), 2 * x.numpy())  # of its own call, whatever was added since
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


def test_backward_with_inputs_leaves_the_others_alone():
    x, w = leaf(3), leaf(3, seed=1)
    y = x * w
    grads = (y * y).sum().backward(inputs=[x, y])
    assert w.grad is None
    assert np.allclose(x.grad.numpy(), 2 * (x * w * w).numpy())
    assert np.allclose(y.grad.numpy(), 2 * y.numpy())  # not a leaf, but named
    assert set(map(id, grads)) == {id(x), id(y)}
    with pytest.raises(fn.GradientError, match="input 0 does not require"):
        (x * x).sum().backward(inputs=[x.detach()])


def test_several_outputs_with_weights_are_summed():
    x = leaf(3)
    weights = [fn.asarray(np.array([1.0, 2.0, 3.0])), None]
    (found,) = fn.grad([x * x, x.sum()], x, weights)
    assert np.allclose(found.numpy(), 2 * x.numpy() * [1, 2, 3] + 1)
    with pytest.raises(fn.GradientError, match="1 gradients for 2 outputs"):
        fn.grad([x * x, x.sum()], x, [None])


def test_a_weight_must_fit_its_output():
    x = leaf(3)
    with pytest.raises(fn.ShapeError, match=r"must have the tensor's shape \(3,\), it has \(2,\)"):
        (x * x).backward(fn.ones((2,), dtype=fn.float64))
    with pytest.raises(fn.DTypeError, match="it is float32"):
        (x * x).backward(fn.ones((3,)))
    for number in (1.0, [1.0, 1.0, 1.0]):
        with pytest.raises(fn.DTypeError, match="backward: the gradient must be a tensor"):
            (x * x).backward(number)
    with pytest.raises(KeyError, match="by tensor, not by 3"):
        (x * x).sum().backward()[3]
    with pytest.raises(fn.GradientError, match="pass gradient="):
        (x * x).backward()


def test_an_unused_input_is_named_or_none():
    x, z = leaf(2), leaf(2)
    with pytest.raises(fn.GradientError, match="no output depends"):
        fn.grad(x.sum(), [x, z])
    assert fn.grad(x.sum(), [x, z], allow_unused=True)[1] is None


def test_only_the_part_of_the_graph_that_leads_to_the_inputs_is_run():
    x, z = leaf(3), leaf(3)
    y = x.sin() + z // 2  # the second term has no derivative, and nobody asks for it
    (found,) = fn.grad(y.sum(), x)
    assert np.allclose(found.numpy(), np.cos(x.numpy()))


def test_gradients_flow_through_views_indexing_and_broadcasting():
    x, row = leaf(4, 6), leaf(6)

    def f(x, row):
        y = x.T[1:5:2].reshape(4, 2) + 0
        return (y * y).sum() + (x[:, None, ::-1] * row).sum() + x[fn.asarray(np.array([0, 3, 0]))].sum()

    assert fn.gradcheck(f, [x, row], order=2)


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


# --- the memory of .grad ------------------------------------------------------------------------------------------
def test_gradients_are_added_in_place_where_nobody_else_looks():
    x = leaf(50)
    x.sum().backward()
    x.sum().backward()
    assert np.all(x.grad.numpy() == 2)
    kept = x.grad
    (x * x).sum().backward()
    assert np.all(kept.numpy() == 2)  # somebody holds it: left alone
    view, storage = x.grad.reshape(5, 10), x.grad.storage
    (x * x).sum().backward()
    assert x.grad.storage is not storage and np.allclose(view.numpy().reshape(-1), 2 + 2 * x.numpy())
    grad = id(x.grad)
    address = x.grad.storage.block.address
    (x * x).sum().backward()
    assert id(x.grad) == grad and x.grad.storage.block.address == address
    assert np.allclose(x.grad.numpy(), 2 + 6 * x.numpy())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("loss", [lambda w: w.sum(), lambda w: w.sum(0)[1], lambda w: w.mT.reshape(6).mean()])
def test_a_gradient_can_be_changed_in_place_whatever_the_graph(loss, create_graph):
    w = leaf(2, 3)
    loss(w).backward(create_graph=create_graph)
    before = w.grad.numpy()
    with fn.no_grad():
        w.grad.mul_(0.5)
    assert np.array_equal(w.grad.numpy(), before / 2)


def test_two_leaves_never_share_the_memory_of_their_gradients():
    x, z = leaf(3), leaf(3)
    weight = fn.ones((3,), dtype=fn.float64)
    (x + z).backward(weight)
    assert x.grad.storage is not z.grad.storage and weight.storage not in (x.grad.storage, z.grad.storage)


def _passed_on(a, b):
    return fn.custom_op(lambda ctx, a, b: a + b, lambda ctx, g: (g, g))(a, b)


def _hooked(a, b):
    kept = fn.ones((3,), dtype=fn.float64)
    a.register_hook(lambda g: kept)
    b.register_hook(lambda g: kept)
    return a * b


def _kept(a, b):
    kept = fn.ones((3,), dtype=fn.float64)
    return fn.custom_op(lambda ctx, a, b: a + b, lambda ctx, g: (kept, kept))(a, b)


def _inner(a, b):
    y = a.retain_grad() + b.retain_grad()
    return y.retain_grad()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("make", [lambda a, b: a, lambda a, b: a + b, _passed_on, _hooked, _kept, _inner])
def test_gradients_share_memory_with_nothing(make, create_graph):
    a, b = leaf(3), leaf(3, seed=1)
    seed, seen = fn.ones((3,), dtype=fn.float64), []
    handle = a.register_hook(seen.append)
    y = make(a, b)
    y.backward(seed, create_graph=create_graph)
    gradients = [t for t in (a.grad, b.grad, y.grad if y is not a else None) if t is not None]
    others = [seed, *seen]
    before = [t.numpy() for t in (*gradients[1:], *others)]
    with fn.no_grad():
        gradients[0].detach().zero_()
    assert all(np.array_equal(t.numpy(), old) for t, old in zip((*gradients[1:], *others), before, strict=True))
    handle.remove()


def test_an_input_that_is_named_twice_counts_once():
    x = leaf(3)
    y = x * 2
    grads = (y * y).sum().backward(inputs=[y, y, x])
    assert np.allclose(y.grad.numpy(), 2 * y.numpy()) and np.allclose(x.grad.numpy(), 4 * y.numpy())
    assert len(grads) == 2


@pytest.mark.parametrize("freeze", [lambda x: x.requires_grad_(False), lambda x: x.detach_()])
def test_a_leaf_that_was_frozen_since_gets_no_gradient(freeze):
    x, w = leaf(3), leaf(3, seed=1)
    y = (x * w).sum()
    freeze(w)
    grads = y.backward()
    assert w.grad is None and w not in grads and np.allclose(x.grad.numpy(), w.numpy())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y, x: y.backward(x.numpy()), "backward: the gradient must be a tensor of shape .* got ndarray"),
        (lambda y, x: fn.grad(y, x, [2.0]), "grad: the gradient must be a tensor"),
        (lambda y, x: fn.grad(y, x, 2.0), "grad: the gradient must be a tensor"),
        (lambda y, x: fn.grad(y, [5]), "grad: inputs must be a tensor or a sequence of tensors, got int"),
        (lambda y, x: fn.grad(5, x), "grad: outputs must be a tensor or a sequence of tensors, got int"),
        (lambda y, x: fn.grad([None], x), "grad: outputs must be .*, got NoneType"),
        (lambda y, x: y.backward(inputs=5), "backward: inputs must be .*, got int"),
        (lambda y, x: y.backward(retain_graph="no"), "backward: retain_graph must be True or False, got 'no'"),
        (lambda y, x: fn.grad(y, x, create_graph=1), "grad: create_graph must be True or False, got 1"),
    ],
)
def test_arguments_of_a_wrong_type(call, words):
    x = leaf(3)
    y = (x * x).sum()
    with pytest.raises(fn.DTypeError, match=words):
        call(y, x)
    y.backward()  # the graph is as it was


def test_maps_of_gradients_are_equal_if_they_are_one():
    x = leaf(3)
    one, other = (x * x).sum().backward(), (x * x).sum().backward()
    assert one == one and one != other and len({one, other}) == 2 and other.get("a") is None


def test_micro_batches_add_up_to_the_same_bits_each_time():
    def run():
        x, w = leaf(16, 8), leaf(8, 8, seed=1)
        for i in range(4):
            y = (x[4 * i : 4 * i + 4] @ w).tanh()
            (y * y + y.exp() + y).sum().backward()
        return w.grad.numpy().tobytes()

    assert run() == run()


def test_gradients_of_a_recorded_pass_can_be_differentiated_after_a_second_one():
    x = leaf(3)
    (x**3).sum().backward(create_graph=True)
    (x**2).sum().backward(create_graph=True)
    (second,) = fn.grad(x.grad.sum(), x)
    assert np.allclose(second.numpy(), 6 * x.numpy() + 2)


# --- ops with several results -------------------------------------------------------------------------------------
def two_gradient(g, a, b, y):
    product, total = (0.0 * a if part is None else part for part in g[:2])
    return product * b + total, product * y[0] / b + total


def two(a, b):
    product, total = a.detach() * b.detach(), a.detach() + b.detach()
    return product, total, product > 0


TWO = Primitive(two, two_gradient, None)


@pytest.mark.parametrize("pick", [lambda p, t: p.exp() * t, lambda p, t: p * 2, lambda p, t: t * t])
def test_an_op_with_several_results(pick):
    def f(a, b):
        product, total, positive = TWO(a, b)
        assert product.requires_grad and not positive.requires_grad
        return pick(product, total)

    assert fn.gradcheck(f, [leaf(4), leaf(4, seed=1)], order=2)
    assert fn.gradcheck(lambda a, b: fn.checkpoint(f, a * 1, b), [leaf(4), leaf(4, seed=1)], order=2)


def test_each_result_can_be_asked_for_have_hooks_and_outlive_the_others():
    a, b, seen = leaf(4), leaf(4, seed=1), []
    product, total, _ = TWO(a, b)
    found = fn.grad((product * total).sum(), [total, product], retain_graph=True)
    assert np.allclose(found[0].numpy(), product.numpy()) and np.allclose(found[1].numpy(), total.numpy())
    product.register_hook(lambda g: seen.append(1))
    z = (product * total).sum()
    del product, total
    (ga,) = fn.grad(z, a)
    assert seen == [1]
    assert np.allclose(ga.numpy(), (b * (a + b) + a * b).numpy())


def test_an_op_with_several_results_may_save_more_and_may_have_no_derivative():
    saving = Primitive(lambda a: ((a.detach() * 2, a.detach() * 3), {"six": 6.0}), lambda g, six: g[0] * six, None)
    x = leaf(3)
    assert np.all(fn.grad(saving(x)[0].sum(), x)[0].numpy() == 6)
    none = Primitive(lambda a: (a.detach() * 2, a.detach() * 3), None, None, "a test")
    for y in none(x):
        with pytest.raises(fn.GradientError, match="it has no derivative: a test"):
            y.sum().backward()


# --- freed, stale, refused ----------------------------------------------------------------------------------------
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


def test_saved_tensors_in_tuples_are_watched_as_well():
    x, w = leaf(3), fn.Tensor.ones((3,), dtype=fn.float64)
    op = Primitive(lambda x, pair: x.detach() * pair[1][0], lambda g, pair: g * pair[1][0] * pair[0], None)
    y = op(x, (2.0, [w])).sum()
    assert np.all(fn.grad(y, x, retain_graph=True)[0].numpy() == 2)
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


def test_an_error_in_a_rule_changes_no_gradient_and_leaves_the_graph_usable():
    x, w = leaf(3), fn.Tensor.ones((3,), dtype=fn.float64)
    fail = [True]

    def rule(ctx, g):
        if fail[0]:
            raise ZeroDivisionError("mine")
        return g

    op = fn.custom_op(lambda ctx, x: x.clone(), rule)
    y = (op(x * 2) * w).sum() + (x * x).sum()
    with pytest.raises(ZeroDivisionError, match="mine"):
        y.backward(retain_graph=True)
    assert x.grad is None and fn.is_recording()
    fail[0] = False
    y.backward()
    assert np.allclose(x.grad.numpy(), 2 + 2 * x.numpy())


def test_detach_in_place_cuts_the_graph_at_a_tensor():
    x = leaf(3)
    y = x * 2
    y.detach_()
    assert y.is_leaf and not y.requires_grad
    with pytest.raises(fn.GradientError, match="nothing was recorded"):
        y.sum().backward()


# --- lifetimes ----------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [lambda y, x: y + 1, lambda y, x: y * x], ids=["sum", "product"])
def test_a_long_chain_neither_overflows_nor_leaks(n, step):
    pool = fn.current_pool(fn.default_device())
    x = fn.asarray(np.ones(1)).requires_grad_()
    gc.collect()
    before, nodes = pool.stats().live_blocks, fn.graph_stats().nodes
    y = x
    for _ in range(n):
        y = step(y, x)
    assert fn.graph_stats().nodes - nodes == n
    y.sum().backward(retain_graph=True)  # so that the whole graph is taken down at once, by its last reference
    assert x.grad.item() >= 1
    del y
    assert fn.graph_stats().nodes == nodes
    assert pool.stats().live_blocks == before + 1  # x.grad


# --- threads ------------------------------------------------------------------------------------------------------
def in_thread(work):
    result: list = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join()
    assert result, "the thread failed"
    return result[0]


def test_backward_in_another_thread():
    x = leaf(8)
    y = x.exp().sum()
    in_thread(lambda: y.backward())
    assert np.allclose(x.grad.numpy(), np.exp(x.numpy()))


def test_threads_that_share_a_leaf_lose_no_gradient():
    x = fn.asarray(np.ones(64)).requires_grad_()

    def work() -> None:
        for _ in range(25):
            (x * x).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.all(x.grad.numpy() == 200)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (3, fn.DTypeError, r"grad: the gradient must be a tensor of shape \(3,\), got int"),
        (np.ones(3), fn.DTypeError, "got ndarray"),
        (lambda: fn.ones((1,), dtype=fn.float64), fn.ShapeError, r"shape \(3,\), it has \(1,\)"),
        (lambda: fn.ones((3,)), fn.DTypeError, "dtype float64, it is float32"),
        (
            lambda: fn.Tensor.empty((3,), dtype=fn.float64, device=fn.Device.simulated()),
            fn.DeviceMismatch, "on the tensor's device cpu, it is on simulated",
        ),
    ],
)  # fmt: skip
def test_a_gradient_that_is_set_must_fit(wrong, error, words):
    with fn.Device.cpu():
        x = leaf(3)
        x.grad = kept = x.detach() * 2
        with pytest.raises(error, match=words):
            x.grad = wrong() if callable(wrong) else wrong
        assert x.grad is kept
        x.grad = None
        (x * x).sum().backward()
        assert np.array_equal(x.grad.numpy(), kept.numpy())
        half = fn.ones((3,), dtype=fn.float16)
        half.grad = half.to_dtype(fn.float32)  # as `unscale_` leaves it
