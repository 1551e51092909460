"""Random tensors from a counter-based generator whose state can be saved and restored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ..devices import Device
from ..devices.locks import held_over_forks
from ..dtypes import DType, as_dtype, default_float, default_int, float32, float64
from ..errors import ConfigError, DTypeError, ShapeError
from ..faults import FAULTS
from ..grad import current_tape
from ..kernels.random import dropout_program, integers_program, normal_program, uniform_program, weights_program
from ..kernels.reduce.associative import SUM
from ..kernels.rows.blocks import row_threads
from ..scalars import as_number
from ..shapes import as_int, as_shape
from ..tensor import Tensor, new
from .core.kernel_op import Primitive
from .core.launch import run, spread
from .core.operands import check_floating
from .core.table import case, composite
from .elementwise.arithmetic import less, log1p, maximum, minimum, not_equal
from .index.orders import order_rows, scan_axis, search_rows
from .shape.creation import full, place_of
from .shape.movement import contiguous, narrow, to_dtype

_MASK = (1 << 64) - 1
_DRAWING = held_over_forks(threading.Lock())  # held for an addition: one for all generators


class Generator:
    """A stream of random numbers: a seed and how many counters are used up. The same on every device.

    `state()` and `set_state()` save and restore it; the numbers after are then the same again. A function that draws
    and then runs out of memory, as `permutation` may in its sort, has used up its counters.
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of this seed."""
        self._seed, self._offset = as_int("manual_seed", "seed", seed) & _MASK, 0
        return self

    def state(self) -> tuple[int, int]:
        """(seed, counters used): all there is."""
        return self._seed, self._offset

    def set_state(self, state: tuple[int, int]) -> None:
        """Go on from a saved state."""
        given = state if isinstance(state, (tuple, list)) else ()
        if len(given) != 2:
            raise ConfigError(f"Generator.set_state: needs (seed, counters used) as state() gives them, got {state!r}")
        seed, offset = (
            as_int("Generator.set_state", name, v) for name, v in zip(("seed", "offset"), given, strict=True)
        )
        if not (0 <= seed <= _MASK and 0 <= offset <= _MASK):
            raise ConfigError(f"Generator.set_state: seed and counters used must be from 0 to 2⁶⁴ − 1, got {state!r}")
        self._seed, self._offset = seed, offset

    def __getstate__(self) -> tuple[int, int]:  # a copy goes on from here by itself
        return self.state()

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.set_state(state)

    def take(self, counters: int) -> tuple[int, int]:
        """(seed, first counter) of `counters` that nobody else gets, as signed 64-bit numbers for a kernel.

        A checkpointed call that runs again gets those of the first time.
        """
        tape = current_tape()
        return self._draw(counters) if tape is None else tape.take(lambda: self._draw(counters))

    def _draw(self, counters: int) -> tuple[int, int]:
        with _DRAWING:
            start = self._offset
            self._offset = (start + counters) & _MASK
        return _signed(self._seed), _signed(start)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Seed the generator that random functions use when none is given."""
    return default_generator.manual_seed(seed)


def _taken(generator: Generator | None, counters: int) -> tuple[int, int]:
    if generator is None:
        generator = default_generator
    elif not isinstance(generator, Generator):
        raise DTypeError(f"generator must be a Generator or None, got {generator!r}; Generator(seed) makes one")
    return generator.take(counters)


