"""The table of ops: what an entry says, and how an entry becomes a callable op.

An entry is a decorated function. Three kinds:

- `elementwise`: a scalar formula. Kernels, derivative and second derivative follow from it.
- `primitive`: launches kernels itself, and states its gradient rule, or why it has none.
- `composite`: made of other ops; differentiable because they are.

Each brings a NumPy reference, the domain or cases to test it on, and a tolerance; the tests and the docs table are
generated from `TABLE`. An op reaches the graph only here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import dtypes
from ..dtypes import DType
from ..errors import DTypeError, GradientError
from ..grad import Node, Saved, is_recording, record
from ..kernels import formula
from ..kernels.formula import Expr
from ..tensor import Tensor
from .autocast import cast_target
from .launch import MapKernel, check_number, same_device


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


@dataclass(frozen=True)
class Integers:
    """An index operand of a test case: int64 values in low … high-1."""

    shape: tuple[int, ...]
    low: int
    high: int


@dataclass(frozen=True)
class Case:
    """One call to test: operands (a tuple is the shape of a tensor, `Integers` an index tensor) and keywords."""

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


def _register(entry: Entry, method: bool) -> None:
    TABLE[entry.name] = entry
    if method:
        op = entry.op

        def call(self: Tensor, *args: Any, **keywords: Any) -> Any:
            return op(self, *args, **keywords)

        call.__name__ = entry.name
        call.__doc__ = entry.doc
        setattr(Tensor, entry.name, call)


def _wants_gradient(tensors: Sequence[Any]) -> bool:
    return is_recording() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def _refuse(name: str, tensors: Sequence[Tensor | None], y: Tensor, reason: str) -> None:
    """Record an op without a derivative: it stops a backward pass that reaches it, instead of losing a gradient."""

    def rule(gradient: Tensor, node: Node) -> Sequence[Tensor | None]:
        raise GradientError(f"{name}: it has no derivative: {reason}; use detach() on its operands if none is wanted")

    record(name, tensors, y, rule, {})


# --- elementwise --------------------------------------------------------------------------------------------------
class Elementwise:
    """An op from a scalar formula. Call it with tensors and numbers, or with `Expr`s inside another formula."""

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        expr: Expr,
        *,
        result: str = "same",
        truths: Sequence[str] = (),
        partials: Callable[..., Sequence[Expr]] | None = None,
        non_differentiable: str = "",
        accepts: tuple[DType, ...] = dtypes.ALL,
    ) -> None:
        self.name = self.__name__ = name
        self.operands = tuple(names)  # as the author called them
        # inside, operands are x0, x1 …: a formula may call one of its own `y` or `g`
        self.names = tuple(f"x{i}" for i in range(len(names)))
        self.expr = formula.substitute(expr, {n: formula.variable(x) for n, x in zip(names, self.names, strict=True)})
        self.result = result
        self.truths = tuple(x for n, x in zip(names, self.names, strict=True) if n in truths)
        self.non_differentiable = non_differentiable
        self.accepts = frozenset(accepts)
        self._partials = partials
        self._kernel = MapKernel(name, self.names, (self.expr,), self.truths)
        self._truth_flags = tuple(n in truths for n in names)
        self._types: dict[tuple[Any, ...], tuple[tuple[DType], DType]] = {}  # kinds → (dtypes of results, computed in)
        self._vjp_formulas: dict[int, tuple[tuple[str, ...], Expr]] = {}
        self._vjps: dict[int, Elementwise] = {}
        self._joint: dict[tuple[int, ...], MapKernel] = {}

    def __call__(self, *args: Any) -> Any:
        # this is on the path of every small op: one pass over the operands, one look-up
        kinds = tuple([a.dtype if isinstance(a, Tensor) else a.__class__ for a in args])
        known = self._types.get(kinds)
        if known is not None:
            return self._apply(args, *known)
        return self._first_call(args)

    def _first_call(self, args: Sequence[Any]) -> Any:
        """A call with operands of kinds not met before: expressions, NumPy scalars, mistakes, or new dtypes."""
        if len(args) != len(self.names):
            raise TypeError(f"{self.name}: takes {', '.join(self.operands)}; got {len(args)} operands")
        if any(isinstance(a, Expr) for a in args):
            given = {n: formula._as_expr(a) for n, a in zip(self.names, args, strict=True)}
            return formula.substitute(self.expr, given)
        values = [a if isinstance(a, Tensor) else self._number(a) for a in args]
        kinds = tuple([v.dtype if isinstance(v, Tensor) else v.__class__ for v in values])
        out, compute = self._infer(kinds, values)
        self._types[kinds] = ((out,), compute)
        return self._apply(values, (out,), compute)

    def _number(self, value: Any) -> bool | int | float:
        if isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        raise DTypeError(f"{self.name}: expected tensors and numbers, got {type(value).__name__}; see asarray()")

    def _infer(self, kinds: tuple[Any, ...], values: Sequence[Any]) -> tuple[DType, DType]:
        """(dtype of the result, dtype computed in) for operands of these kinds."""
        if not any(isinstance(k, DType) for k in kinds):
            raise DTypeError(f"{self.name}: needs at least one tensor")
        common: DType | None = None
        counted = [k for k, truth in zip(kinds, self._truth_flags, strict=True) if not truth]
        for kind in counted:
            if isinstance(kind, DType):
                if kind not in self.accepts:
                    raise DTypeError(f"{self.name}: not defined for {kind.name}")
                common = kind if common is None else dtypes.promote(common, kind)
        if common is None:  # every tensor is a truth value: numbers alone decide
            common = dtypes.bool_
        for v, truth in zip(values, self._truth_flags, strict=True):
            if not truth and not isinstance(v, Tensor):
                common = dtypes.promote_scalar(common, v)
        if self.result == "float" and not common.is_floating:
            common = dtypes.default_float
        compute = common if common.kind == "bool" else common.accumulator
        return (dtypes.bool_ if self.result == "bool" else common), compute

    def _apply(self, values: Sequence[Any], out: tuple[DType], compute: DType) -> Tensor:
        inputs = [v if isinstance(v, Tensor) else check_number(v, compute, self.name) for v in values]
        y = self._kernel(inputs, out, compute)[0]
        for v in inputs:
            if isinstance(v, Tensor) and v.requires_grad and out[0].is_floating and is_recording():
                self._record(values, y, compute)
                break
        return y

    def _record(self, values: Sequence[Any], y: Tensor, compute: DType) -> None:
        tensors = [v if isinstance(v, Tensor) and v.dtype.is_floating else None for v in values]
        if self.non_differentiable:
            _refuse(self.name, tensors, y, self.non_differentiable)
            return
        needed = tuple(i for i, t in enumerate(tensors) if t is not None and t.requires_grad)
        used = set().union(*(self.vjp_formula(i)[0] for i in needed))
        saved: dict[str, Any] = {"needed": needed, "compute": compute}
        saved["like"] = tuple((t.shape, t.dtype) if t is not None else None for t in tensors)
        for name, value in zip(self.names, values, strict=True):
            if name in used:
                saved[name] = Saved(value) if isinstance(value, Tensor) else value
        if "y" in used:
            saved["y"] = Saved(y, is_output=True)
        record(self.name, tensors, y, self._rule, saved)

    def vjp_formula(self, i: int) -> tuple[tuple[str, ...], Expr]:
        """g · ∂y/∂x_i and the names it depends on, among g (always), x0 …, and y, the result."""
        found = self._vjp_formulas.get(i)
        if found is None:
            gradient = formula.variable("g")
            xs = [formula.variable(n) for n in self.names]
            if self._partials is not None:
                partial = formula._as_expr(self._partials(formula.variable("y"), *xs)[i])
                expr = formula._times(gradient, partial)
            else:
                expr = formula.vjp(self.expr, gradient, [xs[i]])[0]
            used = formula.variables(expr)
            found = self._vjp_formulas[i] = (("g", *(n for n in (*self.names, "y") if n in used)), expr)
        return found

    def vjp(self, i: int) -> Elementwise:
        """The op (g, …) → g · ∂y/∂x_i: made of a formula, so it can be differentiated in turn."""
        found = self._vjps.get(i)
        if found is None:
            names, expr = self.vjp_formula(i)
            found = self._vjps[i] = Elementwise(f"{self.name}_vjp{i}", names, expr, truths=self.truths)
        return found

    def _rule(self, gradient: Tensor, node: Node) -> Sequence[Tensor | None]:
        needed, like = node.value("needed"), node.value("like")
        compute = node.value("compute")
        kinds = tuple(like[i][1] for i in needed)
        names = dict.fromkeys(n for i in needed for n in self.vjp_formula(i)[0])
        values = {n: gradient if n == "g" else node.value(n) for n in names}
        if is_recording():
            parts = [
                self.vjp(i)._apply([values[n] for n in self.vjp_formula(i)[0]], (kind,), compute)
                for i, kind in zip(needed, kinds, strict=True)
            ]
        else:
            parts = self._all_at_once(needed, values, kinds, compute)
        result: list[Tensor | None] = [None] * len(like)
        for i, part in zip(needed, parts, strict=True):
            result[i] = sum_to(part, like[i][0])
        return result

    def _all_at_once(
        self, needed: tuple[int, ...], values: dict[str, Any], kinds: tuple[DType, ...], compute: DType
    ) -> list[Tensor]:
        """All the gradients in one kernel, where nobody will differentiate them again."""
        kernel = self._joint.get(needed)
        if kernel is None:
            exprs = [self.vjp_formula(i)[1] for i in needed]
            kernel = self._joint[needed] = MapKernel(f"{self.name}_vjp", tuple(values), exprs, self.truths)
        inputs = [v if isinstance(v, Tensor) else check_number(v, compute, self.name) for v in values.values()]
        return kernel(inputs, kinds, compute)


def sum_to(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo broadcasting: sum over the axes that were added or stretched."""
    if gradient.shape == shape:
        return gradient
    lead = gradient.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and gradient.shape[i + lead] != 1)
    reduced = gradient.sum(axis=axes, keepdims=True) if axes else gradient
    return reduced.reshape(shape)


