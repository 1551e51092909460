"""Whether ops are recorded, in this thread or task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ..errors import ConfigError
from ..storage import INFERENCE, inference_here

_RECORDING: ContextVar[bool] = ContextVar("flame_numba_recording", default=True)
# (a mode that is entered here, what was before it, the same for the next outer one)
_OUTER: ContextVar[Any] = ContextVar("flame_numba_outer", default=None)


def push(mode: object, before: object) -> None:
    """Remember what to go back to when this mode is left. One mode may be entered in many threads, tasks and times."""
    _OUTER.set((mode, before, _OUTER.get()))


def pop(mode: object) -> Any:
    """What was remembered for the mode, here, the last time. None if it was not entered in this thread or task."""
    top = _OUTER.get()
    if top is not None and top[0] is mode:
        _OUTER.set(top[2])
        return top[1]
    passed = []  # modes entered since and not left: a generator was suspended inside one
    while top is not None and top[0] is not mode:
        passed.append(top)
        top = top[2]
    if top is None:
        return None
    rest = top[2]
    for other, before, _ in reversed(passed):
        rest = (other, before, rest)
    _OUTER.set(rest)
    return top[1]


def is_recording() -> bool:
    """Whether ops on tensors that require a gradient leave nodes here."""
    return _RECORDING.get()


def is_inference() -> bool:
    """Whether `inference_mode` is on here."""
    return inference_here.get()


class Mode:
    """A setting of `is_recording` for a `with` block, a function, a generator or a coroutine function.

    A generator is resumed with the setting and suspended without it, so that the code that consumes it keeps its own.
    """

    def __init__(self, recording: bool) -> None:
        self._recording = recording

    def __enter__(self) -> None:
        push(self, _RECORDING.get())
        _RECORDING.set(self._recording)

    def __exit__(self, *_: object) -> None:
        before = pop(self)
        if before is not None:
            _RECORDING.set(before)

    def _again(self) -> Mode:
        """The same setting with a memory of its own: calls of a function may overlap."""
        return Mode(self._recording)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with the setting on while it runs. Raises ConfigError for what cannot be wrapped."""
        if inspect.isclass(function) or inspect.isasyncgenfunction(function) or not callable(function):
            raise ConfigError(f"{self._name}: decorate a function, a generator or a coroutine function, not {function}")
        if inspect.isgeneratorfunction(function):
            return _wrap_generator(self, function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*args: Any, **keywords: Any) -> Any:
                with self._again():
                    return await function(*args, **keywords)

            return wait

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            with self._again():
                return function(*args, **keywords)

        return call

    @property
    def _name(self) -> str:
        return "enable_grad" if self._recording else "no_grad"


def _wrap_generator(mode: Mode, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def generate(*args: Any, **keywords: Any) -> Any:
        generator = function(*args, **keywords)
        step: Callable[[], Any] = functools.partial(next, generator)
        try:
            while True:
                try:
                    with mode._again():
                        value = step()
                except StopIteration as stop:
                    return stop.value
                try:
                    sent = yield value
                    step = functools.partial(generator.send, sent)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step = functools.partial(generator.throw, error)
        finally:
            with mode._again():
                generator.close()

    return generate


class SetMode(Mode):
    """`Mode` that is on from its making, until the end of the `with` block if there is one."""

    def __init__(self, recording: bool) -> None:
        super().__init__(recording)
        self._first: list[bool] = [_RECORDING.get()]  # what to go back to
        _RECORDING.set(recording)

    def __enter__(self) -> None:
        push(self, self._first.pop() if self._first else _RECORDING.get())
        _RECORDING.set(self._recording)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self._first:  # a decorator says nothing of the code around it
            _RECORDING.set(self._first.pop())
        return super().__call__(function)


class InferenceMode(Mode):
    """`Mode` without recording that also marks the storages made inside."""

    def __init__(self, on: bool = True) -> None:
        super().__init__(not on)
        self._on = on

    def __enter__(self) -> None:
        push(self, (_RECORDING.get(), inference_here.get()))
        _RECORDING.set(self._recording)
        inference_here.set(self._on)
        INFERENCE.enter()

    def __exit__(self, *_: object) -> None:
        INFERENCE.leave()
        before = pop(self)
        if before is not None:
            _RECORDING.set(before[0])
            inference_here.set(before[1])

    def _again(self) -> Mode:
        return InferenceMode(self._on)

    @property
    def _name(self) -> str:
        return "inference_mode"


def _mode(mode: Mode, function: Callable[..., Any] | None) -> Any:
    return mode if function is None else mode(function)


def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """`with no_grad():` ops leave no nodes, in this thread or task. Also a decorator."""
    return _mode(Mode(False), function)


def enable_grad(function: Callable[..., Any] | None = None) -> Any:
    """`with enable_grad():` ops leave nodes again, inside `no_grad`. Also a decorator."""
    return _mode(Mode(True), function)


def set_grad_enabled(mode: bool) -> Any:
    """Switch recording on or off from here on, in this thread or task; in a `with` statement, for its block."""
    return SetMode(bool(mode))


def inference_mode(mode: Any = True) -> Any:
    """`no_grad` for results that no gradient will ever need: saving one for a backward pass raises GradientError.

    A mistake that `no_grad` lets pass is thereby found. `clone()` outside makes an ordinary tensor. Also a decorator.
    """
    return InferenceMode()(mode) if callable(mode) else InferenceMode(bool(mode))
