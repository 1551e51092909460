"""What ops leave behind: a node belongs to the tensor that it made, and holds what it was made from.

A graph lives as long as its outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import ReferenceType, ref

from ..errors import GradientError
from ..tensor import Tensor
from .anomaly import WATCH, note_site
from .replay import FRAMES, Lost, current_keeper

_COUNTER = itertools.count()

Edge = Any  # where a gradient goes: the Node or Port that made a tensor, a leaf Tensor, or None for nowhere
Rule = Callable[[Any, "Node"], Sequence[Tensor | None]]


class Saved:
    """A tensor kept for the backward pass, and the version its storage had then."""

    __slots__ = ("__weakref__", "index", "lost", "tensor", "version")

    def __init__(self, tensor: Tensor, is_output: bool = False, index: int = 0) -> None:
        self.version = tensor.storage.version
        if self.version < 0:
            raise GradientError(
                f"a tensor of shape {tensor.shape} that was made in inference_mode cannot be saved for a gradient; "
                "clone() it outside, or make it under no_grad()"
            )
        self.index = index if is_output else -1  # which result of the op it is, or none
        self.lost: Lost | None = None
        if FRAMES.open and (tensor.node is not None or is_output or not tensor.requires_grad):
            keeper = current_keeper()
            if keeper is not None:
                keeper.drop(self, tensor, is_output)
                return
        # an output is kept outside the graph: it would own the node that owns it, and never be freed
        self.tensor: Tensor | None = tensor.detach() if is_output else tensor

    def restore(self, node: Any) -> Tensor:
        """The tensor, part of the graph as it was. Raises GradientError if it was changed in place."""
        lost = self.lost
        if self.tensor is None:
            assert lost is not None
            lost.frame.recompute()
        tensor = self.tensor
        assert tensor is not None
        if tensor.storage.version != self.version:
            raise GradientError(
                f"{node.name}: a tensor of shape {tensor.shape} that its gradient needs was changed in place "
                f"(version {self.version} → {tensor.storage.version}); clone it before changing it"
            )
        if self.index < 0 and lost is None:
            return tensor
        result = tensor.detach()
        if self.index >= 0:
            result.node, result.requires_grad = node.port(self.index), True
        elif lost is not None:
            result.node, result.requires_grad = lost.node, lost.requires_grad
        return result


class SavedItems:
    """A tuple or list that holds tensors, kept for the backward pass."""

    __slots__ = ("items", "kind")

    def __init__(self, items: Iterable[Any], kind: type = tuple) -> None:
        self.items = [keep(item) for item in items]
        self.kind = kind

    def restore(self, node: Any) -> Any:
        """The tuple or list again; see `Saved.restore`."""
        return self.kind([item.restore(node) if isinstance(item, (Saved, SavedItems)) else item for item in self.items])


def keep(value: Any) -> Any:
    """What to save of an operand or keyword of an op: tensors, also in tuples and lists, are watched."""
    if isinstance(value, Tensor):
        return Saved(value)
    if type(value) in (tuple, list) and _holds_tensors(value):
        return SavedItems(value, type(value))
    return value


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(x, Tensor) or (type(x) in (tuple, list) and _holds_tensors(x)) for x in value)


class Node:
    """One recorded op: its inputs, what it saved, and the rule that turns its gradient into theirs."""

    __slots__ = ("__weakref__", "hooks", "inputs", "name", "order", "rule", "saved")

    def __init__(self, name: str, inputs: tuple[Edge, ...], rule: Rule, saved: dict[str, Any]) -> None:
        self.name = name
        self.inputs = inputs
        self.rule: Rule | None = rule
        self.saved: dict[str, Any] | None = saved
        self.hooks: Any = None
        self.order = next(_COUNTER)  # inputs are made before outputs: descending order is topological

    def value(self, name: str) -> Any:
        """What the op saved under this name; a tensor is checked for changes since."""
        if self.saved is None:
            raise self._freed()
        value = self.saved[name]
        return value.restore(self) if isinstance(value, (Saved, SavedItems)) else value

    def backward(self, gradient: Any) -> Sequence[Tensor | None]:
        """Gradients of the inputs. gradient: that of the result; of several results, the tuple of theirs."""
        if self.rule is None or self.saved is None:
            raise self._freed()
        return self.rule(gradient, self)

    def port(self, index: int) -> Node | Port:
        """Where the gradient of the result `index` goes."""
        return self

    def release(self) -> None:
        """Let go of what was saved; the edges stay."""
        self.rule = None
        self.saved = None

    def _freed(self) -> GradientError:
        return GradientError(f"{self.name}: its graph was freed by an earlier backward(); pass retain_graph=True")


class ManyNode(Node):
    """The node of an op with several results. Each result belongs to a `Port`, which passes its gradient on."""

    __slots__ = ("_ports",)

    def __init__(self, name: str, inputs: tuple[Edge, ...], rule: Rule, saved: dict[str, Any], outputs: int) -> None:
        super().__init__(name, inputs, rule, saved)
        self._ports: list[ReferenceType[Port] | None] = [None] * outputs  # weak: a port holds its node

    @property
    def outputs(self) -> int:
        """How many results the op has."""
        return len(self._ports)

    def port(self, index: int) -> Port:
        known = self._ports[index]
        port = None if known is None else known()
        if port is None:
            port = Port(self, index)
            self._ports[index] = ref(port)
        return port


class Port:
    """One of several results of a node."""

    __slots__ = ("__weakref__", "hooks", "index", "order", "parent")

    def __init__(self, parent: ManyNode, index: int) -> None:
        self.parent = parent
        self.index = index
        self.hooks: Any = None
        self.order = next(_COUNTER)  # younger than its node, older than what the result goes into

    @property
    def name(self) -> str:
        return self.parent.name

    @property
    def inputs(self) -> tuple[Edge, ...]:
        return (self.parent,)


def edge_of(tensor: Tensor) -> Edge:
    """Where a tensor's gradient goes: to the op that made it, or to the leaf itself."""
    node = tensor.node
    return tensor if node is None else node


def _edges(inputs: Sequence[Tensor | None]) -> tuple[Edge, ...]:
    return tuple([None if x is None or not x.requires_grad else edge_of(x) for x in inputs])


def record(name: str, inputs: Sequence[Tensor | None], output: Tensor, rule: Rule, saved: dict[str, Any]) -> None:
    """Make `output` a result of `inputs` (None for one without a gradient) in the graph."""
    output.node = Node(name, _edges(inputs), rule, saved)
    output.requires_grad = True
    if WATCH.open:
        note_site(output.node)


def record_many(
    name: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], rule: Rule, saved: dict[str, Any]
) -> None:
    """Make `outputs` (None for one without a gradient) results of one op.

    The rule is given the tuple of their gradients, with None for a result that none came to.
    """
    node = ManyNode(name, _edges(inputs), rule, saved, len(outputs))
    for index, output in enumerate(outputs):
        if output is not None:
            output.node, output.requires_grad = node.port(index), True
    if WATCH.open:
        note_site(node)
