"""Functions that see gradients as they pass: hooks of tensors, and `retain_grad`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

from ..errors import DTypeError, GradientError, ShapeError
from ..tensor import Tensor, add_methods
from .modes import is_recording

_NUMBERS = itertools.count()
_LEAVES = [0]  # hooks of leaves registered and not removed: without any, the engine need not count edges


class Hooks:
    """Of one node, port or leaf. before: see the gradient, and may replace it. after: see the leaf with its `.grad`."""

    __slots__ = ("after", "before", "retained")

    def __init__(self) -> None:
        self.before: dict[int, Callable[[Tensor], Tensor | None]] = {}
        self.after: dict[int, Callable[[Tensor], None]] = {}
        self.retained: ReferenceType[Tensor] | None = None

    def apply(self, gradient: Tensor) -> Tensor:
        """The gradient after all hooks."""
        if not self.before:
            return gradient
        for function in list(self.before.values()):
            result = function(gradient)
            if result is not None:
                _check(result, gradient)
                gradient = result
        # a function may have kept what it saw or returned: a tensor of our own shows that its memory has two holders
        return gradient if is_recording() else gradient.detach()


class Handle:
    """A registered hook. `remove()` takes it away; as a context manager, at the end of the block."""

    def __init__(self, hooks: dict[int, Any], function: Callable[..., Any], leaf: bool) -> None:
        self._hooks, self._number, self._leaf = hooks, next(_NUMBERS), leaf
        hooks[self._number] = function
        _LEAVES[0] += leaf

    def remove(self) -> None:
        """Take the hook away; nothing happens the second time."""
        if self._hooks.pop(self._number, None) is not None:
            _LEAVES[0] -= self._leaf

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def leaves_have_hooks() -> bool:
    """Whether any leaf may have one."""
    return _LEAVES[0] > 0


def _check(result: Any, gradient: Tensor) -> None:
    if not isinstance(result, Tensor):
        raise GradientError(f"hook: it returned {type(result).__name__}; return a tensor, or None to change nothing")
    if result.shape != gradient.shape:
        raise ShapeError(f"hook: it returned shape {result.shape} for a gradient of shape {gradient.shape}")
    if result.dtype is not gradient.dtype:
        raise DTypeError(f"hook: it returned {result.dtype.name} for a gradient of {gradient.dtype.name}")


def _hooks_for(tensor: Tensor, op: str, function: Any) -> Hooks:
    if not callable(function):
        raise DTypeError(f"{op}: expected a function of a tensor, got {function!r}")
    return _hooks(tensor, op)


def _hooks(tensor: Tensor, op: str) -> Hooks:
    if not tensor.requires_grad:
        raise GradientError(f"{op}: the tensor does not require a gradient")
    owner: Any = tensor if tensor.node is None else tensor.node
    if owner.hooks is None:
        owner.hooks = Hooks()
    hooks: Hooks = owner.hooks
    return hooks


def register_hook(tensor: Tensor, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call `function(gradient)` once in each backward pass, with the whole gradient of this tensor.

    What it returns, if not None, goes on in its place. Raises GradientError if the tensor requires no gradient.
    """
    return Handle(_hooks_for(tensor, "register_hook", function).before, function, leaf=tensor.node is None)


def register_post_accumulate_grad_hook(tensor: Tensor, function: Callable[[Tensor], None]) -> Handle:
    """Call `function(tensor)` when a backward pass has added to the `.grad` of this leaf, as early as it can.

    It may use the gradient up and set `.grad` to None. Raises GradientError for a tensor that is no leaf.
    """
    if tensor.node is not None:
        raise GradientError("register_post_accumulate_grad_hook: only a leaf accumulates; use register_hook()")
    return Handle(_hooks_for(tensor, "register_post_accumulate_grad_hook", function).after, function, leaf=True)


def retain_grad(tensor: Tensor) -> Tensor:
    """Have backward passes fill `.grad` of a tensor that an op made, as if it were a leaf. Returns the tensor."""
    hooks = _hooks(tensor, "retain_grad")
    if tensor.node is not None:
        hooks.retained = ref(tensor)
    return tensor


def follow_change(tensor: Tensor, before: Any) -> None:
    """Have `retain_grad` mean the new value of a tensor that changed in place; `before` is the old value's node.

    Functions that were registered stay with the value that they were registered for.
    """
    hooks = None if before is None else before.hooks
    if hooks is not None and hooks.retained is not None and hooks.retained() is tensor:
        hooks.retained = None
        if tensor.requires_grad:
            retain_grad(tensor)


def detach_(tensor: Tensor) -> Tensor:
    """Take this tensor itself out of the graph: it becomes a leaf that requires no gradient. Returns it."""
    tensor.node, tensor.requires_grad, tensor.hooks = None, False, None
    return tensor


add_methods({f.__name__: f for f in (register_hook, register_post_accumulate_grad_hook, retain_grad, detach_)})
