"""Reverse-mode differentiation: nodes that ops leave behind, and the sweep over them.

A node belongs to the tensor that it made, and holds what it was made from; a graph lives as long as its outputs.
Nothing here knows an op by name, and nothing is global but the switch of `no_grad`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .errors import GradientError, ShapeError
from .pool import memory_tag
from .tensor import Tensor

_RECORDING: ContextVar[bool] = ContextVar("flame_numba_recording", default=True)
_COUNTER = itertools.count()

Edge = Any  # where an input's gradient goes: the Node that made it, a leaf Tensor, or None for nowhere
Rule = Callable[[Tensor, "Node"], Sequence[Tensor | None]]


@contextmanager
def _recording(value: bool) -> Iterator[None]:
    token = _RECORDING.set(value)
    try:
        yield
    finally:
        _RECORDING.reset(token)


def no_grad() -> Any:
    """`with no_grad():` ops leave no nodes, in this thread or task. Also a decorator."""
    return _recording(False)


def enable_grad() -> Any:
    """`with enable_grad():` ops leave nodes again, inside `no_grad`."""
    return _recording(True)


def is_recording() -> bool:
    return _RECORDING.get()


class Saved:
    """A tensor kept for the backward pass, and the version its storage had then."""

    __slots__ = ("is_output", "tensor", "version")

    def __init__(self, tensor: Tensor, is_output: bool = False) -> None:
        # an output is kept outside the graph: it would own the node that owns it, and never be freed
        self.tensor = tensor.detach() if is_output else tensor
        self.version = tensor.storage.version
        self.is_output = is_output

    def restore(self, node: Node) -> Tensor:
        if self.tensor.storage.version != self.version:
            raise GradientError(
                f"{node.name}: a tensor of shape {self.tensor.shape} that its gradient needs was changed in place "
                f"(version {self.version} → {self.tensor.storage.version}); clone it before changing it"
            )
        if not self.is_output:
            return self.tensor
        result = self.tensor.detach()
        result.node, result.requires_grad = node, True
        return result


class Node:
    """One recorded op: its inputs, what it saved, and the rule that turns its gradient into theirs."""

    __slots__ = ("__weakref__", "inputs", "name", "order", "rule", "saved")

    def __init__(self, name: str, inputs: tuple[Edge, ...], rule: Rule, saved: dict[str, Any]) -> None:
        self.name = name
        self.inputs = inputs
        self.rule: Rule | None = rule
        self.saved: dict[str, Any] | None = saved
        self.order = next(_COUNTER)  # inputs are made before outputs: descending order is topological

    def value(self, name: str) -> Any:
        """What the op saved under this name; a tensor is checked for changes since."""
        if self.saved is None:
            raise GradientError(f"{self.name}: its graph was freed by an earlier backward(); pass retain_graph=True")
        value = self.saved[name]
        return value.restore(self) if isinstance(value, Saved) else value

    def backward(self, gradient: Tensor) -> Sequence[Tensor | None]:
        if self.rule is None or self.saved is None:
            raise GradientError(f"{self.name}: its graph was freed by an earlier backward(); pass retain_graph=True")
        return self.rule(gradient, self)

    def release(self) -> None:
        self.rule = None
        self.saved = None


def record(name: str, inputs: Sequence[Tensor | None], output: Tensor, rule: Rule, saved: dict[str, Any]) -> None:
    """Make `output` a result of `inputs` (None for one without a gradient) in the graph."""
    edges = tuple(None if x is None or not x.requires_grad else _edge(x) for x in inputs)
    output.node = Node(name, edges, rule, saved)
    output.requires_grad = True


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
            raise KeyError(f"no gradient reached this tensor of shape {tensor.shape}") from None

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._items

    def __iter__(self) -> Iterator[Tensor]:
        return (tensor for tensor, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"GradientMap({len(self)} tensors)"


def _seed(output: Tensor, gradient: Tensor | None) -> Tensor:
    if not output.requires_grad:
        raise GradientError("backward: the tensor does not require a gradient, so nothing was recorded for it")
    if gradient is None:
        if output.numel != 1:
            raise GradientError(f"backward: pass gradient= for an output of shape {output.shape} (only scalars have 1)")
        return output.detach().ones_like()
    if gradient.shape != output.shape:
        raise ShapeError(f"backward: gradient {gradient.shape} must have the output's shape {output.shape}")
    return gradient


def _edge(tensor: Tensor) -> Node | Tensor:
    """Where a tensor's gradient goes: to the op that made it, or to the leaf itself."""
    node: Node | None = tensor.node
    return tensor if node is None else node


