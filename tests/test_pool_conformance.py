"""What every pool does, whatever holds its memory and however it is set: one suite over all of them.

On a machine of addresses, where every stray access is caught, and on the device of the run, where contents are hashed.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame_numba.devices import Device
from flame_numba.errors import ConfigError, OutOfMemory, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import Contents, Owner, check_books, check_events, frozen_heap, simulated

KIB, MIB = 1 << 10, 1 << 20
BACKENDS = ("virtual", "segments", "direct")
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "classes of 1 KiB": {"size_class": 1024},
    "few splits": {"split_threshold": "8 KiB"},
    "no slack": {"slack": 0},
    "never moving": {"slack": None},
    "small segments": {"segment": ("256 KiB", "1 MiB"), "small": "64 KiB"},
    "initial": {"initial": "5 MiB"},
    "limit": {"limit": "96 MiB"},
    "guard": {"guard": True},
    "recording": {},
}


# where, and how set: what the machine of addresses finds, it finds with few settings; it has no bytes to guard
CASES = [
    *(("device", name) for name in CONFIGS),
    *(("simulated", name) for name in ("default", "small segments", "limit", "recording")),
]
FULL_CASES = [
    *(("device", name) for name in ("default", "few splits", "no slack", "never moving", "guard", "recording")),
    *(("simulated", name) for name in ("default", "recording")),
]


def _case(case: tuple[str, str]) -> str:
    return f"{case[1]} on {case[0]}"


def _machine(request: pytest.FixtureRequest, where: str) -> Device:
    return simulated(1 << 30) if where == "simulated" else request.getfixturevalue("device")


@pytest.fixture(params=["simulated", "device"])
def machine(request: pytest.FixtureRequest) -> Device:
    return _machine(request, request.param)


def made(machine: Device, backend: str, name: str, **more: Any) -> MemoryPool:
    return MemoryPool(machine, PoolConfig(backend=backend, **CONFIGS[name], **more))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CASES, ids=_case)
def pool(request: pytest.FixtureRequest, backend: str) -> Iterator[MemoryPool]:
    where, name = request.param
    pool = made(_machine(request, where), backend, name)
    reserved = pool.stats().reserved_bytes
    if name == "recording":
        pool.record_history(sites=True)
    yield pool
    check_books(pool, [span.block for span in pool._ladder.spans() if span.live and span.block is not None])
    if name == "recording":
        check_events(pool.history(), pool, reserved)


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    with frozen_heap():
        yield


# handles


def test_blocks_are_aligned_and_apart(pool: MemoryPool) -> None:
    blocks = [pool.allocate(n) for n in (1, 255, 256, 257, 70_000, MIB, 3 * MIB + 1)]
    check_books(pool, blocks)
    for block in blocks[::2]:
        block.free()
    check_books(pool, blocks[1::2])
    for block in blocks[1::2]:
        pool.free(block)
    check_books(pool, [])
    pool.trim()
    assert pool.stats().reserved_bytes == 0


def test_at_most_three_percent_is_wasted_on_blocks_of_64_kib_and_more(pool: MemoryPool) -> None:
    rng = random.Random(0)
    zones = 512 if pool.config.guard else 0
    holes = [pool.allocate(rng.randint(64 * KIB, MIB)) for _ in range(40)]
    for hole in holes[::2]:
        hole.free()
    blocks = [*holes[1::2], *(pool.allocate(rng.randint(64 * KIB, MIB)) for _ in range(30))]
    assert all(block.size - zones <= 1.03 * block.nbytes for block in blocks)
    check_books(pool, blocks)


def test_a_double_free_raises_and_changes_nothing(pool: MemoryPool) -> None:
    kept, freed = pool.allocate(1000), pool.allocate(1000)
    freed.free()
    before = pool.stats()
    uses = (
        freed.free, freed.pin, freed.unpin, lambda: freed.address, lambda: freed.size, lambda: freed.stream,
        lambda: freed.pins, lambda: freed.record_stream(1), lambda: freed.retag("x"), lambda: pool.free(freed),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(PoolError, match="freed"):
            use()
    assert pool.stats() == before and not freed.alive and "freed" in repr(freed)
    reused = pool.allocate(1000)  # the stale handle must not free its successor either
    with pytest.raises(PoolError):
        freed.free()
    check_books(pool, [kept, reused])


def test_a_foreign_block_raises(pool: MemoryPool) -> None:
    other = MemoryPool(pool.device)
    foreign = [other.allocate(100), other.allocate(0)]
    before = pool.stats()
    for block in foreign:
        with pytest.raises(PoolError, match="another pool"):
            pool.free(block)
    assert pool.stats() == before
    check_books(other, foreign)


def test_a_block_of_no_bytes_is_valid(pool: MemoryPool) -> None:
    block, other = pool.allocate(0), pool.allocate(0)
    assert (block.address, block.nbytes, block.size) == (0, 0, 0)
    assert block.pin() == 0
    block.record_stream(1)
    block.retag("x")
    block.unpin()
    assert pool.stats().live_blocks == 0
    block.free()
    with pytest.raises(PoolError):
        block.free()
    other.free()


def test_sizes_that_make_no_sense(pool: MemoryPool) -> None:
    for nbytes in (-1, -256, -300, -(1 << 70)):
        with pytest.raises(PoolError, match="≥ 0, got -"):
            pool.allocate(nbytes)
    for wrong in (1.5, 256.0, "256", None, b"1"):
        with pytest.raises(TypeError):
            pool.allocate(wrong)  # type: ignore[arg-type]
    for nbytes in (1 << 62, 1 << 64, 1 << 100):
        with pytest.raises(OutOfMemory):
            pool.allocate(nbytes)
    check_books(pool, [])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_an_index_is_a_size(pool: MemoryPool, kind: type[Any]) -> None:
    for _ in range(2):  # a miss, then a hit
        block = pool.allocate(kind(120))
        assert block.nbytes == 120 and type(pool.stats().requested_bytes) is int
        assert type(pool.segments()[0].blocks[0].nbytes) is int
        block.free()


def test_memory_is_used_again(pool: MemoryPool, backend: str) -> None:
    if backend == "direct" or pool.config.guard:
        pytest.skip("gives memory back, or looks at it, first")
    keep = [pool.allocate(n) for n in (1000, 300 * KIB, 3 * MIB)]
    calls = pool.stats().driver_calls
    addresses = {block.nbytes: block.address for block in keep}
    for _ in range(5):
        for block in keep:
            block.free()
        keep = [pool.allocate(n) for n in (3 * MIB, 1000, 300 * KIB)]
        assert {block.nbytes: block.address for block in keep} == addresses
    assert pool.stats().driver_calls == calls


# pins


def test_a_pinned_block_can_be_neither_freed_nor_moved(pool: MemoryPool) -> None:
    contents = Contents(pool)
    blocks = [contents.allocate(64 * KIB) for _ in range(12)]
    pinned = blocks[5]
    address = pinned.pin()
    assert pinned.pin() == address == pinned.address and pinned.pins == 2
    for block in blocks[::2]:
        contents.free(block)
    before = pool.stats()
    assert before.pinned_bytes == pinned.size
    for free in (pinned.free, lambda: pool.free(pinned)):
        with pytest.raises(PoolError, match="pinned 2 times"):
            free()
    assert pool.stats() == before
    pool.defragment()
    pool.clear()
    assert pinned.address == address
    contents.check()
    pinned.unpin()
    pool.defragment()
    assert pinned.address == address
    pinned.unpin()
    pool.defragment()
    contents.check()
    check_books(pool, contents.written)
    with pytest.raises(PoolError, match="not pinned"):
        pinned.unpin()
    pinned.free()


# contents, threads, finalizers


def test_contents_survive_what_the_pool_does(pool: MemoryPool) -> None:
    contents, rng = Contents(pool), random.Random(1)
    for step in range(120):
        if contents.written and rng.random() < 0.45:
            contents.free(rng.choice(list(contents.written)))
        else:
            contents.allocate(rng.choice([rng.randint(1, 4 * KIB), rng.randint(1, 300 * KIB)]))
        if step % 30 == 29:
            rng.choice([pool.defragment, pool.trim, pool.clear, lambda: pool.defragment(max_bytes=100 * KIB)])()
            contents.check()
            check_books(pool, contents.written)
    if pool.config.guard:
        pool.check()


def test_threads_share_a_pool(pool: MemoryPool) -> None:
    kept: list[Block] = []
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng, mine = random.Random(seed), []
        try:
            for step in range(60):
                mine.append(pool.allocate(rng.choice([256, 5000, rng.randint(1, 100 * KIB)])))
                if rng.random() < 0.5:
                    mine.pop(rng.randrange(len(mine))).free()
                if step % 20 == seed % 20:
                    pool.defragment()
        except BaseException as error:
            errors.append(error)
        kept.extend(mine)

    in_threads(*(lambda seed=seed: work(seed) for seed in range(4)))
    assert not errors
    check_books(pool, kept)
    for block in kept:
        block.free()
    check_books(pool, [])


def in_threads(*calls: Any) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_racing_frees_one_wins(pool: MemoryPool) -> None:
    for _ in range(5):
        block, barrier, outcome = pool.allocate(100), threading.Barrier(3), []

        def race(block: Block = block, barrier: threading.Barrier = barrier, outcome: list[str] = outcome) -> None:
            barrier.wait()
            try:
                block.free()
                outcome.append("freed")
            except PoolError:
                outcome.append("raised")

        in_threads(race, race, race)
        assert sorted(outcome) == ["freed", "raised", "raised"]
    check_books(pool, [])


def test_a_block_freed_by_another_thread_is_reused(pool: MemoryPool) -> None:
    blocks = [pool.allocate(5000) for _ in range(20)]
    in_threads(*(block.free for block in blocks[::2]))
    blocks = blocks[1::2] + [pool.allocate(5000) for _ in range(10)]
    check_books(pool, blocks)


def test_a_finalizer_frees_in_the_middle_of_an_allocation(pool: MemoryPool) -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(1)  # collect at nearly every object made, also inside the pool
    try:
        blocks = []
        for i in range(60):
            Owner(pool.allocate(256 * (i % 7) + 1))
            blocks.append(pool.allocate(5000 + 256 * i))
            if i % 3 == 0:
                blocks.pop(0).free()
            if i % 20 == 0:
                pool.defragment()
                pool.trim()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    check_books(pool, blocks)


# giving back and moving


def test_trim_goes_down_to_keep(pool: MemoryPool) -> None:
    kept = pool.allocate(1000)
    for block in [pool.allocate(n) for n in (20 * MIB, 9 * MIB, 5 * MIB)]:
        block.free()
    for keep in ("24 MiB", "8 MiB", 0):
        before = pool.stats().reserved_bytes
        assert before - pool.trim(keep) == pool.stats().reserved_bytes
        check_books(pool, [kept])
    assert pool.stats().reserved_bytes <= (5 if pool.config.initial == 0 else 64) * MIB and pool.trim() == 0
    with pytest.raises(ConfigError, match="keep"):
        pool.trim(keep=-1)


def test_clear_leaves_only_what_live_blocks_need(pool: MemoryPool) -> None:
    contents = Contents(pool)
    blocks = [contents.allocate(200 * KIB) for _ in range(100)]
    for i, block in enumerate(blocks):
        if i % 10:
            contents.free(block)
    Owner(pool.allocate(7 * MIB))
    pool.clear()
    contents.check()
    check_books(pool, contents.written)
    if pool.config.initial == 0 or pool._ladder.reserve.backend == "virtual":
        assert pool.stats().reserved_bytes <= 4 * MIB


def checkerboard(pool: MemoryPool, count: int = 32, nbytes: int = 64 * KIB) -> Contents:
    contents = Contents(pool)
    for block in [contents.allocate(nbytes) for _ in range(count)][::2]:
        contents.free(block)
    return contents


def test_defragment_joins_what_is_free(pool: MemoryPool) -> None:
    contents = checkerboard(pool)
    moved = pool.stats().moves
    report = pool.defragment()
    assert report.complete and report.seconds > 0 and report.pinned_bytes == 0
    assert report.blocks_moved == pool.stats().moves - moved
    assert report.segments_emptied or report.largest_free_after >= report.largest_free_before
    contents.check()
    check_books(pool, contents.written)
    assert pool.defragment().blocks_moved == 0


@pytest.mark.parametrize("limits", [{"max_bytes": "100 KiB"}, {"max_bytes": 1}, {"max_pause": 0.01}])
def test_passes_with_a_budget_get_there_in_the_end(pool: MemoryPool, limits: dict[str, Any]) -> None:
    contents = checkerboard(pool)
    most = 100 * KIB if limits.get("max_bytes") == "100 KiB" else 0 if "max_bytes" in limits else 1 << 40
    moved = 0
    for _ in range(100):
        report = pool.defragment(**limits)
        moved += report.bytes_moved
        assert report.bytes_moved <= most + 66 * KIB
        contents.check()
        check_books(pool, contents.written)
        if report.complete:
            break
    assert report.complete and moved <= 2 * len(contents.written) * 66 * KIB
    assert pool.defragment(max_bytes="1 GiB").bytes_moved == 0


@pytest.mark.parametrize("limits", [{"max_bytes": -1}, {"max_bytes": 1.5}, {"max_pause": 0}, {"max_pause": -1.0}])
def test_a_budget_that_makes_no_sense(pool: MemoryPool, limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        pool.defragment(**limits)


def test_a_pool_is_collected_with_its_memory(backend: str, machine: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    for settings in ("default", "recording") if machine.kind == "simulated" else CONFIGS:
        pool = made(machine, backend, settings)
        held = pool._ladder.reserve.growth.held
        blocks = [pool.allocate(1000), pool.allocate(2 * MIB)]
        pool.allocate(1000).free()  # waits for another request of its size
        Owner(pool.allocate(5 * MIB))  # its finalizer may run after the pool's
        assert held.memory
        del pool, blocks
        gc.collect()
        assert not held.memory and not held.ranges and not errors
    if machine.kind == "simulated":
        assert machine.memory_info().free == machine.memory


# running out


@pytest.fixture(params=FULL_CASES, ids=_case)
def full(request: pytest.FixtureRequest, backend: str) -> Iterator[tuple[MemoryPool, Contents]]:
    """A pool of 16 MiB without room for another MiB."""
    where, name = request.param
    pool = made(_machine(request, where), backend, name, limit="16 MiB")
    if name == "recording":
        pool.record_history()
    contents = Contents(pool)
    with pytest.raises(OutOfMemory):
        while True:
            contents.allocate(MIB)
    yield pool, contents
    contents.check()
    check_books(pool, contents.written)
    if name == "recording":
        check_events(pool.history(), pool)


def test_a_limit_is_used_up_to_its_end(full: tuple[MemoryPool, Contents]) -> None:
    pool, contents = full
    assert len(contents.written) == (15 if pool.config.guard else 16)
    assert pool.stats().peak_reserved_bytes <= 16 * MIB


def test_out_of_memory_changes_nothing_and_comes_again(full: tuple[MemoryPool, Contents]) -> None:
    pool, contents = full
    books = pool.stats()
    for _ in range(3):
        with pytest.raises(OutOfMemory, match="no room for 1.00 MiB"):
            pool.allocate(MIB)
    after = pool.stats()
    for name in ("allocated_bytes", "requested_bytes", "live_blocks", "allocations", "frees", "tags"):
        assert getattr(after, name) == getattr(books, name)
    contents.free(next(iter(contents.written)))
    contents.allocate(MIB)
    with pytest.raises(OutOfMemory):
        pool.allocate(MIB)


def test_room_in_pieces_is_room(full: tuple[MemoryPool, Contents], backend: str) -> None:
    _pool, contents = full
    blocks = list(contents.written)
    for block in blocks[::2]:
        contents.free(block)
    contents.allocate(6 * MIB)
    contents.check()


def test_pins_can_be_in_the_way(full: tuple[MemoryPool, Contents], backend: str) -> None:
    pool, contents = full
    blocks = list(contents.written)
    for block in blocks[1::2]:
        block.pin()
    for block in blocks[::2]:
        contents.free(block)
    if backend == "segments":
        with pytest.raises(OutOfMemory, match="are pinned"):
            pool.allocate(6 * MIB)
    for block in blocks[1::2]:
        block.unpin()
    contents.allocate(6 * MIB)


def test_garbage_is_collected_before_giving_up(full: tuple[MemoryPool, Contents]) -> None:
    _pool, contents = full
    gc.disable()
    try:
        block = next(iter(contents.written))
        del contents.written[block]
        Owner(block)
        del block
        contents.allocate(MIB)
    finally:
        gc.enable()


def test_callbacks_may_make_room(full: tuple[MemoryPool, Contents]) -> None:
    pool, contents = full
    asked: list[int] = []

    def give(of: MemoryPool, nbytes: int) -> None:
        assert of is pool
        asked.append(nbytes)
        contents.free(next(iter(contents.written)))
        pool.stats()  # a callback may do what it likes
        pool.allocate(100).free()

    undo = pool.on_pressure(give)
    block = contents.allocate(MIB - 5000)
    assert asked == [MIB - 5000] and block.nbytes == MIB - 5000
    undo()
    undo()
    with pytest.raises(OutOfMemory):
        pool.allocate(MIB)
    assert len(asked) == 1


def test_a_callback_that_runs_out_itself_asks_no_callback(full: tuple[MemoryPool, Contents]) -> None:
    pool, _ = full
    asked: list[int] = []

    def offload(of: MemoryPool, nbytes: int) -> None:
        asked.append(nbytes)
        of.allocate(MIB)

    pool.on_pressure(offload)
    for count in (1, 2):
        with pytest.raises(OutOfMemory):
            pool.allocate(MIB)
        assert len(asked) == count


def test_what_a_callback_raises_goes_to_the_caller(full: tuple[MemoryPool, Contents]) -> None:
    pool, _ = full

    def fail(of: MemoryPool, nbytes: int) -> None:
        raise ZeroDivisionError

    pool.on_pressure(fail)
    with pytest.raises(ZeroDivisionError):
        pool.allocate(MIB)


# scopes, peaks, leaks


def test_a_scope_has_memory_of_its_own(pool: MemoryPool, backend: str) -> None:
    outside = [pool.allocate(100 * KIB) for _ in range(4)]
    outside.pop(1).free()
    with pool.scope("validation") as scope:
        inside = [pool.allocate(100 * KIB) for _ in range(3)]
        inside.pop(0).free()
        assert scope.peak_bytes >= 300 * KIB > scope.allocated_bytes == sum(block.size for block in inside)
    assert scope.left_bytes == scope.allocated_bytes and scope.peak_bytes >= 300 * KIB
    of = {segment.scope: set() for segment in pool.segments()}
    for segment in pool.segments():
        of[segment.scope] |= {block.address for block in segment.blocks if block.state == "live"}
    offset = pool._ladder.offset
    assert {block.address - offset for block in inside} == of["validation"]
    assert {block.address - offset for block in outside} == of[""]
    check_books(pool, outside + inside)
    for block in inside:
        block.free()
    assert scope.allocated_bytes == 0
    with pool.scope("validation") as again:
        pool.allocate(100 * KIB).free()
    assert again.left_bytes == 0
    with pytest.raises(ConfigError, match="empty"), pool.scope(""):
        pass


def test_a_scope_may_use_all_memory_when_it_has_to(full: tuple[MemoryPool, Contents]) -> None:
    pool, contents = full
    contents.free(next(iter(contents.written)))
    with pool.scope("validation"):
        contents.allocate(MIB)
        with pytest.raises(OutOfMemory):
            pool.allocate(MIB)


def test_peaks_begin_again(pool: MemoryPool) -> None:
    with pool.tag("x"):
        kept, big = pool.allocate(1000), pool.allocate(5 * MIB)
    big.free()
    assert pool.stats().peak_allocated_bytes >= 5 * MIB <= pool.stats().tags["x"].peak_allocated_bytes
    pool.trim()
    pool.reset_peaks()
    stats = pool.stats()
    assert stats.peak_allocated_bytes == stats.allocated_bytes == stats.tags["x"].peak_allocated_bytes == kept.size
    assert stats.peak_reserved_bytes == stats.reserved_bytes


def test_what_outlives_a_mark_is_a_leak(pool: MemoryPool) -> None:
    before: list[Block] = []
    for _ in range(2):  # the second time frees what the first made, on the same line
        for block in before:
            block.free()
        before = [pool.allocate(5000) for _ in range(3)]
        mark = pool.mark()
        assert not pool.leaks(mark)
    with pool.tag("activations"):
        leaked = pool.allocate(70_000)
    pool.defragment()
    report = pool.leaks(mark)
    assert report and (report.blocks, report.nbytes) == (1, leaked.size) and "activations" in str(report)
    assert pool.leaks().blocks == 4


def test_history_tells_what_happened(machine: Device, backend: str) -> None:
    for guard in (False, True)[: 1 + (machine.kind != "simulated")]:
        pool = MemoryPool(machine, PoolConfig(backend=backend, limit="16 MiB", guard=guard))
        block = pool.allocate(1000)
        earlier = {block._span.address: block.size}
        reserved = pool.stats().reserved_bytes
        pool.record_history()
        contents, rng = Contents(pool), random.Random(3)
        stream = machine.backend.new_stream()
        for step in range(200):
            if contents.written and rng.random() < 0.45:
                block = rng.choice(list(contents.written))
                if rng.random() < 0.2:
                    block.record_stream(stream)
                contents.free(block)
            else:
                try:
                    contents.allocate(rng.randint(1, 800 * KIB))
                except OutOfMemory:
                    contents.free(next(iter(contents.written)))
            if step % 40 == 39:
                rng.choice([pool.defragment, pool.trim, pool.clear])()
        check_events(pool.history(), pool, reserved, earlier, exact=True)
        actions = {event.action for event in pool.history()}
        assert {"alloc", "free", "free_completed", "segment_alloc"} <= actions
        pool.record_history(False)
        count = len(pool.history())
        pool.allocate(1000).free()
        assert len(pool.history()) == count


EXIT = """
import flame_numba as fn
from flame_numba.devices import Device
pools, kept = [], []
class Late:
    def __init__(self, block): self.block = block; self.me = self
    def __del__(self): self.block.free()
for backend in ("virtual", "segments", "direct"):
    pool = fn.MemoryPool(Device.cpu(), fn.PoolConfig(backend=backend))
    pools.append(pool)
    kept += [Late(pool.allocate(n)) for n in (100, 5000, 3 << 20)]
    pool.record_history()
    kept.append(Late(pool.allocate(70)))
with pool.use():
    tensor = fn.ones((1000,))
    other = tensor + 1
"""


def test_nothing_is_said_at_the_end_of_a_program() -> None:
    path = str(Path(__file__).resolve().parents[1] / "src")
    done = subprocess.run(
        [sys.executable, "-c", EXIT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
