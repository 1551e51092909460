"""Random tensors from a counter-based generator whose state can be saved and restored."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..devices import Device
from ..dtypes import DType, as_dtype, default_float, default_int, float64
from ..errors import ConfigError, DTypeError
from ..kernels.random import integers_program, normal_program, uniform_program
from ..shapes import as_shape
from ..tensor import Tensor, new
from .creation import _place
from .elementwise import less, where
from .launch import run, spread

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
        """(seed, first counter) of `counters` that nobody else gets, as signed 64-bit numbers for a kernel."""
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


def dropout(x: Tensor, p: float = 0.5, training: bool = True, *, generator: Generator | None = None) -> Tensor:
    """Elements set to 0 with probability p, the others divided by 1 − p; x itself when not training."""
    if not 0 <= p < 1:
        raise ConfigError(f"dropout: p must be in 0 ≤ p < 1, got {p}")
    if not training or p == 0:
        return x
    mask = bernoulli(x.shape, 1 - p, device=x.device, generator=generator)
    return where(mask, x * (1 / (1 - p)), 0.0)


def permutation(n: int, *, device: Device | str | None = None, generator: Generator | None = None) -> Tensor:
    """0 … n−1 in random order, int64: shuffled on the host from the generator's stream, then copied."""
    seed, offset = (generator or default_generator).take(1)
    host = np.random.Generator(np.random.Philox(key=seed & _MASK, counter=offset & _MASK))
    return Tensor.from_numpy(host.permutation(n), _place(device))


__all__ = ["Generator", "bernoulli", "dropout", "manual_seed", "permutation", "rand", "randint", "randn"]
