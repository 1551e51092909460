"""The sweep over a graph: from the youngest node to the oldest, adding up gradients on the way."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from ..tensor import Tensor
from .accumulate import accumulate
from .anomaly import inspect_backward, unwatched, watching
from .arithmetic import Arithmetic
from .hooks import leaves_have_hooks
from .ports import Edge, Port


class Routes:
    """Which nodes lead to the wanted edges (`leading`, by id), and how many edges of those nodes end in each leaf."""

    def __init__(self, starts: Sequence[Edge], wanted: set[int] | None) -> None:
        nodes: dict[int, Any] = {}
        stack = [edge for edge in starts if not isinstance(edge, Tensor)]
        while stack:
            node = stack.pop()
            if id(node) not in nodes:
                nodes[id(node)] = node
                stack.extend([e for e in node.inputs if e is not None and not isinstance(e, Tensor)])
        self.leading: set[int] = set(nodes)
        if wanted is not None:
            self.leading.clear()
            for node in sorted(nodes.values(), key=lambda n: n.order):
                if any(id(e) in wanted or id(e) in self.leading for e in node.inputs if e is not None):
                    self.leading.add(id(node))
        self.left: dict[int, int] = {}
        for key in self.leading:
            for e in nodes[key].inputs:
                if isinstance(e, Tensor):
                    self.left[id(e)] = self.left.get(id(e), 0) + 1


class Sweep:
    """One backward pass. `found`: gradients by id of edge, of all leaves (wanted is None) or of the wanted edges."""

    def __init__(
        self, starts: Sequence[Edge], wanted: set[int] | None, create_graph: bool, retain_graph: bool, fill: bool,
        arithmetic: Arithmetic,
    ) -> None:  # fmt: skip
        self.wanted, self.create_graph = wanted, create_graph
        self.retain_graph, self.fill = retain_graph, fill  # fill: add to `.grad`
        self.arithmetic = arithmetic
        # most passes need no look ahead: all nodes are run, and leaves are dealt with at the end
        self.routes = Routes(starts, wanted) if wanted is not None or leaves_have_hooks() else None
        self.found: dict[int, tuple[Edge, Tensor]] = {}
        self.done: set[int] = set()  # leaves whose gradient is complete
        self.pending: dict[int, Any] = {}
        self.own: set[int] = set()  # keys of sums made here, which nobody else sees yet
        self.heap: list[tuple[int, Any]] = []
        self.watch = watching()

    def send(self, edge: Edge, gradient: Tensor) -> None:
        """Add a gradient to what an edge has so far."""
        key = id(edge)
        if isinstance(edge, Tensor):
            if edge.requires_grad if self.wanted is None else key in self.wanted:  # it may have been frozen since
                known = self.found.get(key)
                self.found[key] = (edge, gradient if known is None else self._sum(key, known[1], gradient))
        elif key in self.pending:
            self.pending[key] = self._sum(key, self.pending[key], gradient)
        elif self._leads(key):
            heapq.heappush(self.heap, (-edge.order, edge))
            self.pending[key] = gradient

    def _leads(self, key: int) -> bool:
        if self.wanted is None or key in self.wanted:
            return True
        assert self.routes is not None
        return key in self.routes.leading

    def _sum(self, key: int, total: Tensor, part: Tensor) -> Tensor:
        if key in self.own and not self.create_graph and self.arithmetic.add_into(total, part):
            return total
        self.own.add(key)
        return self.arithmetic.add(total, part)

    def run(self) -> None:
        """Take nodes, the youngest first, until none is left."""
        while self.heap:
            _, node = heapq.heappop(self.heap)
            key = id(node)
            gradient = self.pending.pop(key)
            if node.hooks is not None:
                gradient = self._hooked(node, gradient)
            if self.wanted is not None:
                if key in self.wanted:
                    self.found[key] = (node, gradient)
                assert self.routes is not None
                if key not in self.routes.leading:
                    continue
            if node.__class__ is Port:
                self._through(node, gradient)
            else:
                self._step(node, gradient)
        gradient = None  # let go: `accumulate` counts who holds a gradient's memory
        for key in list(self.found):
            self._finish(key)

    def _step(self, node: Any, gradient: Any) -> None:
        parts = self._watched(node, gradient) if self.watch else node.backward(gradient)
        for edge, part in zip(node.inputs, parts, strict=True):
            if edge is not None and part is not None:
                self.send(edge, part)
        if not self.retain_graph:
            node.release()  # now, not at the end: what it saved makes room for the gradients to come
        if self.routes is not None:
            parts = ()
            part = None  # let go, as above
            for edge in node.inputs:
                if isinstance(edge, Tensor):
                    self.routes.left[id(edge)] -= 1
                    if not self.routes.left[id(edge)]:
                        self._finish(id(edge))

    def _through(self, port: Port, gradient: Tensor) -> None:
        """Put the gradient of one result where the node finds those of all."""
        node = port.parent
        parts = self.pending.get(id(node))
        if parts is None:
            parts = self.pending[id(node)] = [None] * node.outputs
            heapq.heappush(self.heap, (-node.order, node))
        parts[port.index] = gradient

    def _hooked(self, node: Any, gradient: Tensor) -> Tensor:
        gradient = node.hooks.apply(gradient)
        tensor = None if node.hooks.retained is None else node.hooks.retained()
        named = self.wanted is not None and id(node) in self.wanted  # then `backward` itself adds to its `.grad`
        if tensor is not None and tensor.node is node and self.fill and not named:
            accumulate(tensor, gradient, self.create_graph, self.arithmetic)
        return gradient

    def _watched(self, node: Any, gradient: Any) -> Sequence[Tensor | None]:
        with unwatched() as infinities:
            parts: Sequence[Tensor | None] = node.backward(gradient)
            inspect_backward(node, gradient if node.outputs is not None else (gradient,), parts, infinities)
        return parts

    def _finish(self, key: int) -> None:
        """A gradient is complete: show it to the leaf's hooks, and add it to `.grad`."""
        if key in self.done or key not in self.found:
            return
        self.done.add(key)
        edge, gradient = self.found[key]
        if not isinstance(edge, Tensor):
            return
        if edge.hooks is not None:
            gradient = edge.hooks.apply(gradient)
            self.found[key] = (edge, gradient)
        if self.fill:
            gradient = accumulate(edge, gradient, self.create_graph, self.arithmetic)
            self.found[key] = (edge, gradient)
            if edge.hooks is not None:
                for function in list(edge.hooks.after.values()):
                    function(edge)
