"""Each op of the table once more, in a few dtypes, forward and backward: what compute-sanitizer watches.

The property tests say whether results are right; these are few enough to be run slowly. The names begin with a shard,
so that the sanitizer, which serves one process, can be started several times: `-k shard3`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import flame_numba as fn
from flame_numba import MemoryPool, PoolConfig
from flame_numba.ops import TABLE
from flame_numba.testing import check_forward, check_repeats

SHARDS = 8
ENTRIES = [pytest.param(e, id=f"shard{i % SHARDS}-{e.name}") for i, e in enumerate(TABLE.values())]
DTYPES = (fn.float32, fn.bfloat16, fn.int32, fn.bool)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """For initcheck, each tensor in an allocation of its own: in memory that is used again nothing is unwritten."""
    if os.environ.get("FLAME_NUMBA_SANITIZED") != "initcheck":
        yield
        return
    with MemoryPool(fn.default_device(), PoolConfig(backend="direct")).use():
        yield


@pytest.mark.parametrize("entry", ENTRIES)
def test_op(entry) -> None:
    quick = os.environ.get("FLAME_NUMBA_SANITIZED") in ("racecheck", "initcheck")
    for dtype in DTYPES[: 1 if quick else None]:
        if dtype in entry.dtypes:
            check_forward(entry, dtype, seed=1)
    if fn.float32 in entry.dtypes:
        check_repeats(entry, fn.float32, seed=1)
