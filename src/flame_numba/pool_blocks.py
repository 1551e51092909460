"""What a pool is made of: segments of driver memory, the spans that cut them up, and the handles of live blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from .errors import PoolError

if TYPE_CHECKING:
    from .pool import MemoryPool
    from .pool_arena import Arena

ALIGNMENT = 256


def round_up(nbytes: int, step: int = ALIGNMENT) -> int:
    return -(-nbytes // step) * step


class Span:
    """A run of bytes in a segment, linked to its neighbours by address.

    It is *live* (`block` is set), *binned* (free, and in its arena's bins), or neither: set aside for a
    request of exactly its size. Only binned spans merge.
    """

    __slots__ = ("address", "binned", "block", "next", "prev", "segment", "size")

    def __init__(self, address: int, size: int, segment: Segment) -> None:
        self.address = address
        self.size = size
        self.segment = segment
        self.prev: Span | None = None
        self.next: Span | None = None
        self.block: Block | None = None
        self.binned = False

    @property
    def movable(self) -> bool:
        return self.block is not None and not self.block.pins

    def split(self, size: int) -> Span:
        """Keep the first `size` bytes; the rest, as a new span behind them."""
        rest = Span(self.address + size, self.size - size, self.segment)
        rest.prev, rest.next = self, self.next
        self.size, self.next = size, rest
        if rest.next is not None:
            rest.next.prev = rest
        return rest

    def absorb(self, after: Span) -> None:
        """Grow over the neighbour `after`, which is no more."""
        self.size += after.size
        self.next = after.next
        if after.next is not None:
            after.next.prev = self

    def relink(self) -> None:
        """Make the neighbours, or the segment, point back at this span."""
        if self.prev is None:
            self.segment.first = self
        else:
            self.prev.next = self
        if self.next is not None:
            self.next.prev = self


class Segment:
    """One allocation of the driver's, and the first of the spans that it is cut into."""

    __slots__ = ("address", "arena", "first", "size")

    def __init__(self, address: int, size: int, arena: Arena) -> None:
        self.address = address
        self.size = size
        self.arena = arena
        self.first = Span(address, size, self)

    def __iter__(self) -> Iterator[Span]:
        span: Span | None = self.first
        while span is not None:
            yield span
            span = span.next

    @property
    def live_bytes(self) -> int:
        return sum(span.size for span in self if span.block is not None)

    @property
    def is_free(self) -> bool:
        return self.first.binned and self.first.next is None


class Block:
    """The handle of some bytes of a pool. `address` is where they are now: `defragment()` may change it.

    Read `address` and queue the work that uses it while holding `pool.lock`, or pin the block.
    A block that was freed raises PoolError on any use.
    """

    # `_span` is also the right to free the block: deleting it is one atomic step, which only one caller wins.
    __slots__ = ("_span", "address", "nbytes", "pins", "pool")

    _span: Span | None  # None: the block has no bytes
    address: int
    nbytes: int  # as requested
    pins: int
    pool: MemoryPool

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            # only reached where a slot is empty, so the check costs a live block nothing
            if name in ("_span", "address"):
                raise PoolError("block: used after it was freed")
            raise AttributeError(f"'Block' object has no attribute {name!r}")

    @property
    def size(self) -> int:
        """Bytes it takes up, in multiples of 256."""
        span = self._span
        return 0 if span is None else span.size

    def free(self) -> None:
        """Give the bytes back to the pool. Raises PoolError the second time."""
        self.pool.free(self)

    def pin(self) -> int:
        """Keep the block where it is until as many `unpin()`s; its address."""
        with self.pool.lock:
            self._span  # noqa: B018  (raises if the block was freed)
            self.pins += 1
            return self.address

    def unpin(self) -> None:
        """Undo one `pin()`. Raises PoolError if there is none."""
        with self.pool.lock:
            self._span  # noqa: B018
            if self.pins == 0:
                raise PoolError("unpin: the block is not pinned")
            self.pins -= 1

    def __repr__(self) -> str:
        try:
            return f"Block({self.nbytes} bytes at {self.address:#x})"
        except PoolError:
            return f"Block({self.nbytes} bytes, freed)"
