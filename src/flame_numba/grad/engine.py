"""The sweep over a graph: `backward` and `grad`."""

from __future__ import annotations

import heapq
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, GradientError
from ..pool import memory_tag
from ..tensor import Tensor, check_gradient
from .anomaly import inspect_backward, unwatched, watching
from .graph import Edge, ManyNode, Node, Port, edge_of
from .hooks import leaves_have_hooks
from .modes import Mode
from .replay import forgetting

AddInto = Callable[[Tensor, Tensor], bool]
_add_into: AddInto = lambda total, part: False  # noqa: E731 - the ops give a better one
_GRADIENTS = threading.RLock()  # two threads may add to one leaf's gradient


def _renew_lock() -> None:
    global _GRADIENTS
    _GRADIENTS = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)  # another thread of the parent may have held it


def accumulate_with(add_into: AddInto) -> None:
    """Say how to add one tensor into another: `add_into(total, part)`, False if it cannot be done in place."""
    global _add_into
    _add_into = add_into


class GradientMap(Mapping[Tensor, Tensor]):
    """Gradients by tensor (by identity, not by value): `grads[w]`."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Tensor, Tensor]] = {}

    def _put(self, tensor: Tensor, gradient: Tensor) -> None:
        self._items[id(tensor)] = (tensor, gradient)

    def __getitem__(self, tensor: Tensor) -> Tensor:
        try:
            return self._items[id(tensor)][1]
        except KeyError:
            if not isinstance(tensor, Tensor):
                raise KeyError(f"gradients are by tensor, not by {tensor!r}") from None
            raise KeyError(f"no gradient reached this tensor of shape {tensor.shape}") from None

    __eq__ = object.__eq__  # the mapping's own would compare tensors element by element
    __hash__ = object.__hash__

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._items

    def __iter__(self) -> Iterator[Tensor]:
        return (tensor for tensor, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"GradientMap({len(self)} tensors)"


def _seed(op: str, output: Tensor, gradient: Tensor | None, create_graph: bool) -> Tensor:
    if not output.requires_grad:
        raise GradientError(f"{op}: the tensor does not require a gradient, so nothing was recorded for it")
    if gradient is None:
        if output.numel != 1:
            raise GradientError(f"{op}: pass gradient= for an output of shape {output.shape} (only scalars have 1)")
        ones: Tensor = output.detach().ones_like()
        return ones
    check_gradient(op, gradient, output)
    return gradient if create_graph else gradient.detach()  # of our own: it shows that the caller holds its memory


class _Routes:
    """What a look over the graph tells before the sweep: which nodes lead to the wanted edges, and how many edges
    of those nodes end in each leaf."""

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


class _Sweep:
    """One backward pass. `found`: gradients by id of edge, of all leaves (wanted is None) or of the wanted edges."""

    def __init__(
        self, starts: Sequence[Edge], wanted: set[int] | None, create_graph: bool, retain_graph: bool, accumulate: bool
    ) -> None:
        self.wanted, self.create_graph = wanted, create_graph
        self.retain_graph, self.accumulate = retain_graph, accumulate
        # most passes need no look ahead: all nodes are run, and leaves are dealt with at the end
        self.routes = _Routes(starts, wanted) if wanted is not None or leaves_have_hooks() else None
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
        if key in self.own and not self.create_graph and _add_into(total, part):
            return total
        self.own.add(key)
        return total + part

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
        gradient = None  # let go: `_accumulate` counts who holds a gradient's memory
        for key in list(self.found):
            self._finish(key)

    def _step(self, node: Node, gradient: Any) -> None:
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
        if tensor is not None and tensor.node is node and self.accumulate and not named:
            _accumulate(tensor, gradient, self.create_graph)
        return gradient

    def _watched(self, node: Node, gradient: Any) -> Sequence[Tensor | None]:
        with unwatched() as infinities:
            parts = node.backward(gradient)
            inspect_backward(node, gradient if isinstance(node, ManyNode) else (gradient,), parts, infinities)
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
        if self.accumulate:
            gradient = _accumulate(edge, gradient, self.create_graph)
            self.found[key] = (edge, gradient)
            if edge.hooks is not None:
                for function in list(edge.hooks.after.values()):
                    function(edge)


def _sweep(
    op: str, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], wanted: set[int] | None,
    create_graph: bool, retain_graph: bool, accumulate: bool,
) -> dict[int, tuple[Edge, Tensor]]:  # fmt: skip
    """Gradients by id of edge: of all leaves (wanted is None), or of the wanted edges."""
    with Mode(create_graph), memory_tag("gradients"), forgetting(retain_graph):
        starts = [edge_of(output) for output in outputs]
        sweep = _Sweep(starts, wanted, create_graph, retain_graph, accumulate)
        for edge, output, gradient in zip(starts, outputs, gradients, strict=True):
            sweep.send(edge, _seed(op, output, gradient, create_graph))
        sweep.run()
    return sweep.found


class _Slot:
    __slots__ = ("held",)
    held: object


def _references(slot: Any, name: str) -> int:
    return sys.getrefcount(getattr(slot, name))


_slot = _Slot()
_slot.held = object()
_ALONE = _references(_slot, "held")  # what an object that only one attribute holds has


def _accumulate(tensor: Tensor, gradient: Tensor, create_graph: bool) -> Tensor:
    """Add to `.grad`; what was added.

    A first gradient's memory is kept if one tensor alone holds it, and copied otherwise, as is a broadcast view: users
    may change `.grad` in place. Later ones are added into that memory if nobody else has got hold of `.grad` since. So
    gradients never share memory that is written to.
    `.grad` is a tensor of its own over the memory: one that is on its way to a second leaf counts as a holder there.
    """
    with _GRADIENTS:
        if tensor._grad is None:
            alone = not create_graph and _references(gradient, "storage") <= _ALONE
            gradient = gradient.detach() if alone and not _is_broadcast(gradient) else gradient.clone()
            tensor._grad = gradient
        elif not (not create_graph and _is_ours(tensor) and _add_into(tensor._grad, gradient)):
            tensor._grad = tensor._grad + gradient
        return gradient


def _is_broadcast(gradient: Tensor) -> bool:
    strides = gradient.strides
    return 0 in strides and any(s == 0 and n > 1 for n, s in zip(gradient.shape, strides, strict=True))


def _is_ours(tensor: Any) -> bool:
    return _references(tensor, "_grad") == _ALONE and _references(tensor._grad, "storage") == _ALONE


def backward(
    output: Tensor, gradient: Tensor | None = None, *, retain_graph: bool | None = None, create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> GradientMap:  # fmt: skip
    """Add to `.grad` of every leaf that `output` depends on, and return this call's gradients.

    gradient: d(result)/d(output), of the output's shape; 1 for a scalar. inputs: the only tensors to do it for, leaves
    or not. create_graph records the backward pass, so that gradients can be differentiated again; retain_graph
    (default: create_graph) keeps the graph for another backward; else it is freed as the pass goes on. Raises
    GradientError if nothing was recorded, the graph was freed, or a saved tensor was changed: then no `.grad` has
    changed (unless a hook waits for it), and the pass can be repeated if the graph was to be retained.
    """
    keep = _keeps("backward", retain_graph, create_graph)
    if inputs is None:
        found = _sweep("backward", [output], [gradient], None, create_graph, keep, True)
        return _as_map((edge, g) for edge, g in found.values())
    ins = {id(x): x for x in _tensors("backward", "inputs", inputs)}.values()  # one that is named twice counts once
    for i, x in enumerate(ins):
        if not x.requires_grad:
            raise GradientError(f"backward: input {i} does not require a gradient")
    found = _sweep("backward", [output], [gradient], {id(edge_of(x)) for x in ins}, create_graph, keep, True)
    reached = [(x, found[id(edge_of(x))][1]) for x in ins if id(edge_of(x)) in found]
    with Mode(create_graph):
        return _as_map((x, g if x.node is None else _accumulate(x, g, create_graph)) for x, g in reached)


def _as_map(pairs: Any) -> GradientMap:
    result = GradientMap()
    for tensor, gradient in pairs:
        result._put(tensor, gradient)
    return result


def _keeps(op: str, retain_graph: Any, create_graph: Any) -> bool:
    """Whether the graph is kept. Raises DTypeError for what is no bool: a name would count as True."""
    for name, value in (("retain_graph", retain_graph), ("create_graph", create_graph)):
        if not isinstance(value, (bool, np.bool_)) and not (value is None and name == "retain_graph"):
            raise DTypeError(f"{op}: {name} must be True or False, got {value!r}")
    return bool(create_graph if retain_graph is None else retain_graph)


def _tensors(op: str, name: str, given: Any) -> tuple[Tensor, ...]:
    """A tensor or a sequence of tensors, as a tuple. Raises DTypeError for anything else."""
    if isinstance(given, Tensor):
        return (given,)
    items = tuple(given) if isinstance(given, Iterable) else (given,)
    for x in items:
        if not isinstance(x, Tensor):
            raise DTypeError(f"{op}: {name} must be a tensor or a sequence of tensors, got {type(x).__name__}")
    return items


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    gradients: Tensor | Sequence[Tensor | None] | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of `outputs` with respect to `inputs` (leaves or not); `.grad` is left alone.

    gradients: what to weight the outputs with (1 for scalars). Only the part of the graph that leads to the inputs is
    run. Raises GradientError for an input that no output depends on, unless allow_unused (then None stands there).
    """
    outs, ins = _tensors("grad", "outputs", outputs), _tensors("grad", "inputs", inputs)
    keep = _keeps("grad", retain_graph, create_graph)
    given = (None,) * len(outs) if gradients is None else gradients
    seeds = given if isinstance(given, Sequence) else (given,)
    if len(seeds) != len(outs):
        raise GradientError(f"grad: {len(seeds)} gradients for {len(outs)} outputs")
    edges = [id(edge_of(x)) for x in ins]
    found = _sweep("grad", outs, seeds, set(edges), create_graph, keep, False)
    missing = [x.shape for x, edge in zip(ins, edges, strict=True) if edge not in found]
    if missing and not allow_unused:
        raise GradientError(f"grad: no output depends on the inputs of shapes {missing}; pass allow_unused=True")
    return tuple(found[edge][1] if edge in found else None for edge in edges)
