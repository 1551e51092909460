"""Streams and scopes that come and go: what they leave behind does not grow, and is never mistaken for another's."""

from __future__ import annotations

import gc
import random
import threading
from contextlib import nullcontext, suppress
from typing import Any

import pytest

import flame_numba as fn
from flame_numba.devices import Device, Stream
from flame_numba.devices.pinned import PinnedBackend
from flame_numba.devices.simulated import SimulatedBackend
from flame_numba.errors import OutOfMemory
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import check_books, simulated
from pool_machines import AsyncMachine

KIB, MIB = 1 << 10, 1 << 20
BACKENDS = ("virtual", "segments", "direct")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(backend: str, **settings: Any) -> tuple[MemoryPool, AsyncMachine]:
    machine = AsyncMachine(1 << 30)
    return MemoryPool(simulated(1 << 30, machine), PoolConfig(backend=backend, **settings)), machine


def used(pool: MemoryPool, nbytes: int, stream: int) -> Block:
    """A block that its stream has work on."""
    block = pool.allocate(nbytes, stream)
    use(block, stream)
    return block


def use(block: Block, stream: int) -> None:
    """Queue work that uses the block, behind what its own stream holds."""
    machine = block.pool.backend  # type: ignore[attr-defined]
    assert isinstance(machine, AsyncMachine)
    with block.pool.lock:
        if stream != block.stream:
            block.record_stream(stream)
            event = machine.record_event(block.stream)
            machine.wait_event(stream, event)
            machine.destroy_event(event)
        machine.use(stream, block.address, block.nbytes, block)


def size(pool: MemoryPool) -> tuple[int, ...]:
    """All that could grow: lanes, known streams, segments, reserved bytes, ranges, what is noted of those that went."""
    ladder = pool._ladder
    segments = sum(len(arena.segments) for arena in ladder.arenas())
    return (
        len(ladder.lanes), len(ladder.streams.known), segments, ladder.reserve.nbytes,
        len(ladder.reserve.growth.held.ranges), len(ladder.idle.open), len(ladder.idle._left),
    )  # fmt: skip


@pytest.mark.parametrize("machine", ["cpu", "simulated", "pinned"])
def test_numbers_are_handed_out_again(machine: str) -> None:
    backend: Any = {
        "cpu": Device.cpu().backend,
        "simulated": SimulatedBackend(MIB),
        "pinned": PinnedBackend(SimulatedBackend(MIB)),
    }[machine]
    streams = [backend.new_stream() for _ in range(10)]
    assert len({0, *streams}) == 11
    for stream in streams:
        backend.destroy_stream(stream)
    again = [backend.new_stream() for _ in range(10)]
    assert set(again) == set(streams)
    for stream in again:
        backend.destroy_stream(stream)


def test_100000_streams_leave_nothing_behind() -> None:
    device = simulated(1 << 30)
    pool = MemoryPool(device)
    kept = pool.allocate(5000)
    for i in range(100_000):
        stream = device.new_stream()
        block = pool.allocate(4 * KIB, stream.handle)
        if i % 3 == 0:
            block.record_stream(0)
        block.free()
        if i == 10:
            before = size(pool)
    assert size(pool) == before and stream.handle <= 2
    check_books(pool, [kept])


def test_ops_in_short_lived_streams_leave_nothing_behind() -> None:
    cpu = Device.cpu()
    with MemoryPool(cpu).use() as pool:
        x, kept, numbers = fn.ones((16,), device=cpu), None, set()
        for i in range(3000):
            with cpu.new_stream() as stream:
                y = x + float(i)
            numbers.add(stream.handle)
            if i % 100 == 0:
                kept = y
            if i == 200:
                before = size(pool)
            assert y[3].item() == i + 1
        assert kept is not None and kept[0].item() == 2901
    assert size(pool) == before and len(numbers) <= 2  # the next is made while the last still lives


def test_streams_that_lived_together_serve_the_one_that_is_left(backend: str) -> None:
    """Their free memory is used before the driver is asked, in order behind their work."""
    pool, machine = made(backend)
    first = used(pool, MIB, 0)
    streams = [machine.new_stream() for _ in range(300)]
    for block in [used(pool, 128 * KIB, stream) for stream in streams]:
        block.free()
    reserved = pool.stats().reserved_bytes
    for stream in streams:
        machine.destroy_stream(stream)
    synchronized = machine.synchronized
    blocks = [used(pool, 128 * KIB, 0) for _ in range(250)]
    assert backend == "direct" or (machine.synchronized == synchronized and pool.stats().reserved_bytes == reserved)
    assert len(pool._ladder.lanes) == 1
    check_books(pool, [first, *blocks])


