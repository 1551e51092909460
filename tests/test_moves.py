"""Moving bytes: the plan of what may run together, and the kernel itself, against `memmove` one move after another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from flame_numba.devices import Device
from flame_numba.kernels.moves.mover import Mover
from flame_numba.kernels.moves.plan import (
    COLUMNS,
    FIRST,
    FLAG,
    LAST,
    SIZE,
    SOURCE,
    TARGET,
    TICKET,
    UPWARDS,
    VECTOR,
    Batch,
    Limits,
    aligned_runs,
    as_table,
    plan,
)  # fmt: skip
from move_lists import ARENA, MAKERS, UNIT, Move, contents, expected, raised, scattered, slide

CHUNK = 32  # vectors: so that a block of a few units is several chunks
ROOMY = Limits(4096, 32768)
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# --- the plan ------------------------------------------------------------------------------------------------------
def planned(moves: Sequence[Move], limits: Limits = ROOMY) -> list[Batch]:
    return list(plan(as_table(moves), CHUNK, limits))


class Chunk:
    """What a block of the kernel works out for its ticket."""

    def __init__(self, batch: Batch, ticket: int) -> None:
        row = batch.rows[batch.row_of[ticket]].tolist()
        part = ticket - row[TICKET]
        if row[UPWARDS]:
            part = (row[SIZE] - 1) // CHUNK - part
        self.source, self.target = row[SOURCE] + part * CHUNK, row[TARGET] + part * CHUNK
        self.size = min(CHUNK, row[SIZE] - part * CHUNK)
        self.flag = row[FLAG] + part
        self.awaited = set(self._awaited(batch.rows[row[FIRST] : row[LAST] + 1])) - {self.flag}
        self.bytes: bytes | None = None

    def _awaited(self, rows: np.ndarray) -> Iterator[int]:
        for row in rows.tolist():
            assert len(row) == COLUMNS
            begin = self.target - row[SOURCE]
            begin, end = (min(max(x, 0), row[SIZE]) for x in (begin, begin + self.size))
            yield from range(row[FLAG] + begin // CHUNK, row[FLAG] - (-end // CHUNK))

    def span(self, begin: int) -> slice:
        return slice(VECTOR * begin, VECTOR * (begin + self.size))


def interleave(batch: Batch, memory: bytearray, rng: random.Random, running: int) -> None:
    """Run a batch as a GPU might: blocks start in order, and some at a time go on in any order."""
    read: set[int] = set()
    waiting = iter([Chunk(batch, i) for i in range(len(batch.row_of))])
    blocks: list[Chunk] = []
    while True:
        while len(blocks) < running and (new := next(waiting, None)):
            blocks.append(new)
        able = [b for b in blocks if b.bytes is None or b.awaited <= read]
        assert able or not blocks, "every block waits"
        if not able:
            return
        block = rng.choice(able)
        if block.bytes is None:
            block.bytes = bytes(memory[block.span(block.source)])
            read.add(block.flag)
        else:
            memory[block.span(block.target)] = block.bytes
            blocks.remove(block)


@every_kind
def test_every_order_of_a_plan_is_right(make) -> None:
    memory = contents()
    for seed in range(60):
        rng = random.Random(seed)
        moves = [m for m in make(rng) if not any(x % VECTOR for x in m)]
        limits = rng.choice([ROOMY, Limits(3, 40), Limits(1, 1)])
        result = bytearray(memory.tobytes())
        for batch in planned(moves, limits):
            assert len(batch.rows) <= limits.moves and len(batch.row_of) <= limits.chunks
            interleave(batch, result, rng, rng.choice([1, 2, 5, 100]))
        assert np.array_equal(np.frombuffer(result, np.uint8), expected(memory, moves)), moves


def test_what_can_be_one_launch_is_one() -> None:
    rng = random.Random(1)
    assert len(planned(slide([5 * UNIT] * 20, [UNIT] * 20))) == 1
    assert len(planned(raised(slide([5 * UNIT] * 20, [UNIT] * 20)))) == 1
    assert len(planned(slide([UNIT] * 5 + [90 * UNIT], [9 * UNIT] + [0] * 5))) == 1
    (batch,) = planned(scattered(rng))
    assert np.all(batch.rows[:, FIRST] > batch.rows[:, LAST])  # and nothing to wait for
    assert len(planned([(0, 1024, 512), (1024, 4096, 512)])) == 1  # written after it is read


def test_a_block_that_moves_on_waits_for_the_next_launch() -> None:
    first, then = (0, 1024, 512), (8192, 0, 512)
    assert [len(b.rows) for b in planned([(2048, 4096, 256), first, then])] == [2, 1]
    assert [len(b.rows) for b in planned([first, (256, 4096, 512)])] == [1, 1]  # written twice
    assert [len(b.rows) for b in planned([first, (4096, 1280, 512)])] == [1, 1]  # read twice


def test_what_does_nothing_is_left_out() -> None:
    assert planned([]) == [] and planned([(0, 256, 0), (512, 512, 256)]) == []
    assert as_table([(0, 256, 0), (0, 256, 16), (5, 5, 9)]).tolist() == [[0, 256, 16]]
    assert as_table(np.array([[0, 256, 16]])).tolist() == [[0, 256, 16]]


def test_a_move_of_more_chunks_than_a_launch_holds_is_cut() -> None:
    for moves in (slide([100 * UNIT], [UNIT]), raised(slide([100 * UNIT], [UNIT]))):
        batches = planned(moves, Limits(8, 16))
        assert sum(len(b.row_of) for b in batches) == 100 * UNIT // (VECTOR * CHUNK)
        assert all(len(b.row_of) <= 16 for b in batches)


def test_alignment_decides_who_moves() -> None:
    table = as_table([(0, 16, 16), (32, 64, 32), (1, 64, 16), (0, 64, 8), (0, 48, 16)])
    assert [(bool(a), len(part)) for a, part in aligned_runs(table)] == [(True, 2), (False, 2), (True, 1)]
    assert list(aligned_runs(as_table([]))) == []


def test_moves_that_build_on_one_another_are_planned_in_linear_time() -> None:
    table = as_table([(UNIT * (i + 1), UNIT * i, UNIT) for i in range(3000)])
    assert sum(len(b.rows) for b in plan(table, CHUNK, ROOMY)) == 3000


# --- the kernel, and who calls it ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def movers() -> Iterator[dict[str, Mover]]:
    """On the host: by copies; by the kernel, as one block of one thread with chunks of 128 bytes; with little room."""
    backend = Device.cpu().backend
    made = {
        "copies": Mover(backend), "kernel": Mover(backend, by_kernel=True),
        "small": Mover(backend, by_kernel=True, limits=Limits(5, 64)),
    }  # fmt: skip
    yield made
    for mover in made.values():
        mover.close()


@every_kind
@pytest.mark.parametrize("how", ["copies", "kernel", "small"])
def test_moves_are_as_memmove(make, how: str, movers: dict[str, Mover]) -> None:
    mover = movers[how]
    address = mover.backend.allocate(ARENA)
    memory, result = contents(), np.empty(ARENA, np.uint8)
    try:
        for seed in range(40):
            moves = make(random.Random(seed))
            mover.backend.upload(address, memory.ctypes.data, ARENA)
            placed = [(address + t, address + s, n) for t, s, n in moves]
            mover.move(placed if seed % 2 else np.array(placed, np.int64).reshape(-1, 3))
            mover.backend.download(result.ctypes.data, address, ARENA)
            assert np.array_equal(result, expected(memory, moves)), moves
    finally:
        mover.backend.free(address)


def test_nothing_is_compiled_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    backend = Device.cpu().backend
    monkeypatch.setattr(
        "flame_numba.kernels.compiler.compile.load", lambda program, machine: asked.append(program.name)
    )
    mover = Mover(backend, by_kernel=True)
    mover.move([])
    assert asked == []
    mover.prepare()
    assert asked == ["move_chunks"]
    mover.close()
    plain = Mover(backend)
    plain.prepare()
    assert asked == ["move_chunks"]


def test_a_mover_gives_its_memory_back() -> None:
    backend = Device.cpu().backend
    held = len(backend._arrays)
    mover = Mover(backend, by_kernel=True)
    assert len(backend._arrays) == held + 4  # and takes no more when it moves
    address = backend.allocate(ARENA)
    mover.move([(address, address + UNIT, 20 * UNIT)])
    backend.free(address)
    assert len(backend._arrays) == held + 4
    mover.close()
    assert len(backend._arrays) == held
