"""Which operands of an op must be tensors: read off its signature once, checked at each call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError
from ..tensor import Tensor

_NUMBER = (bool, int, float, np.generic)
_TAKES: dict[Any, tuple[type, ...]] = {  # what an op's annotation lets in
    "Tensor": (Tensor,),
    "Tensor | None": (Tensor, type(None)),
    "Tensor | float": (Tensor, *_NUMBER),
    "Tensor | float | None": (Tensor, *_NUMBER, type(None)),
}
_TAKES |= {Tensor: _TAKES["Tensor"], Tensor | None: _TAKES["Tensor | None"]}  # where annotations are evaluated


class TensorCheck:
    """Refuses, by the op's name and the operand's, what is no tensor where the op's signature wants one.

    Without it such an operand fails somewhere inside with Python's AttributeError, or does not fail at all.
    """

    __slots__ = ("_named", "_names", "_op", "_placed", "_rest")

    def __init__(self, function: Callable[..., Any], op: str) -> None:
        parameters = inspect.signature(function).parameters
        self._op = op
        self._named = {n: _TAKES[p.annotation] for n, p in parameters.items() if p.annotation in _TAKES}
        placed = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        self._placed = tuple((i, self._named[n]) for i, n in enumerate(placed) if n in self._named)
        self._names = tuple(placed)
        rest = [n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL and n in self._named]
        self._rest = rest[0] if rest else ""

    def __call__(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Raises DTypeError (a TypeError) that names the operand."""
        given = len(args)
        for place, taken in self._placed:
            if place >= given:
                break
            if not isinstance(args[place], taken):
                self._refuse(self._names[place], args[place])
        for name, value in keywords.items():
            if name in self._named and not isinstance(value, self._named[name]):
                self._refuse(name, value)
        if self._rest:
            for value in args[len(self._names) :]:
                if not isinstance(value, Tensor):
                    self._refuse(self._rest, value)

    def _refuse(self, name: str, value: Any) -> None:
        wanted = "a tensor or a number" if float in self._named[name] else "a tensor"
        raise DTypeError(f"{self._op}: {name} must be {wanted}, got {type(value).__name__}; see asarray()")
