"""How a launch is spread out."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

from ..devices import LaunchConfig, LaunchLimits
from ..devices.streams import stream_number
from ..errors import ConfigError, DeviceError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """Blocks in the grid and threads in a block (a number, or up to three), bytes of dynamic shared memory, stream.

    stream: a Stream, or another library's, or its handle; None: the device's current one. Raises ConfigError unless the
    others are whole numbers, from 1 (shared memory: 0).
    """

    grid: Any
    block: Any = 256
    shared_nbytes: int = 0
    stream: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _triple("grid", self.grid))
        object.__setattr__(self, "block", _triple("block", self.block))
        if _whole(self.shared_nbytes) is None or self.shared_nbytes < 0:
            raise ConfigError(f"launch: shared_nbytes must be a number of bytes, got {self.shared_nbytes!r}")
        if self.stream is not None:
            try:
                stream_number(self.stream)
            except DeviceError as error:
                raise ConfigError(f"launch: {error}") from None

    @classmethod
    def over(cls, items: int, threads: int = 256) -> Launch:
        """One thread for each of so many items, in blocks of `threads`."""
        count = _whole(items)
        if count is None or count < 0:
            raise ConfigError(f"launch: items must be a whole number from 0, got {items!r}")
        size = _whole(threads)
        if size is None or size < 1:
            raise ConfigError(f"launch: threads must be a whole number from 1, got {threads!r}")
        return cls(max(1, min(-(-count // size), 2**31 - 1)), size)

    @classmethod
    def of(cls, config: Any) -> Launch:
        """A Launch from a Launch, a number of items, or (grid, block[, shared_nbytes[, stream]])."""
        if isinstance(config, Launch):
            return config
        if isinstance(config, int) or (isinstance(config, tuple) and len(config) < 4):
            try:
                return _launch(config)
            except TypeError:
                pass  # with a list inside: it cannot be remembered. Nor should a stream
        return cls._read(config)

    @classmethod
    def _read(cls, config: Any) -> Launch:
        if _whole(config) is not None:
            return cls.over(config)
        if isinstance(config, tuple) and 2 <= len(config) <= 4:
            return cls(*config)
        raise ConfigError(f"launch: expected Launch(grid, block), (grid, block) or a number of items, got {config!r}")

    @functools.cached_property
    def threads(self) -> int:
        """In a block."""
        return int(self.block[0] * self.block[1] * self.block[2])

    def check(self, limits: LaunchLimits, name: str) -> None:
        """Raises ConfigError if the device cannot launch so much."""
        for what, sizes, most in (("grid", self.grid, limits.grid), ("block", self.block, limits.block)):
            if any(n > m for n, m in zip(sizes, most, strict=True)):
                raise ConfigError(f"{name}: a {what} of {sizes} is larger than the device's {most}")
        if self.threads > limits.threads:
            raise ConfigError(f"{name}: {self.threads} threads in a block, the device has at most {limits.threads}")
        if self.shared_nbytes > limits.shared_nbytes:
            raise ConfigError(
                f"{name}: {self.shared_nbytes} bytes of shared memory, a block has at most {limits.shared_nbytes}"
            )

    @functools.cached_property
    def config(self) -> LaunchConfig:
        """As the backend wants it."""
        (gx, gy, gz), (bx, by, bz) = self.grid, self.block
        return LaunchConfig(gx, gy, bx, self.shared_nbytes, gz, by, bz)


_launch = functools.lru_cache(maxsize=1024, typed=True)(Launch._read)


def _whole(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _triple(what: str, value: Any) -> Triple:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    numbers = [_whole(n) for n in sizes]
    if not 1 <= len(sizes) <= 3 or any(n is None or n < 1 for n in numbers):
        raise ConfigError(f"launch: {what} must be one to three whole numbers from 1, got {value!r}")
    x, y, z = (*numbers, 1, 1)[:3]
    return (x, y, z)  # type: ignore[return-value]
