"""`gradcheck`: gradients against central differences, for users' own functions and for the library's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import DTypeError, GradientError
from .grad import grad
from .ops.creation import asarray
from .tensor import Tensor


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    order: int = 1,
    seed: int = 0,
) -> bool:
    """True if the gradients of `function` at float64 `inputs` equal central differences of step eps.

    The output is projected on a random direction, so one backward pass checks all of it. order=2 checks the
    gradient's own gradient as well. Raises GradientError, naming input, element and both values, on a difference
    beyond atol + rtol·|value|; DTypeError if no input is a float64 tensor that requires a gradient.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
    if not checked or any(given[i].dtype.name != "float64" for i in checked):
        raise DTypeError("gradcheck: needs float64 inputs with requires_grad_(); f32 is too coarse for differences")
    rng = np.random.default_rng(seed)
    _check(function, given, checked, rng, eps, rtol, atol)
    if order > 1:
        directions = [asarray(rng.standard_normal(given[i].shape), device=given[i].device) for i in checked]

        def slope(*xs: Any) -> Tensor:
            y = function(*xs)
            weight = asarray(np.random.default_rng(seed + 1).standard_normal(y.shape), device=y.device)
            parts = grad((y * weight).sum(), [xs[i] for i in checked], create_graph=True, allow_unused=True)
            total = None
            for part, direction in zip(parts, directions, strict=True):
                if part is not None:
                    term = (part * direction).sum()
                    total = term if total is None else total + term
            assert total is not None
            return total

        _check(slope, given, checked, rng, eps, rtol, atol, allow_constant=True)
    return True


def _check(
    function: Callable[..., Tensor], given: tuple[Any, ...], checked: list[int], rng: np.random.Generator,
    eps: float, rtol: float, atol: float, allow_constant: bool = False,
) -> None:  # fmt: skip
    leaves = [x.detach().clone().requires_grad_() if i in checked else x for i, x in enumerate(given)]
    y = function(*leaves)
    direction = rng.standard_normal(y.shape)
    if not y.requires_grad:
        if allow_constant:
            found: tuple[Tensor | None, ...] = (None,) * len(checked)
        else:
            raise GradientError("gradcheck: the function's result does not require a gradient: an op was not recorded")
    else:
        weight = asarray(direction, device=y.device)
        found = grad((y * weight).sum(), [leaves[i] for i in checked], allow_unused=True)
    hosts = [x.numpy().astype(np.float64) if i in checked else x for i, x in enumerate(given)]

    def value(i: int, at: tuple[int, ...], step: float) -> float:
        moved = hosts[i].copy()
        moved[at] += step
        args = [asarray(moved if j == i else hosts[j], device=leaves[j].device) if j in checked else leaves[j]
                for j in range(len(given))]  # fmt: skip
        # slopes of second order need leaves that record
        args = [a.requires_grad_() if j in checked else a for j, a in enumerate(args)]
        return float((function(*args).numpy() * direction).sum())

    for i, part in zip(checked, found, strict=True):
        exact = np.zeros(hosts[i].shape) if part is None else part.numpy()
        for at in np.ndindex(hosts[i].shape):
            numeric = (value(i, at, eps) - value(i, at, -eps)) / (2 * eps)
            if not abs(exact[at] - numeric) <= atol + rtol * max(abs(numeric), abs(float(exact[at]))):
                raise GradientError(
                    f"gradcheck: input {i} at {at}: the gradient is {exact[at]:.9g}, differences give {numeric:.9g}"
                )
