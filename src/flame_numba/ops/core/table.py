"""The table of ops: what an entry says.

An entry is a decorated function. Three kinds:

- `elementwise` (`formula_op.py`): a scalar formula. Kernels, derivative and second derivative follow from it.
- `primitive` (`kernel_op.py`): launches kernels itself, and states its gradient rule, or why it has none.
- `composite` (here): made of other ops; differentiable because they are.

Each brings a NumPy reference, the domain or cases to test it on, and a tolerance; the tests and the docs table are
generated from `TABLE`. An op reaches the graph only through these.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import dtypes
from ...dtypes import DType
from ...errors import ConfigError, GradientError
from ...grad import Node, is_recording, record
from ...tensor import Tensor, add_methods
from .autocast import cast_target
from .operands import OperandCheck


@dataclass(frozen=True)
class Domain:
    """Where an elementwise op is defined and smooth enough to test: low < x < high, without the listed points.

    special: whether NaN, infinities, signed zeros and extremes are tested too.
    """

    low: float = -np.inf
    high: float = np.inf
    excluded: tuple[float, ...] = ()
    special: bool = True


REALS = Domain()
POSITIVE = Domain(low=0.0)
NONZERO = Domain(excluded=(0.0,))
ORDINARY = Domain(special=False)


@dataclass(frozen=True)
class Integers:
    """An index operand of a test case: int64 values in low … high-1."""

    shape: tuple[int, ...]
    low: int
    high: int


@dataclass(frozen=True)
class Booleans:
    """A mask operand of a test case."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Floats:
    """An operand of the tested dtype with values in low … high, for an op that is not defined everywhere."""

    shape: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """One call to test: operands and keywords.

    A tuple is the shape of a tensor of the tested dtype, `Floats` such a tensor within a range, `Integers` an index
    tensor, `Booleans` a mask; an array becomes a tensor as it is, and anything else is passed on.
    """

    operands: tuple[Any, ...]
    keywords: dict[str, Any]


def case(*operands: Any, **keywords: Any) -> Case:
    return Case(operands, keywords)


@dataclass(repr=False)
class Entry:
    """A row of the table."""

    name: str
    kind: str
    doc: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    domain: tuple[Domain, ...] = ()
    cases: tuple[Case, ...] = ()
    ulps: float = 4.0
    dtypes: tuple[DType, ...] = dtypes.FLOATS
    non_differentiable: str = ""
    parameters: tuple[str, ...] = ()
    example: Callable[..., Any] | None = None  # how a case's operands become a call, where not op(*operands)
    cancels: bool = False  # terms may cancel: the error is relative to the largest operand, not to the result

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


TABLE: dict[str, Entry] = {}


def register(entry: Entry, method: bool) -> None:
    """Add a row, and the op as a method of Tensor. A row of that name is replaced; nothing else of Tensor's is."""
    if method and entry.name not in TABLE and hasattr(Tensor, entry.name):
        raise ConfigError(f"{entry.name}: Tensor has something of that name already; give the op another")
    TABLE[entry.name] = entry
    if method:
        op = entry.op

        def call(self: Tensor, *args: Any, **keywords: Any) -> Any:
            return op(self, *args, **keywords)

        call.__name__ = entry.name
        call.__doc__ = entry.doc
        add_methods({entry.name: call})


def wants_gradient(tensors: Sequence[Any]) -> bool:
    return is_recording() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def refuse(name: str, tensors: Sequence[Tensor | None], y: Tensor, reason: str) -> None:
    """Record an op without a derivative: it stops a backward pass that reaches it, instead of losing a gradient."""

    def rule(gradient: Tensor, node: Node) -> Sequence[Tensor | None]:
        raise GradientError(f"{name}: it has no derivative: {reason}; use detach() on its operands if none is wanted")

    record(name, tensors, y, rule, {})


def cast_floating(value: Any, target: DType) -> Any:
    if isinstance(value, Tensor) and value.dtype.is_floating and value.dtype is not target:
        if value.dtype is dtypes.float64:
            return value  # asked for by name: never lowered behind the caller's back
        return value.to_dtype(target)
    return value


def composite(
    reference: Callable[..., Any],
    cases: Sequence[Case],
    *,
    non_differentiable: str = "",
    test_dtypes: tuple[DType, ...] = dtypes.FLOATS,
    ulps: float = 4.0,
    method: bool = True,
    example: Callable[..., Any] | None = None,
    domain: Domain = ORDINARY,
    autocast: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An entry made of other ops, which record themselves."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        check = OperandCheck(function, function.__name__)

        @functools.wraps(function)
        def op(*args: Any, **keywords: Any) -> Any:
            args, keywords = check(args, keywords)
            if autocast is not None and (target := cast_target(autocast)) is not None:
                args = tuple(cast_floating(a, target) for a in args)
                keywords = {k: cast_floating(a, target) for k, a in keywords.items()}
            return function(*args, **keywords)

        entry = Entry(
            function.__name__, "composite", inspect.getdoc(function) or "", op, reference, (domain,), tuple(cases),
            ulps, test_dtypes, non_differentiable, tuple(inspect.signature(function).parameters), example,
        )  # fmt: skip
        register(entry, method)
        return op

    return decorate
