"""The settings of a pool, and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ConfigError

_UNITS = {
    "": 1, "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(value: int | str, field: str = "size") -> int:
    """Bytes from an int or from text such as "64 MiB" or "1.5 GB". Raises ConfigError naming `field`."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[2] not in _UNITS:
            raise ConfigError(f"{field}={value!r}: expected a number and one of {', '.join(filter(None, _UNITS))}")
        number, unit = match[1], _UNITS[match[2]]
        return int(float(number) * unit) if "." in number else int(number) * unit
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{field}={value!r}: expected bytes as an int, or text such as '64 MiB'")
    if value < 0:
        raise ConfigError(f"{field}={value!r}: bytes must be ≥ 0")
    return value


@dataclass(frozen=True)
class PoolConfig:
    """How a pool asks the driver for memory and cuts it up. Sizes are bytes or text ("2 GiB").

    limit: the most the pool reserves: bytes, a fraction 0 … 1 (a float) of the device's memory, or None.
    segment: how much to ask of the driver at once, for blocks below 1 MiB and for larger ones.
    split_threshold: a rest smaller than this stays with the block, unless it is over 1 % of it.
    caching: False gives every block its own driver allocation, to compare with or to debug by.

    Raises ConfigError naming the field, its value and the reason.
    """

    limit: int | float | str | None = None
    segment: tuple[int | str, int | str] = ("2 MiB", "64 MiB")
    split_threshold: int | str = 256
    caching: bool = True

    def __post_init__(self) -> None:
        self.limit_bytes(total=1 << 62)
        self.segment_bytes()
        if parse_bytes(self.split_threshold, "split_threshold") < 256:
            raise ConfigError(f"split_threshold={self.split_threshold!r}: blocks are cut in steps of 256 bytes")
        if not isinstance(self.caching, bool):
            raise ConfigError(f"caching={self.caching!r}: expected True or False")

    def limit_bytes(self, total: int) -> int | None:
        """The limit on a device of `total` bytes."""
        if self.limit is None:
            return None
        if isinstance(self.limit, float):
            if not 0 < self.limit <= 1:
                raise ConfigError(f"limit={self.limit!r}: a fraction of the device's memory must be > 0 and ≤ 1")
            return int(total * self.limit)
        limit = parse_bytes(self.limit, "limit")
        if limit == 0:
            raise ConfigError(f"limit={self.limit!r}: nothing could be allocated; None is no limit")
        return limit

    def segment_bytes(self) -> tuple[int, int]:
        """Segment sizes for small and for large blocks."""
        if not isinstance(self.segment, tuple) or len(self.segment) != 2:
            raise ConfigError(f"segment={self.segment!r}: expected two sizes, for small and for large blocks")
        small, large = (parse_bytes(size, "segment") for size in self.segment)
        if min(small, large) < 256:
            raise ConfigError(f"segment={self.segment!r}: a segment holds at least one block of 256 bytes")
        return small, large
