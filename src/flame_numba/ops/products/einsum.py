"""Sums of products along named axes: einsum and tensordot, as matrix products of two operands at a time."""

from __future__ import annotations

import builtins
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import AxisError, DTypeError, ShapeError
from ...shapes import axis_index, numel
from ...tensor import Tensor
from ..arrange.diagonals import diagonal
from ..arrange.rearrange import roll
from ..core.launch import same_device
from ..core.table import case, composite
from ..reduce.reductions import sum
from ..shape.movement import broadcast_to, permute, reshape, transpose
from .linalg import matmul

_LETTERS = string.ascii_letters


def _explicit(equation: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """The labels of each operand and of the result, one a letter; those that `...` stands for are digits and signs."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ShapeError(f"einsum: {equation!r} names {len(terms)} operands, got {len(ndims)}")
    labels, widest = [], 0
    for term, ndim in zip(terms, ndims, strict=True):
        head, dots, tail = term.partition("...")
        named = head + tail
        wrong = [c for c in named if c not in _LETTERS]
        if wrong or len(named) > ndim or (not dots and len(named) != ndim):
            raise ShapeError(f"einsum: {term!r} in {equation!r} does not name the {ndim} axes of its operand")
        rest = ndim - len(named) if dots else 0
        widest = builtins.max(widest, rest)
        labels.append((head, rest, tail))
    # axes of `...` are aligned at the right, as in broadcasting: characters that no equation can hold
    spare = [chr(0x100 + i) for i in range(widest)]
    full = [head + "".join(spare[widest - rest :]) + tail for head, rest, tail in labels]
    if not arrow:
        counts = {c: "".join(full).count(c) for c in "".join(full)}
        return full, "".join(spare) + "".join(sorted(c for c, n in counts.items() if n == 1 and c in _LETTERS))
    head, dots, tail = right.partition("...")
    result = head + ("".join(spare) if dots else "") + tail
    if len(set(result)) != len(result) or any(c not in "".join(full) for c in result):
        raise ShapeError(f"einsum: the result of {equation!r} must name axes of the operands, each once")
    return full, result


def _sizes(terms: Sequence[str], operands: Sequence[Tensor], equation: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for label, n in zip(term, x.shape, strict=True):
            if n != x.shape[term.index(label)]:
                raise ShapeError(f"einsum: the axes {label!r} of {term!r} must have one size, the shape is {x.shape}")
        for label, n in zip(term, x.shape, strict=True):
            known = sizes.setdefault(label, n)
            if known != n and 1 not in (known, n):
                shapes = ", ".join(str(o.shape) for o in operands)
                raise ShapeError(f"einsum: {label!r} has sizes {known} and {n} in {equation!r} (shapes: {shapes})")
            sizes[label] = builtins.max(known, n) if 0 not in (known, n) else 0
    return sizes


def _simple(x: Tensor, term: str, keep: str) -> tuple[Tensor, str]:
    """An operand without repeated labels, and without those that nobody else asks for."""
    for label in dict.fromkeys(term):
        while term.count(label) > 1:
            first = term.index(label)
            second = term.index(label, first + 1)
            x = diagonal(x, 0, first, second)  # its axis comes last
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + label
    lonely = tuple(a for a, label in enumerate(term) if label not in keep)
    if lonely:
        x = sum(x, axis=lonely, dtype=x.dtype)
        term = "".join(label for label in term if label in keep)
    return x, term


def _order(x: Tensor, term: str, wanted: str) -> Tensor:
    return permute(x, tuple(term.index(label) for label in wanted)) if term != wanted else x


def _contract(a: Tensor, a_term: str, b: Tensor, b_term: str, keep: str) -> tuple[Tensor, str]:
    """The product of two operands, summed over the labels that both have and nobody else asks for."""
    # a label of size 1 in one operand only is stretched by leaving it out there
    a_sizes, b_sizes = dict(zip(a_term, a.shape, strict=True)), dict(zip(b_term, b.shape, strict=True))
    a, a_term = _without_ones(a, a_term, b_sizes)
    b, b_term = _without_ones(b, b_term, a_sizes)
    sizes = {**dict(zip(a_term, a.shape, strict=True)), **dict(zip(b_term, b.shape, strict=True))}
    both = [c for c in a_term if c in b_term]
    batch = "".join(c for c in both if c in keep)
    inner = "".join(c for c in both if c not in keep)
    rows = "".join(c for c in a_term if c not in both)
    columns = "".join(c for c in b_term if c not in both)
    lead = tuple(sizes[c] for c in batch)
    m, k, n = (numel(tuple(sizes[c] for c in part)) for part in (rows, inner, columns))
    left = reshape(_order(a, a_term, batch + rows + inner), (*lead, m, k))
    right = reshape(_order(b, b_term, batch + inner + columns), (*lead, k, n))
    y = left * right if k == 1 and not inner else matmul(left, right)
    return reshape(y, tuple(sizes[c] for c in batch + rows + columns)), batch + rows + columns


def _without_ones(x: Tensor, term: str, other: dict[str, int]) -> tuple[Tensor, str]:
    ones = [a for a, c in enumerate(term) if x.shape[a] == 1 and other.get(c, 1) != 1]
    if not ones:
        return x, term
    kept = [a for a in range(x.ndim) if a not in ones]
    return reshape(x, tuple(x.shape[a] for a in kept)), "".join(term[a] for a in kept)


def _path(terms: Sequence[str], result: str, sizes: dict[str, int]) -> list[tuple[int, ...]]:
    """Which operands to contract first, by NumPy's search over the sizes alone."""
    if len(terms) < 3:
        return [tuple(range(len(terms)))]
    names = {c: _LETTERS[i] for i, c in enumerate(sizes)}
    equation = ",".join("".join(names[c] for c in t) for t in terms) + "->" + "".join(names[c] for c in result)
    shapes = [np.broadcast_to(0.0, tuple(sizes[c] for c in t)) for t in terms]
    return np.einsum_path(equation, *shapes, optimize="greedy")[0][1:]


def _pairs(step: Sequence[int], count: int) -> list[tuple[int, int]]:
    """A step of a path as contractions of two: the others follow the first pair's result, which goes to the end."""
    order = sorted(step)
    return [(order[0], order[1])] + [(count - 2 - i, order[2 + i] - 2 - i) for i in range(len(order) - 2)]


@composite(
    lambda *args, equation: np.einsum(equation, *args),
    [
        case((2, 3), (3, 4), equation="ij,jk->ik"), case((2, 3, 4), (2, 4, 5), equation="bij,bjk"),
        case((3, 3), equation="ii"), case((3, 3), equation="ii->i"), case((2, 3), equation="ij->ji"),
        case((2, 3), (3,), (4,), equation="ij,j,k->ki"), case((2, 3, 4), (4, 3), equation="...ij,ji->..."),
        case((2, 1, 3), (4, 3), equation="...i,...i->..."), case((2, 3), (2, 3), equation="ij,ij->"),
        case((2, 3), (2, 3), equation="ij,ij->ij"), case((0, 3), (3, 2), equation="ij,jk->ik"),
        case((), (3,), equation=",i"), case((2, 1), (2, 1), (2, 3), equation="ij,ij,ij->i"),
    ],
    ulps=16, method=False, example=lambda *args, equation: einsum(equation, *args),
)  # fmt: skip
def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Σ of products over labelled axes, as NumPy's: `einsum("bij,bjk->bik", a, b)`; `...` stands for broadcast axes.

    Repeated labels take diagonals. Two operands at a time become one matrix product, in the order of the smallest
    intermediate results. Raises ShapeError if labels and shapes do not fit.
    """
    if not isinstance(equation, str):
        raise DTypeError(f"einsum: equation must be a str, got {equation!r}")
    if not operands:
        raise ShapeError("einsum: needs at least one operand")
    terms, result = _explicit(equation, [x.ndim for x in operands])
    sizes = _sizes(terms, operands, equation)
    todo = list(zip(operands, terms, strict=True))
    for step in _path(terms, result, sizes):
        for pair in _pairs(step, len(todo)) if len(step) > 1 else []:
            i, j = sorted(pair)
            (b, b_term), (a, a_term) = todo.pop(j), todo.pop(i)
            others = "".join(t for _, t in todo) + result
            a, a_term = _simple(a, a_term, others + b_term)
            b, b_term = _simple(b, b_term, others + a_term)
            todo.append(_contract(a, a_term, b, b_term, others))
    x, term = _simple(*todo[0], result)
    y = _order(x, term, result)
    shape = tuple(sizes[c] for c in result)
    return y if y.shape == shape else broadcast_to(y, shape)


def _axes_pair(a: Tensor, b: Tensor, axes: Any) -> tuple[list[int], list[int]]:
    if isinstance(axes, int):
        if not 0 <= axes <= builtins.min(a.ndim, b.ndim):
            raise AxisError(f"tensordot: axes={axes} must be from 0 to {builtins.min(a.ndim, b.ndim)}")
        return list(range(a.ndim - axes, a.ndim)), list(range(axes))
    first, second = ([s] if isinstance(s, int) else list(s) for s in axes) if len(axes) == 2 else ([0], [])
    if len(first) != len(second):
        raise AxisError(f"tensordot: axes={axes} must name as many axes of both operands")
    pair = tuple([axis_index(i, x.ndim, "tensordot") for i in s] for s, x in ((first, a), (second, b)))
    if any(len({*named}) != len(named) for named in pair):
        raise AxisError(f"tensordot: axes={axes} names an axis twice")
    return pair[0], pair[1]


@composite(
    lambda a, b, axes=2: np.tensordot(a, b, axes),
    [
        case((2, 3, 4), (3, 4, 5)), case((2, 3), (4, 5), axes=0), case((2, 3, 4), (4, 2), axes=((2, 0), (0, 1))),
        case((3,), (3,), axes=1), case((2, 0), (0, 3), axes=1),
    ],
    ulps=16,
)  # fmt: skip
def tensordot(a: Tensor, b: Tensor, axes: int | Sequence[int | Sequence[int]] = 2) -> Tensor:
    """Σ over pairs of axes: the last `axes` of a with the first of b, or the named (axes of a, axes of b)."""
    first, second = _axes_pair(a, b, axes)
    for i, j in zip(first, second, strict=True):
        if a.shape[i] != b.shape[j]:
            raise ShapeError(f"tensordot: axis {i} of {a.shape} and axis {j} of {b.shape} must have one size")
    rows = [i for i in range(a.ndim) if i not in first]
    columns = [j for j in range(b.ndim) if j not in second]
    k = numel(tuple(a.shape[i] for i in first))
    shape = tuple(a.shape[i] for i in rows) + tuple(b.shape[j] for j in columns)
    left = reshape(permute(a, rows + first), (numel(tuple(a.shape[i] for i in rows)), k))
    right = reshape(permute(b, second + columns), (k, numel(tuple(b.shape[j] for j in columns))))
    return reshape(matmul(left, right), shape)


@composite(
    lambda a, b, axis=-1: np.vecdot(*(np.moveaxis(x, axis, -1) for x in np.broadcast_arrays(a, b))),
    [case((3, 4), (3, 4)), case((4,), (3, 4)), case((2, 3, 4), (2, 3, 4), axis=-2), case((2, 0), (2, 0))],
    ulps=16,
)  # fmt: skip
def vecdot(a: Tensor, b: Tensor, axis: int = -1) -> Tensor:
    """Σ a·b along an axis, the other axes broadcast. axis is negative: it counts from the end of both."""
    least = builtins.min(a.ndim, b.ndim)
    if not -least <= axis < 0 and not (0 <= axis < least and a.ndim == b.ndim):
        raise AxisError(f"vecdot: axis={axis} must be in [-{least}, -1] (a: {a.shape}, b: {b.shape})")
    if a.shape[axis] != b.shape[axis]:
        raise ShapeError(f"vecdot: a.shape[{axis}]={a.shape[axis]} must equal b.shape[{axis}]={b.shape[axis]}")
    left, right = (transpose(x, axis, -1) if axis != -1 else x for x in (a, b))
    y = matmul(reshape(left, (*left.shape[:-1], 1, left.shape[-1])), reshape(right, (*right.shape, 1)))
    y = reshape(y, y.shape[:-2])
    return y if axis == -1 else _turned_back(y, axis, builtins.max(a.ndim, b.ndim))


def _turned_back(y: Tensor, axis: int, ndim: int) -> Tensor:
    """The last axis was exchanged with `axis`, and then summed: what stands at its place belongs at the end."""
    at = axis % ndim
    order = [i for i in range(y.ndim) if i != at] + [at]
    return permute(y, order) if at < y.ndim else y


@composite(lambda x: np.trace(x, axis1=-2, axis2=-1), [case((3, 3)), case((2, 3, 4))], ulps=8)
def trace(x: Tensor, offset: int = 0, dtype: Any = None) -> Tensor:
    """Sum of a diagonal of the last two axes: (…, m, n) → (…)."""
    return sum(diagonal(x, offset), axis=-1, dtype=dtype)


@composite(lambda a, b: np.kron(a, b), [case((2, 3), (4, 5)), case((2,), (3,))])
def kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product: each element of a, times all of b, in its place."""
    ndim = builtins.max(a.ndim, b.ndim)
    first, second = ((1,) * (ndim - x.ndim) + x.shape for x in (a, b))
    left = reshape(a, tuple(n for size in first for n in (size, 1)))
    right = reshape(b, tuple(n for size in second for n in (1, size)))
    return reshape(left * right, tuple(m * n for m, n in zip(first, second, strict=True)))


@composite(lambda a, b: np.cross(a, b), [case((3,), (3,)), case((2, 3), (2, 3)), case((2, 1, 3), (4, 3))])
def cross(a: Tensor, b: Tensor, axis: int = -1) -> Tensor:
    """Cross product of vectors of three along an axis."""
    same_device([a, b], "cross")
    at, to = axis_index(axis, a.ndim, "cross"), axis_index(axis, b.ndim, "cross")
    if a.shape[at] != 3 or b.shape[to] != 3:
        raise ShapeError(f"cross: axis={axis} must have size 3 (a: {a.shape}, b: {b.shape})")
    left = roll(a, -1, axis) * roll(b, 1, axis)
    return left - roll(a, 1, axis) * roll(b, -1, axis)


__all__ = ["cross", "einsum", "kron", "tensordot", "trace", "vecdot"]
