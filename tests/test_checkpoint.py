"""`checkpoint`: same gradients, less memory, replayed conditions, nesting, and what it refuses."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import testing
from flame_numba.devices.contexts import Contexts
from flame_numba.ops import TABLE
from flame_numba.pool import current_pool
from flame_numba.tape import recompute


def leaf(*shape: int, seed: int = 0) -> fn.Tensor:
    return fn.asarray(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


def block(x: fn.Tensor, w: fn.Tensor) -> fn.Tensor:
    return (x @ w).tanh() * x.exp()


def test_gradients_equal_those_without_it_bit_for_bit():
    x, weights = leaf(4, 8), [leaf(8, 8, seed=i) for i in range(3)]

    def run(call):
        y = x
        for w in weights:
            y = call(block, y, w)
        return [g.numpy() for g in fn.grad((y * y).sum(), [x, *weights])]

    plain = run(lambda f, *args: f(*args))
    kept = run(fn.checkpoint)
    assert all(np.array_equal(a, b) for a, b in zip(plain, kept, strict=True))


def test_activations_are_freed_and_made_again_block_by_block():
    x, weights = leaf(64, 32), [leaf(32, 32, seed=i) for i in range(8)]
    pool = fn.current_pool(fn.default_device())

    def run(call):
        with pool.scope("checkpoint") as scope:
            y = x * 1
            for w in weights:
                y = call(lambda x, w: block(block(x, w), w).sin(), y, w)
            held = fn.graph_stats().saved_bytes
            y.sum().backward()
        for p in (x, *weights):
            p.grad = None
        return held, scope.peak_bytes

    plain, kept = run(lambda f, *args: f(*args)), run(fn.checkpoint)
    assert kept[0] <= 8 * x.nbytes  # the arguments of the calls
    assert plain[0] >= 40 * x.nbytes
    assert kept[1] < plain[1] / 2


def test_second_derivatives_and_nesting():
    def inner(x, w):
        return fn.checkpoint(lambda x: (x @ w).sin() * x.exp(), x)  # w by its closure

    def outer(x, w):
        return fn.checkpoint(lambda x, w: inner(inner(x, w).tanh(), w).exp(), x, w)

    assert fn.gradcheck(outer, [leaf(2, 3), leaf(3, 3, seed=1) * 1], order=2)


def test_a_gradient_may_be_taken_inside():
    def f(x):
        (slope,) = fn.grad((x.sin() * x).sum(), x, create_graph=True)
        return slope.exp()

    assert fn.gradcheck(lambda x: fn.checkpoint(f, x), leaf(3), order=2)


def test_arguments_and_results_may_be_anything():
    x, w = leaf(3), leaf(3, seed=1)

    def f(pair, *, scale, table):
        a, b = pair
        return {"y": a * b * scale, "parts": [a.exp(), table["w"] * b], "n": 3}

    result = fn.checkpoint(f, (x, x * 2), scale=3.0, table={"w": w})
    assert result["n"] == 3
    loss = result["y"].sum() + result["parts"][0].sum() + result["parts"][1].sum()
    gx, gw = fn.grad(loss, [x, w])
    v = x.numpy()
    assert np.allclose(gx.numpy(), 12 * v + np.exp(v) + 2 * w.numpy())
    assert np.allclose(gw.numpy(), 2 * v)


@pytest.mark.parametrize("own", [False, True], ids=["default generator", "own generator"])
def test_random_numbers_are_drawn_again(own):
    x = fn.asarray(np.linspace(1, 2, 50)).requires_grad_()
    generator = fn.Generator(7) if own else None
    fn.manual_seed(5)

    def f(x):  # the generator comes by the closure
        first = fn.dropout(x, 0.5, generator=generator)
        return first * fn.rand(x.shape, dtype=fn.float64, generator=generator) * x

    y = fn.checkpoint(f, x)
    after = fn.rand((4,), generator=generator).tolist()
    (found,) = fn.grad(y.sum(), x)
    assert fn.rand((4,), generator=generator).tolist() != after  # the stream went on as if nothing had been replayed
    assert np.allclose(found.numpy(), 2 * y.numpy() / x.numpy())  # y = c·x² with the same c


def test_random_numbers_of_nested_calls_are_drawn_again():
    x = fn.asarray(np.linspace(1, 2, 50)).requires_grad_()

    def noisy(x):
        return x * fn.rand(x.shape, dtype=fn.float64)

    def outer(x):
        y = fn.checkpoint(noisy, x)
        return fn.checkpoint(noisy, y * x) * fn.rand(x.shape, dtype=fn.float64)

    y = fn.checkpoint(outer, x)
    (found,) = fn.grad(y.sum(), x)
    assert np.allclose(found.numpy(), 2 * y.numpy() / x.numpy())


def test_autocast_is_as_it_was():
    x, w = (fn.asarray(np.ones((2, 2), np.float32)).requires_grad_() for _ in range(2))
    seen = []

    def f(x, w):
        y = x @ w
        seen.append(y.dtype)
        return y * y.to_dtype(fn.float32)

    with fn.autocast(fn.bfloat16):
        y = fn.checkpoint(f, x, w)
    y.sum().backward()
    assert seen == [fn.bfloat16, fn.bfloat16] and x.grad.dtype is fn.float32


def test_a_graph_that_is_kept_holds_no_activations():
    x, w = leaf(4, 4), leaf(4, 4, seed=1)
    calls = []

    def f(x, w):
        calls.append(fn.is_recomputing())
        return block(x, w)

    y = fn.checkpoint(f, x, w).sum()
    before = fn.graph_stats().saved_bytes
    y.backward(retain_graph=True)
    assert fn.graph_stats().saved_bytes == before
    y.backward()
    assert calls == [False, True, True]


def test_without_recording_it_is_just_a_call():
    x = leaf(3)
    with fn.no_grad():
        assert fn.checkpoint(lambda x: x * x, x).node is None
    with pytest.raises(ZeroDivisionError):
        fn.checkpoint(lambda x: 1 // 0, x)
    assert not fn.is_recomputing()


def test_a_function_that_does_something_else_the_second_time_is_found_out():
    x = leaf(3)
    calls = [0]

    def more(x):
        calls[0] += 1
        return (x * x).exp().exp() if calls[0] > 1 else (x * x).exp()

    with pytest.raises(fn.GradientError, match="more saved 3 tensors, the first time 2|more saved . tensors"):
        fn.checkpoint(more, x * 1).sum().backward()
    calls[0] = 0

    def other(x):
        calls[0] += 1
        return x[: calls[0]].exp()

    with pytest.raises(fn.GradientError, match=r"other saved a float64 tensor of shape \(2,\), the first time"):
        fn.checkpoint(other, x * 1).sum().backward()
    calls[0] = 0

    def random(x):
        calls[0] += 1
        for _ in range(calls[0]):
            x = x * fn.rand(x.shape, dtype=fn.float64)
        return x

    with pytest.raises(fn.GradientError, match="drew more random numbers"):
        fn.checkpoint(random, x).sum().backward()


def test_a_failed_second_run_keeps_no_memory():
    x, calls = fn.ones((1000,)).requires_grad_(), [0]

    def shrinks(x):
        calls[0] += 1
        y = x.exp().exp()  # saved the same both times
        return y[: -calls[0]].exp()

    y = fn.checkpoint(shrinks, x * 1).sum()
    before = _live()
    with pytest.raises(fn.GradientError, match="it must do the same each time"):
        y.backward()
    gc.collect()
    assert _live() == before


def _live() -> int:
    return current_pool(fn.default_device()).stats().allocated_bytes


@pytest.mark.parametrize("when", ["enter", "leave"])
def test_an_interrupt_does_not_leave_the_call_in_place(monkeypatch, when):
    w = fn.ones((3,)).requires_grad_()

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Contexts, when, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fn.checkpoint(lambda a: a.exp(), w)
    if when == "enter":
        recompute.FRAMES.enter()  # somebody else's call runs
    assert recompute.current_keeper() is None
    w.exp().sum().backward()
    recompute.FRAMES.leave()
    assert np.allclose(w.grad.numpy(), np.e)


def test_arguments_and_captured_tensors_changed_since_are_noticed():
    x, scale = leaf(3), fn.ones((3,), dtype=fn.float64)
    y = fn.checkpoint(lambda x, s: (x * s).exp(), x, scale)
    scale[0] = 2.0
    with pytest.raises(fn.GradientError, match="checkpoint of <lambda>: a tensor of shape"):
        y.sum().backward()
    z = fn.checkpoint(lambda x: (x * scale).exp(), x)
    scale[0] = 3.0
    with pytest.raises(fn.GradientError, match="changed in place"):
        z.sum().backward()


def test_changes_in_place_inside_are_allowed():
    x = leaf(3)

    def f(x):
        buffer = fn.zeros((3,), dtype=fn.float64)
        buffer[:] = 2.0
        y = x * buffer
        y += x  # recorded
        z = y.exp()
        z *= 2.0  # although its value before was saved
        return z.sin()

    assert fn.gradcheck(lambda x: fn.checkpoint(f, x), x, order=2)


def test_hooks_inside_see_gradients_once():
    x, seen = leaf(3), []

    def f(x):
        y = x.exp()
        y.register_hook(lambda g: seen.append(1))
        return y.sin()

    fn.checkpoint(f, x).sum().backward()
    assert seen == [1]


def test_the_call_is_freed_with_its_graph():
    pool = fn.current_pool(fn.default_device())
    x = leaf(100)
    gc.collect()
    gc.disable()
    try:
        before = pool.stats().live_blocks
        y = fn.checkpoint(lambda x: x.tanh().exp(), x * 2)
        del y
        assert pool.stats().live_blocks == before
        y = fn.checkpoint(lambda x: x.tanh().exp(), x * 2)
        y.sum().backward()
        x.grad = None
        del y
        assert pool.stats().live_blocks == before
    finally:
        gc.enable()


def _operands(entry, rng):
    """Operands of f32 for one or more calls of an op, with their keywords."""
    if entry.kind != "elementwise":
        return [(testing._case_arrays(c.operands, fn.float32, entry.domain[0], rng), c.keywords) for c in entry.cases]
    while True:
        arrays = testing._draw_elementwise(entry, fn.float32, rng, special=False)
        if sum(a.size for a in arrays):
            return [(arrays, {})]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in TABLE.values() if not e.non_differentiable], ids=lambda e: e.name)
def test_every_op_can_be_checkpointed(entry):
    def run(call, arrays, keywords):
        fn.manual_seed(1)
        tensors = [fn.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
        leaves = [t.requires_grad_() for t in tensors if isinstance(t, fn.Tensor) and t.dtype.is_floating]
        args = [t * 1 if isinstance(t, fn.Tensor) and t.requires_grad else t for t in tensors]
        y = call(entry.example or entry.op, *args, **keywords)
        results = [r for r in (y if isinstance(y, tuple) else (y,)) if r.requires_grad]
        if not results:
            return []
        found = fn.grad(results, leaves, [fn.ones_like(r) for r in results], allow_unused=True)
        return [None if g is None else g.numpy().tobytes() for g in found]

    for arrays, keywords in _operands(entry, np.random.default_rng(0)):
        plain = run(lambda f, *args, **keywords: f(*args, **keywords), arrays, keywords)
        assert run(fn.checkpoint, arrays, keywords) == plain
