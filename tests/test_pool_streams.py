"""Memory between streams, on a machine that checks of every access that nobody else may still be at it."""

from __future__ import annotations

import pytest

from flame_numba.devices import Stream
from flame_numba.errors import OutOfMemory
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import check_books, simulated
from pool_machines import AsyncMachine

KIB, MIB = 1 << 10, 1 << 20
BACKENDS = ("virtual", "segments", "direct")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(backend: str, **settings: object) -> tuple[MemoryPool, AsyncMachine]:
    machine = AsyncMachine(1 << 30)
    return MemoryPool(simulated(1 << 30, machine), PoolConfig(backend=backend, **settings)), machine  # type: ignore[arg-type]


def use(block: Block, stream: int) -> None:
    """Queue work that uses the block, in order after its own stream's, as a program does."""
    machine = block.pool.backend
    assert isinstance(machine, AsyncMachine)
    with block.pool.lock:
        if stream != block.stream:
            block.record_stream(stream)
            event = machine.record_event(block.stream)
            machine.wait_event(stream, event)
            machine.destroy_event(event)
        machine.use(stream, block.address, block.nbytes, block)


def test_the_machine_sees_what_is_not_ordered() -> None:
    machine = AsyncMachine(MIB)
    a, b = machine.new_stream(), machine.new_stream()
    address = machine.allocate(1000)
    machine.use(a, address, 1000, "x")
    machine.use(b, address, 1000, "x")  # its own business
    machine.use(a, address, 1000, "x")
    with pytest.raises(AssertionError, match="may still run"):
        machine.use(b, address + 999, 1, "y")
    with pytest.raises(AssertionError, match="taken away"):
        machine.free(address)
    event = machine.record_event(a)
    assert not machine.event_done(event)
    machine.advance(a)
    assert not machine.event_done(event)
    machine.advance(a)
    with pytest.raises(AssertionError, match="may still run"):
        machine.use(b, address, 1000, "y")  # done, but who knows
    assert machine.event_done(event)
    machine.use(b, address, 1000, "y")
    event = machine.record_event(b)
    machine.wait_event(a, event)
    machine.use(a, address, 1000, "z")
    machine.synchronize()
    machine.free(address)


def test_reuse_on_the_same_stream_is_immediate_and_waits_for_nothing(backend: str) -> None:
    pool, machine = made(backend)
    stream = machine.new_stream()
    addresses = set()
    for _ in range(20):
        block = pool.allocate(5000, stream)
        assert block.stream == stream
        use(block, stream)
        addresses.add(block.address)
        block.free()
    assert backend == "direct" or (len(addresses) == 1 and machine.synchronized == machine.waits - 1 == 0)
    check_books(pool, [])


def test_the_current_stream_is_the_one_that_blocks_are_for(backend: str) -> None:
    pool, _machine = made(backend)
    stream = pool.device.new_stream()
    with stream:
        block = pool.allocate(1000)
    assert block.stream == int(stream) and pool.allocate(1000).stream == 0
    assert pool.allocate(1000, stream=stream).stream == int(stream)  # type: ignore[arg-type]


def test_a_recorded_stream_keeps_memory_until_it_is_done(backend: str) -> None:
    pool, machine = made(backend, limit="7 MiB")
    other = machine.new_stream()
    block = pool.allocate(3 * MIB)
    address = block.address
    use(block, 0)
    use(block, other)
    block.free()
    assert pool.stats().pending_bytes == 3 * MIB
    check_books(pool, [])
    early = pool.allocate(3 * MIB)
    assert early.address != address
    use(early, 0)
    machine.advance(other, 10)
    late = pool.allocate(3 * MIB)
    assert backend == "direct" or late.address == address
    use(late, 0)
    assert pool.stats().pending_bytes == 0
    check_books(pool, [early, late])


def test_another_stream_s_memory_is_taken_with_a_wait(backend: str) -> None:
    pool, machine = made(backend, limit="8 MiB")
    a, b = machine.new_stream(), machine.new_stream()
    block = pool.allocate(6 * MIB, a)
    use(block, a)
    block.free()
    synchronized, waits = machine.synchronized, machine.waits
    taken = pool.allocate(6 * MIB, b)
    use(taken, b)
    if backend != "direct":
        assert machine.synchronized == synchronized and machine.waits > waits, "the host waited"
    taken.free()
    check_books(pool, [])
    again = pool.allocate(6 * MIB, a)  # b's work may still run
    use(again, a)
    check_books(pool, [again])


