"""What the graphs hold, and which parameters a loss does not reach."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import DTypeError, GradientError
from ..tensor import Tensor
from .ports import Edge, edge_of


@dataclass(frozen=True)
class GraphStats:
    """All graphs that are alive: recorded ops, tensors they keep and the bytes of these, each storage once.

    Leaves that require a gradient are not counted as kept: they live without a graph. by_op: nodes by name of the op.
    """

    nodes: int
    saved_tensors: int
    saved_bytes: int
    by_op: dict[str, int] = field(default_factory=dict)


def count(node: type[Any], saved: type[Any]) -> GraphStats:
    """All that lives of nodes and of saved tensors, which are of these classes."""
    things = gc.get_objects()
    names = [thing.name for thing in things if isinstance(thing, node)]
    kept = [thing.tensor for thing in things if isinstance(thing, saved) and thing.tensor is not None]
    kept = [x for x in kept if not (x.requires_grad and x.node is None)]
    storages = {id(x.storage): x.storage.nbytes for x in kept}
    return GraphStats(len(names), len(kept), sum(storages.values()), dict(sorted(Counter(names).items())))


class UnusedParameter(NamedTuple):
    """A parameter that a backward pass would give no gradient, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}: {self.reason}"


def unreached(loss: Tensor, parameters: Any) -> list[UnusedParameter]:
    """See `grad.unused_parameters`."""
    if not isinstance(loss, Tensor):
        raise DTypeError(f"unused_parameters: the loss must be a tensor, got {type(loss).__name__}")
    if not loss.requires_grad:
        raise GradientError("unused_parameters: the loss does not require a gradient, so nothing was recorded for it")
    reached = _leaves(edge_of(loss))
    result = []
    for name, parameter in _named(parameters):
        if not isinstance(parameter, Tensor):
            raise DTypeError(f"unused_parameters: parameter {name} must be a tensor, got {type(parameter).__name__}")
        if not parameter.requires_grad:
            result.append(UnusedParameter(name, parameter.shape, "it does not require a gradient"))
        elif id(edge_of(parameter)) not in reached:
            result.append(UnusedParameter(name, parameter.shape, "the loss does not depend on it"))
    return result


def _leaves(start: Edge) -> set[int]:
    """ids of all edges that a graph reaches, leaves and nodes."""
    seen: set[int] = set()
    stack = [start]
    while stack:
        edge = stack.pop()
        if id(edge) not in seen:
            seen.add(id(edge))
            if not isinstance(edge, Tensor):
                stack.extend([e for e in edge.inputs if e is not None])
    return seen


def _named(parameters: Any) -> Iterable[tuple[str, Tensor]]:
    if hasattr(parameters, "named_parameters"):
        return list(parameters.named_parameters())
    if isinstance(parameters, Mapping):
        return list(parameters.items())
    if isinstance(parameters, Tensor):
        return [("0", parameters)]
    if not isinstance(parameters, Iterable):
        raise DTypeError(f"unused_parameters: expected a module or parameters, got {type(parameters).__name__}")
    return [(str(i), parameter) for i, parameter in enumerate(parameters)]