def test_a_new_lane_begins_with_what_one_that_is_gone_held() -> None:
    pool, machine = made("virtual")
    many = [machine.new_stream() for _ in range(10)]
    for block in [used(pool, 3 * MIB, stream) for stream in many]:
        block.free()
    for stream in many[:-1]:
        machine.destroy_stream(stream)
    driver_calls, lanes = pool.stats().driver_calls, len(pool._ladder.lanes)
    with pool.scope("validation"):
        block = used(pool, 3 * MIB, many[-1])
        assert pool.stats().driver_calls == driver_calls and len(pool._ladder.lanes) == lanes
        check_books(pool, [block])


@pytest.mark.parametrize("backend", ["virtual", "segments"])
def test_scopes_of_ever_new_names_leave_nothing_behind(backend: str) -> None:
    pool = MemoryPool(simulated(1 << 30), PoolConfig(backend=backend))
    kept = pool.allocate(5000)
    for i in range(10_000):
        with pool.scope(f"step {i}"):
            pool.allocate(70_000).free()
        if i == 20:
            before = size(pool)
    assert size(pool) == before
    pool.trim()
    assert len(pool._ladder.lanes) == 1
    check_books(pool, [kept])


def test_a_scope_that_comes_again_finds_its_memory() -> None:
    pool = MemoryPool(simulated(1 << 30))
    for i in range(30):
        with pool.scope("training" if i % 2 else "validation"):
            pool.allocate((1 + i % 2) * MIB).free()
        if i == 1:
            before = pool.stats().driver_calls
    assert pool.stats().driver_calls == before and {s.scope for s in pool.segments()} >= {"training", "validation"}


def test_what_is_live_stays_in_its_scope() -> None:
    pool, machine = made("virtual")
    stream = machine.new_stream()
    with pool.scope("validation") as scope:
        blocks = [used(pool, 5000, s) for s in (0, stream)]
    machine.destroy_stream(stream)
    pool.trim()
    assert scope.allocated_bytes == scope.left_bytes == sum(block.size for block in blocks)
    assert set(pool._ladder.lanes) == {(0, ""), (0, "validation")}
    check_books(pool, blocks)
    for block in blocks:
        block.free()
    pool.clear()
    assert scope.allocated_bytes == 0 == pool.stats().reserved_bytes and len(pool._ladder.lanes) == 1


