"""Adding a gradient to a tensor's `.grad`, without a copy where nobody else holds its memory."""

from __future__ import annotations

import os
import threading
from typing import Any

from ..references import ONE, references
from ..tensor import Tensor
from .arithmetic import Arithmetic

_GRADIENTS = threading.RLock()  # two threads may add to one leaf's gradient


def _renew_lock() -> None:
    global _GRADIENTS
    _GRADIENTS = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)  # another thread of the parent may have held it


def accumulate(tensor: Tensor, gradient: Tensor, create_graph: bool, arithmetic: Arithmetic) -> Tensor:
    """Add to `.grad`; what was added.

    A first gradient's memory is kept if one tensor alone holds it, and copied otherwise, as is a broadcast view: users
    may change `.grad` in place. Later ones are added into that memory if nobody else has got hold of `.grad` since. So
    gradients never share memory that is written to.
    `.grad` is a tensor of its own over the memory: one that is on its way to a second leaf counts as a holder there.
    """
    with _GRADIENTS:
        if tensor._grad is None:
            alone = not create_graph and references(getattr, gradient, "storage") <= ONE
            keeps = alone and not _is_broadcast(gradient)
            gradient = gradient.detach() if keeps else arithmetic.clone(gradient)
            tensor._grad = gradient
        elif not (not create_graph and _is_ours(tensor) and arithmetic.add_into(tensor._grad, gradient)):
            tensor._grad = arithmetic.add(tensor._grad, gradient)
        return gradient


def _is_broadcast(gradient: Tensor) -> bool:
    strides = gradient.strides
    return 0 in strides and any(s == 0 and n > 1 for n, s in zip(gradient.shape, strides, strict=True))


def _is_ours(tensor: Any) -> bool:
    return references(getattr, tensor, "_grad") == ONE and references(getattr, tensor._grad, "storage") == ONE
