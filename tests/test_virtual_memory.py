"""Virtual and page-locked memory of the machines that need no GPU; tests/gpu/test_streams.py has CUDA's.

What a machine refuses changes nothing, and says which range was wrong.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest

from flame_numba.devices import DeviceOutOfMemory
from flame_numba.devices.host import HostBackend
from flame_numba.devices.ranges import Ranges
from flame_numba.devices.simulated import SimulatedBackend
from flame_numba.errors import DeviceError

PAGE = 2 << 20


@pytest.fixture(params=["cpu", "simulated"])
def backend(request: pytest.FixtureRequest) -> Any:
    return HostBackend() if request.param == "cpu" else SimulatedBackend(64 * PAGE)


def test_mapped_neighbours_are_one_run_of_memory(backend: Any) -> None:
    start = backend.reserve(8 * PAGE)
    assert start % backend.page_nbytes == 0
    for i in (1, 0, 2):
        backend.map(start + i * PAGE, PAGE)
    backend.fill(start, 7, 3 * PAGE)
    backend.copy(start + PAGE // 2, start, 2 * PAGE)
    if backend.kind == "cpu":
        assert ctypes.string_at(start, 3 * PAGE) == b"\7" * (3 * PAGE)
    for i in range(3):
        backend.unmap(start + i * PAGE, PAGE)
    backend.unreserve(start, 8 * PAGE)


def test_memory_moves_with_its_contents(backend: Any) -> None:
    start = backend.reserve(8 * PAGE)
    backend.map(start, 2 * PAGE)
    backend.fill(start, 3, 2 * PAGE)
    other = backend.reserve(4 * PAGE)
    backend.move_mapping(start, other + 2 * PAGE, 2 * PAGE)
    if backend.kind == "cpu":
        assert ctypes.string_at(other + 2 * PAGE, 2 * PAGE) == b"\3" * (2 * PAGE)
    with pytest.raises(DeviceError, match="are not what one map"):
        backend.unmap(start, 2 * PAGE)
    backend.map(start, PAGE)  # its old place is free again
    backend.unmap(start, PAGE)
    backend.unreserve(start, 8 * PAGE)
    backend.unmap(other + 2 * PAGE, 2 * PAGE)
    backend.unreserve(other, 4 * PAGE)


def test_what_makes_no_sense_is_refused_and_changes_nothing(backend: Any) -> None:
    start = backend.reserve(8 * PAGE)
    backend.map(start + PAGE, 2 * PAGE)
    refused = [
        (lambda: backend.reserve(PAGE + 1), "not whole pages"),
        (lambda: backend.reserve(0), "not whole pages"),
        (lambda: backend.map(start + 256, PAGE), "not whole pages"),
        (lambda: backend.map(start, 2 * PAGE), "is mapped already"),
        (lambda: backend.map(start, 4 * PAGE), "is mapped already"),
        (lambda: backend.map(start + 2 * PAGE, PAGE), "is mapped already"),
        (lambda: backend.map(start + 7 * PAGE, 2 * PAGE), "do not lie in one reserved range"),
        (lambda: backend.unmap(start + PAGE, PAGE), "are not what one map"),
        (lambda: backend.unmap(start + 2 * PAGE, PAGE), "are not what one map"),
        (lambda: backend.unmap(start, PAGE), "are not what one map"),
        (lambda: backend.move_mapping(start, start + 4 * PAGE, PAGE), "are not what one map"),
        (lambda: backend.move_mapping(start + PAGE, start + 2 * PAGE, 2 * PAGE), "is mapped already"),
        (lambda: backend.move_mapping(start + PAGE, start + 7 * PAGE, 2 * PAGE), "do not lie in one reserved range"),
        (lambda: backend.unreserve(start, 8 * PAGE), "still mapped"),
        (lambda: backend.unreserve(start, 7 * PAGE), "are not what one reserve"),
    ]
    for call, message in refused:
        with pytest.raises(DeviceError, match=message):
            call()
    backend.fill(start + PAGE, 0, 2 * PAGE)
    backend.unmap(start + PAGE, 2 * PAGE)
    backend.unreserve(start, 8 * PAGE)
    with pytest.raises(DeviceError, match="are not what one reserve"):
        backend.unreserve(start, 8 * PAGE)


def test_no_more_is_mapped_than_there_is(backend: Any) -> None:
    total = backend.memory_info().total // PAGE * PAGE
    start = backend.reserve(total + 8 * PAGE)  # addresses cost nothing
    backend.map(start, PAGE)
    with pytest.raises(DeviceOutOfMemory):
        backend.map(start + PAGE, total)
    backend.map(start + PAGE, total - PAGE)
    with pytest.raises(DeviceOutOfMemory):
        backend.map(start + total, PAGE)
    backend.unmap(start, PAGE)
    backend.map(start + total, PAGE)
    backend.unmap(start + total, PAGE)
    backend.unmap(start + PAGE, total - PAGE)
    backend.unreserve(start, total + 8 * PAGE)


def test_unmapped_pages_go_back_to_the_operating_system() -> None:
    backend = HostBackend()
    start = backend.reserve(PAGE)
    for _ in range(2):
        backend.map(start, PAGE)
        assert ctypes.string_at(start, PAGE) == bytes(PAGE)  # a dropped page comes back as zeros
        backend.fill(start, 255, PAGE)
        backend.unmap(start, PAGE)


def test_simulated_copies_need_memory_under_all_of_their_range() -> None:
    backend = SimulatedBackend(8 * PAGE)
    start = backend.reserve(4 * PAGE)
    backend.map(start, PAGE)
    backend.map(start + 2 * PAGE, PAGE)
    backend.fill(start + PAGE - 1, 0, 1)
    for call in (
        lambda: backend.fill(start + PAGE - 1, 0, 2),
        lambda: backend.copy(start, start + PAGE, 1),
        lambda: backend.upload(start, 0, 3 * PAGE),
        lambda: backend.download(0, start + 3 * PAGE, 1),
    ):
        with pytest.raises(DeviceError, match="do not lie in one live allocation"):
            call()
    assert backend.memory_info() == (6 * PAGE, 8 * PAGE)
    with pytest.raises(DeviceOutOfMemory):
        backend.allocate(7 * PAGE)


def test_a_machine_without_virtual_memory_says_so() -> None:
    backend = SimulatedBackend(8 * PAGE, page_nbytes=0)
    for call in (lambda: backend.reserve(PAGE), lambda: backend.map(0, PAGE)):
        with pytest.raises(DeviceError, match="no virtual memory"):
            call()


def test_pages_may_have_another_size() -> None:
    backend = SimulatedBackend(1 << 20, page_nbytes=1 << 16)
    start = backend.reserve(1 << 20)
    backend.map(start + (1 << 16), 1 << 16)
    assert backend.memory_info().free == (1 << 20) - (1 << 16)


def test_page_locked_memory(backend: Any) -> None:
    free = backend.memory_info().free
    address = backend.allocate_host(1000)
    if backend.kind == "simulated":
        assert backend.memory_info().free == free  # it is the host's
    backend.free_host(address)
    with pytest.raises((DeviceError, KeyError)):
        backend.free_host(address)


def test_events_and_streams_of_machines_that_queue_nothing(backend: Any) -> None:
    stream = backend.new_stream()
    assert stream and stream != backend.new_stream()
    event = backend.record_event(stream, timing=True)
    backend.wait_event(0, event)
    backend.synchronize_event(event)
    backend.synchronize_stream(stream)
    assert backend.event_done(event) and backend.elapsed_ms(event, backend.record_event(0, timing=True)) >= 0
    backend.destroy_event(event)
    backend.destroy_stream(stream)


def test_ranges_agree_with_a_set_of_bytes() -> None:
    rng = random.Random(5)
    ranges, held = Ranges(), {}
    for _ in range(2000):
        address, nbytes = rng.randrange(1, 60), rng.randrange(1, 9)
        touched = range(address, address + nbytes)
        taken = {byte for start, size in held.items() for byte in range(start, start + size)}
        assert ranges.meets(address, nbytes) == any(byte in taken for byte in touched)
        assert ranges.covers(address, nbytes) == all(byte in taken for byte in touched)
        if not ranges.meets(address, nbytes):
            ranges.add(address, nbytes)
            held[address] = nbytes
        if held and rng.random() < 0.4:
            address = rng.choice(list(held))
            assert ranges.remove(address) == held.pop(address)


class Driver:
    """A driver that notes what it holds and refuses one call, by number."""

    def __init__(self, refused: int = -1, code: str = "CUDA_ERROR_UNKNOWN") -> None:
        from cuda.bindings import driver

        self.real, self.refused, self.code = driver, refused, getattr(driver.CUresult, code)
        self.calls = 0
        self.handles: set[int] = set()
        self.mapped: dict[int, int] = {}  # address → handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _result(self, does: Any, *values: Any) -> tuple[Any, ...]:
        self.calls += 1
        if self.calls == self.refused:
            return (self.code, *(None for _ in values))
        does()
        return (self.real.CUresult.CUDA_SUCCESS, *values)

    def cuMemCreate(self, nbytes: int, prop: Any, flags: int) -> tuple[Any, ...]:
        handle = 1000 + self.calls
        return self._result(lambda: self.handles.add(handle), handle)

    def cuMemRelease(self, handle: int) -> tuple[Any, ...]:
        return self._result(lambda: self.handles.remove(handle))

    def cuMemMap(self, address: int, nbytes: int, offset: int, handle: int, flags: int) -> tuple[Any, ...]:
        return self._result(lambda: self.mapped.__setitem__(address, handle))

    def cuMemSetAccess(self, address: int, nbytes: int, access: Any, count: int) -> tuple[Any, ...]:
        return self._result(lambda: None)

    def cuMemUnmap(self, address: int, nbytes: int) -> tuple[Any, ...]:
        return self._result(lambda: self.mapped.pop(address))


def cuda_memory(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Any:
    from flame_numba.devices.cuda import calls, virtual

    class Memory(virtual.CudaVirtualMemory):
        page_nbytes = PAGE
        _prop = _access = None

        def __init__(self) -> None:
            self._handles = {}

        def activate(self) -> None:
            pass

    monkeypatch.setattr(virtual, "driver", driver)
    monkeypatch.setattr(calls, "describe", str)
    return Memory()


@pytest.mark.parametrize(
    ("code", "error"), [("CUDA_ERROR_UNKNOWN", DeviceError), ("CUDA_ERROR_OUT_OF_MEMORY", DeviceOutOfMemory)]
)
def test_a_call_that_the_cuda_driver_refuses_leaves_what_there_was(
    code: str, error: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings.driver")
    for refused in range(1, 4):  # create, map, set access
        driver = Driver(refused, code)
        with pytest.raises(error):
            cuda_memory(driver, monkeypatch).map(PAGE, PAGE)
        assert not driver.handles and not driver.mapped
    for refused in range(4, 7):  # after three calls of `map`: map, set access, unmap
        driver = Driver(refused, code)
        memory = cuda_memory(driver, monkeypatch)
        memory.map(PAGE, PAGE)
        with pytest.raises(error):
            memory.move_mapping(PAGE, 3 * PAGE, PAGE)
        assert list(driver.mapped) == [PAGE] and len(driver.handles) == 1
        memory.move_mapping(PAGE, 3 * PAGE, PAGE)
        assert list(driver.mapped) == [3 * PAGE]
        memory.unmap(3 * PAGE, PAGE)
        assert not driver.handles and not driver.mapped
