"""What tells a network where and when: rotary embedding, sinusoidal positions, timestep embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...devices import Device
from ...dtypes import DType, as_dtype, default_float, float64, promote
from ...errors import AxisError, ConfigError, DTypeError, ShapeError
from ...kernels.elementwise import formula
from ...shapes import axis_index, broadcast
from ...tensor import Tensor, new
from ..core.copies import copy_into
from ..core.formula_op import fuse
from ..core.kernel_op import Primitive
from ..core.launch import MapKernel
from ..core.table import Floats, case, composite
from ..elementwise.arithmetic import exp
from ..elementwise.trigonometry import cos as cos_
from ..elementwise.trigonometry import sin as sin_
from ..shape.creation import arange
from ..shape.joining import concat as concat_
from ..shape.joining import stack
from ..shape.movement import narrow, pad, reshape, strided_slice, to_dtype, unsqueeze

LAYOUTS = ("interleaved", "half")


# --- rotary embedding -------------------------------------------------------------------------------------------------
def _turn(name: str, sign: int) -> MapKernel:
    """(a, b) → (a·c − b·s, a·s + b·c), or back: one kernel for both halves of all pairs."""
    a, b, c, s = (formula.variable(n) for n in "abcs")
    return MapKernel(name, "abcs", [a * c - b * s, a * s + b * c] if sign > 0 else [a * c + b * s, b * c - a * s])


_FORWARD, _BACK = _turn("rope", 1), _turn("rope_gradient", -1)
_COS_PART = fuse(lambda g, h, a, b: g * a + h * b)
_SIN_PART = fuse(lambda g, h, a, b: h * a - g * b)


def _pairs(x: Tensor, pairs: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """First and second members of the pairs, as views."""
    zeros, ones, lead = (0,) * (x.ndim - 1), (1,) * (x.ndim - 1), x.shape[:-1]
    starts, step = ((0, 1), 2) if interleaved else ((0, pairs), 1)
    first, second = (strided_slice(x, (*zeros, i), (*lead, pairs), (*ones, step)) for i in starts)
    return first, second


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, back: bool) -> Tensor:
    y = new(x.device, x.dtype, x.shape)
    pairs = cos.shape[-1]
    if y.numel:
        views = [*_pairs(x.detach(), pairs, interleaved), cos.detach(), sin.detach()]
        into = _pairs(y, pairs, interleaved)
        compute = promote(x.dtype, cos.dtype).accumulator
        if pairs:
            (_BACK if back else _FORWARD)(views, (x.dtype,) * 2, compute, into=into)
        rest = x.shape[-1] - 2 * pairs
        if rest:
            copy_into(narrow(y, -1, 2 * pairs, rest), narrow(x.detach(), -1, 2 * pairs, rest))
    return y


def _rotate_gradient(
    g: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, back: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    dx = _rotation(g, cos, sin, interleaved, not back) if needs[0] else None
    if not (needs[1] or needs[2]):
        return dx, None, None
    # the parts of cos and sin are sums over all that they turned: not rounded to the dtype of x before
    g, x = (to_dtype(t, promote(t.dtype, cos.dtype)) for t in (g, x))
    members = (*_pairs(g, cos.shape[-1], interleaved), *_pairs(x, cos.shape[-1], interleaved))
    ds = _SIN_PART(*members)
    return dx, _COS_PART(*members), -ds if back else ds


_rotation = Primitive(_rotate, _rotate_gradient, None)
_rotation.name = "rope"


def _place(table: Tensor, x: Tensor, axis: int, name: str) -> Tensor:
    """The table's axes where they belong in x: (S, r), (batch, S, r), or one for each axis of x."""
    at = axis_index(axis, x.ndim, "rope")
    if at == x.ndim - 1:
        raise AxisError(f"rope: axis={axis} must not be the last one, whose pairs are turned")
    shape = table.shape
    short = table.ndim < x.ndim  # then it has a row for each position; with all axes it broadcasts
    if table.ndim == 2:
        shape = (*(1,) * at, shape[0], *(1,) * (x.ndim - at - 2), shape[1])
    elif table.ndim == 3 and x.ndim > 3 and at > 0:
        shape = (shape[0], *(1,) * (at - 1), shape[1], *(1,) * (x.ndim - at - 2), shape[2])
    full = (*x.shape[:-1], shape[-1])
    fits = len(shape) == x.ndim and broadcast([shape, full], f"rope, {name}") == full
    if not fits or (short and shape[at] != x.shape[at]):
        raise ShapeError(
            f"rope: {name}.shape={table.shape} does not fit x.shape={x.shape} with positions along axis {at}"
        )
    return reshape(table, shape)


def _check_layout(layout: str) -> bool:
    if layout not in LAYOUTS:
        raise ConfigError(f"rope: layout must be one of {LAYOUTS}, got {layout!r}")
    return layout == LAYOUTS[0]


