"""A driver that fails at any call: the books balance, contents are intact, and the pool goes on.

A program is run once for each call that it makes of the driver, and that call fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flame_numba.devices import Device, DeviceOutOfMemory
from flame_numba.devices.host import HostBackend
from flame_numba.devices.simulated import SimulatedBackend
from flame_numba.errors import DeviceError, OutOfMemory
from flame_numba.memory import ladder
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import Contents, check_books, frozen_heap, simulated
from pool_machines import FailingMachine

KIB, MIB = 1 << 10, 1 << 20
BACKENDS = ("virtual", "segments", "direct")
MEMORY_CALLS = frozenset(("allocate", "reserve", "map"))
EVENT_CALLS = frozenset(("record_event", "wait_event", "event_done", "destroy_event"))
CALLS = MEMORY_CALLS | EVENT_CALLS | {"free", "unmap", "copy", "synchronize"}
Step = Callable[[], Any]


class Program:
    """Some of everything that a pool does, in steps that may each fail."""

    def __init__(self, machine: FailingMachine, backend: str, **settings: Any) -> None:
        device = Device(machine.kind, 0, 24 * MIB)
        device._backend = machine  # type: ignore[assignment]
        config = PoolConfig(backend=backend, limit="20 MiB", segment=("1 MiB", "4 MiB"), small="128 KiB", **settings)
        self.pool = MemoryPool(device, config)
        self.contents = Contents(self.pool)
        self.streams = [0, machine.new_stream(), machine.new_stream()]

    def steps(self) -> Iterator[Step]:
        contents = self.contents
        for i in range(24):
            yield lambda i=i: self._allocate((100 + 61 * i) * KIB, self.streams[i % 3])
            yield lambda i=i: self._allocate(5000 + i, self.streams[0])
        for i in range(9):
            yield lambda i=i: self._free(3 * i, self.streams[1])
        yield lambda: self.pool.defragment(max_bytes=MIB)
        yield self.pool.defragment
        for i in range(7):
            yield lambda i=i: self._free(2 * i)
        yield self.pool.trim
        yield lambda: contents.allocate(3 * MIB)
        yield lambda: contents.allocate(5 * MIB)  # moves blocks, as the limit is near
        for i in range(6):
            yield lambda i=i: self._free(i, self.streams[2])
        yield lambda: contents.allocate(4 * MIB)
        for _ in range(3):
            yield lambda: self._free(0)
            yield lambda: contents.allocate(700 * KIB)
        yield self.pool.clear

    def _allocate(self, nbytes: int, stream: int) -> None:
        block = self.pool.allocate(nbytes, stream)
        self.contents.write(block)

    def _free(self, i: int, stream: int = 0) -> None:
        blocks = list(self.contents.written)
        if blocks:
            block = blocks[i % len(blocks)]
            if stream:
                block.record_stream(stream)
            del self.contents.written[block]
            try:
                block.free()
            finally:
                assert not block.alive

    def check(self) -> None:
        self.contents.check()
        check_books(self.pool, self.live())

    def live(self) -> list[Block]:
        # a block whose allocation succeeded and whose use then failed belongs to nobody
        return list(self.contents.written)


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    with frozen_heap():
        yield


@pytest.fixture(params=["simulated", "cpu"])
def machine(request: pytest.FixtureRequest) -> Any:
    return SimulatedBackend(24 * MIB) if request.param == "simulated" else HostBackend()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["error", "no memory"])
def test_a_call_of_the_driver_may_fail(backend: str, kind: str, machine: Any) -> None:
    fail_each(backend, kind, machine, 3 if machine.kind == "simulated" else 11)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["error", "no memory"])
def test_any_call_of_the_driver_may_fail(backend: str, kind: str, machine: Any) -> None:
    fail_each(backend, kind, machine, 1)


def fail_each(backend: str, kind: str, machine: Any, step: int) -> None:
    """Let every `step`th call fail, one in each run of the program."""
    names = CALLS if kind == "error" else MEMORY_CALLS
    make = (
        (lambda name: DeviceError(f"{name}: injected")) if kind == "error" else (lambda name: DeviceOutOfMemory(name))
    )
    failed: set[str] = set()
    for k in range(0, 100_000, step):
        driver = FailingMachine(machine, make, names)
        program = Program(driver, backend)
        driver.left = k
        _run(program, driver, kind)
        if not driver.failed:
            break
        failed.add(driver.failed)
        _empty(program)
    assert not driver.failed and k > 5
    expected = {"virtual": {"map", "reserve"}, "segments": {"allocate"}, "direct": {"allocate"}}[backend]
    if step == 1:
        assert expected <= failed
        assert kind != "error" or {"synchronize", "record_event", "unmap" if backend == "virtual" else "free"} <= failed


def _run(program: Program, driver: FailingMachine, kind: str) -> None:
    for step in program.steps():
        before = driver.failed
        try:
            step()
        except OutOfMemory:
            continue
        except (DeviceError, DeviceOutOfMemory):
            assert kind == "error", "that memory is short is told by OutOfMemory"
            assert driver.failed and not before, "nothing failed"
        if driver.failed and not before:
            program.check()
    program.check()


def _empty(program: Program) -> None:
    for block in program.live():
        program.contents.free(block)
    program.pool.clear()
    assert program.pool.stats().reserved_bytes == 0
    check_books(program.pool, [])


@pytest.mark.parametrize("backend", ["virtual", "segments"])
@pytest.mark.parametrize("error", [DeviceError("copy: injected"), DeviceOutOfMemory("copy"), KeyboardInterrupt()])
def test_a_defragment_that_fails_half_way_says_where_blocks_are(
    backend: str, error: BaseException, machine: Any
) -> None:
    k = 0
    while True:
        driver = FailingMachine(machine, lambda name: error, frozenset(("copy", "wait_event", "record_event")))
        program = Program(driver, backend)
        for i in range(24):
            program.contents.allocate((30 + 17 * i) * KIB)
        for block in list(program.contents.written)[::2]:
            program.contents.free(block)
        program.pool.allocate(100, program.streams[1]).free()  # another stream, to order the moves with
        driver.left = k
        with contextlib.suppress(DeviceError, OutOfMemory, KeyboardInterrupt):
            program.pool.defragment()
        driver.left = -1
        program.check()
        program.pool.defragment()
        program.check()
        _empty(program)
        if not driver.failed:
            break
        k += 1
    assert k > 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_driver_that_never_gives_memory(backend: str, machine: Any) -> None:
    driver = FailingMachine(machine, DeviceOutOfMemory, frozenset())
    program = Program(driver, backend)

    def refuse(*args: Any) -> Any:
        raise DeviceOutOfMemory("no")

    for name in ("allocate", "map", "reserve"):
        setattr(driver, name, refuse)
    for _ in range(3):
        with pytest.raises(OutOfMemory):
            program.pool.allocate(1000)
    with pytest.raises(OutOfMemory):
        MemoryPool(program.pool.device, PoolConfig(backend=backend, initial="4 MiB"))
    for name in ("allocate", "map", "reserve"):
        delattr(driver, name)
    program.contents.allocate(1000)
    program.check()


def test_a_driver_with_less_memory_than_the_pool_would_like() -> None:
    """What a driver has left is used to the last piece."""
    for backend in BACKENDS:
        machine = SimulatedBackend(24 * MIB)
        other = machine.allocate(13 * MIB)
        driver = FailingMachine(machine, DeviceOutOfMemory, frozenset())
        program = Program(driver, backend, slack=None)
        with pytest.raises(OutOfMemory):
            while True:
                program.contents.allocate(500 * KIB)
        assert program.pool.stats().allocated_bytes >= (10 if backend == "virtual" else 11) * MIB - 500 * KIB
        program.check()
        machine.free(other)
        program.contents.allocate(2 * MIB)
        program.check()


def test_a_device_too_full_for_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pool itself needs on a GPU may not be there."""

    def full(machine: Any) -> Any:
        raise DeviceOutOfMemory("1.8 MB")

    monkeypatch.setattr(ladder, "Mover", full)
    device = simulated(24 * MIB)
    with pytest.raises(OutOfMemory, match="no room for the tables"):
        MemoryPool(device)
    monkeypatch.undo()
    MemoryPool(device).allocate(1000).free()
