"""`checkpoint`: a call whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .devices import current_device
from .grad import Saved, is_recording
from .ops.core.autocast import autocast_dtype, autocast_to
from .tape.recompute import Frame, entered
from .tensor import Tensor


def checkpoint(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """`function(*args, **keywords)`, keeping its arguments instead of the tensors that its ops save for gradients.

    A backward pass that needs one of these runs the function again, with the same random numbers (of whichever
    generators), autocast and default device; so it must do the same each time. Arguments and results may be anything;
    calls may be nested; `create_graph` works. What the function counts is counted twice, unless it asks
    `is_recomputing()`. Raises GradientError in the backward pass if the function did something else the second time,
    or an argument was changed in place in between. (Chen et al. 2016)
    """
    if not is_recording():
        return function(*args, **keywords)
    name = getattr(function, "__name__", type(function).__name__)
    call = _Call(name, function, args, keywords)
    frame = Frame(name, call)
    try:
        with entered(frame):
            return function(*args, **keywords)
    finally:
        frame.running = False


class _Call:
    """A call that can be made again, under the same conditions."""

    def __init__(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self._function = function
        self._given = _each((args, keywords), _save)
        self._device, self._autocast = current_device(), autocast_dtype()
        self._asker = SimpleNamespace(name=f"checkpoint of {name}")  # whom an error about an argument names

    def __call__(self) -> None:
        args, keywords = _each(self._given, lambda x: x.restore(self._asker) if isinstance(x, Saved) else x)
        with self._device, autocast_to(self._autocast):
            self._function(*args, **keywords)


def _save(x: Any) -> Any:
    return Saved(x) if isinstance(x, Tensor) else x


def _each(x: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested tuples, lists and dicts with each item changed."""
    if isinstance(x, tuple) and hasattr(x, "_make"):
        return x._make(_each(item, change) for item in x)
    if type(x) in (tuple, list):
        return type(x)(_each(item, change) for item in x)
    if type(x) is dict:
        return {key: _each(item, change) for key, item in x.items()}
    return change(x)
