"""Checks of an op against its entry: the generated tests call these, and so can the tests of your own ops.

    from flame_numba.testing import check_forward, check_gradient
    check_forward(TABLE["silu"], fn.bfloat16, seed=0)
    check_gradient(TABLE["silu"], seed=0, order=2)

Each check draws its operands from a seed: shapes, broadcasting, memory layouts, ordinary and extreme values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from . import dtypes
from .dtypes import DType
from .grad import grad
from .gradcheck import gradcheck
from .ops.core.table import Booleans, Domain, Entry, Floats, Integers
from .ops.shape.creation import asarray
from .ops.shape.movement import broadcast_to, flip, permute, strided_slice
from .tensor import Tensor

Array = npt.NDArray[Any]

LAYOUTS = ("contiguous", "permuted", "offset", "strided", "reversed", "broadcast", "overlapping")
SHAPES: tuple[tuple[int, ...], ...] = (
    (), (1,), (7,), (0,), (3, 5), (13, 11), (2, 1, 3), (4, 0), (2, 3, 5), (1, 1), (2, 3, 2, 2), (257,),
)  # fmt: skip


def with_layout(array: Array, layout: str) -> Tensor:
    """A tensor equal to the array that lies in memory in another way than row-major."""
    x = asarray(array)
    if layout == "permuted" and x.ndim > 1:
        axes = tuple(reversed(range(x.ndim)))
        return permute(asarray(np.ascontiguousarray(array.transpose(axes))), axes)
    if layout == "offset" and x.ndim:
        wider = np.concatenate([array[..., :1], array], -1) if array.shape[-1] else array
        begin = wider.shape[-1] - array.shape[-1]
        starts = (0,) * (x.ndim - 1) + (begin,)
        return strided_slice(asarray(wider), starts, x.shape, (1,) * x.ndim)
    if layout == "strided" and x.ndim:
        doubled = np.repeat(array, 2, -1)
        return strided_slice(asarray(doubled), (0,) * x.ndim, x.shape, (1,) * (x.ndim - 1) + (2,))
    if layout == "reversed" and x.ndim:
        return flip(asarray(np.ascontiguousarray(np.flip(array))))
    return x


def laid_out(array: Array, layout: str) -> tuple[Array, Tensor]:
    """A tensor in this layout, and the array that it equals: `array`, but for elements that share memory."""
    if layout == "broadcast" and array.ndim and array.size:
        row = np.ascontiguousarray(array[:1])
        return np.broadcast_to(row, array.shape), broadcast_to(asarray(row), array.shape)
    if layout == "overlapping" and array.ndim and array.size:
        # neighbours along each axis are neighbours in memory: x[i, j] is x[i + 1, j - 1]
        base = np.ascontiguousarray(array.reshape(-1)[: sum(array.shape) - array.ndim + 1])
        strides = (1,) * array.ndim
        view = np.lib.stride_tricks.as_strided(base, array.shape, (base.itemsize,) * array.ndim)
        return view, asarray(base).alias(array.shape, strides, 0)
    return array, with_layout(array, layout)


def _specials(dtype: DType) -> list[float]:
    info = ml_dtypes.finfo(dtype.numpy)
    tiny, sub = float(info.smallest_normal), float(info.smallest_subnormal)
    return [np.nan, np.inf, -np.inf, 0.0, -0.0, sub, -sub, tiny, float(info.max), float(info.min), 1.0, -1.0]


def _floats(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, domain: Domain, special: bool) -> Array:
    low, high = max(domain.low, -10.0), min(domain.high, 10.0)
    values = rng.uniform(low, high, shape)
    if special and rng.random() < 0.5:  # the whole domain, in powers
        values *= 10.0 ** rng.uniform(-3, 1 if np.isfinite(domain.high) else 4, shape)
        values = np.clip(values, domain.low, domain.high)
    margin = 1e-2 * (high - low)
    for point in domain.excluded:
        near = np.abs(values - point) < margin
        values = np.where(near, point + margin * (1 + rng.random(shape)), values)
    if special and domain.special and values.size and rng.random() < 0.7:
        flat = values.reshape(-1)
        picks = rng.integers(0, flat.size, size=min(flat.size, 6))
        flat[picks] = rng.choice(_specials(dtype), picks.size)
        values = flat.reshape(shape)
    with np.errstate(over="ignore"):
        return values.astype(dtype.numpy)


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, domain: Domain) -> Array:
    info = np.iinfo(dtype.numpy)
    if np.isfinite(domain.high) or domain.low == 0.0:  # a domain of small numbers
        low = max(int(np.ceil(domain.low)), info.min, 0 if domain.high == 4 else -100) if np.isfinite(domain.low) else 0
        low = max(low, 1) if domain.low in (0.0, 0.5) else low
        return rng.integers(low, int(min(100, info.max, domain.high)), shape).astype(dtype.numpy)
    values = rng.integers(info.min, info.max, shape, dtype.numpy, endpoint=True)
    return np.where(values == 0, 1, values).astype(dtype.numpy) if domain.excluded else values


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, domain: Domain, special: bool = True
) -> Array:
    if dtype.kind == "bool":
        return rng.random(shape) < 0.5
    if dtype.is_integer:
        return _integers(rng, shape, dtype, domain)
    return _floats(rng, shape, dtype, domain, special)


def _broadcast_shapes(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    shape = SHAPES[rng.integers(len(SHAPES))]
    shapes = [shape]
    for _ in range(count - 1):
        sizes = [1 if rng.random() < 0.2 else n for n in shape]
        shapes.append(tuple(sizes[rng.integers(0, len(sizes) + 1) if rng.random() < 0.3 else 0 :]))
    return shapes


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind in "fV" or array.dtype == dtypes.bfloat16.numpy else array


def _draw_elementwise(entry: Entry, dtype: DType, rng: np.random.Generator, special: bool) -> list[Array]:
    shapes = _broadcast_shapes(rng, len(entry.parameters))
    arrays = []
    flags = entry.op._truth_flags  # type: ignore[attr-defined]
    truth = dtypes.bool_ if any(flags) and rng.random() < 0.5 else dtype  # any dtype can be used as a truth value
    for domain, shape, flag in zip(entry.domain, shapes, flags, strict=True):
        kind = truth if flag else dtype
        arrays.append(_values(rng, shape, kind, domain, special))
    return arrays


def check_forward(entry: Entry, dtype: DType, seed: int) -> None:
    """Run the op on operands of `dtype` drawn from a seed; raise AssertionError if it differs from its reference."""
    rng = np.random.default_rng(seed)
    if entry.kind == "elementwise":
        _check_elementwise(entry, dtype, rng)
    else:
        for case in entry.cases:
            _check_case(entry, case.operands, case.keywords, dtype, rng)


def _check_elementwise(entry: Entry, dtype: DType, rng: np.random.Generator) -> None:
    arrays = _draw_elementwise(entry, dtype, rng, special=True)
    pairs = [laid_out(a, str(rng.choice(LAYOUTS))) for a in arrays]
    arrays = [array for array, _ in pairs]
    y = entry.op(*[operand for _, operand in pairs])
    with np.errstate(all="ignore"):
        # integers that become floats (√2) are computed in f64, others (wrapping sums, comparisons) in themselves
        given = [a.astype(np.float64) if y.dtype.is_floating else _wide(a) for a in arrays]
        expected = np.asarray(entry.reference(*given))
    assert y.shape == expected.shape, f"{entry.name}: shape {y.shape}, expected {expected.shape}"
    _compare(entry, y, expected, arrays, dtype)


def _compare(entry: Entry, y: Tensor, expected: Array, operands: Sequence[Array], dtype: DType) -> None:
    found = y.numpy()
    if not y.dtype.is_floating:
        assert np.array_equal(found, expected.astype(y.dtype.numpy)), _difference(entry, dtype, found, expected)
        return
    with np.errstate(all="ignore"):
        rounded = expected.astype(y.dtype.numpy).astype(np.float64)
        wide = found.astype(np.float64)
        largest = np.ones(())
        for a in operands:
            operand = np.abs(_wide(a).astype(np.float64))
            largest = np.maximum(largest, np.where(np.isfinite(operand), operand, 0))
        size = np.fmax(np.abs(expected), largest) if entry.cancels else np.abs(expected)
        # computed in f32 (f64) within the entry's ulps, then rounded once to the dtype
        relative = entry.ulps * y.dtype.accumulator.eps + (y.dtype.eps if y.dtype.itemsize == 2 else 0)
        smallest = float(ml_dtypes.finfo(y.dtype.numpy).smallest_subnormal)
        # an intermediate value that underflows is off by a subnormal, and may yet be multiplied by an operand
        close = np.abs(wide - expected) <= relative * size + (entry.ulps + 1) * smallest * np.minimum(largest, 1e4)
        # beyond the largest number, rounding may go either way within the tolerance
        limit = float(ml_dtypes.finfo(y.dtype.numpy).max)
        edge = np.isinf(wide) & (np.abs(expected) >= limit * (1 - 2 * relative)) & (np.sign(wide) == np.sign(expected))
    same = (wide == rounded) | (np.isnan(wide) & np.isnan(rounded))
    assert np.all(same | close | edge), _difference(entry, dtype, found, expected, ~(same | close | edge))


def _difference(entry: Entry, dtype: DType, found: Array, expected: Array, where: Array | None = None) -> str:
    wrong = found != expected if where is None else where
    at = tuple(int(i) for i in np.argwhere(wrong)[0]) if found.shape else ()
    return f"{entry.name} in {dtype.name}: at {at} found {found[at]!r}, expected {expected[at]!r}"


def _case_array(operand: Any, dtype: DType, domain: Domain, rng: np.random.Generator) -> Any:
    if isinstance(operand, Integers):
        return rng.integers(operand.low, operand.high, operand.shape)
    if isinstance(operand, Booleans):
        return np.asarray(rng.random(operand.shape) < 0.5)
    if isinstance(operand, Floats):
        return np.asarray(rng.uniform(operand.low, operand.high, operand.shape)).astype(dtype.numpy)
    if not isinstance(operand, tuple):
        return operand
    if dtype.is_floating:
        return np.asarray(rng.uniform(max(domain.low, -2.0), min(domain.high, 2.0), operand)).astype(dtype.numpy)
    if dtype.kind == "bool":
        return np.asarray(rng.random(operand) < 0.5)
    return np.asarray(rng.integers(0 if dtype.kind == "uint" else -5, 6, operand)).astype(dtype.numpy)


def _case_arrays(operands: Sequence[Any], dtype: DType, domain: Domain, rng: np.random.Generator) -> list[Any]:
    return [_case_array(o, dtype, domain, rng) for o in operands]


def _check_case(entry: Entry, operands: Sequence[Any], keywords: dict[str, Any], dtype: DType, rng: Any) -> None:
    arrays = _case_arrays(operands, dtype, entry.domain[0], rng)
    pairs = [laid_out(a, str(rng.choice(LAYOUTS))) if isinstance(a, np.ndarray) else (a, a) for a in arrays]
    arrays, tensors = [array for array, _ in pairs], [tensor for _, tensor in pairs]
    found = (entry.example or entry.op)(*tensors, **keywords)
    wide = [_wide(a) if isinstance(a, np.ndarray) else a for a in arrays]
    with np.errstate(all="ignore"):
        expected = entry.reference(*wide, **keywords)
    name = f"{entry.name}{tuple(operands)} {keywords} in {dtype.name}"
    if not isinstance(found, tuple):
        found, expected = (found,), (expected,)
    assert len(found) == len(expected), f"{name}: {len(found)} results, expected {len(expected)}"
    for y, e in zip(found, expected, strict=True):
        _compare_case(entry, name, y, np.asarray(e))


def _compare_case(entry: Entry, name: str, y: Tensor, expected: Array) -> None:
    assert y.shape == expected.shape, f"{name}: shape {y.shape}, expected {expected.shape}"
    if not y.dtype.is_floating:
        assert np.array_equal(y.numpy(), expected), f"{name} differs: {y.numpy()}, expected {expected}"
        return
    values, wide = y.numpy().astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(wide)
    same = (values == wide) | (np.isnan(values) & np.isnan(wide))
    assert np.all(same | finite), f"{name}: found {values}, expected {wide}"
    size = float(np.max(np.abs(wide[finite]), initial=1.0))
    # a composite rounds to 16 bits after each of its ops, a primitive once
    roundings = 4 if entry.kind == "composite" else 1
    narrow = roundings * y.dtype.eps if y.dtype.itemsize == 2 else 0
    tolerance = (max(entry.ulps, 1) * y.dtype.accumulator.eps + narrow) * size
    worst = float(np.max(np.abs(values[finite] - wide[finite]), initial=0.0))
    assert worst <= tolerance, f"{name}: off by {worst}, allowed {tolerance}"


def check_repeats(entry: Entry, dtype: DType, seed: int) -> None:
    """Run the op and its gradient twice. Raises AssertionError unless all results have the same bits."""
    rng = np.random.default_rng(seed)
    if entry.kind == "elementwise":
        calls: list[tuple[list[Any], dict[str, Any]]] = [(list(_draw_elementwise(entry, dtype, rng, False)), {})]
    else:
        calls = [(_case_arrays(c.operands, dtype, entry.domain[0], rng), c.keywords) for c in entry.cases]
    for arrays, keywords in calls:
        first, second = (_bits(entry, arrays, keywords) for _ in range(2))
        assert first == second, f"{entry.name} {keywords} in {dtype.name}: two runs differ"


def _bits(entry: Entry, arrays: Sequence[Any], keywords: dict[str, Any]) -> list[bytes]:
    operands = [asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
    leaves = [x for x in operands if isinstance(x, Tensor) and x.dtype.is_floating]
    if not entry.non_differentiable:
        for x in leaves:
            x.requires_grad_()
    results = (entry.example or entry.op)(*operands, **keywords)
    results = results if isinstance(results, tuple) else (results,)
    bits = [y.numpy().tobytes() for y in results]
    for y in results:
        if y.requires_grad and y.node is not None:
            y.backward(y.detach().ones_like(), retain_graph=True)
    return bits + [x.grad.numpy().tobytes() for x in leaves if x.grad is not None]


def check_gradient(entry: Entry, seed: int, order: int = 1) -> None:
    """Compare the op's f64 gradients with central differences. Raises GradientError on a difference."""
    rng = np.random.default_rng(seed)
    if entry.kind == "elementwise":
        arrays = _draw_elementwise(entry, dtypes.float64, rng, special=False)
        if sum(a.size for a in arrays) > 100:
            return
        truths = entry.op._truth_flags  # type: ignore[attr-defined]
        tensors = [with_layout(a, str(rng.choice(LAYOUTS))) for a in arrays]
        inputs = [t if truth else t.requires_grad_() for t, truth in zip(tensors, truths, strict=True)]
        gradcheck(entry.op, inputs, order=order, seed=seed, rtol=1e-4, atol=1e-5)
        return
    for case in entry.cases:
        arrays = _case_arrays(case.operands, dtypes.float64, entry.domain[0], rng)
        if sum(a.size for a in arrays if isinstance(a, np.ndarray)) > 300:
            continue
        if not _has_differences(arrays):
            continue
        tensors = [with_layout(a, str(rng.choice(LAYOUTS))) if isinstance(a, np.ndarray) else a for a in arrays]
        for t in tensors:
            if isinstance(t, Tensor) and t.dtype.is_floating:
                t.requires_grad_()
        op, keywords = entry.example or entry.op, case.keywords
        gradcheck(lambda *xs: op(*xs, **keywords), tensors, order=order, seed=seed, rtol=1e-4, atol=1e-6)  # noqa: B023