def _rope_reference(
    x: Any, cos: Any = None, sin: Any = None, positions: Any = None, layout: str = "interleaved", base: float = 1e4,
    dim: int | None = None, axis: int = -2,
) -> Any:  # fmt: skip
    x = np.moveaxis(x, axis, -2)
    if cos is None:
        n = x.shape[-1] if dim is None else dim
        positions = np.arange(x.shape[-2]) if positions is None else positions
        angle = positions[..., None] * base ** (-np.arange(0, n, 2) / n)
        if positions.ndim == 2:
            angle = angle.reshape(len(angle), *(1,) * (x.ndim - 3), *angle.shape[1:])
        cos, sin = np.cos(angle), np.sin(angle)
    r = cos.shape[-1]
    a, b = (
        (x[..., 0 : 2 * r : 2], x[..., 1 : 2 * r : 2]) if layout == "interleaved" else (x[..., :r], x[..., r : 2 * r])
    )
    pair = [a * cos - b * sin, a * sin + b * cos]
    turned = np.stack(pair, -1).reshape(*a.shape[:-1], 2 * r) if layout == "interleaved" else np.concatenate(pair, -1)
    return np.moveaxis(np.concatenate([turned, x[..., 2 * r :]], -1), -2, axis)


_STEPS = np.array([[0, 5, 17], [3, 20, 2]])  # an f64 angle of 10³ would already be off by 10³ ulps


@composite(
    _rope_reference,
    [
        case((2, 3, 4)), case((3, 6), (3, 3), (3, 3)), case((2, 3, 8), (3, 2), (3, 2), layout="half"),
        case((2, 2, 3, 4), None, None, _STEPS), case((2, 3, 2, 4), None, None, _STEPS, axis=1, layout="half", base=9.0),
        case((2, 4, 7), dim=4), case((0, 4)), case((1, 2)), case((2, 3, 4), (2, 1, 2), (2, 1, 2)),
    ],
    ulps=64,
    example=lambda x, cos=None, sin=None, positions=None, **keywords: rope(
        x, cos, sin, positions=positions, **keywords
    ),
)  # fmt: skip
def rope(
    x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, *, positions: Tensor | None = None,
    layout: str = "interleaved", base: float = 10000.0, dim: int | None = None, axis: int = -2,
) -> Tensor:  # fmt: skip
    """Rotary embedding: pair i of x's last axis is turned by positions·base^(−2i/dim). x: (…, S, …, size), S at `axis`.

    Pairs are neighbours ("interleaved") or the i-th of each half ("half"). Give positions, (S) or (batch, S), default
    0 … S−1, or tables cos and sin, (S, dim/2) or (batch, S, dim/2), or with all axes of x; see `rope_tables`. What lies
    beyond the first `dim` of the last axis is kept. Computed in f32 (f64 for f64), rounded once. Raises ShapeError,
    ConfigError. (Su, Lu, Pan, Murtadha, Wen and Liu 2021)
    """
    interleaved = _check_layout(layout)
    if x.ndim < 2 or not x.dtype.is_floating:
        raise (ShapeError if x.ndim < 2 else DTypeError)(
            f"rope: needs floating (…, S, size), got {x.dtype.name} {x.shape}"
        )
    if (cos is None) != (sin is None) or (cos is not None and (positions is not None or dim is not None)):
        raise ConfigError("rope: give both cos and sin, or else positions and dim")
    if cos is None or sin is None:
        length = x.shape[axis_index(axis, x.ndim, "rope")]
        if positions is None:
            positions = arange(length, device=x.device)
        elif positions.ndim not in (1, 2) or positions.shape[-1] != length:
            raise ShapeError(f"rope: positions {positions.shape} must be (S) or (batch, S) with S={length}")
        cos, sin = rope_tables(positions, x.shape[-1] if dim is None else dim, base, dtype=x.dtype.accumulator)
    if cos.shape != sin.shape or cos.ndim < 2 or 2 * cos.shape[-1] > x.shape[-1]:
        raise ShapeError(
            f"rope: cos {cos.shape} and sin {sin.shape} must be equal, (…, S, dim/2), and at most half of x {x.shape}"
        )
    return _rotation(x, _place(cos, x, axis, "cos"), _place(sin, x, axis, "sin"), interleaved, False)


