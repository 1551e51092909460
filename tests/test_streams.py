"""Streams and events, as far as a machine without queues can show: what goes where, and who is told.

tests/gpu/test_streams.py shows that work on a GPU's streams is in order.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device, Stream, current_stream
from flame_numba.devices.streams import stays, stream_number
from flame_numba.errors import DeviceError
from flame_numba.kernels.language import Pointer, grid, gridsize
from flame_numba.ops.core.launch import note_use


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The CPU, as if no stream had been used."""
    backend = Device.cpu().backend
    monkeypatch.setattr(backend, "streams_used", False)
    yield backend
    assert current_stream(backend) == 0


@pytest.fixture
def launches(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The streams that work was queued on."""
    seen: list[int] = []

    def watch(kind: type, name: str, position: int) -> None:
        original = getattr(kind, name)

        def watched(self: Any, *args: Any) -> Any:
            seen.append(args[position])
            return original(self, *args)

        monkeypatch.setattr(kind, name, watched)

    from flame_numba.devices.host import HostExecutable

    watch(HostExecutable, "launch", 2)
    for name in ("upload", "download", "upload_async", "download_async"):
        watch(type(backend), name, 3)
    return seen


def program() -> Any:
    x = fn.asarray([[1.0, 2.0], [3.0, 4.0]], device="cpu")
    return ((x @ x).exp() + x.T).sum(axis=0).numpy()


def test_work_goes_to_the_current_stream(launches: list[int]) -> None:
    cpu = Device.cpu()
    expected = program()
    assert set(launches) == {0}
    stream = cpu.new_stream()
    with stream:
        launches.clear()
        assert (program() == expected).all()
        assert launches and set(launches) == {stream.handle}
        launches.clear()
        with Stream.from_handle(cpu, 0):
            program()
        assert set(launches) == {0}
    launches.clear()
    program()
    assert set(launches) == {0}


def test_current_stream_is_of_its_device_and_nests(backend: Any) -> None:
    cpu, simulated = Device.cpu(), Device.simulated(1 << 20)
    assert cpu.current_stream().handle == 0 and not backend.streams_used
    first, second, other = cpu.new_stream(), cpu.new_stream(), simulated.new_stream()
    with first:
        assert cpu.current_stream() is first and int(first) == current_stream(backend)
        assert current_stream(simulated.backend) == 0
        with other, second:
            assert cpu.current_stream() is second and simulated.current_stream() is other
        with first:  # again
            pass
        assert cpu.current_stream() is first
    assert cpu.current_stream().handle == 0 and backend.streams_used


def test_an_error_leaves_the_stream(backend: Any) -> None:
    with pytest.raises(ZeroDivisionError), Device.cpu().new_stream():
        raise ZeroDivisionError
    assert current_stream(backend) == 0


def test_threads_and_tasks_have_streams_of_their_own(backend: Any) -> None:
    stream, seen = Device.cpu().new_stream(), []
    with stream:
        thread = threading.Thread(target=lambda: seen.append(current_stream(backend)))
        thread.start()
        thread.join()
        seen.append(copy_context().run(current_stream, backend))  # a task inherits
    assert seen == [0, stream.handle]


def test_a_stream_is_given_back_once(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    monkeypatch.setattr(backend, "destroy_stream", gone.append)
    stream = Device.cpu().new_stream()
    handle = stream.handle
    with stream:
        del stream
        gc.collect()
        assert not gone
    gc.collect()
    assert gone == [handle]
    Stream.from_handle(Device.cpu(), 77)
    assert gone == [handle]  # a foreign one is not ours to give back


def test_the_owner_of_a_foreign_stream_is_kept() -> None:
    class Owner:
        alive = True

        def __del__(self) -> None:
            Owner.alive = False

    foreign = Stream.from_handle(Device.cpu(), 12345, Owner())
    assert foreign.__cuda_stream__() == (0, 12345)
    del foreign
    gc.collect()
    assert Owner.alive


class Torch:
    """What PyTorch's stream has, in a version without the protocol."""

    def __init__(self, handle: Any) -> None:
        self.cuda_stream = handle

    def synchronize(self) -> None: ...


class CuPy(Torch):
    def __init__(self, handle: Any) -> None:
        self.ptr = handle


class Numba(Torch):
    def __init__(self, handle: Any) -> None:
        self.handle = ctypes.c_void_p(handle)


class Core:
    def __init__(self, handle: Any, version: int = 0) -> None:
        self.said = (version, handle)

    def __cuda_stream__(self) -> Any:
        return self.said


FOREIGN = [Torch, CuPy, Numba, Core]


@pytest.mark.parametrize("kind", FOREIGN)
def test_streams_of_other_libraries_are_taken_as_objects(kind: Any, backend: Any, monkeypatch: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr(backend, "record_event", lambda stream=0, timing=False: asked.append(stream))
    device, x = Device.cpu(), fn.ones((3,), device="cpu")
    block = with_block(x, 0, monkeypatch)
    x.record_stream(kind(1 << 40))
    assert block.users == [1 << 40]
    assert Stream.from_handle(device, kind(1 << 41)).handle == 1 << 41
    device.new_stream().wait(kind(1 << 42))
    assert asked == [1 << 42]
    assert stream_number(kind(0)) == 0 and stream_number(kind(1 << 40)) == 1 << 40
    launch = fn.Launch(1, 1, 0, kind(1 << 43))
    kernel = fn.ensure_kernel("cpu", "on_a_foreign_stream", on_a_foreign_stream)
    seen: list[int] = []
    monkeypatch.setattr("flame_numba.user_kernels.kernel.note_use", lambda given, stream: seen.append(stream))
    fn.launch_kernel(kernel, launch, fn.ones((1,), device="cpu"), 1)
    assert seen == [1 << 43]


def on_a_foreign_stream(y: Pointer, n: int) -> None:
    for i in range(grid(), n, gridsize()):
        store_y(y, i, 2)  # noqa: F821


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_stream_that_a_pool_remembers_is_kept(kind: Any, monkeypatch: Any) -> None:
    x = fn.ones((3,), device="cpu")
    with_block(x, 0, monkeypatch)
    for use in (x.record_stream, lambda stream: Stream.from_handle(Device.cpu(), stream)):
        stream = kind(1 << 44)
        alive = weakref.ref(stream)
        use(stream)
        del stream
        gc.collect()
        assert alive() is not None
    assert stays(Device.cpu().backend, 1 << 44)


@pytest.mark.parametrize(
    "wrong",
    ["x", 1.5, None, True, -1, object(), np.zeros(3), Core(1, version=1), Core("x"), CuPy(None), fn.Device.cpu()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_stream_is_named(wrong: Any) -> None:
    x, stream = fn.ones((3,), device="cpu"), Device.cpu().new_stream()
    for take in (x.record_stream, stream.wait, lambda given: Stream.from_handle(x.device, given)):
        with pytest.raises(DeviceError, match=r"stream: expected a Stream.* got a (\w+\.)*\w+"):
            take(wrong)
    if wrong is not None:
        with pytest.raises(fn.errors.ConfigError, match="launch: stream: expected a Stream"):
            fn.Launch(1, 1, 0, wrong)


def test_waiting(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events: dict[object, int] = {}
    waits: list[tuple[int, int]] = []
    returned: list[object] = []

    def record(stream: int = 0, timing: bool = False) -> object:
        events[event := object()] = stream
        return event

    monkeypatch.setattr(backend, "record_event", record)
    monkeypatch.setattr(backend, "wait_event", lambda stream, event: waits.append((stream, events[event])))
    monkeypatch.setattr(backend, "destroy_event", returned.append)
    a, b = Device.cpu().new_stream(), Device.cpu().new_stream()
    a.wait(b)
    event = a.record()
    b.wait(event)
    fn.cuda.default_stream(Device.cpu()).wait(event)
    assert waits == [(a.handle, b.handle), (b.handle, a.handle), (0, a.handle)]
    del event
    assert returned == list(events)


def test_events(backend: Any) -> None:
    stream = Device.cpu().new_stream()
    start = stream.record(timing=True)
    program()
    end = stream.record(timing=True)
    end.synchronize()
    stream.synchronize()
    assert start.done and start.elapsed_ms(end) > 0
    with pytest.raises(DeviceError, match="timing=True"):
        start.elapsed_ms(stream.record())


class Block:
    """What a launch needs of a pool's block."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.users: list[int] = []

    def record_stream(self, stream: int) -> None:
        self.users.append(stream)


def with_block(x: fn.Tensor, stream: int, monkeypatch: pytest.MonkeyPatch) -> Block:
    block = Block(stream)
    block.address, block.pool = x.storage.block.address, x.storage.block.pool  # type: ignore[attr-defined]
    monkeypatch.setattr(x.storage, "block", block)
    return block


def test_blocks_of_other_streams_are_noted(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device.cpu()
    x, y = fn.ones((4, 4), device=cpu), fn.ones((4, 4), device=cpu)
    stream = cpu.new_stream()
    blocks = with_block(x, 0, monkeypatch), with_block(y, stream.handle, monkeypatch)
    fn.add(x, y)
    assert blocks[1].users == []  # nobody ever entered a stream: no launch looks
    with stream:
        fn.add(x, y)  # an elementwise kernel
        assert blocks[0].users == [stream.handle] and blocks[1].users == []
        fn.sum(x, axis=0)  # any other
        assert blocks[0].users == [stream.handle] * 2
        x.numpy_async().wait()
        assert blocks[0].users == [stream.handle] * 3
    fn.add(x, y)
    assert blocks[1].users == [0] and blocks[0].users == [stream.handle] * 3
    note_use([1, None, y], stream.handle)
    x.record_stream(0)
    y.record_stream(fn.cuda.default_stream(cpu))
    assert blocks[1].users == [0, 0] and blocks[0].users == [stream.handle] * 3


def test_helpers() -> None:
    cpu = Device.cpu()
    with cpu, fn.cuda.new_stream() as stream:
        assert fn.cuda.current_stream() is stream and fn.cuda.default_stream().handle == 0
        assert "Stream(0x" in repr(stream) and repr(stream.record()) == "Event(done)"
