"""Ops from scalar formulas: called, recorded and differentiated with nothing but the formula."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ... import dtypes
from ...dtypes import DType
from ...errors import ConfigError, DTypeError
from ...grad import Node, Saved, is_recording, record
from ...kernels.elementwise import formula
from ...kernels.elementwise.formula import Expr
from ...kernels.elementwise.partials import check_differentiable, times, vjp
from ...scalars import PYTHON, plain
from ...tape.anomaly import WATCH, inspect_forward
from ...tensor import Tensor
from .launch import MapKernel, check_number
from .table import REALS, Domain, Entry, refuse, register


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
        defaults: dict[str, Any] | None = None,
        floats: bool = False,
    ) -> None:
        self.name = self.__name__ = name
        self._defaults = defaults or {}
        self.operands = tuple(names)  # as the author called them
        # inside, operands are x0, x1 …: a formula may call one of its own `y` or `g`
        self.names = tuple(f"x{i}" for i in range(len(names)))
        self.expr = formula.substitute(expr, {n: formula.variable(x) for n, x in zip(names, self.names, strict=True)})
        self.result = result
        self._floats = floats or result == "float"  # computed in a floating dtype, whatever the operands are
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

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        # this is on the path of every small op: one pass over the operands, one look-up
        kinds = tuple([a.dtype if isinstance(a, Tensor) else a.__class__ for a in args])
        known = self._types.get(kinds)
        if known is not None and not keywords:
            return self._apply(args, *known)
        if keywords or len(args) < len(self.names):
            return self(*self._complete(args, keywords))
        return self._first_call(args)

    def _complete(self, args: Sequence[Any], keywords: dict[str, Any]) -> list[Any]:
        """All operands in order: given by place or by name, or left at their defaults."""
        given = dict(zip(self.operands, args, strict=False))
        unknown = [name for name in keywords if name in given or name not in self.operands]
        given = {**self._defaults, **given, **keywords}
        if unknown or len(args) > len(self.names) or len(given) < len(self.names):
            named = "".join(f", {name}=" for name in keywords)
            raise TypeError(f"{self.name}: takes {', '.join(self.operands)}; got {len(args)} operands{named}")
        return [given[name] for name in self.operands]

    def _first_call(self, args: Sequence[Any]) -> Any:
        """A call with operands of kinds not met before: expressions, NumPy scalars, mistakes, or new dtypes."""
        if len(args) != len(self.names):
            raise TypeError(f"{self.name}: takes {', '.join(self.operands)}; got {len(args)} operands")
        if any(isinstance(a, Expr) for a in args):
            given = {n: formula.as_expr(a) for n, a in zip(self.names, args, strict=True)}
            return formula.substitute(self.expr, given)
        values = [a if isinstance(a, Tensor) else self._number(a) for a in args]
        kinds = tuple([v.dtype if isinstance(v, Tensor) else v.__class__ for v in values])
        out, compute = self._infer(kinds, values)
        self._types[kinds] = ((out,), compute)
        return self._apply(values, (out,), compute)

    def _number(self, value: Any) -> bool | int | float:
        number = plain(value)
        if isinstance(number, PYTHON):
            return number
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
                    raise self._undefined(kind, kinds)
                common = kind if common is None else dtypes.promote(common, kind)
        if common is None:  # every tensor is a truth value: numbers alone decide
            common = dtypes.bool_
        for v, truth in zip(values, self._truth_flags, strict=True):
            if not truth and not isinstance(v, Tensor):
                common = dtypes.promote_scalar(common, v)
        if self._floats and not common.is_floating:
            common = dtypes.default_float
        if common not in self.accepts:  # a number made it so: an integer tensor with 1.5
            raise self._undefined(common, kinds)
        compute = common if common.kind == "bool" else common.accumulator
        return (dtypes.bool_ if self.result == "bool" else common), compute

    def _undefined(self, dtype: DType, kinds: tuple[Any, ...]) -> DTypeError:
        bits = dtype.is_floating and dtypes.bool_ in kinds and formula.needs_integers(self.expr)
        cure = "; & | ^ ~ work on bits: of a bool operand m write (m != 0), for ~m write (m == 0)" if bits else ""
        return DTypeError(f"{self.name}: not defined for {dtype.name}{cure}")

    def _apply(self, values: Sequence[Any], out: tuple[DType], compute: DType) -> Tensor:
        inputs = [v if isinstance(v, Tensor) else check_number(v, compute, self.name) for v in values]
        y = self._kernel(inputs, out, compute)[0]
        for v in inputs:
            if isinstance(v, Tensor) and v.requires_grad and out[0].is_floating and is_recording():
                self._record(values, y, compute)
                break
        if WATCH.open:
            inspect_forward(self.name, values, (y,))
        return y

    def _record(self, values: Sequence[Any], y: Tensor, compute: DType) -> None:
        tensors = [v if isinstance(v, Tensor) and v.dtype.is_floating else None for v in values]
        if self.non_differentiable:
            refuse(self.name, tensors, y, self.non_differentiable)
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
                parts = tuple(self._partials(formula.variable("y"), *xs))
                if len(parts) != len(xs):
                    raise ConfigError(f"{self.name}: partials gave {len(parts)} derivatives for {len(xs)} operands")
                expr = times(gradient, formula.as_expr(parts[i]))
            else:
                expr = vjp(self.expr, gradient, [xs[i]])[0]
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


_ADDED = MapKernel("accumulate", ("x0", "x1"), (formula.variable("x0") + formula.variable("x1"),))


def add_into(total: Tensor, part: Tensor) -> bool:
    """total += part, rounded as `total + part` is; False where that cannot be done in place."""
    if total.dtype is not part.dtype or total.shape != part.shape or not total.is_contiguous:
        return False
    if total.device != part.device:
        return False
    _ADDED((total, part), (total.dtype,), total.dtype.accumulator, into=(total,))
    return True


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
    promoted dtype), "float" (integers give float32, as they do wherever a part of the formula needs a floating dtype:
    see `fuse`) or "bool". truths: operands used as truth values. A default of
    the function's parameter, a number, is the operand's.
    partials: (y, *operands) → partial derivatives, where a cheaper or more stable form than the derived one exists.
    """

    def decorate(function: Callable[..., Any]) -> Elementwise:
        names, defaults = _operands(function, "elementwise")
        if result not in ("same", "float", "bool"):
            raise ConfigError(f'{function.__name__}: result must be "same", "float" or "bool", got {result!r}')
        if isinstance(truths, str) or not set(truths) <= set(names):
            raise ConfigError(f"{function.__name__}: truths={truths!r} must list names of its operands {names}")
        expr = _traced(function, names, function.__name__)
        if not non_differentiable:
            check_differentiable(expr, function.__name__)
        op = Elementwise(
            function.__name__,
            names,
            expr,
            result=result,
            truths=truths,
            partials=partials,
            non_differentiable=non_differentiable,
            accepts=accepts,
            floats=formula.needs_floats(expr),
            defaults=defaults,
        )
        doc = inspect.getdoc(function) or ""
        op.__doc__ = doc
        domains = domain if isinstance(domain, tuple) else (domain,) * len(names)
        tested = accepts if test_dtypes is None else test_dtypes
        if op._floats:
            tested = tuple(d for d in tested if d.is_floating or d in (dtypes.int32, dtypes.uint8))
        entry = Entry(
            function.__name__, "elementwise", doc, op, reference, domains, (), ulps, tested,
            non_differentiable, names, cancels=cancels,
        )  # fmt: skip
        register(entry, method=names[0] not in truths)
        return op

    return decorate


