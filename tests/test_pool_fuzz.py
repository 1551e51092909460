"""`pool_fuzz.py` for a moment, and for longer under `-m slow`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flame_numba.devices import Device
from pool_books import frozen_heap
from pool_fuzz import fuzz

BACKENDS = ("virtual", "segments", "direct")


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    with frozen_heap():
        yield


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_random_program(backend: str, threads: int) -> None:
    pool = fuzz(20_000 if backend != "direct" else 5_000, 1, threads, backend=backend)
    assert backend == "direct" or pool.stats().moves > 100


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_random_program_with_contents(backend: str, threads: int) -> None:
    fuzz(10_000 if backend != "direct" else 3_000, 2, threads, Device.cpu(), backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "threads", "settings"),
    [
        ("virtual", 1, {}),
        ("virtual", 3, {}),
        ("segments", 1, {}),
        ("segments", 3, {}),
        ("virtual", 1, {"slack": 0, "size_class": 1024}),
        ("segments", 1, {"slack": None, "split_threshold": "8 KiB", "segment": ("1 MiB", "8 MiB")}),
    ],
)
def test_a_long_random_program(backend: str, threads: int, settings: dict[str, object]) -> None:
    fuzz(170_000, 3, threads, rounds=40, backend=backend, **settings)
