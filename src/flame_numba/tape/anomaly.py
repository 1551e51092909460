"""`detect_anomaly`: which op made the first NaN, forward or backward, and the line of the user's that called it."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..devices.contexts import Contexts
from ..errors import NonFinite
from ..memory.recorder import is_own
from ..tensor import Tensor
from .arithmetic import supplied
from .modes import Mode, pop, push

WATCH = Contexts()  # how many `detect_anomaly` blocks are open anywhere: asked at every op
_INFINITIES: ContextVar[bool | None] = ContextVar("flame_numba_anomaly", default=None)  # None: nobody looks here
_SITES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # node → the line that called its op


class detect_anomaly:
    """`with detect_anomaly():` the first op whose result, or whose gradient, holds a NaN raises NonFinite.

    The message names the op and the line that called it. infinities: an infinity counts as well. Changes in place are
    ops; of `x[key] = value` the value is looked at. New tensors of given values (`tensor`, `full`) are not. Every op is
    followed by a check that waits for the device: for finding a fault, not for training.
    """

    def __init__(self, infinities: bool = False) -> None:
        self._infinities = infinities

    def __enter__(self) -> None:
        push(self, (_INFINITIES.get(),))
        _INFINITIES.set(self._infinities)
        WATCH.enter()

    def __exit__(self, *_: object) -> None:
        WATCH.leave()
        before = pop(self)
        if before is not None:
            _INFINITIES.set(before[0])


def watching() -> bool:
    """Whether results are looked at here."""
    return bool(WATCH.open) and _INFINITIES.get() is not None


class _Unwatched:
    """The ops that look, and those of a gradient rule, are not looked at themselves."""

    def __enter__(self) -> bool:
        self._infinities = _INFINITIES.get()
        _INFINITIES.set(None)
        return bool(self._infinities)

    def __exit__(self, *_: object) -> None:
        _INFINITIES.set(self._infinities)


unwatched = _Unwatched


def quietly(function: Callable[..., Any], args: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """Call a function that is part of one op: the op is to be named, not the ones that it is made of."""
    with _Unwatched():
        return function(*args, **keywords)


def watched_change(
    name: str, change: Callable[..., Any], x: Tensor, args: Sequence[Any], keywords: dict[str, Any]
) -> None:
    """Change x in place by `change(x, …)`, and look at what it then holds."""
    if not watching():
        change(x, *args, **keywords)
        return
    with _Unwatched():
        before = supplied().clone(x.detach())  # for saying whether it was bad already
        change(x, *args, **keywords)
    inspect_forward(name, (before, *args, *keywords.values()), (x,))


def note_site(node: Any) -> None:
    """Remember which line called the op of this node."""
    if watching():
        _SITES[node] = call_site()


def inspect_forward(name: str, operands: Sequence[Any], results: Sequence[Any]) -> None:
    """Raise NonFinite if a result holds a NaN, saying whether an operand did before."""
    if not watching():
        return
    with _Unwatched() as infinities:
        for y in results:
            word = _found(y, infinities)
            if word:
                raise NonFinite(f"{name}: its result {_shape(y)} holds {word}; {_blame(operands, infinities)}; "
                                f"called at {call_site()}")  # fmt: skip


def inspect_backward(node: Any, given: Sequence[Any], parts: Sequence[Any], infinities: bool) -> None:
    """Raise NonFinite if a rule's gradient holds a NaN, saying where its op was called."""
    for i, part in enumerate(parts):
        word = _found(part, infinities)
        if word:
            before = next((w for w in (_found(g, infinities) for g in given) if w), "")
            source = f"the one that came in held {before} already" if before else "the one that came in held none"
            where = _SITES.get(node, "a line not known: it was recorded outside detect_anomaly")
            raise NonFinite(f"backward of {node.name}: the gradient of operand {i} holds {word}; {source}; "
                            f"the op was called at {where}")  # fmt: skip


def _found(x: Any, infinities: bool) -> str:
    """What is wrong with it, a tensor or a number: '', 'a NaN' or 'an infinity'."""
    if isinstance(x, (float, np.floating)):
        return "a NaN" if x != x else "an infinity" if infinities and abs(x) == float("inf") else ""
    if not isinstance(x, Tensor) or not x.dtype.is_floating or x.numel == 0:
        return ""
    with Mode(False):
        if supplied().has_nan(x):
            return "a NaN"
        return "an infinity" if infinities and supplied().has_infinity(x) else ""


def _blame(operands: Sequence[Any], infinities: bool) -> str:
    for i, x in enumerate(operands):
        word = _found(x, infinities)
        if word:
            return f"its operand {i} {_shape(x)} held {word} already"
    return "its operands held none"


def _shape(x: Any) -> str:
    return f"of shape {x.shape}" if isinstance(x, Tensor) else f"({x!r})"


def call_site() -> str:
    """The innermost line on the stack that is not this package's."""
    frame: FrameType | None = sys._getframe(1)
    last = frame
    while frame is not None and is_own(frame.f_code.co_filename):
        last, frame = frame, frame.f_back
    found = frame or last
    assert found is not None
    code = found.f_code
    line = linecache.getline(code.co_filename, found.f_lineno, found.f_globals).strip()
    return f"{code.co_filename}:{found.f_lineno} in {code.co_name}" + (f": {line}" if line else "")