def test_completed_events_are_looked_at_again_before_giving_up(backend: str) -> None:
    """pytorch#189504: memory that its events had released was not looked for again, and OutOfMemory was raised."""
    pool, machine = made(backend, limit="16 MiB")
    other = machine.new_stream()
    blocks = [pool.allocate(4 * MIB) for _ in range(4)]
    for block in blocks:
        use(block, 0)
        use(block, other)
        block.free()  # no event is done: all of it is pending
    assert pool.stats().pending_bytes == 16 * MIB
    blocks = [pool.allocate(nbytes) for nbytes in (4 * MIB, 12 * MIB)]  # one hole is enough; several have to be merged
    for block in blocks:
        use(block, 0)
    check_books(pool, blocks)
    with pytest.raises(OutOfMemory):
        pool.allocate(4 * MIB)


def test_a_stream_that_no_pool_knew_waits_for_moves(backend: str) -> None:
    """It ordered itself after the block's stream before the block moved."""
    pool, machine = made(backend)
    other = machine.new_stream()
    blocks = [pool.allocate(64 * KIB) for _ in range(8)]
    for block in blocks:
        use(block, 0)
    machine.wait_event(other, machine.record_event(0))
    for block in blocks[::2]:
        block.free()
    pool.defragment()
    for block in blocks[1::2]:
        with pool.lock:
            block.record_stream(other)
            machine.use(other, block.address, block.nbytes, block)
    check_books(pool, blocks[1::2])


@pytest.mark.parametrize("slack", [0.03, None])
def test_moves_are_ordered_with_all_streams(backend: str, slack: float | None) -> None:
    pool, machine = made(backend, limit="16 MiB", slack=slack)
    streams = [0, machine.new_stream(), machine.new_stream()]
    blocks = []
    for i in range(60):
        block = pool.allocate(200 * KIB, streams[i % 3])
        use(block, streams[i % 3])
        use(block, streams[(i + 1) % 3])
        blocks.append(block)
    for block in blocks[::2]:
        block.free()
    live = blocks[1::2]
    synchronized = machine.synchronized
    pool.defragment()
    assert backend == "direct" or machine.synchronized == synchronized, "the host waited"
    for i, block in enumerate(live):
        use(block, streams[i % 3])
    for stream in streams:
        live.append(pool.allocate(100 * KIB, stream))
        use(live[-1], stream)
    check_books(pool, live)
    pool.trim()
    live.append(pool.allocate(4 * MIB, streams[1]))
    use(live[-1], streams[1])
    check_books(pool, live)


def test_memory_goes_back_to_the_driver_only_when_work_is_done(backend: str) -> None:
    pool, machine = made(backend)
    other = machine.new_stream()
    block = pool.allocate(20 * MIB, other)
    use(block, other)
    block.free()
    pool.trim()  # the machine raises if work was there
    pending = pool.allocate(20 * MIB)
    use(pending, 0)
    use(pending, other)
    pending.free()
    pool.trim()
    pool.clear()
    assert pool.stats().reserved_bytes == 0 == pool.stats().pending_bytes
    check_books(pool, [])


def test_a_stream_of_another_library(backend: str) -> None:
    pool, machine = made(backend)
    foreign = Stream.from_handle(pool.device, machine.new_stream())
    block = pool.allocate(1000)
    block.record_stream(foreign)
    block.record_stream(int(foreign))
    use(block, int(foreign))
    block.free()
    assert pool.stats().pending_bytes == 1024
    pool.trim()  # waits for the device
    assert pool.stats().pending_bytes == pool.stats().reserved_bytes == 0


def test_scopes_and_streams_share_when_memory_is_short(backend: str) -> None:
    pool, machine = made(backend, limit="8 MiB")
    other = machine.new_stream()
    with pool.scope("a"):
        block = pool.allocate(6 * MIB, other)
        use(block, other)
        block.free()
    block = pool.allocate(6 * MIB)
    use(block, 0)
    check_books(pool, [block])
