"""Random tensors from a counter-based generator whose state can be saved and restored."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..devices import Device
from ..dtypes import DType, as_dtype, default_float, default_int, float32, float64
from ..errors import ConfigError, DTypeError, ShapeError
from ..grad import current_tape
from ..kernels.random import dropout_program, integers_program, normal_program, uniform_program
from ..shapes import as_shape
from ..tensor import Tensor, new
from .creation import _place, full
from .elementwise import less, log1p, maximum, minimum, not_equal
from .kernel_op import Primitive
from .launch import run, spread
from .movement import contiguous, narrow, to_dtype
from .ordering import SUM, order_rows, scan_axis, search_rows
from .table import case, composite

_MASK = (1 << 64) - 1


class Generator:
    """A stream of random numbers: a seed and how many counters are used up. The same on every device.

    `state()` and `set_state()` save and restore it; the numbers after are then the same again.
    """

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of this seed."""
        self._seed, self._offset = int(seed) & _MASK, 0
        return self

    def state(self) -> tuple[int, int]:
        """(seed, counters used): all there is."""
        return self._seed, self._offset

    def set_state(self, state: tuple[int, int]) -> None:
        """Go on from a saved state."""
        self._seed, self._offset = (int(v) & _MASK for v in state)

    def take(self, counters: int) -> tuple[int, int]:
        """(seed, first counter) of `counters` that nobody else gets, as signed 64-bit numbers for a kernel.

        A checkpointed call that runs again gets those of the first time.
        """
        tape = current_tape()
        return self._draw(counters) if tape is None else tape.take(lambda: self._draw(counters))

    def _draw(self, counters: int) -> tuple[int, int]:
        with self._lock:
            start = self._offset
            self._offset = (start + counters) & _MASK
        return _signed(self._seed), _signed(start)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Seed the generator that random functions use when none is given."""
    return default_generator.manual_seed(seed)


def _fill(program: Any, y: Tensor, numbers: tuple[Any, ...], generator: Generator | None, each: int) -> Tensor:
    if y.numel:
        counters = -(-y.numel // each)
        seed, offset = (generator or default_generator).take(counters)
        run(y.device, program, (y.dtype,), (y, *numbers, seed, offset, y.numel), spread(y.device.backend, counters))
    return y


def _floating(dtype: Any, op: str) -> DType:
    kind = default_float if dtype is None else as_dtype(dtype)
    if not kind.is_floating:
        raise DTypeError(f"{op}: needs a floating dtype, got {kind.name}")
    return kind


def _each(dtype: DType) -> int:
    return 2 if dtype is float64 else 4  # numbers from one counter


def rand(
    shape: Any, low: float = 0.0, high: float = 1.0, *, dtype: Any = None, device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Uniform numbers in low ≤ x < high (in f16 and bf16 rounding may reach high)."""
    kind = _floating(dtype, "rand")
    y = new(_place(device), kind, as_shape(shape))
    return _fill(uniform_program, y, (float(low), float(high)), generator, _each(kind))


def randn(
    shape: Any, mean: float = 0.0, std: float = 1.0, *, dtype: Any = None, device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Normal numbers of the given mean and standard deviation (≥ 0)."""
    if std < 0:
        raise ConfigError(f"randn: std must be ≥ 0, got {std}")
    kind = _floating(dtype, "randn")
    y = new(_place(device), kind, as_shape(shape))
    return _fill(normal_program, y, (float(mean), float(std)), generator, _each(kind))


def randint(
    low: int, high: int, shape: Any, *, dtype: Any = None, device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Integers uniform in low ≤ x < high, int64 by default."""
    kind = default_int if dtype is None else as_dtype(dtype)
    if not kind.is_integer or high <= low:
        raise ConfigError(f"randint: needs an integer dtype and low < high, got {kind.name}, {low} and {high}")
    y = new(_place(device), kind, as_shape(shape))
    return _fill(integers_program, y, (int(low), int(high) - int(low)), generator, 1)


def bernoulli(
    shape: Any, p: float = 0.5, *, device: Device | str | None = None, generator: Generator | None = None
) -> Tensor:
    """Bools that are True with probability p."""
    if not 0 <= p <= 1:
        raise ConfigError(f"bernoulli: p must be in 0 … 1, got {p}")
    return less(rand(shape, device=device, generator=generator), p)


# --- dropout ------------------------------------------------------------------------------------------------------
def _drop(x: Tensor, p: float, seed: int, offset: int) -> Tensor:
    source = contiguous(x.detach())
    y = new(x.device, x.dtype, x.shape)
    if y.numel:
        arguments = (y, source, round(p * 2**32), 1 / (1 - p) if p < 1 else 0.0, seed, offset, y.numel)
        run(x.device, dropout_program, (x.dtype,), arguments, spread(x.device.backend, -(-y.numel // 4)))
    return y


def _drop_again(g: Tensor, p: float, seed: int, offset: int) -> Tensor:
    dropped: Tensor = _DROP(g, p, seed, offset)  # the same mask, drawn from the same counters: none is stored
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
    """Elements set to 0 with probability p, the others divided by 1 − p; x itself when not training.

    The mask follows from the generator's state: the backward pass draws it again instead of storing it, and saving and
    restoring the state replays it. Raises DTypeError for integers. (Srivastava et al. 2014)
    """
    if not 0 <= p <= 1:
        raise ConfigError(f"dropout: p must be in 0 … 1, got {p}")
    if not x.dtype.is_floating:
        raise DTypeError(f"dropout: needs a floating tensor, got {x.dtype.name}")
    if not training or p == 0:
        return x
    dropped: Tensor = _DROP(x, float(p), *(generator or default_generator).take(-(-x.numel // 4)))
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
    if n < 0:
        raise ConfigError(f"permutation: n must be ≥ 0, got {n}")
    keys = randint(0, 1 << 60, (n,), device=device, generator=generator)
    return order_rows(keys, bits=60)


def multinomial(
    p: Tensor, n: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:  # fmt: skip
    """n categories drawn by their weights, int64: p (…, categories) ≥ 0, which need not add up to 1 → (…, n).

    With replacement by bisection of the running sums (in f64), else the n first of exponential races, in the order
    drawn, without equal ones. If fewer than n weights are above 0, others follow. Raises ShapeError if there are fewer
    than n categories, or none. (Efraimidis and Spirakis 2006)
    """
    if not p.dtype.is_floating or p.ndim == 0:
        raise DTypeError(f"multinomial: needs floating weights (…, categories), got {p.dtype.name} {p.shape}")
    categories = p.shape[-1]
    if n < 0 or categories == 0 or (n > categories and not replacement):
        raise ShapeError(f"multinomial: cannot draw {n} of {categories} categories, replacement={replacement}")
    weights = to_dtype(p.detach(), float64)
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
