"""Gradients of fused kernels that can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...grad import enable_grad, grad
from ...tensor import Tensor
from ..shape.movement import reshape, to_dtype


def again(formula: Callable[..., Tensor], g: Tensor, inputs: list[Tensor | None], **keywords: Any) -> Any:
    """Gradients that can be differentiated again: through the ops that a fused kernel stands for.

    They are computed as in the kernel, in the accumulator of each operand's dtype: a square may be too much for f16.
    """
    with enable_grad():
        # each by itself: of two operands that are one tensor, or made from each other, each has its own part only
        operands = [None if t is None else to_dtype(reshape(t, t.shape), t.dtype.accumulator) for t in inputs]
        y = formula(*operands, **keywords)
        wanted = [t for t in operands if t is not None and t.requires_grad]
        found = iter(grad(y, wanted, [to_dtype(g, y.dtype)], create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in operands if t is not None)