def _angles(positions: Tensor, dim: int, base: float, op: str) -> Tensor:
    """positions·base^(−2i/dim), (…) → (…, dim/2), in f64: an f32 angle of 10⁵ would be off by 0.004."""
    if dim < 0 or dim % 2:
        raise ConfigError(f"{op}: dim must be even and ≥ 0, got {dim}")
    return unsqueeze(to_dtype(positions, float64), -1) * _frequencies(dim // 2, dim / 2, base, op, positions.device)


def _frequencies(n: int, scale: float, base: float, op: str, device: Device) -> Tensor:
    """base^(−i/scale) for i below n, f64."""
    if not base > 0:
        raise ConfigError(f"{op}: base must be > 0, got {base}")
    return exp(arange(n, dtype=float64, device=device) * (-math.log(base) / scale if n else 0.0))


def _tables_reference(positions: Any, dim: int, base: float = 1e4) -> Any:
    angle = positions[..., None] * base ** (-np.arange(0, dim, 2) / max(dim, 1))
    return np.cos(angle), np.sin(angle)


@composite(
    _tables_reference,
    [case(np.array([0.0, 1, 7, 20]), 6), case(_STEPS + 0.0, 4, base=500.0), case(Floats((3,), 0.0, 10.0), 2)],
    method=False, ulps=64, example=lambda p, dim, base=1e4: rope_tables(p, dim, base, dtype="float64"),
)  # fmt: skip
def rope_tables(positions: Tensor, dim: int, base: float = 10000.0, *, dtype: Any = None) -> tuple[Tensor, Tensor]:
    """(cos, sin) of positions·base^(−2i/dim): (…) → (…, dim/2) each, float32 by default, from f64 angles."""
    kind = _floating_dtype(dtype, "rope_tables")
    angle = _angles(positions, dim, base, "rope_tables")
    return to_dtype(cos_(angle), kind), to_dtype(sin_(angle), kind)


def _floating_dtype(dtype: Any, op: str) -> DType:
    kind = default_float if dtype is None else as_dtype(dtype)
    if not kind.is_floating:
        raise DTypeError(f"{op}: needs a floating dtype, got {kind.name}")
    return kind


# --- sinusoids --------------------------------------------------------------------------------------------------------
def _timestep_reference(
    t: Any, dim: int, max_period: float = 1e4, flip: bool = False, shift: float = 0.0, scale: float = 1.0
) -> Any:
    half = dim // 2
    angle = scale * t[..., None] * np.exp(-np.log(max_period) * np.arange(half) / (half - shift))
    parts = [np.cos(angle), np.sin(angle), np.zeros((*t.shape, dim % 2))]
    return np.concatenate([parts[1], parts[0], parts[2]] if flip else parts, -1)


@composite(
    _timestep_reference,
    [
        case(Floats((3,), 0.0, 20.0), 6), case(Floats((2, 2), 0.0, 1.0), 5, flip=True, scale=10.0),
        case(Floats((1,), 0.0, 10.0), 8, max_period=100.0, shift=1.0), case((0,), 4), case(Floats((), 0, 9), 2),
    ],
    method=False, ulps=64,
)  # fmt: skip
def timestep_embedding(
    t: Tensor, dim: int, max_period: float = 10000.0, *, flip: bool = False, shift: float = 0.0, scale: float = 1.0,
    dtype: Any = None,
) -> Tensor:  # fmt: skip
    """cos and then sin of scale·t·max_period^(−i/(dim/2 − shift)): t (…) → (…, dim), as diffusion models are told time.

    flip: sin before cos. An odd dim ends in a 0. The dtype is that of t, float32 for integers, unless given; angles are
    computed in f64. Raises ConfigError for dim < 2 or shift ≥ dim/2. (Ho, Jain and Abbeel 2020)
    """
    half = dim // 2
    if half < 1 or not shift < half:
        raise ConfigError(f"timestep_embedding: needs dim ≥ 2 and shift < dim // 2, got dim={dim} and shift={shift}")
    kind = t.dtype if dtype is None and t.dtype.is_floating else _floating_dtype(dtype, "timestep_embedding")
    frequencies = _frequencies(half, half - shift, max_period, "timestep_embedding", t.device)
    angle = unsqueeze(to_dtype(t, float64) * scale, -1) * frequencies
    parts = [to_dtype(cos_(angle), kind), to_dtype(sin_(angle), kind)]
    y = concat_(parts[::-1] if flip else parts, axis=-1)
    return pad(y, [(0, 0)] * t.ndim + [(0, 1)]) if dim % 2 else y


def _sinusoidal_reference(n: int, dim: int, base: float = 1e4) -> Any:
    return np.stack(_tables_reference(np.arange(n), dim, base)[::-1], -1).reshape(n, dim)


@composite(
    _sinusoidal_reference, [case(5, 6), case(3, 2, base=50.0), case(0, 4)], method=False,
    non_differentiable="it has no operands", test_dtypes=(float64,),
    example=lambda n, dim, base=1e4: sinusoidal_positions(n, dim, base, dtype="float64"),
)  # fmt: skip
def sinusoidal_positions(
    n: int, dim: int, base: float = 10000.0, *, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """Rows 0 … n−1 of (sin, cos) pairs of position·base^(−2i/dim): (n, dim), float32 by default.

    Raises ConfigError for an odd dim or n < 0. (Vaswani et al. 2017)
    """
    kind = _floating_dtype(dtype, "sinusoidal_positions")
    if n < 0:
        raise ConfigError(f"sinusoidal_positions: n must be ≥ 0, got {n}")
    angle = _angles(arange(n, device=device), dim, base, "sinusoidal_positions")
    return to_dtype(reshape(stack([sin_(angle), cos_(angle)], axis=-1), (n, dim)), kind)


__all__ = ["rope", "rope_tables", "sinusoidal_positions", "timestep_embedding"]
