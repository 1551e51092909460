"""Derivatives of functions: products with the Jacobian from either side, whole Jacobians and Hessians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .errors import DTypeError, GradientError, ShapeError
from .grad import enable_grad, grad
from .ops.creation import zeros
from .ops.movement import reshape, stack
from .tensor import Tensor

Function = Callable[..., Any]


def _leaves(primals: Tensor | Sequence[Tensor], op: str) -> list[Tensor]:
    """The points as leaves of a graph of their own."""
    given = (primals,) if isinstance(primals, Tensor) else tuple(primals)
    if not given or any(not isinstance(x, Tensor) or not x.dtype.is_floating for x in given):
        raise DTypeError(f"{op}: needs floating tensors to differentiate at")
    return [x.detach().requires_grad_() for x in given]


def _outputs(y: Any, op: str) -> list[Tensor]:
    outputs = list(y) if isinstance(y, tuple | list) else [y]
    if any(not isinstance(x, Tensor) or not x.dtype.is_floating for x in outputs):
        raise DTypeError(f"{op}: the function must return floating tensors")
    return outputs


def _like(y: Any, values: list[Tensor]) -> Any:
    return tuple(values) if isinstance(y, tuple | list) else values[0]


def _detached(y: Any, outputs: list[Tensor]) -> Any:
    return _like(y, [x.detach() for x in outputs])


def _pulled(outputs: list[Tensor], leaves: list[Tensor], weights: Sequence[Tensor], again: bool) -> list[Tensor | None]:
    """Σ weightsᵀ · Jacobian for each leaf; None where no output depends on it."""
    pairs = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    ys, ws = [y for y, _ in pairs], [w for _, w in pairs]
    return list(grad(ys, leaves, ws, create_graph=again, retain_graph=True, allow_unused=True))


def vjp(function: Function, *primals: Tensor) -> tuple[Any, Callable[..., tuple[Tensor, ...]]]:
    """(function(*primals), pull): `pull(*weights of the results)` is weightsᵀ · Jacobian, a tensor for each primal.

    `pull` can be called again. What the results do not depend on gets zeros.
    """
    leaves = _leaves(primals, "vjp")
    with enable_grad():
        y = function(*leaves)
    outputs = _outputs(y, "vjp")

    def pull(*weights: Tensor) -> tuple[Tensor, ...]:
        if len(weights) != len(outputs):
            raise GradientError(f"vjp: {len(weights)} weights for {len(outputs)} results")
        parts = _pulled(outputs, leaves, weights, again=False)
        return tuple(x.detach().zeros_like() if p is None else p for p, x in zip(parts, leaves, strict=True))

    return _detached(y, outputs), pull


def jvp(function: Function, primals: Tensor | Sequence[Tensor], tangents: Tensor | Sequence[Tensor]) -> tuple[Any, Any]:
    """(function(*primals), Jacobian · tangents): how the results change in the direction `tangents`.

    Runs two backward passes: weightsᵀ · Jacobian is linear in the weights, and its derivative by them is the product
    with the Jacobian from the other side. (Townsend 2017) So it works for every op with a second derivative.
    """
    leaves = _leaves(primals, "jvp")
    along = [tangents] if isinstance(tangents, Tensor) else list(tangents)
    if [t.shape for t in along] != [x.shape for x in leaves]:
        raise ShapeError(f"jvp: tangents {[t.shape for t in along]} for primals {[x.shape for x in leaves]}")
    with enable_grad():
        y = function(*leaves)
        outputs = _outputs(y, "jvp")
        weights = [x.detach().zeros_like().requires_grad_() for x in outputs]
        parts = _pulled(outputs, leaves, weights, again=True)
        pairs = [(p, t) for p, t in zip(parts, along, strict=True) if p is not None and p.requires_grad]
        moved: list[Tensor | None] = [None] * len(outputs)
        if pairs:
            moved = list(grad([p for p, _ in pairs], weights, [t for _, t in pairs], allow_unused=True))
    pushed = [x.detach().zeros_like() if m is None else m for m, x in zip(moved, outputs, strict=True)]
    return _detached(y, outputs), _like(y, pushed)


def jacobian(function: Function, x: Tensor, *, create_graph: bool = False) -> Tensor:
    """All derivatives ∂y/∂x of one result by one tensor: (*y.shape, *x.shape). One backward pass for each element of y.

    create_graph: record it, so that it can be differentiated by x (which then is used as it is, not detached).
    """
    point = x if create_graph else _leaves(x, "jacobian")[0]
    with enable_grad():
        y = function(point)
        if not isinstance(y, Tensor) or not y.dtype.is_floating:
            raise DTypeError("jacobian: the function must return one floating tensor")
        rows = [_row(y, point, i, create_graph) for i in range(y.numel)]
        if not rows:
            return zeros((*y.shape, *x.shape), dtype=x.dtype, device=x.device)
        result: Tensor = reshape(stack(rows), (*y.shape, *x.shape))
    return result if create_graph else result.detach()


def _row(y: Tensor, x: Tensor, i: int, create_graph: bool) -> Tensor:
    """The derivatives of element i of y."""
    weight = y.detach().zeros_like()
    reshape(weight, (-1,))[i] = 1
    (part,) = _pulled([y], [x], [weight], create_graph)
    return x.detach().zeros_like() if part is None else part


def hessian(function: Function, x: Tensor) -> Tensor:
    """All second derivatives of a scalar function of one tensor: (*x.shape, *x.shape)."""
    return jacobian(lambda point: _slope(function, point, "hessian"), x)


def hvp(function: Function, x: Tensor, direction: Tensor) -> tuple[Any, Tensor]:
    """(function(x), Hessian · direction) of a scalar function, in two backward passes."""
    (point,) = _leaves(x, "hvp")
    if direction.shape != x.shape:
        raise ShapeError(f"hvp: direction {direction.shape} for x {x.shape}")
    with enable_grad():
        y = function(point)
        slope = _slope(lambda _: y, point, "hvp")
    (result,) = _pulled([slope], [point], [direction], again=False)
    return y.detach(), x.detach().zeros_like() if result is None else result


def _slope(function: Function, x: Tensor, op: str) -> Tensor:
    y = function(x)
    if not isinstance(y, Tensor) or y.numel != 1:
        raise ShapeError(f"{op}: the function must return one number, not {getattr(y, 'shape', type(y).__name__)}")
    (slope,) = _pulled([y], [x], [y.detach().ones_like()], again=True)
    return x.detach().zeros_like() if slope is None else slope
