"""Ops that launch kernels themselves, and state how their gradients are computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ... import dtypes
from ...dtypes import DType
from ...errors import GradientError
from ...grad import Node, Saved, SavedItems, keep, record, record_many
from ...tape.anomaly import WATCH, inspect_forward, quietly
from ...tensor import Tensor
from .autocast import cast_target
from .formula_op import sum_to
from .launch import same_device
from .operands import OperandCheck
from .table import ORDINARY, Case, Domain, Entry, cast_floating, refuse, register, wants_gradient


class Primitive:
    """An op that launches kernels. The parameters of its gradient rule say what the backward pass needs.

    The rule is called as rule(g, …) where each further parameter names an operand or keyword of the op, `y` (its
    result), `<operand>_shape`, something the op saved (`return y, {"rstd": rstd}`), `needs` (which tensor operands
    want a gradient) or `shapes` (of all of them). It returns one gradient a tensor operand, in order.

    An op may return several tensors, as a tuple, or `(tuple, {…})` where it saves something. Then `g` is the tuple of
    their gradients, with None for a result that none came to or that is not floating, and `y` the tuple of results.
    """

    def __init__(
        self, function: Callable[..., Any], gradient: Callable[..., Any] | None, autocast: str | None, reason: str = ""
    ) -> None:
        self.non_differentiable = reason
        self.name = self.__name__ = function.__name__
        self.__doc__ = inspect.getdoc(function)
        self.__wrapped__ = function
        self._function = function
        self._gradient = gradient
        self._autocast = autocast
        self._check = OperandCheck(function, self.name)
        self._parameters = tuple(inspect.signature(function).parameters.values())
        self._varargs = bool(self._parameters) and self._parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
        wanted = tuple(inspect.signature(gradient).parameters)[1:] if gradient else ()
        self._wanted = wanted

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        args, keywords = self._check(args, keywords)
        target = cast_target(self._autocast)
        if target is not None:
            args = tuple(cast_floating(a, target) for a in args)
            keywords = {k: cast_floating(a, target) for k, a in keywords.items()}
        tensors = [a for a in args if isinstance(a, Tensor)]
        tensors += [a for a in keywords.values() if isinstance(a, Tensor)]
        if len(tensors) > 1:
            same_device(tensors, self.name)
        function = self._function
        result = quietly(function, args, keywords) if WATCH.open else function(*args, **keywords)
        y, extra = result if isinstance(result, tuple) and result and isinstance(result[-1], dict) else (result, {})
        results = y if isinstance(y, tuple) else (y,)
        if WATCH.open:
            inspect_forward(self.name, tensors, results)
        if wants_gradient(tensors):
            self._record(args, keywords, tensors, y, results, extra)
        return y

    def _record(
        self, args: tuple[Any, ...], keywords: dict[str, Any], tensors: list[Tensor], y: Any,
        results: tuple[Tensor, ...], extra: dict[str, Any],
    ) -> None:  # fmt: skip
        floating = [t if t.dtype.is_floating else None for t in tensors]
        wanted = [r if r.dtype.is_floating else None for r in results]
        if self._gradient is None:
            for r in wanted:
                if r is not None:
                    refuse(self.name, floating, r, self.non_differentiable)
            return
        if not any(r is not None for r in wanted):
            return
        known = {} if self._varargs else {p.name: p.default for p in self._parameters}
        known.update({} if self._varargs else zip((p.name for p in self._parameters), args, strict=False))
        known.update(keywords)
        known.update(extra)
        saved: dict[str, Any] = {"*like": tuple(None if t is None else (t.shape, t.dtype) for t in floating)}
        for name in self._wanted:
            if name == "y":
                saves = [Saved(r, r.dtype.is_floating, i) for i, r in enumerate(results)]
                saved[name] = SavedItems(saves) if isinstance(y, tuple) else saves[0]
            elif name == "needs":
                saved[name] = tuple(t is not None and t.requires_grad for t in floating)
            elif name == "shapes":
                saved[name] = tuple(t.shape for t in tensors)
            elif name.endswith("_shape"):
                value = known[name.removesuffix("_shape")]
                saved[name] = None if value is None else value.shape
            else:
                saved[name] = keep(known[name])
        if isinstance(y, tuple):
            record_many(self.name, floating, wanted, self._rule, saved)
        else:
            record(self.name, floating, y, self._rule, saved)

    def _rule(self, gradient: Any, node: Node) -> Sequence[Tensor | None]:
        assert self._gradient is not None
        given = tuple(gradient) if isinstance(gradient, list) else gradient
        parts = self._gradient(given, **{name: node.value(name) for name in self._wanted})
        parts = parts if isinstance(parts, tuple) else (parts,)
        like = node.value("*like")
        if len(parts) != len(like):
            raise GradientError(f"{self.name}: its rule gave {len(parts)} gradients for {len(like)} tensors")
        return [
            None if part is None or to is None else _as_gradient(part, to[0], to[1])
            for part, to in zip(parts, like, strict=True)
        ]


def _as_gradient(part: Tensor, shape: tuple[int, ...], dtype: DType) -> Tensor:
    part = sum_to(part, shape)
    return part if part.dtype is dtype else part.to_dtype(dtype)


def primitive(
    reference: Callable[..., Any],
    cases: Sequence[Case],
    *,
    gradient: Callable[..., Any] | None = None,
    non_differentiable: str = "",
    autocast: str | None = None,
    test_dtypes: tuple[DType, ...] = dtypes.FLOATS,
    ulps: float = 4.0,
    method: bool = True,
    example: Callable[..., Any] | None = None,
    domain: Domain = ORDINARY,
) -> Callable[[Callable[..., Any]], Primitive]:
    """An entry that launches kernels; it has a gradient rule or says why not. See `Primitive`."""

    def decorate(function: Callable[..., Any]) -> Primitive:
        if (gradient is None) != bool(non_differentiable):
            raise GradientError(f"{function.__name__}: give gradient= or non_differentiable=, one of them")
        op = Primitive(function, gradient, autocast, non_differentiable)
        entry = Entry(
            op.name, "primitive", op.__doc__ or "", op, reference, (domain,), tuple(cases), ulps, test_dtypes,
            non_differentiable, tuple(p.name for p in op._parameters), example,
        )  # fmt: skip
        register(entry, method)
        return op

    return decorate
