"""`gradcheck`: gradients against central differences, for users' own functions and for the library's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .dtypes import float64
from .errors import ConfigError, DTypeError, GradientError, ShapeError
from .grad import grad
from .ops.shape.creation import asarray, zeros
from .scalars import is_number
from .tensor import Tensor

Array = npt.NDArray[np.float64]
_UNRECORDED = "gradcheck: the function's result does not require a gradient: an op was not recorded"
_NOISE = 1e3  # below so many times the error of differences, a gradient's direction says nothing


class GradientComparison(NamedTuple):
    """A gradient beside the one from differences. input: which operand. cosine: of the angle between them, 1 if both
    are 0. size: ratio of their lengths. error: the largest difference of an element, which is `at`."""

    input: int
    cosine: float
    size: float
    error: float
    at: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"input {self.input}: cosine {self.cosine:.6f}, size × {self.size:.6g}, "
            f"largest error {self.error:.3g} at {self.at}"
        )


def gradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    order: int = 1,
    seed: int = 0,
) -> bool:
    """True if the gradients of `function` at float64 `inputs` equal central differences of step eps.

    The function returns a tensor, or tensors in tuples, lists and dicts; they are projected on random directions, so
    one backward pass checks all. order=2 checks the gradient's own gradient as well. Raises GradientError, naming
    input, element, both values, direction (cosine) and size, on a difference beyond atol + rtol·|value|; DTypeError if
    no input is a float64 tensor that requires a gradient; ConfigError for a setting that makes no sense.
    """
    if order not in (1, 2):
        raise ConfigError(f"gradcheck: order={order!r} must be 1 or 2")
    _check_settings("gradcheck", eps=eps, rtol=rtol, atol=atol)
    given, checked = _inputs(inputs, "gradcheck")
    rng = np.random.default_rng(seed)
    _check(function, given, checked, rng, eps, rtol, atol)
    if order > 1:
        slope = _slope(function, given, checked, rng, seed)
        _check(slope, given, checked, rng, eps, rtol, atol, allow_constant=True)
    return True


def gradgradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    seed: int = 0,
) -> bool:
    """`gradcheck` of the gradient alone: True if second derivatives equal differences of first ones."""
    _check_settings("gradgradcheck", eps=eps, rtol=rtol, atol=atol)
    given, checked = _inputs(inputs, "gradgradcheck")
    rng = np.random.default_rng(seed)
    _check(_slope(function, given, checked, rng, seed), given, checked, rng, eps, rtol, atol, allow_constant=True)
    return True


def compare_gradients(
    function: Callable[..., Any], inputs: Tensor | Sequence[Any], *, eps: float = 1e-6, seed: int = 0
) -> list[GradientComparison]:
    """How far the gradients of `function` are from central differences, input by input, without judging it."""
    _check_settings("compare_gradients", eps=eps)
    given, checked = _inputs(inputs, "compare_gradients")
    found, numeric = _both(function, given, checked, np.random.default_rng(seed), eps)
    return [_compare(i, f, n) for i, f, n in zip(checked, found, numeric, strict=True)]


def numerical_gradient(
    function: Callable[..., Any], inputs: Tensor | Sequence[Any], gradients: Any = None, *, eps: float = 1e-6
) -> tuple[Array, ...]:
    """Central differences of step eps of the sum of the results, for each float64 input that requires a gradient.

    gradients: what to weight the results with, one tensor or array for each. Needs two calls for each element.
    """
    _check_settings("numerical_gradient", eps=eps)
    given, checked = _inputs(inputs, "numerical_gradient")
    results = _called("numerical_gradient", function, given)
    weights = [gradients] if isinstance(gradients, Tensor | np.ndarray) else gradients
    if weights is None:
        weights = [np.ones(y.shape) for y in results]
    hosts = [w.numpy() if isinstance(w, Tensor) else np.asarray(w) for w in weights]
    if [w.shape for w in hosts] != [y.shape for y in results]:
        raise ShapeError(
            f"numerical_gradient: gradients have shapes {[w.shape for w in hosts]}, the results "
            f"{[y.shape for y in results]}"
        )
    return tuple(_differences(function, given, checked, hosts, eps))


def _check_settings(op: str, **settings: Any) -> None:
    for name, value in settings.items():
        number = float(value) if is_number(value) else np.nan
        if not 0 <= number < np.inf or (name == "eps" and not number):
            raise ConfigError(f"{op}: {name}={value!r} must be a finite number {'>' if name == 'eps' else '≥'} 0")


def _inputs(inputs: Any, op: str) -> tuple[tuple[Any, ...], list[int]]:
    needed = f"{op}: needs float64 inputs with requires_grad_()"
    if not isinstance(inputs, (Tensor, list, tuple)):
        raise DTypeError(f"{needed}: a tensor, or a list of operands; got {type(inputs).__name__}")
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise DTypeError(f"{needed}: no input requires a gradient")
    for i in checked:
        if given[i].dtype is not float64:
            raise DTypeError(f"{needed}: input {i} is {given[i].dtype.name}, which is too coarse for differences")
    return given, checked


def _called(op: str, function: Callable[..., Any], xs: Sequence[Any]) -> list[Tensor]:
    y = function(*xs)
    if not (results := _results(y)):
        raise DTypeError(f"{op}: the function must return floating tensors, it returned {type(y).__name__}")
    return results


def _results(y: Any) -> list[Tensor]:
    """The floating tensors among what a function returned, also in tuples, lists and dicts."""
    if isinstance(y, Mapping):
        y = tuple(y.values())
    if isinstance(y, tuple | list):
        return [x for item in y for x in _results(item)]
    return [y] if isinstance(y, Tensor) and y.dtype.is_floating else []


def _slope(
    function: Callable[..., Any], given: Sequence[Any], checked: list[int], rng: np.random.Generator, seed: int
) -> Callable[..., Tensor]:
    """The derivative of `function`, projected on random directions, in a random direction."""
    directions = [asarray(rng.standard_normal(given[i].shape), device=given[i].device) for i in checked]

    def slope(*xs: Any) -> Tensor:
        weights = np.random.default_rng(seed + 1)
        # every result takes its numbers, whether it requires a gradient or not: the same ones for the same result
        scaled = [(y, weights.standard_normal(y.shape)) for y in _called("gradcheck", function, xs)]
        recorded = [(y, asarray(w, device=y.device, dtype=y.dtype)) for y, w in scaled if y.requires_grad]
        if not recorded:
            raise GradientError(_UNRECORDED)
        parts = grad([y for y, _ in recorded], [xs[i] for i in checked], [w for _, w in recorded],
                     create_graph=True, allow_unused=True)  # fmt: skip
        terms = [(part * d).sum() for part, d in zip(parts, directions, strict=True) if part is not None]
        return sum(terms, start=zeros((), dtype=float64, device=given[checked[0]].device))

    return slope


def _both(
    function: Callable[..., Any], given: tuple[Any, ...], checked: list[int], rng: np.random.Generator, eps: float,
    allow_constant: bool = False,
) -> tuple[list[Array], list[Array]]:  # fmt: skip
    """Gradients of the checked inputs, and what differences give for them, in random directions of the results."""
    leaves = [x.detach().clone().requires_grad_() if i in checked else x for i, x in enumerate(given)]
    results = _called("gradcheck", function, leaves)
    weights: list[Array] = [rng.standard_normal(y.shape) for y in results]
    recorded = [(y, asarray(w, device=y.device, dtype=y.dtype)) for y, w in zip(results, weights) if y.requires_grad]
    if not recorded and not allow_constant:
        raise GradientError(_UNRECORDED)
    found: Sequence[Tensor | None] = [None] * len(checked)
    if recorded:
        outputs, seeds = [y for y, _ in recorded], [w for _, w in recorded]
        found = grad(outputs, [leaves[i] for i in checked], seeds, allow_unused=True)
    exact = [np.zeros(given[i].shape) if g is None else g.numpy() for i, g in zip(checked, found, strict=True)]
    return exact, _differences(function, tuple(leaves), checked, weights, eps)


def _differences(
    function: Callable[..., Any], given: tuple[Any, ...], checked: list[int], weights: Sequence[Array], eps: float
) -> list[Array]:
    hosts = {i: given[i].numpy().astype(np.float64) for i in checked}

    def value(i: int, at: tuple[int, ...], step: float) -> float:
        moved = hosts[i].copy()
        moved[at] += step
        args = list(given)
        for j in checked:  # slopes of second order need leaves that record
            args[j] = asarray(moved if j == i else hosts[j], device=given[j].device).requires_grad_()
        results = _results(function(*args))
        shapes = [y.shape for y in results], [w.shape for w in weights]
        if shapes[0] != shapes[1]:
            raise ShapeError(f"gradcheck: the function gave results of shapes {shapes[0]}, before {shapes[1]}")
        return float(sum((y.numpy().astype(np.float64) * w).sum() for y, w in zip(results, weights, strict=True)))

    result = []
    for i in checked:
        numeric = np.zeros(hosts[i].shape)
        for at in np.ndindex(hosts[i].shape):
            numeric[at] = (value(i, at, eps) - value(i, at, -eps)) / (2 * eps)
        result.append(numeric)
    return result


def _compare(i: int, found: Array, numeric: Array) -> GradientComparison:
    long, short = float(np.linalg.norm(found)), float(np.linalg.norm(numeric))
    cosine = float(np.sum(found * numeric)) / (long * short) if long and short else float(long == short)
    size = long / short if short else float(np.inf if long else 1)
    error = np.abs(found - numeric)
    at = tuple(int(k) for k in np.unravel_index(np.argmax(error), error.shape)) if error.size else ()
    return GradientComparison(i, cosine, size, float(np.max(error, initial=0.0)), at)


def _check(
    function: Callable[..., Any], given: tuple[Any, ...], checked: list[int], rng: np.random.Generator,
    eps: float, rtol: float, atol: float, allow_constant: bool = False,
) -> None:  # fmt: skip
    found, numeric = _both(function, given, checked, rng, eps, allow_constant)
    for i, exact, differences in zip(checked, found, numeric, strict=True):
        limit = atol + rtol * np.maximum(np.abs(exact), np.abs(differences))
        wrong = ~(np.abs(exact - differences) <= limit)  # also where one is a NaN
        compared = _compare(i, exact, differences)
        if wrong.any():
            at = tuple(int(k) for k in np.argwhere(wrong)[0])
            raise GradientError(
                f"gradcheck: input {i} at {at}: the gradient is {exact[at]:.9g}, differences give "
                f"{differences[at]:.9g}; cosine {compared.cosine:.6f}, size × {compared.size:.6g}"
            )
        # small gradients may be wrong within atol: their direction is not, unless differences are all noise
        length = float(np.linalg.norm(differences))
        if compared.cosine < 0.99 and length > _NOISE * np.finfo(np.float64).eps / eps * max(
            1.0, differences.size**0.5
        ):
            raise GradientError(f"gradcheck: {compared}: the gradient points elsewhere than the differences")
