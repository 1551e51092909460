"""`custom_op`: a differentiable op from two functions of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import DTypeError, GradientError, ShapeError
from .grad import Node, Saved, is_recording, no_grad, record, record_many
from .ops.core.formula_op import sum_to
from .ops.core.table import refuse
from .ops.shape.creation import zeros
from .tape.anomaly import WATCH, inspect_forward
from .tensor import Tensor


class Context:
    """What a custom op's forward tells its backward: saved tensors, and any attribute that it sets.

    needs_input_grad: for each operand, whether a gradient is wanted. materialize_grads: whether backward gets zeros
    (the default) or None for a floating result that no gradient came to.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.materialize_grads = True
        self._given: tuple[Tensor | None, ...] = ()
        self._kept: list[Saved | None] | None = None
        self._without: set[int] = set()

    def save(self, *tensors: Tensor | None) -> None:
        """Keep operands, results or other tensors for `saved`, which raises if one was changed in place since.

        A tensor made inside forward, neither operand nor result, is a constant to a second derivative: save the
        operand and make it again in backward.
        """
        for x in tensors:
            if x is not None and not isinstance(x, Tensor):
                raise DTypeError(f"save: expected tensors, got {type(x).__name__}; set other values as attributes")
        self._given = tensors

    @property
    def saved(self) -> tuple[Any, ...]:
        """What `save` was given. Raises GradientError if one of them was changed in place since."""
        return self._given

    def mark_non_differentiable(self, *results: Tensor) -> None:
        """Say that these results have no gradient. Results that are not floating have none anyway."""
        self._without |= {id(y) for y in results}

    def _keep(self, results: Sequence[Any], recorded: Sequence[Any]) -> None:
        """Turn what was given into `Saved`s, results outside the graph."""
        index = {id(y): i for i, y in enumerate(results)}
        kept: list[Saved | None] = []
        for x in self._given:
            at = None if x is None else index.get(id(x))
            if x is None:
                kept.append(None)
            elif at is not None and recorded[at].node is not None:
                kept.append(Saved(recorded[at], is_output=True, index=at))
            else:
                kept.append(Saved(x))
        self._kept, self._given = kept, ()


class _Running(Context):
    """A context as a backward function sees it. Each pass has its own, as several may run at once."""

    __slots__ = ("_node",)

    def __init__(self, ctx: Context, node: Node) -> None:
        self.__dict__ = ctx.__dict__
        self._node = node

    @property
    def saved(self) -> tuple[Any, ...]:
        if self._kept is None:
            return self._given
        return tuple([None if kept is None else kept.restore(self._node) for kept in self._kept])