def elementwise(
    reference: Callable[..., Any],
    domain: Domain | tuple[Domain, ...] = REALS,
    *,
    result: str = "same",
    truths: Sequence[str] = (),
    partials: Callable[..., Sequence[Any]] | None = None,
    accepts: tuple[DType, ...] = dtypes.ALL,
    test_dtypes: tuple[DType, ...] | None = None,
    ulps: float = 4.0,
    cancels: bool = False,
    non_differentiable: str = "",
) -> Callable[[Callable[..., Any]], Elementwise]:
    """An entry from a scalar formula; its name, operands and docs come from the function.

    reference: the same on NumPy arrays in f64. domain: of all operands, or a tuple of one each. result: "same" (the
    promoted dtype), "float" (integers give float32) or "bool". truths: operands used as truth values.
    partials: (y, *operands) → partial derivatives, where a cheaper or more stable form than the derived one exists.
    """

    def decorate(function: Callable[..., Any]) -> Elementwise:
        names = tuple(inspect.signature(function).parameters)
        expr = formula.trace(function, names)
        if not non_differentiable:
            formula.check_differentiable(expr, function.__name__)
        op = Elementwise(
            function.__name__,
            names,
            expr,
            result=result,
            truths=truths,
            partials=partials,
            non_differentiable=non_differentiable,
            accepts=accepts,
        )
        doc = inspect.getdoc(function) or ""
        op.__doc__ = doc
        domains = domain if isinstance(domain, tuple) else (domain,) * len(names)
        tested = accepts if test_dtypes is None else test_dtypes
        if result == "float":
            tested = tuple(d for d in tested if d.is_floating or d in (dtypes.int32, dtypes.uint8))
        entry = Entry(
            function.__name__, "elementwise", doc, op, reference, domains, (), ulps, tested,
            non_differentiable, names, cancels=cancels,
        )  # fmt: skip
        _register(entry, method=names[0] not in truths)
        return op

    return decorate