def _operands(function: Any, op: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names and defaults of a scalar function's operands. Raises DTypeError for what is none."""
    if isinstance(function, Elementwise):
        return function.operands, function._defaults
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # ValueError: a function of C that does not say
        raise DTypeError(f"{op}: expected a Python function of scalars, got {function!r}") from None
    if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters.values()):
        raise DTypeError(f"{op}: the function's operands must be plain parameters, no *args or keywords")
    return tuple(parameters), {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def _traced(function: Callable[..., Any], names: Sequence[str], name: str) -> Expr:
    try:
        return formula.trace(function, names)
    except (TypeError, AttributeError) as error:
        if isinstance(error, DTypeError):
            raise
        reason = f"does more than arithmetic and ops of flame_numba with its operands ({error})"
        raise DTypeError(f"{name}: {reason}") from error


def fuse(function: Callable[..., Any]) -> Elementwise:
    """One kernel for a scalar function made of elementwise ops: `fuse(lambda x, y: silu(x) * y)`.

    All of it is computed in one dtype, a floating one if a part needs it (a float among the numbers, a division, exp
    and the like); a comparison at the end gives bool. `&`, `|`, `^` and `~` are logic between comparisons, and else
    work on the bits of integers (of a bool operand beside floats write `mask != 0`). A default of the function's
    parameter, a number, is the operand's. The derivative is one kernel too. Raises DTypeError if the function does
    anything but arithmetic on its operands.
    """
    names, defaults = _operands(function, "fuse")
    given = getattr(function, "__name__", "")
    name = given if given.isidentifier() else "fused"
    expr = _traced(function, names, name)
    floats, bits = formula.needs_floats(expr), formula.needs_integers(expr)
    if floats and bits:
        raise DTypeError(f"{name}: bits of integers and floating numbers in one formula; cut it in two")
    accepts = (*dtypes.INTEGERS, dtypes.bool_) if bits else dtypes.ALL
    result = "bool" if formula.is_truth(expr) else "same"
    return Elementwise(name, names, expr, result=result, floats=floats, accepts=accepts, defaults=defaults)
