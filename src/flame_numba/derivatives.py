"""Derivatives of functions: products with the Jacobian from either side, whole Jacobians and Hessians.

Results belong to the graph like those of any op: while recording, if what was put in (or what the function takes from
around it) requires a gradient. So calls may be nested, each for a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from .errors import DTypeError, GradientError, ShapeError
from .grad import edge_of, enable_grad, grad, is_recording, record
from .ops.shape.creation import zeros
from .ops.shape.joining import stack
from .ops.shape.movement import reshape
from .tensor import Tensor

Function = Callable[..., Any]
_POINT = "point"


class _Points:
    """The tensors to differentiate at: twins of those given, each at a place of its own in the graph."""

    def __init__(self, primals: Tensor | Sequence[Tensor], op: str) -> None:
        given = tuple(primals) if isinstance(primals, (tuple, list)) else (primals,)
        if not given or any(not isinstance(x, Tensor) or not x.dtype.is_floating for x in given):
            raise DTypeError(f"{op}: needs floating tensors to differentiate at")
        self.op = op
        self.recorded = is_recording() and any(x.requires_grad for x in given)
        self.tensors = [_twin(x if self.recorded else x.detach()) for x in given]

    def call(self, function: Function) -> tuple[Any, list[Tensor]]:
        """(what the function returns at these points, its results as a list)."""
        recording = is_recording()
        try:
            with enable_grad():
                y = function(*self.tensors)
        finally:
            for x in self.tensors:
                (x.node.saved or {})["open"] = False
        outputs = list(y) if isinstance(y, tuple | list) else [y]
        if any(not isinstance(x, Tensor) or not x.dtype.is_floating for x in outputs):
            raise DTypeError(f"{self.op}: the function must return floating tensors")
        self.recorded = self.recorded or (recording and self._reaches_others(outputs))
        return y, outputs

    def _reaches_others(self, outputs: list[Tensor]) -> bool:
        """Whether the results depend on leaves, or on points of a call around this one."""
        seen = {id(x.node) for x in self.tensors}
        stack = [edge_of(y) for y in outputs if y.requires_grad]
        while stack:
            edge = stack.pop()
            if id(edge) in seen:
                continue
            if isinstance(edge, Tensor) or (edge.name == _POINT and (edge.saved or {}).get("open")):
                return True
            seen.add(id(edge))
            stack.extend([e for e in edge.inputs if e is not None])
        return False


def _twin(x: Tensor) -> Tensor:
    """The result of an op that changes nothing. While it is open, the function that was given it runs."""
    result = x.detach()
    record(_POINT, [x], result, lambda gradient, node: (gradient,), {"open": True})
    return result


def _like(y: Any, values: list[Tensor]) -> Any:
    return tuple(values) if isinstance(y, tuple | list) else values[0]


def _shown(y: Any, outputs: list[Tensor], recorded: bool) -> Any:
    """The results as the caller gets them."""
    return y if recorded else _like(y, [x.detach() for x in outputs])


def _check(op: str, name: str, given: Any, like: Tensor) -> None:
    """Raises DTypeError or ShapeError unless it is a tensor like the one that it belongs to."""
    if not isinstance(given, Tensor):
        raise DTypeError(f"{op}: {name} must be a tensor, got {type(given).__name__}; see asarray()")
    if given.shape != like.shape:
        raise ShapeError(f"{op}: {name} has shape {given.shape}, it must be {like.shape}")
    if given.dtype is not like.dtype:
        raise DTypeError(f"{op}: {name} is {given.dtype.name}, it must be {like.dtype.name}")


def _pulled(outputs: list[Tensor], points: list[Tensor], weights: Sequence[Tensor], again: bool) -> list[Tensor | None]:
    """Σ weightsᵀ · Jacobian for each point; None where no output depends on it."""
    pairs = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(points)
    ys, ws = [y for y, _ in pairs], [w for _, w in pairs]
    return list(grad(ys, points, ws, create_graph=again, retain_graph=True, allow_unused=True))


def _whole(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """With zeros where there is none."""
    return [x.detach().zeros_like() if p is None else p for p, x in zip(parts, like, strict=True)]


def vjp(function: Function, *primals: Tensor) -> tuple[Any, Callable[..., tuple[Tensor, ...]]]:
    """(function(*primals), pull): `pull(*weights of the results)` is weightsᵀ · Jacobian, a tensor for each primal.

    `pull` can be called again. What the results do not depend on gets zeros. While recording, what both give can be
    differentiated by primals, weights and other tensors that require a gradient; under `no_grad` it is constant.
    """
    points = _Points(primals, "vjp")
    y, outputs = points.call(function)

    def pull(*weights: Tensor) -> tuple[Tensor, ...]:
        if len(weights) != len(outputs):
            raise GradientError(f"vjp: {len(weights)} weights for {len(outputs)} results")
        for weight, output in zip(weights, outputs, strict=True):
            _check("vjp", "a weight", weight, output)
        again = is_recording() and (points.recorded or any(w.requires_grad for w in weights))
        return tuple(_whole(_pulled(outputs, points.tensors, weights, again), points.tensors))

    return _shown(y, outputs, points.recorded), pull


def jvp(function: Function, primals: Tensor | Sequence[Tensor], tangents: Tensor | Sequence[Tensor]) -> tuple[Any, Any]:
    """(function(*primals), Jacobian · tangents): how the results change in the direction `tangents`.

    Runs two backward passes: weightsᵀ · Jacobian is linear in the weights, and its derivative by them is the product
    with the Jacobian from the other side. (Townsend 2017) So it works for every op with a second derivative. While
    recording, the results can be differentiated again, as those of `vjp`.
    """
    points = _Points(primals, "jvp")
    along: list[Any] = list(tangents) if isinstance(tangents, (tuple, list)) else [tangents]
    if len(along) != len(points.tensors):
        raise ShapeError(f"jvp: {len(along)} tangents for {len(points.tensors)} primals")
    for tangent, x in zip(along, points.tensors, strict=True):
        _check("jvp", "a tangent", tangent, x)
    recording = is_recording()
    y, outputs = points.call(function)
    again = points.recorded or (recording and any(t.requires_grad for t in along))
    with enable_grad():
        weights = [x.detach().zeros_like().requires_grad_() for x in outputs]
        parts = _pulled(outputs, points.tensors, weights, again=True)
        pairs = [(p, t) for p, t in zip(parts, along, strict=True) if p is not None and p.requires_grad]
        moved: list[Tensor | None] = [None] * len(outputs)
        if pairs:
            ps, ts = [p for p, _ in pairs], [t for _, t in pairs]
            moved = list(grad(ps, weights, ts, create_graph=again, allow_unused=True))
    return _shown(y, outputs, points.recorded), _like(y, _whole(moved, outputs))


def jacobian(function: Function, x: Tensor, *, create_graph: bool | None = None) -> Tensor:
    """All derivatives ∂y/∂x of one result by one tensor: (*y.shape, *x.shape). One backward pass for each element of y.

    create_graph: record it, so that it can be differentiated again; None: as `vjp` does. Raises GradientError for True
    if x does not require a gradient.
    """
    if create_graph and not (isinstance(x, Tensor) and x.requires_grad):
        raise GradientError("jacobian: create_graph=True needs an x that requires a gradient; see requires_grad_()")
    with enable_grad() if create_graph else nullcontext():
        points = _Points((x,), "jacobian")
        y, _ = points.call(function)
    if not isinstance(y, Tensor):
        raise DTypeError("jacobian: the function must return one floating tensor")
    again = points.recorded if create_graph is None else create_graph
    with enable_grad():
        rows = [_row(y, points.tensors[0], i, again) for i in range(y.numel)]
        if not rows:
            return zeros((*y.shape, *x.shape), dtype=x.dtype, device=x.device)
        result: Tensor = reshape(stack(rows), (*y.shape, *x.shape))
    return result if again else result.detach()


def _row(y: Tensor, x: Tensor, i: int, create_graph: bool) -> Tensor:
    """The derivatives of element i of y."""
    weight = y.detach().zeros_like()
    reshape(weight, (-1,))[i] = 1
    return _whole(_pulled([y], [x], [weight], create_graph), [x])[0]


def hessian(function: Function, x: Tensor) -> Tensor:
    """All second derivatives of a scalar function of one tensor: (*x.shape, *x.shape). Recorded as `vjp` is."""
    return jacobian(lambda point: _slope(function(point), point, "hessian"), x)


def hvp(function: Function, x: Tensor, direction: Tensor) -> tuple[Any, Tensor]:
    """(function(x), Hessian · direction) of a scalar function, in two backward passes. Recorded as `vjp` is."""
    points = _Points((x,), "hvp")
    _check("hvp", "direction", direction, x)
    recording = is_recording()
    y, outputs = points.call(function)
    again = points.recorded or (recording and direction.requires_grad)
    with enable_grad():
        slope = _slope(y, points.tensors[0], "hvp")
    results = _pulled([slope], points.tensors, [direction], again)
    return _shown(y, outputs, points.recorded), _whole(results, [x])[0]


def _slope(y: Any, x: Tensor, op: str) -> Tensor:
    if not isinstance(y, Tensor) or y.numel != 1:
        raise ShapeError(f"{op}: the function must return one number, not {getattr(y, 'shape', type(y).__name__)}")
    return _whole(_pulled([y], [x], [y.detach().ones_like()], again=True), [x])[0]