def fuse(function: Callable[..., Any]) -> Elementwise:
    """One kernel for a scalar function made of elementwise ops: `fuse(lambda x, y: silu(x) * y)`.

    The derivative is one kernel too. Raises DTypeError if the function does anything but arithmetic on its operands.
    """
    names = tuple(inspect.signature(function).parameters)
    name = function.__name__ if function.__name__.isidentifier() else "fused"
    try:
        expr = formula.trace(function, names)
    except TypeError as error:
        if isinstance(error, DTypeError):
            raise
        raise DTypeError(f"fuse: {name} does more than arithmetic and ops of flame_numba with its operands") from error
    return Elementwise(name, names, expr)


# --- primitive ----------------------------------------------------------------------------------------------------
class Primitive:
    """An op that launches kernels. The parameters of its gradient rule say what the backward pass needs.

    The rule is called as rule(g, …) where each further parameter names an operand or keyword of the op, `y` (its
    result), `<operand>_shape`, something the op saved (`return y, {"rstd": rstd}`), `needs` (which tensor operands
    want a gradient) or `shapes` (of all of them). It returns one gradient a tensor operand, in order.
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
        self._parameters = tuple(inspect.signature(function).parameters.values())
        self._varargs = bool(self._parameters) and self._parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
        wanted = tuple(inspect.signature(gradient).parameters)[1:] if gradient else ()
        self._wanted = wanted

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        target = cast_target(self._autocast)
        if target is not None:
            args = tuple(_cast_floating(a, target) for a in args)
            keywords = {k: _cast_floating(a, target) for k, a in keywords.items()}
        tensors = [a for a in args if isinstance(a, Tensor)]
        tensors += [a for a in keywords.values() if isinstance(a, Tensor)]
        if len(tensors) > 1:
            same_device(tensors, self.name)
        result = self._function(*args, **keywords)
        y, extra = result if isinstance(result, tuple) else (result, {})
        if y.dtype.is_floating and _wants_gradient(tensors):
            if self._gradient is None:
                _refuse(self.name, tensors, y, self.non_differentiable)
            else:
                self._record(args, keywords, tensors, y, extra)
        return y

    def _record(
        self, args: tuple[Any, ...], keywords: dict[str, Any], tensors: list[Tensor], y: Tensor, extra: dict[str, Any]
    ) -> None:
        floating = [t if t.dtype.is_floating else None for t in tensors]
        known = {} if self._varargs else {p.name: p.default for p in self._parameters}
        known.update({} if self._varargs else zip((p.name for p in self._parameters), args, strict=False))
        known.update(keywords)
        known.update(extra)
        saved: dict[str, Any] = {"*like": tuple(None if t is None else (t.shape, t.dtype) for t in floating)}
        for name in self._wanted:
            if name == "y":
                saved[name] = Saved(y, is_output=True)
            elif name == "needs":
                saved[name] = tuple(t is not None and t.requires_grad for t in floating)
            elif name == "shapes":
                saved[name] = tuple(t.shape for t in tensors)
            elif name.endswith("_shape"):
                value = known[name.removesuffix("_shape")]
                saved[name] = None if value is None else value.shape
            else:
                value = known[name]
                saved[name] = Saved(value) if isinstance(value, Tensor) else value
        record(self.name, floating, y, self._rule, saved)

    def _rule(self, gradient: Tensor, node: Node) -> Sequence[Tensor | None]:
        assert self._gradient is not None
        parts = self._gradient(gradient, **{name: node.value(name) for name in self._wanted})
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


def _cast_floating(value: Any, target: DType) -> Any:
    if isinstance(value, Tensor) and value.dtype.is_floating and value.dtype is not target:
        if value.dtype is dtypes.float64:
            return value  # asked for by name: never lowered behind the caller's back
        return value.to_dtype(target)
    return value


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
    domain: Domain = Domain(special=False),
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
        _register(entry, method)
        return op

    return decorate


# --- composite ----------------------------------------------------------------------------------------------------
def composite(
    reference: Callable[..., Any],
    cases: Sequence[Case],
    *,
    non_differentiable: str = "",
    test_dtypes: tuple[DType, ...] = dtypes.FLOATS,
    ulps: float = 4.0,
    method: bool = True,
    example: Callable[..., Any] | None = None,
    domain: Domain = Domain(special=False),
    autocast: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An entry made of other ops, which record themselves."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        op = function
        if autocast is not None:

            def op(*args: Any, **keywords: Any) -> Any:
                target = cast_target(autocast)
                if target is not None:
                    args = tuple(_cast_floating(a, target) for a in args)
                    keywords = {k: _cast_floating(a, target) for k, a in keywords.items()}
                return function(*args, **keywords)

            op.__name__, op.__doc__ = function.__name__, function.__doc__
            op.__wrapped__ = function  # type: ignore[attr-defined]
        entry = Entry(
            function.__name__, "composite", inspect.getdoc(function) or "", op, reference, (domain,), tuple(cases),
            ulps, test_dtypes, non_differentiable, tuple(inspect.signature(function).parameters), example,
        )  # fmt: skip
        _register(entry, method)
        return op

    return decorate
