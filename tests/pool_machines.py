"""Simulated machines that know more: which work may still run, and which call is to fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flame_numba.devices.simulated import SimulatedBackend

Clock = Counter[int]  # stream → how many pieces of its work come before


class Access(NamedTuple):
    """A piece of work of a stream, on a range of addresses."""

    start: int
    end: int
    stream: int
    number: int  # of its stream's pieces of work
    owner: Any  # the block whose work it is; None for the pool's own


@dataclass(eq=False)
class Mark:
    """An event: what comes before it."""

    clock: Clock
    destroyed: bool = field(default=False)


class AsyncMachine(SimulatedBackend):
    """A machine whose work is done only when a test says so, and which checks that no two pieces of it can collide.

    Work B comes after work A if B is later on A's stream, or its stream waited for an event behind A, or the host knew
    that A was done when it queued B. An access to memory that another block's work, or a copy of the pool's, may still
    be using raises AssertionError; so does taking memory away from work. What one block's own work does to itself is
    its user's business.
    """

    def __init__(self, memory: int, page_nbytes: int = 2 << 20) -> None:
        super().__init__(memory, page_nbytes)
        self.clocks: dict[int, Clock] = {0: Counter()}
        self.done: Clock = Counter()  # per stream, how many pieces of work are done
        self.known: Clock = Counter()  # … and how many the host knows to be done
        self.ends: dict[tuple[int, int], Clock] = {}  # what each piece of work comes after
        self.accesses: list[Access] = []
        self.waits = self.synchronized = 0

    # what tests call

    def use(self, stream: int, address: int, nbytes: int, owner: Any) -> None:
        """Queue work of `owner` on a range."""
        self._queue(stream, [(address, nbytes)], owner)

    def advance(self, stream: int, pieces: int = 1) -> None:
        """Let a stream finish some work, and what that comes after."""
        number = min(self.done[stream] + pieces, self.clocks.get(stream, Counter())[stream])
        if number:
            self._finish(self.ends[stream, number])

    def finish(self) -> None:
        """Let all work come to its end; the host is not told."""
        for stream, clock in self.clocks.items():
            self.done[stream] = clock[stream]

    # the machine

    def new_stream(self) -> int:
        return self._clock_of(super().new_stream())

    def copy(self, target: int, source: int, nbytes: int, stream: int = 0) -> None:
        super().copy(target, source, nbytes, stream)
        self._queue(stream, [(target, nbytes), (source, nbytes)], None)

    def fill(self, target: int, byte: int, nbytes: int, stream: int = 0) -> None:
        super().fill(target, byte, nbytes, stream)
        self._queue(stream, [(target, nbytes)], None)

    def record_event(self, stream: int = 0, timing: bool = False) -> Mark:
        return Mark(Counter(self.clocks[self._clock_of(stream)]))

    def destroy_event(self, event: Mark) -> None:
        assert not event.destroyed
        event.destroyed = True

    def event_done(self, event: Mark) -> bool:
        assert not event.destroyed
        if not event.clock <= self.done:
            return False
        self.known |= event.clock
        return True

    def synchronize_event(self, event: Mark) -> None:
        assert not event.destroyed
        self._finish(event.clock)
        self.known |= event.clock

    def wait_event(self, stream: int, event: Mark) -> None:
        assert not event.destroyed
        self.waits += 1
        self.clocks[self._clock_of(stream)] |= event.clock

    def synchronize_stream(self, stream: int) -> None:
        self.synchronize_event(self.record_event(stream))

    def synchronize(self) -> None:
        self.synchronized += 1
        self.finish()
        self.known |= self.done
        self.accesses.clear()

    def free(self, address: int) -> None:
        self._check_unused(address, self._allocations.sizes.get(address, 0))
        super().free(address)

    def unmap(self, address: int, nbytes: int) -> None:
        self._check_unused(address, nbytes)
        super().unmap(address, nbytes)

    def _clock_of(self, stream: int) -> int:
        self.clocks.setdefault(stream, Counter())
        return stream

    def _finish(self, clock: Clock) -> None:
        self.done |= clock

    def _queue(self, stream: int, ranges: list[tuple[int, int]], owner: Any) -> None:
        clock = self.clocks[self._clock_of(stream)]
        for address, nbytes in ranges:
            for earlier in self._meeting(address, nbytes):
                same = owner is not None and owner is earlier.owner
                ordered = clock[earlier.stream] >= earlier.number
                assert same or ordered or self._over(earlier), (
                    f"{earlier} may still run when stream {stream} gets there"
                )
        clock[stream] += 1
        self.ends[stream, clock[stream]] = Counter(clock)
        for address, nbytes in ranges:
            self.accesses.append(Access(address, address + nbytes, stream, clock[stream], owner))

    def _check_unused(self, address: int, nbytes: int) -> None:
        for earlier in self._meeting(address, nbytes):
            assert self._over(earlier), f"memory is taken away from {earlier}"

    def _meeting(self, address: int, nbytes: int) -> list[Access]:
        return [access for access in self.accesses if access.start < address + nbytes and address < access.end]

    def _over(self, access: Access) -> bool:
        return self.known[access.stream] >= access.number


class FailingMachine:
    """A machine of which the k-th call fails, and every other call goes to `machine`.

    error: makes what is raised. names: the calls that count.
    """

    def __init__(self, machine: Any, error: Callable[[str], BaseException], names: frozenset[str]) -> None:
        self._machine = machine
        self._error = error
        self._names = names
        self.left = -1  # calls until the one that fails; < 0: none does
        self.calls: Counter[str] = Counter()
        self.failed = ""  # the name of the call that failed

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._machine, name)
        if name not in self._names:
            return value

        def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if self.left == 0:
                self.left, self.failed = -1, name
                raise self._error(name)
            self.left -= self.left > 0
            return value(*args, **options)

        return call
