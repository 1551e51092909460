"""A long random program of a pool, in one thread or several, with checks cheap enough for millions of operations.

python tests/pool_fuzz.py 10_000_000 [--seed 1] [--threads 1] [--backend virtual] [--device simulated]
"""

from __future__ import annotations

import argparse
import ctypes
import random
import threading
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from flame_numba.devices import Device
from flame_numba.errors import OutOfMemory, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig

KIB, MIB = 1 << 10, 1 << 20
_SIZES = (256, 1000, 4 * KIB, 5000, 64 * KIB, 70_000, 300 * KIB, MIB)
_MARK = 8  # bytes at the front and the end of each block that say whose it is


class Fuzzer:
    """One thread of the program: its own blocks, in a pool that others use, too."""

    def __init__(self, pool: MemoryPool, seed: int, most: int, alone: bool = False) -> None:
        self.pool = pool
        self.alone = alone  # no other thread changes the pool
        self.rng = random.Random(seed)
        self.most = most  # blocks that it holds
        self.held: list[tuple[Block, int]] = []
        self.pinned: list[Block] = []
        self.number = seed << 40
        self.failures = 0
        self.real = pool.backend.kind == "cpu"
        self.streams = [0, pool.backend.new_stream()]

    def run(self, operations: int) -> None:
        for _ in range(operations):
            self._step()

    def _step(self) -> None:
        roll = self.rng.random()
        if roll < 0.5:
            if len(self.held) < self.most:
                self._allocate()
            else:
                self._free_some(self.most // 2)
        elif roll < 0.96:
            self._free_some(1)
        elif roll < 0.97:
            self._free_some(self.rng.randrange(len(self.held) + 1))
        elif roll < 0.99:
            self._pin_or_unpin()
        elif roll < 0.992:
            self.pool.defragment(max_bytes=self.rng.choice([1, 100 * KIB, 10 * MIB]))
        elif roll < 0.9935:
            self._end_stream()
        elif roll < 0.994:
            self.rng.choice([self.pool.defragment, self.pool.trim, self.pool.clear, self.pool.stats])()
        elif self.held:
            self._look(*self.rng.choice(self.held))

    def _allocate(self) -> None:
        rng = self.rng
        nbytes = rng.choice(_SIZES) if rng.random() < 0.7 else int(2 ** rng.uniform(0, 21))
        stream = None if rng.random() < 0.9 else rng.choice(self.streams)
        around = rng.random()
        try:
            if around < 0.1:
                with self.pool.tag("activations"):
                    block = self.pool.allocate(nbytes, stream)
            elif around < 0.101:
                with self.pool.scope(f"scope {rng.randrange(1000)}"):
                    block = self.pool.allocate(nbytes, stream)
            else:
                block = self.pool.allocate(nbytes, stream)
        except OutOfMemory:
            self.failures += 1
            if self.alone:
                from pool_books import check_refused

                check_refused(self.pool, nbytes)
            self._free_some(len(self.held) // 2 + 1)
            return
        assert block.nbytes == nbytes <= block.size
        self.number += 1
        self.held.append((block, self.number))
        self._write(block, self.number)

    def _free_some(self, count: int) -> None:
        for _ in range(min(count, len(self.held))):
            i = self.rng.randrange(len(self.held))
            self.held[i], self.held[-1] = self.held[-1], self.held[i]
            block, number = self.held.pop()
            self._look(block, number)
            if block.pins:
                try:
                    block.free()
                except PoolError:
                    block.unpin()
                    self.pinned.remove(block)
                else:
                    raise AssertionError("a pinned block was freed")
            if self.rng.random() < 0.05:
                block.record_stream(self.rng.choice(self.streams))
            block.free()
            if self.rng.random() < 0.05:
                try:
                    block.free()
                except PoolError:
                    pass
                else:
                    raise AssertionError("a block was freed twice")

    def _end_stream(self) -> None:
        """One more, or one less: what was allocated on it, or noted as used by it, may live on."""
        machine = self.pool.backend
        if len(self.streams) < 6 and self.rng.random() < 0.6:
            self.streams.append(machine.new_stream())
        elif len(self.streams) > 2:
            machine.destroy_stream(self.streams.pop(self.rng.randrange(1, len(self.streams))))

    def _pin_or_unpin(self) -> None:
        if self.pinned and self.rng.random() < 0.6:
            self.pinned.pop(self.rng.randrange(len(self.pinned))).unpin()
        elif self.held:
            block = self.rng.choice(self.held)[0]
            if not block.pins:
                address = block.pin()
                assert address == block.address
                self.pinned.append(block)

    def _write(self, block: Block, number: int) -> None:
        if self.real and block.nbytes >= 2 * _MARK:
            with self.pool.lock:
                for address in (block.address, block.address + block.nbytes - _MARK):
                    ctypes.c_int64.from_address(address).value = number

    def _look(self, block: Block, number: int) -> None:
        """Its bytes are what it wrote."""
        if self.real and block.nbytes >= 2 * _MARK:
            with self.pool.lock:
                for address in (block.address, block.address + block.nbytes - _MARK):
                    assert ctypes.c_int64.from_address(address).value == number, block


def fuzz(
    operations: int, seed: int = 0, threads: int = 1, device: Device | None = None, rounds: int = 20, **settings: Any
) -> MemoryPool:
    """So many operations, spread over threads. Between some rounds of it, when no thread is at it, all is checked.

    Returns the pool, with no block live.
    """
    from pool_books import check_books, simulated

    device = device or simulated(64 * MIB)
    config: dict[str, Any] = {"limit": "48 MiB", **settings}
    pool = MemoryPool(device, PoolConfig(**config))
    fuzzers = [Fuzzer(pool, seed * 100 + i + 1, 400 // threads, threads == 1) for i in range(threads)]
    for _ in range(rounds):
        _run(fuzzers, operations // rounds // threads)
        held = [block for fuzzer in fuzzers for block, _ in fuzzer.held]
        ranges = sorted((block.address, block.address + block.size) for block in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges)), "blocks overlap"
        for fuzzer in fuzzers:
            for block, number in fuzzer.held:
                fuzzer._look(block, number)
        check_books(pool, held)
    for fuzzer in fuzzers:
        while fuzzer.held:
            fuzzer._free_some(len(fuzzer.held))
    check_books(pool, [])
    pool.clear()
    assert pool.stats().reserved_bytes == 0
    return pool


def _run(fuzzers: list[Fuzzer], operations: int) -> None:
    if len(fuzzers) == 1:
        fuzzers[0].run(operations)
        return
    errors: list[BaseException] = []

    def work(fuzzer: Fuzzer) -> None:
        try:
            fuzzer.run(operations)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(fuzzer,)) for fuzzer in fuzzers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="A long random program of a memory pool.")
    parser.add_argument("operations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="virtual", choices=["virtual", "segments", "direct"])
    parser.add_argument("--device", default="simulated", choices=["simulated", "cpu"])
    given = parser.parse_args()
    device = Device.cpu() if given.device == "cpu" else None
    start = perf_counter()
    rounds = max(20, given.operations // 50_000)
    pool = fuzz(given.operations, given.seed, given.threads, device, rounds, backend=given.backend)
    seconds = perf_counter() - start
    print(f"{given.operations} operations in {seconds:.1f} s, {pool.stats().moves} moves: no fault found")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