def _has_differences(operands: Sequence[Any]) -> bool:
    """Whether there are floating operands, and none of a case's own with a coarser dtype or an infinity."""
    floating = [a for a in operands if isinstance(a, np.ndarray) and a.dtype.kind in "fV"]
    return bool(floating) and all(a.dtype == np.float64 and not np.isinf(a).any() for a in floating)


def check_related(entry: Entry, seed: int) -> None:
    """Compare f64 gradients with and without create_graph where operands are made from each other, or are one tensor.

    Raises AssertionError on a difference.
    """
    rng = np.random.default_rng(seed)
    if entry.kind == "elementwise":
        calls: list[tuple[list[Any], dict[str, Any]]]
        calls = [(list(_draw_elementwise(entry, dtypes.float64, rng, special=False)), {})]
    else:
        calls = [(_case_arrays(c.operands, dtypes.float64, entry.domain[0], rng), c.keywords) for c in entry.cases]
    for arrays, keywords in calls:
        places = [i for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.dtype == np.float64]
        if len(places) < 2 or sum(arrays[i].size for i in places) > 1000:
            continue
        alike = {i: next(j for j in places if arrays[j].shape == arrays[i].shape) for i in places}
        for relation in (_made_from_the_first, lambda leaf, made, i: made[alike[i]]):  # noqa: B023
            first, second = (_related(entry, arrays, keywords, places, relation, again) for again in (False, True))
            for a, b in zip(first, second, strict=True):
                where = f"{entry.name} {[arrays[i].shape for i in places]} {keywords}: create_graph changes a gradient"
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8 * _largest(a), err_msg=where)


