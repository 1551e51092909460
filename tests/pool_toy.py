"""A stand-in for a pool that makes views and events at random, consistent with each other, and no more."""

from __future__ import annotations

import random

from flame_numba.memory.views import BlockView, Event, Frame, SegmentView

MIB = 1 << 20
TAGS = ("parameters", "gradients", "activations", "user")
SITES = tuple((Frame("model.py", line, "forward"), Frame("train.py", 7, "<module>")) for line in (10, 20, 30))


class ToyPool:
    """Segments of 1 MiB, or pages of 1 MiB in one range of addresses; blocks by first fit in multiples of 256 bytes."""

    def __init__(self, seed: int, virtual: bool) -> None:
        self.rng = random.Random(seed)
        self.virtual = virtual
        self.chunks: dict[int, int] = {}  # address → stream, each MIB long
        self.blocks: dict[int, BlockView] = {}
        self.events: list[Event] = []
        self.recording = False

    def run(self, steps: int) -> None:
        actions = [self.allocate] * 5 + [self.free] * 4 + [self.complete, self.move, self.drop, self.fail]
        for _ in range(steps):
            self.rng.choice(actions)()

    def note(self, action: str, address: int, size: int, block: BlockView | None = None, **more: int) -> None:
        if self.recording:
            allocated = sum(b.size for b in self.blocks.values() if b.state == "live")
            self.events.append(
                Event(
                    0.25 * len(self.events), action, address, size, block.stream if block else 0,
                    block.tag if block else "", allocated, MIB * len(self.chunks), block.site if block else (),
                    more.get("target", 0), more.get("requested", 0),
                )
            )  # fmt: skip

    def hole(self, size: int) -> int | None:
        for chunk in sorted(self.chunks):
            end = chunk
            inside = sorted(b for b in self.blocks if chunk <= b < chunk + MIB)
            for address in [*inside, chunk + MIB]:
                if address - end >= size:
                    return end
                end = address + self.blocks[address].size if address in self.blocks else end
        return None

    def allocate(self) -> None:
        nbytes = self.rng.randint(1, MIB // 3)
        size = -(-nbytes // 256) * 256
        address = self.hole(size)
        if address is None:
            step = MIB if self.virtual else 2 * MIB
            chunk = next(a for a in range(64 * MIB, 1 << 40, step) if a not in self.chunks)
            self.chunks[chunk] = 0
            self.note("segment_alloc", chunk, MIB)
            address = chunk
        tag, site = self.rng.choice(TAGS), self.rng.choice(SITES)
        pins = int(self.rng.random() < 0.1)
        block = self.blocks[address] = BlockView(address, size, nbytes, "live", tag, 0, pins, site)
        self.note("alloc", address, size, block, requested=nbytes)

    def pick(self, state: str) -> BlockView | None:
        found = [block for block in self.blocks.values() if block.state == state]
        return self.rng.choice(found) if found else None

    def free(self) -> None:
        block = self.pick("live")
        if block is None:
            return
        if self.rng.random() < 0.3:
            self.blocks[block.address] = block._replace(state="pending", nbytes=0, pins=0)
        else:
            del self.blocks[block.address]
        self.note("free", block.address, block.size, block)

    def complete(self) -> None:
        block = self.pick("pending")
        if block is not None:
            del self.blocks[block.address]
            self.note("free_completed", block.address, block.size, block)

    def move(self) -> None:
        block = self.pick("live")
        target = self.hole(block.size) if block else None
        if block is not None and target is not None:
            del self.blocks[block.address]
            self.blocks[target] = block._replace(address=target)
            self.note("move", block.address, block.size, block, target=target)

    def drop(self) -> None:
        for chunk in sorted(self.chunks):
            if not any(chunk <= address < chunk + MIB for address in self.blocks):
                del self.chunks[chunk]
                self.note("segment_free", chunk, MIB)
                return

    def fail(self) -> None:
        self.note("oom", 0, 0, requested=5 * MIB, target=3 * MIB)

    def segments(self) -> list[SegmentView]:
        if not self.virtual:
            return [
                SegmentView(chunk, MIB, "large", 0, "", "segments", self.cover(chunk, chunk + MIB))
                for chunk in sorted(self.chunks)
            ]
        if not self.chunks:
            return []
        blocks: list[BlockView] = []
        end = max(self.chunks) + 2 * MIB
        for chunk in range(64 * MIB, end, MIB):
            if chunk in self.chunks:
                blocks += self.cover(chunk, chunk + MIB)
            else:
                blocks.append(BlockView(chunk, MIB, 0, "unmapped", "", 0, 0, ()))
        return [SegmentView(64 * MIB, end - 64 * MIB, "large", 0, "", "virtual", tuple(blocks))]

    def cover(self, start: int, end: int) -> tuple[BlockView, ...]:
        blocks = []
        for address in sorted(a for a in self.blocks if start <= a < end):
            if address > start:
                blocks.append(BlockView(start, address - start, 0, "free", "", 0, 0, ()))
            blocks.append(self.blocks[address])
            start = address + self.blocks[address].size
        if start < end:
            blocks.append(BlockView(start, end - start, 0, "free", "", 0, 0, ()))
        return tuple(blocks)


def toy(seed: int, virtual: bool, before: int = 40, after: int = 200) -> tuple[list[SegmentView], list[Event], ToyPool]:
    """(segments, events, the pool): some steps unrecorded, then some recorded."""
    pool = ToyPool(seed, virtual)
    pool.run(before)
    pool.recording = True
    pool.run(after)
    return pool.segments(), pool.events, pool
