"""What an op's signature says of its operands: which must be tensors, numbers or ints.

It is read once; each call is checked against it, and gets Python ints for all that count as ints.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import EllipsisType, NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from ...errors import DTypeError
from ...scalars import NUMBERS
from ...shapes import Shape, as_ints
from ...tensor import Tensor

_TAKES: dict[Any, tuple[type, ...]] = {  # what an op's annotation lets in
    "Tensor": (Tensor,),
    "Tensor | None": (Tensor, type(None)),
    "Tensor | float": (Tensor, *NUMBERS),
    "Tensor | float | None": (Tensor, *NUMBERS, type(None)),
}
_TAKES |= {"float": NUMBERS, "float | None": (*NUMBERS, NoneType), float: NUMBERS}
_TAKES |= {Tensor: _TAKES["Tensor"], Tensor | None: _TAKES["Tensor | None"]}  # where annotations are evaluated
_SAID = {NoneType: "None", str: "a str", Tensor: "a tensor"}


class _Ints(NamedTuple):
    """What an annotation with ints lets in."""

    one: bool
    several: str  # how these are called, empty if there may be none
    gaps: bool  # None among several
    nested: bool  # several of several
    others: tuple[type, ...]  # besides ints

    def __str__(self) -> str:
        said = ["an int"] * self.one + [self.several] * bool(self.several)
        said += [_SAID.get(kind, kind.__name__) for kind in self.others]
        return " or ".join([", ".join(said[:-1]), said[-1]] if said[1:] else said)


def _items(kind: Any) -> set[Any]:
    """The types that stand innermost in an annotation."""
    inner = get_args(kind)
    return set().union(*map(_items, inner)) if inner else {kind}


def _ints(annotation: Any, names: dict[str, Any]) -> _Ints | None:
    """What an annotation says of ints: an int, sequences of them or both. None if it is about something else."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # what Python does with it where annotations are no strings
        except (NameError, AttributeError, TypeError, SyntaxError):
            return None
    if annotation == Shape:
        return None  # made by us, of Python ints
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    lists = [k for k in kinds if get_origin(k) in (tuple, Sequence) and _items(k) <= {int, NoneType, EllipsisType, ...}]
    others = tuple(k for k in kinds if k is not int and k not in lists)
    if (int not in kinds and not lists) or float in others or not all(isinstance(k, type) for k in others):
        return None
    pairs = any(get_origin(inner) is tuple for k in lists for inner in get_args(k))
    nested = any(get_args(inner) for k in lists for inner in get_args(k))
    several = "" if not lists else "a sequence of pairs of ints" if pairs else "a sequence of ints"
    return _Ints(int in kinds, several, any(NoneType in _items(k) for k in lists), nested, others)


class OperandCheck:
    """Refuses, by the op's name and the operand's, what is no tensor, number or int where the signature wants one.

    Without it such an operand fails somewhere inside with Python's AttributeError, or does not fail at all.
    """

    __slots__ = ("_ints", "_named", "_names", "_op", "_placed", "_placed_ints", "_plain", "_rest")

    def __init__(self, function: Callable[..., Any], op: str) -> None:
        parameters = inspect.signature(function).parameters
        self._op = op
        self._named = {n: _TAKES[p.annotation] for n, p in parameters.items() if p.annotation in _TAKES}
        placed = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        self._placed = tuple((i, self._named[n]) for i, n in enumerate(placed) if n in self._named)
        self._names = tuple(placed)
        rest = [n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL and n in self._named]
        self._rest = rest[0] if rest else ""
        names = getattr(function, "__globals__", {})
        rules = ((n, _ints(p.annotation, names)) for n, p in parameters.items() if n not in self._named)
        self._ints = {n: rule for n, rule in rules if rule is not None}
        self._plain = {n: int if rule.one else None for n, rule in self._ints.items()}  # the class that needs no look
        self._placed_ints = tuple((i, n, self._plain[n]) for i, n in enumerate(placed) if n in self._plain)

    def __call__(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The operands, with Python ints. Raises DTypeError (a TypeError) that names one that is of a wrong type."""
        given = len(args)
        for place, taken in self._placed:
            if place >= given:
                break
            if not isinstance(args[place], taken):
                self._refuse(self._names[place], args[place])
        for place, name, plain in self._placed_ints:
            if place >= given:
                break
            value = args[place]
            if value.__class__ is not plain and (settled := self._settled(name, value)) is not value:
                args = (*args[:place], settled, *args[place + 1 :])
        for name, value in keywords.items():
            if name in self._named:
                if not isinstance(value, self._named[name]):
                    self._refuse(name, value)
            elif name in self._plain and value.__class__ is not self._plain[name]:
                keywords = {**keywords, name: self._settled(name, value)}
        if self._rest:
            for value in args[len(self._names) :]:
                if not isinstance(value, Tensor):
                    self._refuse(self._rest, value)
        return args, keywords

    def _settled(self, name: str, value: Any) -> Any:
        """The value with Python ints, itself if it has no others."""
        rule = self._ints[name]
        if value.__class__ is tuple and rule.several:
            for item in value:
                if item.__class__ is not int:
                    break
            else:
                return value
        if isinstance(value, rule.others):
            return value
        try:
            settled = as_ints(value, rule.gaps)
        except TypeError:
            settled = None
        if isinstance(settled, tuple) and not rule.nested and any(isinstance(item, tuple) for item in settled):
            settled = None
        if settled is None or not (rule.several if isinstance(settled, tuple) else rule.one):
            raise DTypeError(f"{self._op}: {name} must be {rule}, got {value!r}")
        return settled

    def _refuse(self, name: str, value: Any) -> None:
        if Tensor not in self._named[name]:
            raise DTypeError(f"{self._op}: {name} must be a number, got {value!r}")
        wanted = "a tensor or a number" if float in self._named[name] else "a tensor"
        raise DTypeError(f"{self._op}: {name} must be {wanted}, got {type(value).__name__}; see asarray()")


def check_floating(x: Tensor, op: str) -> None:
    """Raises DTypeError for a tensor of integers or truth values."""
    if not x.dtype.is_floating:
        raise DTypeError(f"{op}: needs a floating tensor, got {x.dtype.name}")


def check_tensors(op: str, operands: Sequence[Any]) -> None:
    """Raises DTypeError unless all are tensors: for functions that are no entries of the table."""
    for value in operands:
        if not isinstance(value, Tensor):
            raise DTypeError(f"{op}: operands must be tensors, got {type(value).__name__}; see asarray()")