def _fill(program: Any, y: Tensor, numbers: tuple[Any, ...], generator: Generator | None, each: int) -> Tensor:
    if y.numel:
        counters = -(-y.numel // each)
        seed, offset = _taken(generator, counters)
        run(y.device, program, (y.dtype,), (y, *numbers, seed, offset, y.numel), spread(y.device.backend, counters))
    return y


def _floating(dtype: Any, op: str) -> DType:
    kind = default_float if dtype is None else as_dtype(dtype)
    if not kind.is_floating:
        raise DTypeError(f"{op}: needs a floating dtype, got {kind.name}")
    return kind


def _each(dtype: DType) -> int:
    return 2 if dtype is float64 else 4  # numbers from one counter


def draw_uniform(op: str, y: Tensor, low: float, high: float, generator: Generator | None) -> Tensor:
    """Fill a contiguous floating tensor with uniform numbers in low ≤ x < high; if they are equal, with low."""
    dtype = _floating(y.dtype, op)
    low, high = float(as_number(op, "low", low)), float(as_number(op, "high", high))
    limit = float(ml_dtypes.finfo(dtype.numpy).max)
    if not -limit <= low <= high <= limit:
        raise ConfigError(f"{op}: needs low ≤ high, numbers that {dtype.name} holds, got low={low} and high={high}")
    width = float(ml_dtypes.finfo(dtype.accumulator.numpy).max)
    if high - low > width:
        raise ConfigError(f"{op}: high − low must be at most {width:g}, got low={low} and high={high}")
    last = np.asarray(high, dtype.numpy)
    if float(last) >= high > low:  # the largest number below: a sum that is rounded may reach high itself
        last = np.nextafter(last, np.asarray(-np.inf, dtype.numpy))
    last = np.maximum(last, np.asarray(low, dtype.numpy))
    return _fill(uniform_program, y, (low, high, float(last)), generator, _each(dtype))


def draw_normal(op: str, y: Tensor, mean: float, std: float, generator: Generator | None) -> Tensor:
    """Fill a contiguous floating tensor with normal numbers."""
    dtype = _floating(y.dtype, op)
    mean, std = float(as_number(op, "mean", mean)), float(as_number(op, "std", std))
    limit = float(ml_dtypes.finfo(dtype.numpy).max)
    if not (abs(mean) <= limit and 0 <= std <= limit):
        raise ConfigError(f"{op}: needs std ≥ 0, numbers that {dtype.name} holds, got mean={mean} and std={std}")
    return _fill(normal_program, y, (mean, std), generator, _each(dtype))


def rand(
    shape: Any, low: float = 0.0, high: float = 1.0, *, dtype: Any = None, device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Uniform numbers in low ≤ x < high (low is rounded to the dtype). Raises ConfigError unless low ≤ high.

    Where the dtype holds no number in between, all are low.
    """
    return draw_uniform("rand", new(place_of(device), _floating(dtype, "rand"), as_shape(shape)), low, high, generator)


def randn(
    shape: Any, mean: float = 0.0, std: float = 1.0, *, dtype: Any = None, device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Normal numbers of the given mean and standard deviation. Raises ConfigError unless finite, the latter ≥ 0."""
    return draw_normal("randn", new(place_of(device), _floating(dtype, "randn"), as_shape(shape)), mean, std, generator)


def randint(
    low: int, high: int, shape: Any, *, dtype: Any = None, device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Integers uniform in low ≤ x < high, int64 by default. Raises DTypeError if the dtype does not hold them all."""
    low, high = as_int("randint", "low", low), as_int("randint", "high", high)
    kind = default_int if dtype is None else as_dtype(dtype)
    if not kind.is_integer or high <= low:
        raise ConfigError(f"randint: needs an integer dtype and low < high, got {kind.name}, {low} and {high}")
    limits = np.iinfo(kind.numpy)
    if low < limits.min or high - 1 > limits.max:
        raise DTypeError(f"randint: {kind.name} holds {limits.min} … {limits.max}, not all of {low} … {high - 1}")
    y = new(place_of(device), kind, as_shape(shape))
    return _fill(integers_program, y, (_signed(low & _MASK), _signed(high - low & _MASK)), generator, 1)


def bernoulli(
    shape: Any, p: float = 0.5, *, device: Device | str | None = None, generator: Generator | None = None
) -> Tensor:
    """Bools that are True with probability p."""
    if not 0 <= p <= 1:
        raise ConfigError(f"bernoulli: p must be in 0 … 1, got {p}")
    return less(rand(shape, device=device, generator=generator), p)


# --- dropout ------------------------------------------------------------------------------------------------------
def _drop(x: Tensor, p: float, draw: Callable[[], tuple[int, int]]) -> tuple[Tensor, dict[str, Any]]:
    source = contiguous(x.detach())
    y = new(x.device, x.dtype, x.shape)
    seed, offset = draw()  # when there is memory: a call that fails for lack of it draws nothing
    if y.numel:
        arguments = (y, source, round(p * 2**32), 1 / (1 - p) if p < 1 else 0.0, seed, offset, y.numel)
        run(x.device, dropout_program, (x.dtype,), arguments, spread(x.device.backend, -(-y.numel // 4)))
    return y, {"seed": seed, "offset": offset}


def _drop_again(g: Tensor, p: float, seed: int, offset: int) -> Tensor:
    dropped: Tensor = _DROP(g, p, lambda: (seed, offset))  # the same mask, drawn from the same counters: none is stored
    return dropped


_DROP = Primitive(_drop, _drop_again, None)


def _words(n: int, seed: int, offset: int) -> Any:
    """The first n words from a counter on, in NumPy. (Philox4x32-10, see kernels/random.py)"""
    low = np.uint64(0xFFFFFFFF)
    counter = np.arange(offset, offset + -(-n // 4), dtype=np.uint64)
    c = [counter & low, counter >> np.uint64(32), np.zeros_like(counter), np.zeros_like(counter)]
    for i in range(10):
        k0, k1 = (np.uint64((k + i * w) & 0xFFFFFFFF) for k, w in ((seed, 0x9E3779B9), (seed >> 32, 0xBB67AE85)))
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k0, b & low, (a >> np.uint64(32)) ^ c[3] ^ k1, a & low]
    return np.stack(c, -1).reshape(-1)[:n]


def _dropout_reference(x: Any, p: float = 0.5, training: bool = True, seed: int = 0) -> Any:
    kept = _words(x.size, seed, 0).reshape(x.shape) >= round(p * 2**32)
    return np.where(kept, x / (1 - p) if p < 1 else 0, 0) if training else x


@composite(
    _dropout_reference,
    [
        case((3, 7)), case((40, 5), 0.1, seed=(1 << 63) + 12345), case((), 0.9), case((2, 3), training=False),
        case((5,), 1.0), case((4,), 0.0), case((0, 2)),
    ],
    example=lambda x, *rest, seed=0, **keywords: dropout(x, *rest, **keywords, generator=Generator(seed)), method=False,
)  # fmt: skip
def dropout(x: Tensor, p: float = 0.5, training: bool = True, *, generator: Generator | None = None) -> Tensor:
    """Elements set to 0 with probability p, the others divided by 1 − p; x itself when not training or p is 0.

    The mask follows from the generator's state: the backward pass draws it again instead of storing it, and saving and
    restoring the state replays it. Raises DTypeError for integers. (Srivastava et al. 2014)
    """
    if not 0 <= p <= 1:
        raise ConfigError(f"dropout: p must be in 0 … 1, got {p}")
    check_floating(x, "dropout")
    if not training or p == 0:
        return x
    dropped: Tensor = _DROP(x, float(p), lambda: _taken(generator, -(-x.numel // 4)))
    return dropped


def dropout_mask(
    shape: Any, p: float = 0.5, *, device: Device | str | None = None, generator: Generator | None = None
) -> Tensor:
    """The bools, True for kept, that `dropout` of a tensor of this shape would draw; uses up as many counters."""
    ones = full(as_shape(shape), 1.0, dtype=float32, device=device)
    return not_equal(dropout(ones, p, generator=generator), 0)


def permutation(n: int, *, device: Device | str | None = None, generator: Generator | None = None) -> Tensor:
    """0 … n−1 in random order, int64: the order of random numbers of 60 bits, found on the device.

    That two of them are equal, and their order not random, has a probability below n²/2⁶¹.
    """
    n = as_int("permutation", "n", n)
    if n < 0:
        raise ConfigError(f"permutation: n must be ≥ 0, got {n}")
    keys = randint(0, 1 << 60, (n,), device=device, generator=generator)
    return order_rows(keys, bits=60)


FAULTS.append((ConfigError, "multinomial: weights must be finite, ≥ 0 and not all 0, and so must be their sum"))
_WRONG_WEIGHTS = len(FAULTS) - 1


def _check_weights(weights: Tensor) -> None:
    """Leaves a fault unless each row is one of weights; on the CPU device raises it at once."""
    if weights.numel:
        n, device = weights.shape[-1], weights.device
        rows, threads = weights.numel // n, row_threads(n)
        arguments = (contiguous(weights), device.backend.fault_cell, _WRONG_WEIGHTS, rows, n)
        run(device, weights_program, (weights.dtype, threads), arguments, rows, threads, may_fault=True)


def multinomial(
    p: Tensor, n: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:  # fmt: skip
    """n categories drawn by their weights, int64: p (…, categories) ≥ 0, which need not add up to 1 → (…, n).

    With replacement by bisection of the running sums (in f64), else the n first of exponential races, in the order
    drawn, without equal ones. If fewer than n weights are above 0, others follow. Raises ShapeError if there are fewer
    than n categories, or none; and ConfigError for weights that are negative, not finite or all 0: on the CPU device at
    once, else when a value next comes to the host. (Efraimidis and Spirakis 2006)
    """
    if not p.dtype.is_floating or p.ndim == 0:
        raise DTypeError(f"multinomial: needs floating weights (…, categories), got {p.dtype.name} {p.shape}")
    n, categories = as_int("multinomial", "n", n), p.shape[-1]
    if n < 0 or categories == 0 or (n > categories and not replacement):
        raise ShapeError(f"multinomial: cannot draw {n} of {categories} categories, replacement={replacement}")
    weights = to_dtype(p.detach(), float64)
    _check_weights(weights)
    if not replacement:
        u = rand(p.shape, dtype=float64, device=p.device, generator=generator)
        arrival = maximum(-log1p(-u), 1e-300) / weights  # of an exponential clock of this rate; never if it is 0
        return narrow(order_rows(contiguous(arrival)), -1, 0, n)
    ends = scan_axis(weights, SUM, p.ndim - 1, False, float64, float64)
    total = narrow(ends, -1, categories - 1, 1)
    u = rand((*p.shape[:-1], n), dtype=float64, device=p.device, generator=generator)
    drawn = search_rows(ends, u * total, right=True)
    return minimum(drawn, search_rows(ends, total, right=False))  # u·total may be rounded up to the total


__all__ = [
    "Generator",
    "bernoulli",
    "dropout",
    "dropout_mask",
    "manual_seed",
    "multinomial",
    "permutation",
    "rand",
    "randint",
    "randn",
]
