"""Reverse-mode differentiation: the graph that ops leave behind, and the sweep over it.

A result that wants a gradient owns a `Node`: its op's name, the edges to where gradients go, a rule, and what was
saved. Nothing here knows an op by name, and nothing global holds a graph: it lives as long as its outputs. Modes,
hooks, checkpoints and reports lie beside it in `tape/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import ReferenceType, ref

import numpy as np

from .errors import DTypeError, GradientError
from .pool import memory_tag
from .tape import reports
from .tape.accumulate import accumulate
from .tape.anomaly import WATCH, detect_anomaly, note_site, watching
from .tape.arithmetic import Arithmetic, supplied
from .tape.hooks import (
    Handle,
    detach_,
    follow_change,
    register_hook,
    register_post_accumulate_grad_hook,
    retain_grad,
)
from .tape.modes import Mode, enable_grad, inference_mode, is_inference, is_recording, no_grad, set_grad_enabled
from .tape.ports import COUNTER, Edge, Port, edge_of
from .tape.recompute import FRAMES, Lost, Tape, current_keeper, current_tape, forgetting, is_recomputing
from .tape.reports import GraphStats, UnusedParameter
from .tape.sweep import Sweep
from .tensor import Tensor, check_gradient

__all__ = [
    "GradientMap",
    "GraphStats",
    "Handle",
    "Node",
    "Port",
    "Saved",
    "SavedItems",
    "Tape",
    "UnusedParameter",
    "backward",
    "current_tape",
    "detach_",
    "detect_anomaly",
    "edge_of",
    "enable_grad",
    "follow_change",
    "grad",
    "graph_stats",
    "inference_mode",
    "is_inference",
    "is_recomputing",
    "is_recording",
    "keep",
    "no_grad",
    "record",
    "record_many",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "retain_grad",
    "set_grad_enabled",
    "unused_parameters",
    "watching",
]

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

    __slots__ = ("__weakref__", "_ports", "hooks", "inputs", "name", "order", "rule", "saved")

    def __init__(
        self, name: str, inputs: tuple[Edge, ...], rule: Rule, saved: dict[str, Any], outputs: int | None = None
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.rule: Rule | None = rule
        self.saved: dict[str, Any] | None = saved
        self.hooks: Any = None
        # of an op with several results, which a `Port` each belongs to. Weak: a port holds its node
        self._ports: list[ReferenceType[Port] | None] | None = None if outputs is None else [None] * outputs
        self.order = next(COUNTER)  # inputs are made before outputs: descending order is topological

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

    @property
    def outputs(self) -> int | None:
        """How many results an op with several has; None for one that has a result, not a tuple."""
        return None if self._ports is None else len(self._ports)

    def port(self, index: int) -> Node | Port:
        """Where the gradient of the result `index` goes."""
        if self._ports is None:
            return self
        known = self._ports[index]
        port = None if known is None else known()
        if port is None:
            port = Port(self, index)
            self._ports[index] = ref(port)
        return port

    def release(self) -> None:
        """Let go of what was saved; the edges stay."""
        self.rule = None
        self.saved = None

    def _freed(self) -> GradientError:
        return GradientError(f"{self.name}: its graph was freed by an earlier backward(); pass retain_graph=True")


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
    node = Node(name, _edges(inputs), rule, saved, len(outputs))
    for index, output in enumerate(outputs):
        if output is not None:
            output.node, output.requires_grad = node.port(index), True
    if WATCH.open:
        note_site(node)


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


def _seed(op: str, output: Tensor, gradient: Tensor | None, create_graph: bool, arithmetic: Arithmetic) -> Tensor:
    if not output.requires_grad:
        raise GradientError(f"{op}: the tensor does not require a gradient, so nothing was recorded for it")
    if gradient is None:
        if output.numel != 1:
            raise GradientError(f"{op}: pass gradient= for an output of shape {output.shape} (only scalars have 1)")
        return arithmetic.ones_like(output.detach())
    check_gradient(op, gradient, output)
    return gradient if create_graph else gradient.detach()  # of our own: it shows that the caller holds its memory


def _sweep(
    op: str, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], wanted: set[int] | None,
    create_graph: bool, retain_graph: bool, fill: bool,
) -> dict[int, tuple[Edge, Tensor]]:  # fmt: skip
    """Gradients by id of edge: of all leaves (wanted is None), or of the wanted edges."""
    with Mode(create_graph), memory_tag("gradients"), forgetting(retain_graph):
        starts = [edge_of(output) for output in outputs]
        arithmetic = supplied()
        sweep = Sweep(starts, wanted, create_graph, retain_graph, fill, arithmetic)
        for edge, output, gradient in zip(starts, outputs, gradients, strict=True):
            sweep.send(edge, _seed(op, output, gradient, create_graph, arithmetic))
        sweep.run()
    return sweep.found


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
        return _as_map((x, g if x.node is None else accumulate(x, g, create_graph, supplied())) for x, g in reached)


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


def graph_stats() -> GraphStats:
    """Count what graphs keep alive now, in all threads. Looks at every object of the program: not for a loop."""
    return reports.count(Node, Saved)


def unused_parameters(loss: Tensor, parameters: Any) -> list[UnusedParameter]:
    """Which parameters `loss.backward()` gives no gradient: those of a module, a mapping by name, or a sequence.

    Can be asked before or after the backward pass. Raises GradientError if nothing was recorded for the loss.
    """
    return reports.unreached(loss, parameters)
