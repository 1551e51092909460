"""The modes of recording: blocks, decorators, threads, generators, coroutines, and `inference_mode`'s marks."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import flame_numba as fn


def leaf(*shape: int) -> fn.Tensor:
    return fn.asarray(np.random.default_rng(0).normal(size=shape)).requires_grad_()


def test_no_grad_records_nothing_and_enable_grad_records_inside_it():
    x = leaf(2)
    with fn.no_grad():
        assert (x * 2).node is None
        with fn.enable_grad():
            assert (x * 2).node is not None
    assert (x * 2).requires_grad


@pytest.mark.parametrize("decorate", [fn.no_grad, fn.no_grad(), fn.inference_mode, fn.inference_mode()])
def test_a_mode_decorates_a_function(decorate):
    @decorate
    def f(depth: int) -> list[bool]:
        """Docs."""
        return [fn.is_recording()] + (f(depth - 1) if depth else [])

    assert f(2) == [False] * 3 and fn.is_recording()
    assert f.__doc__ == "Docs."


def test_an_error_inside_restores_the_mode():
    with pytest.raises(ZeroDivisionError), fn.no_grad():
        raise ZeroDivisionError
    assert fn.is_recording()


def test_a_generator_is_in_the_mode_only_while_it_runs():
    closed = []

    @fn.no_grad
    def numbers():
        try:
            got = yield fn.is_recording()
            try:
                yield (got, fn.is_recording())
            except KeyError:
                yield ("caught", fn.is_recording())
            return "end"
        finally:
            closed.append(fn.is_recording())

    generator = numbers()
    assert next(generator) is False and fn.is_recording()
    assert generator.send(5) == (5, False) and fn.is_recording()
    assert generator.throw(KeyError()) == ("caught", False) and fn.is_recording()
    with pytest.raises(StopIteration) as end:
        next(generator)
    assert end.value.value == "end" and closed == [False]
    with fn.no_grad():  # and one that is dropped in the middle, in the mode of its consumer
        generator = numbers()
        next(generator)
    generator.close()
    assert closed == [False, False] and fn.is_recording()


def test_a_coroutine_keeps_its_mode_across_awaits():
    @fn.no_grad
    async def quiet():
        before = fn.is_recording()
        await asyncio.sleep(0)
        return before, fn.is_recording()

    async def loud():
        await asyncio.sleep(0)
        return fn.is_recording()

    async def both():
        return await asyncio.gather(quiet(), loud(), quiet())

    assert asyncio.run(both()) == [(False, False), True, (False, False)]


def test_what_cannot_be_decorated_is_refused():
    async def stream():
        yield 1

    class Thing:
        pass

    for bad in (stream, Thing, 3):
        with pytest.raises(fn.ConfigError, match="no_grad: decorate a function"):
            fn.no_grad()(bad)


def test_set_grad_enabled_switches_and_restores():
    assert fn.is_recording()
    fn.set_grad_enabled(False)
    assert not fn.is_recording()
    with fn.set_grad_enabled(True):
        assert fn.is_recording()
    assert not fn.is_recording()
    fn.set_grad_enabled(True)

    @fn.set_grad_enabled(False)
    def f():
        return fn.is_recording()

    assert fn.is_recording() and f() is False and fn.is_recording()


def test_modes_belong_to_their_thread():
    seen = []
    with fn.no_grad(), fn.inference_mode():
        thread = threading.Thread(target=lambda: seen.append((fn.is_recording(), fn.ones(1).is_inference)))
        thread.start()
        thread.join()
    assert seen == [(True, False)]


def test_what_inference_mode_makes_cannot_be_saved():
    x = leaf(3)
    with fn.inference_mode():
        y = x * 2
        with fn.inference_mode(False):
            ordinary = x * 2
    assert y.is_inference and not y.requires_grad and not ordinary.is_inference and ordinary.requires_grad
    with pytest.raises(fn.GradientError, match="made in inference_mode"):
        x * y
    assert (x + y).requires_grad  # nothing of it is saved
    assert (x * y.clone()).requires_grad
    with fn.inference_mode():
        y += 1  # changing it keeps it what it is
        view = x.reshape(3, 1)
    assert y.is_inference
    assert not view.is_inference  # memory of before


def test_inference_mode_counts_in_no_other_place():
    with fn.inference_mode():
        pass
    assert not fn.ones(1).is_inference
    x = leaf(3)
    x.exp().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("make", [fn.no_grad, fn.enable_grad, fn.inference_mode])
def test_one_mode_may_be_entered_in_many_threads_at_once(make):
    mode, inside, meet = make(), [], threading.Barrier(2)
    wanted = make is fn.enable_grad

    def outer_off():  # enters and leaves while the other is inside
        with fn.set_grad_enabled(False):
            meet.wait(5)
            with mode:
                meet.wait(5)
                inside.append(fn.is_recording())
                meet.wait(5)
            inside.append(fn.is_recording())

    thread = threading.Thread(target=outer_off)
    thread.start()
    with mode:
        meet.wait(5)
        meet.wait(5)
        inside.append(fn.is_recording())
    assert fn.is_recording() and not fn.zeros(1).is_inference
    meet.wait(5)
    thread.join()
    assert sorted(inside) == sorted([wanted, wanted, False])


def test_a_mode_is_left_in_its_own_place_in_any_order():
    first, second = fn.no_grad(), fn.enable_grad()
    first.__enter__()
    second.__enter__()
    second.__enter__()
    second.__exit__()
    assert fn.is_recording()
    first.__exit__()
    assert fn.is_recording()
    second.__exit__()
    assert not fn.is_recording()  # as it was when it was entered
    fn.set_grad_enabled(True)

    async def task(mode, outer, pause):
        with fn.set_grad_enabled(outer):
            with mode:
                await pause()
                assert not fn.is_recording()
            assert fn.is_recording() is outer

    async def both():
        mode = fn.no_grad()
        await asyncio.gather(*[task(mode, i % 2 == 0, lambda: asyncio.sleep(0)) for i in range(4)])

    asyncio.run(both())
