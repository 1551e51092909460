"""The settings of a pool, and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

_UNITS = {
    "": 1, "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
BACKENDS = ("auto", "virtual", "segments", "direct")


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

    limit: the most the pool reserves: bytes, text, a fraction 0 … 1 (a float) of the device's memory, or None.
    initial: how much to reserve when the pool is made.
    backend: "virtual": ranges of virtual addresses that grow page by page, and whose free pages can serve anywhere;
        "segments": driver allocations that stay where they are; "direct": a driver allocation for every block, to
        compare with or to debug by; "auto": virtual where the device has it, segments under a limit below 64 MiB.
    segment: of "segments", how much to ask of the driver at once, for small blocks and for large ones.
    small: blocks below this size live apart, so that they do not break up the memory of the large ones.
    size_class: sizes are rounded up to multiples of it: 256, 512 or 1024 bytes.
    split_threshold: a rest smaller than this stays with the block, unless it is over 1 % of it.
    slack: when the live bytes reach a new peak, the pool grows, up to this fraction beyond the peak (some more if it is
        small). When they do not, or beyond that, it moves blocks to make room, where that can help. None: it grows.
    guard: surround blocks with bytes that must not change, fill what is new or freed with NaNs, and check both at
        `free` and in `check()`. Slow: for finding writes out of bounds or after free.

    Raises ConfigError naming the field, its value and the reason.
    """

    limit: int | float | str | None = None
    initial: int | str = 0
    backend: str = "auto"
    segment: tuple[int | str, int | str] = ("2 MiB", "64 MiB")
    small: int | str = "1 MiB"
    size_class: int | str = 256
    split_threshold: int | str = 256
    slack: float | None = 0.03
    guard: bool = False

    def __post_init__(self) -> None:
        limit = self.limit_bytes(total=1 << 62)
        initial = parse_bytes(self.initial, "initial")
        if limit is not None and not isinstance(self.limit, float) and initial > limit:
            raise ConfigError(f"initial={self.initial!r}: more than limit={self.limit!r}")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend={self.backend!r}: expected one of {', '.join(BACKENDS)}")
        self.segment_bytes()
        parse_bytes(self.small, "small")
        step = parse_bytes(self.size_class, "size_class")
        if step not in (256, 512, 1024):
            raise ConfigError(f"size_class={self.size_class!r}: expected 256, 512 or 1024 bytes")
        if parse_bytes(self.split_threshold, "split_threshold") < 256:
            raise ConfigError(f"split_threshold={self.split_threshold!r}: blocks are cut in steps of 256 bytes")
        self._check_slack()
        if not isinstance(self.guard, bool):
            raise ConfigError(f"guard={self.guard!r}: expected True or False")

    def _check_slack(self) -> None:
        slack: Any = self.slack
        if slack is None:
            return
        if isinstance(slack, bool) or not isinstance(slack, int | float) or not 0 <= slack < float("inf"):
            raise ConfigError(f"slack={slack!r}: expected a fraction ≥ 0, or None")

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
