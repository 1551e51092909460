"""Where gradients go: to the node that made a tensor, to a port of it, or to a leaf."""

from __future__ import annotations

import itertools
from typing import Any

from ..tensor import Tensor

Edge = Any  # the Node or Port that made a tensor, a leaf Tensor, or None for nowhere
COUNTER = itertools.count()  # nodes and ports are numbered as they are made: inputs before outputs


class Port:
    """One of several results of a node, which passes its gradient on to it."""

    __slots__ = ("__weakref__", "hooks", "index", "order", "parent")

    def __init__(self, parent: Any, index: int) -> None:
        self.parent = parent
        self.index = index
        self.hooks: Any = None
        self.order = next(COUNTER)  # younger than its node, older than what the result goes into

    @property
    def name(self) -> str:
        return str(self.parent.name)

    @property
    def inputs(self) -> tuple[Edge, ...]:
        return (self.parent,)


def edge_of(tensor: Tensor) -> Edge:
    """Where a tensor's gradient goes: to the op that made it, or to the leaf itself."""
    node = tensor.node
    return tensor if node is None else node
