"""What a change in place must ask first: of dtype, shape and memory, and of the graph.

The rule for the graph: a tensor that a recorded op changes becomes the result of that op, and the value before is
its operand. That is right only if nobody else sees the change. So the tensor must not be a leaf that requires a
gradient (its gradient could go nowhere), and no other living tensor, recorded or not, may share its memory (it would
hold the new value, but the graph would know the old one for it). References to the storage are counted to know that:
each tensor over it holds one. Everything else raises `GradientError`, and says to clone. What was saved of the old
value for a backward pass raises there, by its version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...dtypes import DType
from ...errors import DTypeError, GradientError, ShapeError, ShareError
from ...grad import Saved, follow_change, is_recomputing, is_recording
from ...interop.foreign import ForeignBlock
from ...references import ONE, references
from ...scalars import plain
from ...shapes import Shape, broadcast, span
from ...tensor import Tensor
from .copies import copied
from .launch import check_element

_RANKS = {"bool": 0, "uint": 1, "int": 1, "float": 2}


def check_kind(op: str, target: DType, source: DType) -> None:
    """Raises DTypeError if a cast would lose more than precision or range: float to integer, number to bool."""
    if _RANKS[source.kind] > _RANKS[target.kind]:
        raise DTypeError(f"{op}: {source.name} does not go into a tensor of {target.name}; cast it with to_dtype()")


def check_number_kind(op: str, target: DType, value: Any) -> Any:
    """`check_kind` for a number, as a Python number. Raises DTypeError also where it is out of the dtype's range."""
    if value.__class__ is float and target.kind == "float":  # nothing to ask: a fill is on the path of loops
        return value
    value = plain(value)
    rank = 0 if isinstance(value, bool) else 1 if isinstance(value, int) else 2
    if rank > _RANKS[target.kind] and hasattr(value, "__float__"):
        raise DTypeError(f"{op}: the number {value!r} does not go into a tensor of {target.name}")
    check_element(value, target, op)
    return value


def check_grows(op: str, target: Shape, shapes: Sequence[Shape]) -> None:
    """Raises ShapeError unless all shapes broadcast to the target's."""
    if broadcast([target, *shapes], op) != target:
        raise ShapeError(f"{op}: operands of shapes {', '.join(map(str, shapes))} do not broadcast into {target}")


def overlaps_itself(x: Tensor) -> bool:
    """Whether elements may share memory: axes, from the smallest stride on, must step over all smaller ones."""
    if x.is_contiguous:
        return False
    reach = 0
    for stride, n in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride <= reach:
            return x.numel > 0
        reach += stride * (n - 1)
    return False


def check_target(op: str, x: Tensor) -> None:
    """Raises ShapeError if elements of x share memory: what they would hold is not defined. ShareError if read-only."""
    if x.storage.read_only:
        raise ShareError(f"{op}: the tensor shows memory of another library that must not be changed; clone() it first")
    if overlaps_itself(x):
        raise ShapeError(
            f"{op}: the tensor is a broadcast or overlapping view, whose elements share memory "
            f"(shape {x.shape}, strides {x.strides}); clone() it first"
        )


def check_unrecorded(op: str, x: Tensor) -> None:
    """Raises `check_target`'s errors, and GradientError if a change of x, which is not recorded, would have to be."""
    check_target(op, x)
    if is_recording() and x.requires_grad:
        raise GradientError(
            f"{op}: the tensor requires a gradient, and this change is not recorded; pass a detach(), or do it under "
            f"no_grad()"
        )


def _reach(x: Tensor) -> tuple[int, int]:
    """First and last element of the storage that x sees. No axis is empty."""
    low, high = span(x.shape, x.strides)
    return x.offset + low, x.offset + high


def apart(x: Tensor, operand: Any, same_is_fine: bool = False) -> Any:
    """The operand outside the graph, copied if it shares memory with x that a kernel would write before reading.

    same_is_fine: each element of x is written by the thread that read the same element of the operand.
    """
    if not isinstance(operand, Tensor) or operand.storage is not x.storage:
        return operand
    source = operand.detach()
    if not x.numel or not operand.numel:
        return source
    if same_is_fine and (x.shape, x.strides, x.offset) == (operand.shape, operand.strides, operand.offset):
        return source
    (a, b), (c, d) = _reach(x), _reach(operand)
    return source if b < c or d < a else copied(source)


def is_recorded(x: Tensor, operands: Sequence[Any]) -> bool:
    """Whether a change of x by these operands belongs into the graph."""
    if not is_recording():
        return False
    return x.requires_grad or any(isinstance(o, Tensor) and o.requires_grad for o in operands)


def check_recordable(op: str, x: Tensor) -> None:
    """Raises GradientError unless x can become the result of a recorded op; see the top of this file."""
    if x.requires_grad and x.node is None:
        raise GradientError(
            f"{op}: a leaf that requires a gradient cannot be changed in place while recording; "
            f"do it under no_grad(), or on a clone()"
        )
    if not x.dtype.is_floating:
        raise DTypeError(f"{op}: a value with a gradient does not go into a tensor of {x.dtype.name}")
    if isinstance(x.storage.block, ForeignBlock):
        raise GradientError(
            f"{op}: another library shares the memory of this tensor, and a recorded change goes to new memory, where "
            f"it would not see it; clone() it first, or change it under no_grad()"
        )
    if references(getattr, x, "storage") > ONE and not is_recomputing():  # then the first run was asked
        raise GradientError(
            f"{op}: another tensor shares memory with this one (it is a view, or has views, or its value was saved "
            f"for a gradient), so the change cannot be recorded; clone() it first (for x[key] += v write "
            f"x[key] = x[key] + v)"
        )


def record_change(op: str, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Change x by a recorded op: `compute` of the old value becomes the value, and the history, of x. Returns x."""
    check_recordable(op, x)
    old = x.alias(x.shape, x.strides, x.offset)
    old.node, old.requires_grad = x.node, x.requires_grad
    version = x.storage.version
    y = compute(old)
    check_kind(op, x.dtype, y.dtype)
    if y.shape != x.shape:
        raise ShapeError(f"{op}: the result of shape {y.shape} does not fit the tensor of shape {x.shape}")
    if y.dtype is not x.dtype:
        y = y.to_dtype(x.dtype)
    _become(x, y, version + 1)
    return x


def _become(x: Tensor, y: Tensor, version: int) -> None:
    """x takes over memory and history of y. What was saved of x before is found changed, what y's node saved is not."""
    node, before = y.node, x.node
    x.storage, x.strides, x.offset, x._contiguous = y.storage, y.strides, y.offset, None
    x.node, x.requires_grad = node, y.requires_grad
    follow_change(x, before)
    y.storage.version = version
    for saved in (node.saved or {}).values() if node is not None else ():
        if isinstance(saved, Saved) and saved.index >= 0:  # the result itself
            saved.version = version
