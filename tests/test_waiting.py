"""Nobody waits for the device with the machine's lock in hand: other threads go on launching meanwhile.

On a machine whose copies and synchronisations end when the test says so.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices.rehearsal import RehearsalDevice, RehearsalGpu
from flame_numba.pool import MemoryPool, PoolConfig


class SlowGpu(RehearsalGpu):
    """Waits, in the thread `slow`, until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: threading.Thread | None = None
        self.waiting, self.go = threading.Event(), threading.Event()
        self._memory: dict[int, Any] = {}

    def allocate_host(self, nbytes: int) -> int:
        memory = ctypes.create_string_buffer(nbytes)  # the tables that blocks are moved by are written there
        self._memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free_host(self, address: int) -> None:
        del self._memory[address]

    def _wait(self) -> None:
        if threading.current_thread() is self.slow:
            self.waiting.set()
            assert self.go.wait(20)

    def upload(self, *args: Any) -> None:
        self._wait()
        super().upload(*args)

    def upload_async(self, *args: Any) -> None:
        self._wait()  # as a driver does where the host's memory is not page-locked
        super().upload_async(*args)

    def download(self, *args: Any) -> None:
        self._wait()
        super().download(*args)

    def download_async(self, *args: Any) -> None:
        self._wait()
        super().download_async(*args)

    def synchronize(self) -> None:
        self._wait()

    def synchronize_stream(self, stream: int) -> None:
        self._wait()

    def synchronize_event(self, event: Any) -> None:
        self._wait()


@contextmanager
def waiting(machine: SlowGpu, call: Callable[[], Any]) -> Iterator[None]:
    """While `call` waits for the device in another thread."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    machine.slow = threading.Thread(target=work)
    machine.slow.start()
    try:
        assert machine.waiting.wait(20)
        yield
    finally:
        machine.go.set()
        machine.slow.join()
    assert not errors, errors


def goes_on(machine: SlowGpu, call: Callable[[], Any]) -> None:
    """`call` ends in a thread of its own, though another thread waits."""
    other = threading.Thread(target=call)
    other.start()
    other.join(5)
    alive = other.is_alive()
    machine.go.set()
    other.join()
    assert not alive, "it waited for whoever waits for the device"


@pytest.fixture
def machine() -> SlowGpu:
    return SlowGpu()


READS = {
    "numpy": lambda x: x.numpy(),
    "item": lambda x: x[0, 0].item(),
    "asarray": lambda x: np.asarray(x),
    "numpy_async": lambda x: x.numpy_async(np.empty(x.shape, np.float32)),
    "from_numpy": lambda x: fn.asarray(np.ones(3), device=x.device),
    "from_numpy non_blocking": lambda x: fn.asarray(np.ones(3), device=x.device, non_blocking=True),
    "to_device": lambda x: x.to_device("cpu"),
    "synchronize": lambda x: x.device.synchronize(),
    "stream": lambda x: x.device.current_stream().synchronize(),
    "event": lambda x: x.device.current_stream().record().synchronize(),
    "trim": lambda x: fn.current_pool(x.device).trim(),
    "clear": lambda x: fn.current_pool(x.device).clear(),
}


@pytest.mark.parametrize("read", READS)
def test_others_launch_while_one_waits(machine: SlowGpu, read: str) -> None:
    device = RehearsalDevice(machine)
    x = fn.ones((64, 64), device=device)
    pool = fn.current_pool(device)
    with waiting(machine, lambda: READS[read](x)):
        before = len(machine.launches)
        goes_on(machine, lambda: (x + 1, pool.allocate(1 << 20), pool.defragment()))
        assert len(machine.launches) > before
    assert not x.storage.block.pins


def test_a_block_stays_while_it_is_read(machine: SlowGpu) -> None:
    """What is read without the lock neither moves nor is reused."""
    device = RehearsalDevice(machine)
    pool = MemoryPool(device, PoolConfig(limit="64 MiB"))
    with pool.use():
        first, x = (fn.ones((1 << 19,), device=device) for _ in range(2))
    place = x.storage.block.address
    with waiting(machine, lambda: x.numpy()):
        del first
        goes_on(machine, pool.defragment)
        assert x.storage.block.address == place and x.storage.block.pins == 1
    pool.defragment()
    assert x.storage.block.address != place and not x.storage.block.pins


def test_others_launch_while_a_request_waits_for_other_streams(machine: SlowGpu) -> None:
    device = RehearsalDevice(machine)
    pool = MemoryPool(device, PoolConfig(limit="64 MiB"))
    pool.allocate(40 << 20, machine.new_stream()).free()
    x = fn.ones((8,), device=device)
    with waiting(machine, lambda: pool.allocate(60 << 20)):
        goes_on(machine, lambda: x + 1)
