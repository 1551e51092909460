"""Every test in this folder is a `gpu` test: it is skipped where there is no GPU.

FLAME_NUMBA_GPU_TESTS_ON=cpu runs their bodies on the CPU device instead, to find mistakes of the tests themselves.
"""

from __future__ import annotations

import os

import pytest

from flame_numba.devices import Device

ON_CPU = os.environ.get("FLAME_NUMBA_GPU_TESTS_ON") == "cpu"


def pytest_itemcollected(item: pytest.Item) -> None:
    if not ON_CPU:
        item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The first GPU, which is also the default device of these tests."""
    return Device.cpu() if ON_CPU else Device.cuda(0)


@pytest.fixture
def real_gpu(gpu: Device) -> Device:
    """The first GPU, for a test that has no meaning on the CPU device."""
    if gpu.kind != "cuda":
        pytest.skip("about CUDA itself")
    return gpu