def _made_from_the_first(leaf: Tensor, made: dict[int, Tensor], i: int) -> Tensor:
    return leaf if len(made) == 1 else leaf + made[min(made)].sin().mean() * 1e-2 * i


def _largest(a: Array) -> float:
    return float(np.max(np.abs(a), initial=1.0, where=np.isfinite(a)))


def _related(
    entry: Entry, arrays: list[Any], keywords: dict[str, Any], places: list[int], relation: Any, again: bool
) -> list[Array]:
    """The gradients of leaves for a call whose operands at `places` are `relation(leaf, the ones before, place)`."""
    leaves = {i: asarray(arrays[i]).requires_grad_() for i in places}
    operands: list[Any] = [asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
    made: dict[int, Tensor] = {}
    for i, leaf in leaves.items():
        made[i] = leaf
        operands[i] = made[i] = relation(leaf, made, i)
    found = (entry.example or entry.op)(*operands, **keywords)
    ys = [y for y in (found if isinstance(found, tuple) else (found,)) if y.requires_grad]
    if not ys:
        return []
    weights = [asarray(np.cos(np.arange(y.numel)).reshape(y.shape)) for y in ys]
    parts = grad(ys, list(leaves.values()), weights, create_graph=again, allow_unused=True)
    return [part.detach().numpy() for part in parts if part is not None]