class CustomOp:
    """An op from a forward and a backward function. Made by `custom_op`."""

    def __init__(
        self, forward: Callable[..., Any], backward: Callable[..., Any] | None, name: str, once_differentiable: bool
    ) -> None:
        self.name = self.__name__ = name
        self.__doc__ = inspect.getdoc(forward)
        self.__wrapped__ = forward
        self.once_differentiable = once_differentiable
        if not callable(forward):
            raise DTypeError(f"custom_op: forward must be a function, got {forward!r}")
        self._forward, self._backward = forward, None if backward is None else self.backward(backward)
        parameters = inspect.signature(forward).parameters
        if not parameters:
            raise GradientError(f"{name}: forward must take ctx as its first parameter")
        self.__signature__ = inspect.Signature(list(parameters.values())[1:])

    def backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function(ctx, *gradients of the results)` gives the gradients of the operands."""
        if not callable(function):
            raise DTypeError(f"{self.name}: backward must be a function, got {function!r}")
        self._backward = function
        return function

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        operands = self._operands(args, keywords)
        needs = tuple([isinstance(x, Tensor) and x.requires_grad for x in operands])
        ctx = Context(needs)
        versions = [x.storage.version for x, need in zip(operands, needs) if need]
        with no_grad():
            result = self._forward(ctx, *args, **keywords)
        given = result if isinstance(result, tuple) else (result,)
        for y in given:
            if not isinstance(y, Tensor):  # gradients of tensors in it would be lost
                raise DTypeError(
                    f"{self.name}: forward returned a {type(y).__name__}; return a tensor or a tuple of them"
                )
        if WATCH.open:
            inspect_forward(self.name, operands, given)
        if not is_recording() or not any(needs):
            return result
        if versions != [x.storage.version for x, need in zip(operands, needs) if need]:
            raise GradientError(f"{self.name}: forward wrote to an operand that requires a gradient; clone it first")
        results = self._record(ctx, operands, given)
        return results if isinstance(result, tuple) else results[0]

    def _operands(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
        """The values of the positional parameters, in order, defaults included: one gradient belongs to each."""
        try:
            bound = self.__signature__.bind(*args, **keywords)
        except TypeError as error:
            raise TypeError(f"{self.name}: takes {self.__signature__}: {error}") from None
        bound.apply_defaults()
        for name, value in bound.kwargs.items():
            if isinstance(value, Tensor) and value.requires_grad:
                raise GradientError(f"{self.name}: {name} requires a gradient, so it cannot be keyword-only")
        if is_recording() and any(map(_hides_gradient, (*bound.args, *bound.kwargs.values()))):
            raise GradientError(
                f"{self.name}: a tensor inside a list, tuple or dict requires a gradient, which would be lost; "
                "pass it as an operand of its own (forward may take *operands)"
            )
        return bound.args

    def _record(self, ctx: Context, operands: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
        # a result that is an operand, or another tensor of the caller's, must not lose its own place in the graph
        results = tuple(y.detach() for y in given)
        wanted = [
            y if y.dtype.is_floating and id(before) not in ctx._without else None for y, before in zip(results, given)
        ]
        inputs = [x if isinstance(x, Tensor) and x.dtype.is_floating else None for x in operands]
        saved = {
            "ctx": ctx,
            "like": tuple(None if x is None else (x.shape, x.dtype) for x in inputs),
            "results": tuple(_kind(y) for y in results),
        }
        if all(y is None for y in wanted):
            return results
        if len(results) == 1:
            record(self.name, inputs, results[0], self._rule, saved)
        else:
            record_many(self.name, inputs, wanted, self._rule, saved)
        ctx._keep(given, results)
        return results

    def _rule(self, gradient: Any, node: Node) -> Sequence[Tensor | None]:
        if self._backward is None:
            raise GradientError(f"{self.name}: it has no derivative: no backward function was given")
        ctx, kinds = _Running(node.value("ctx"), node), node.value("results")
        given = [gradient] if isinstance(gradient, Tensor) else list(gradient)
        if ctx.materialize_grads:
            given = [_zeros(kind) if g is None else g for g, kind in zip(given, kinds)]
        if is_recording():
            return self._parts_recorded(ctx, given, node)
        # tensors of our own: if the function has kept one, its memory has two holders, and nobody adds into it
        return [None if part is None else part.detach() for part in self._parts(ctx, given, node)]

    def _parts(self, ctx: Context, given: Sequence[Tensor | None], node: Node) -> list[Tensor | None]:
        assert self._backward is not None
        result = self._backward(ctx, *given)
        parts = list(result) if isinstance(result, (tuple, list)) else [result]
        like = node.value("like")
        if len(parts) > len(like):
            raise GradientError(f"{self.name}: backward gave {len(parts)} gradients for {len(like)} operands")
        forgotten = [i for i in range(len(parts), len(like)) if ctx.needs_input_grad[i]]
        if forgotten:
            raise GradientError(f"{self.name}: backward gave {len(parts)} gradients; operand {forgotten[0]} needs one")
        parts += [None] * (len(like) - len(parts))
        return [
            None if part is None or to is None or not need else self._fitted(part, to, i)
            for i, (part, to, need) in enumerate(zip(parts, like, ctx.needs_input_grad))
        ]

    def _parts_recorded(self, ctx: Context, given: list[Tensor | None], node: Node) -> list[Tensor | None]:
        """The gradients, for somebody who will differentiate them again.

        A gradient is linear in those that come in. So with these marked as part of a graph, one that comes out and is
        not was computed outside of it: to differentiate it must raise, or a second derivative would be lost in silence.
        """
        if self.once_differentiable:
            with no_grad():
                parts = self._parts(ctx, given, node)
            reason = "its backward is once_differentiable"
        else:
            given = [_probe(g) for g in given]
            parts = self._parts(ctx, given, node)
            reason = "its backward is not made of recorded ops"
        sources = [x for x in (*given, *ctx.saved) if x is not None]
        return [self._refused(part, sources, reason) for part in parts]

    def _refused(self, part: Tensor | None, sources: Sequence[Tensor], reason: str) -> Tensor | None:
        if part is None or part.requires_grad:
            return part
        result = part.detach()
        refuse(f"{self.name} backward", [x if x.dtype.is_floating else None for x in sources], result, reason)
        return result

    def _fitted(self, part: Any, to: Any, i: int) -> Tensor:
        shape, dtype = to
        where = f"{self.name}: backward's gradient of operand {i}"
        if not isinstance(part, Tensor):
            raise DTypeError(f"{where} is {type(part).__name__}; return a tensor or None")
        if not part.dtype.is_floating:
            raise DTypeError(f"{where} is {part.dtype.name}, expected {dtype.name}")
        lead = part.ndim - len(shape)
        if lead < 0 or any(n not in (1, m) for n, m in zip(shape, part.shape[lead:])):
            raise ShapeError(f"{where} has shape {part.shape}, expected {shape}")
        fitted: Tensor = sum_to(part, shape)
        if fitted.dtype is not dtype:
            fitted = fitted.to_dtype(dtype)
        return fitted

    def __repr__(self) -> str:
        return f"<custom op {self.name}>"


def _hides_gradient(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return any(x.requires_grad if isinstance(x, Tensor) else _hides_gradient(x) for x in items)


def _kind(y: Tensor) -> Any:
    return (y.shape, y.dtype, y.device) if y.dtype.is_floating else None


def _zeros(kind: Any) -> Tensor | None:
    return None if kind is None else zeros(kind[0], dtype=kind[1], device=kind[2])


def _probe(gradient: Tensor | None) -> Tensor | None:
    """The gradient as part of a graph: itself, or a twin that an op without operands made."""
    if gradient is None or gradient.requires_grad:
        return gradient
    result = gradient.detach()
    record("gradient", (), result, lambda g, node: (), {})
    return result


def custom_op(
    forward: Callable[..., Any] | None = None, backward: Callable[..., Any] | None = None, *,
    name: str | None = None, once_differentiable: bool = False,
) -> Any:  # fmt: skip
    """A differentiable op: `forward(ctx, *operands)` computes, `backward(ctx, *gradients)` gives operands' gradients.

    Both may launch kernels. forward runs unrecorded, returns a tensor or a tuple, and says by `ctx.save(...)` what
    `ctx.saved` shall hold in backward, which returns one gradient for each operand (None where there is none; missing
    ones at the end count as None). A backward made of ops can be differentiated again; one that is not raises
    GradientError when somebody does, as it does with once_differentiable=True. Also a decorator of the forward
    function, whose result's `.backward` decorates the other one.
    """
    if forward is None:
        return lambda function: custom_op(function, backward, name=name, once_differentiable=once_differentiable)
    return CustomOp(forward, backward, name or str(getattr(forward, "__name__", "custom_op")), once_differentiable)