@pytest.mark.parametrize("end", ["trim", "clear", "defragment"])
def test_a_block_may_outlive_its_stream(backend: str, end: str) -> None:
    """It is then stream 0's, and known to be used by its own: the queue may still be at it, also as another's."""
    pool, machine = made(backend)
    stream = machine.new_stream()
    blocks = [used(pool, nbytes, stream) for nbytes in (5000, 5000, 3 * MIB, 3 * MIB)]
    pinned = blocks[1].pin()
    machine.destroy_stream(stream)
    getattr(pool, end)()
    assert [block.stream for block in blocks] == [0] * 4 and blocks[1].address == pinned
    check_books(pool, blocks)
    again = machine.new_stream()
    assert again == stream
    for block in blocks:
        # as it was allocated there, nobody has to note it
        machine.use(again, block.address, block.nbytes, block)
    event = machine.record_event(again)
    machine.wait_event(0, event)
    machine.use(0, blocks[2].address, blocks[2].nbytes, blocks[2])
    blocks[1].unpin()
    use(blocks[0], again)
    for block in blocks:
        block.free()
    assert pool.stats().pending_bytes == sum(-(-nbytes // 256) * 256 for nbytes in (5000, 5000, 3 * MIB, 3 * MIB))
    taken = [used(pool, nbytes, 0) for nbytes in (5000, 3 * MIB)]  # the machine raises if it is the same memory
    check_books(pool, taken)
    machine.finish()
    pool.clear()
    check_books(pool, taken)


def test_a_thread_that_looked_before_the_lane_went_loses_nothing() -> None:
    """It saw no note of another stream, and frees into a home that nobody looks into any more."""
    pool, machine = made("virtual")
    stream = machine.new_stream()
    block, other = used(pool, 5000, stream), used(pool, 5000, stream)
    span = block._span
    machine.destroy_stream(stream)
    # `free`, stopped before its last step
    del block._span, block.address
    pool._log.append(-span.size)
    home: Any = span.home
    pool.trim()
    assert span.home is not home and pool._ladder.idle._left == [home]
    home.append(span)
    del home
    pool.trim()
    assert not pool._ladder.idle._left
    check_books(pool, [other])
    block = used(pool, 5000, 0)  # the machine raises if it could come before the work of the other stream
    check_books(pool, [block, other])


def test_a_failed_wait_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, machine = made("virtual")
    stream = machine.new_stream()
    blocks = [used(pool, 5000, stream) for _ in range(4)]
    for block in blocks[:2]:
        block.free()
    machine.destroy_stream(stream)

    def fail(*_: Any) -> None:
        raise fn.DeviceError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(machine, "wait_event", fail)
        with pytest.raises(fn.DeviceError, match="injected"):
            pool.trim()
        check_books(pool, blocks[2:])
    pool.trim()
    check_books(pool, blocks[2:])
    assert {block.stream for block in blocks[2:]} == {0}


def test_a_foreign_stream_is_not_handed_out() -> None:
    device = simulated(1 << 30)
    handles = {device.new_stream().handle for _ in range(5)}
    for handle in (77, 78):
        stream = Stream.from_handle(device, handle)
        del stream
    gc.collect()
    assert {device.backend.new_stream() for _ in range(5)}.isdisjoint({77, 78}) and handles


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["virtual", "segments"])
def test_streams_end_in_any_order(backend: str, seed: int) -> None:
    """With live, pending and pinned blocks, in scopes and out of them. The machine checks every access."""
    rng = random.Random(seed)
    pool, machine = made(backend, limit="24 MiB", segment=("256 KiB", "1 MiB"))
    streams, most = [0], 1
    live: list[Block] = []
    for step in range(1500):
        roll = rng.random()
        if roll < 0.08:
            streams.append(machine.new_stream())
            most = max(most, len(streams))
        elif roll < 0.16 and len(streams) > 1:
            machine.destroy_stream(streams.pop(rng.randrange(1, len(streams))))
        elif roll < 0.55:
            scope = rng.choice(["", "", "", "validation", f"step {step}"])
            nbytes = rng.choice([5000, 70_000, 300 * KIB, 2 * MIB])
            with suppress(OutOfMemory), pool.scope(scope) if scope else nullcontext():
                live.append(used(pool, nbytes, rng.choice(streams)))
        elif roll < 0.6 and live:
            use(rng.choice(live), rng.choice(streams))
        elif roll < 0.63 and live:
            block = rng.choice(live)
            block.unpin() if block.pins else block.pin()
        elif roll < 0.7:
            machine.advance(rng.choice(list(machine.clocks)), 3)
        elif roll < 0.72:
            rng.choice([pool.trim, pool.defragment, pool.clear])()
        while live and (len(live) > 15 or (roll > 0.8 and rng.random() < 0.5)):
            block = live.pop(rng.randrange(len(live)))
            while block.pins:
                block.unpin()
            block.free()
        if step % 10 == 0:
            check_books(pool, live)
    assert len(pool._ladder.streams.known) <= most and max(pool._ladder.streams.known) < most
    for stream in streams[1:]:
        machine.destroy_stream(stream)
    pool.trim()
    assert all(lane.stream == 0 and (not lane.scope or lane.live) for lane in pool._ladder.lanes.values())
    check_books(pool, live)


def test_threads_make_and_drop_streams_of_one_pool() -> None:
    device = simulated(1 << 30)
    pool = MemoryPool(device, PoolConfig(limit="64 MiB"))
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[Block] = []
        try:
            for _ in range(3000):
                stream = device.new_stream()
                held += [pool.allocate(rng.choice([1000, 5000, 70_000]), stream.handle) for _ in range(3)]
                while len(held) > 6:
                    held.pop(rng.randrange(len(held))).free()
                if rng.random() < 0.02:
                    rng.choice([pool.trim, pool.defragment])()
        except BaseException as error:
            errors.append(error)
        finally:
            for block in held:
                block.free()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    check_books(pool, [])
    assert len(pool._ladder.streams.known) <= 9 and len(pool._ladder.lanes) <= 9
    pool.clear()
    assert pool.stats().reserved_bytes == 0