def _sweep(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    wanted: set[int] | None,
    create_graph: bool,
    retain_graph: bool,
) -> dict[int, tuple[Node | Tensor, Tensor]]:
    """Gradients by id of edge: of all leaves (wanted is None), or of the wanted edges."""
    found: dict[int, tuple[Node | Tensor, Tensor]] = {}
    pending: dict[int, Tensor] = {}
    heap: list[tuple[int, Node]] = []
    finished: list[Node] = []

    def send(edge: Node | Tensor, gradient: Tensor) -> None:
        key = id(edge)
        if isinstance(edge, Tensor):
            if wanted is None or key in wanted:
                known = found.get(key)
                found[key] = (edge, gradient if known is None else known[1] + gradient)
        elif key in pending:
            pending[key] = pending[key] + gradient
        else:
            heapq.heappush(heap, (-edge.order, edge))
            pending[key] = gradient

    with _recording(create_graph), memory_tag("gradients"):
        for output, gradient in zip(outputs, gradients, strict=True):
            send(_edge(output), _seed(output, gradient))
        while heap:
            _, node = heapq.heappop(heap)
            gradient = pending.pop(id(node))
            if wanted is not None and id(node) in wanted:
                found[id(node)] = (node, gradient)
            for edge, part in zip(node.inputs, node.backward(gradient), strict=True):
                if edge is not None and part is not None:
                    send(edge, part)
            finished.append(node)
    if not retain_graph:
        for node in finished:
            node.release()
    return found


def backward(
    output: Tensor, gradient: Tensor | None = None, *, retain_graph: bool | None = None, create_graph: bool = False
) -> GradientMap:
    """Add to `.grad` of every leaf that `output` depends on, and return this call's gradients.

    gradient: d(result)/d(output), of the output's shape; 1 for a scalar. create_graph records the backward pass, so
    that gradients can be differentiated again; retain_graph (default: create_graph) keeps the graph for another
    backward. Raises GradientError if nothing was recorded, the graph was freed, or a saved tensor was changed.
    """
    keep = create_graph if retain_graph is None else retain_graph
    result = GradientMap()
    with _recording(create_graph):
        for tensor, found in _sweep([output], [gradient], None, create_graph, keep).values():
            assert isinstance(tensor, Tensor)
            result._put(tensor, found)
            tensor.grad = found if tensor.grad is None else tensor.grad + found
    return result


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    gradients: Sequence[Tensor | None] | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of `outputs` with respect to `inputs` (leaves or not); `.grad` is left alone.

    Raises GradientError for an input that no output depends on, unless allow_unused (then None stands there).
    """
    outs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    ins = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    keep = create_graph if retain_graph is None else retain_graph
    seeds = (None,) * len(outs) if gradients is None else tuple(gradients)
    edges = [id(_edge(x)) for x in ins]
    found = _sweep(outs, seeds, set(edges), create_graph, keep)
    missing = [x.shape for x, edge in zip(ins, edges, strict=True) if edge not in found]
    if missing and not allow_unused:
        raise GradientError(f"grad: no output depends on the inputs of shapes {missing}; pass allow_unused=True")
    return tuple(found[edge][1] if edge in found else None for edge in edges)
