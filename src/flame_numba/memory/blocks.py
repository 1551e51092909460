"""What a pool is made of: segments of addresses, the spans that cut them up, and the handles of live blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from ..errors import PoolError

if TYPE_CHECKING:
    from .accounts import Account
    from .views import Frame

ALIGNMENT = 256


def round_up(nbytes: int, step: int = ALIGNMENT) -> int:
    return -(-nbytes // step) * step


class Span:
    """A run of bytes in a segment, linked to its neighbours by address.

    It is one of: *unmapped* (addresses without memory); *binned* (free, and in its arena's bins: only such spans
    merge); *pending* (freed, but a stream may still use it); or it has a block. Then it is live, or its block was
    freed and it waits in `home` for a request of exactly its size.
    """

    __slots__ = (
        "account", "address", "binned", "block", "held", "home", "mapped", "next", "pending", "pins", "prev",
        "segment", "site", "size", "stream", "streams", "watched",
    )  # fmt: skip

    def __init__(self, address: int, size: int, segment: Segment | None, mapped: bool = True) -> None:
        self.address = address
        self.size = size
        self.segment = segment  # None: merged into another span, this one is no more
        self.mapped = mapped
        self.prev: Span | None = None
        self.next: Span | None = None
        self.binned = False
        self.pending = False
        self.block: Block | None = None
        # where it waits when its block is freed: the free spans of its size and lane
        self.home: list[Span] | None = None
        self.account: Account | None = None  # of its tag
        self.pins = 0
        self.stream = 0  # the stream that the block was allocated on
        self.streams: tuple[int, ...] = ()  # others that use it: reuse waits for them
        self.held = False  # pinned, used by other streams, or watched: `free` has to look closer
        self.watched = False
        self.site: tuple[Frame, ...] = ()  # who allocated it, if recorded

    @property
    def movable(self) -> bool:
        return self.block is not None and not self.pins

    @property
    def live(self) -> bool:
        """Whether somebody holds its block: not so while it waits in `home`."""
        return self.block is not None and self.block.alive

    def split(self, size: int) -> Span:
        """Keep the first `size` bytes; the rest, as a new span behind them."""
        assert self.segment is not None
        rest = Span(self.address + size, self.size - size, self.segment, self.mapped)
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
        after.segment = None

    def relink(self) -> None:
        """Make the neighbours, or the segment, point back at this span."""
        if self.prev is None:
            assert self.segment is not None
            self.segment.first = self
        else:
            self.prev.next = self
        if self.next is not None:
            self.next.prev = self


NOTHING = Span(0, 0, None)  # what a block of no bytes has
NOTHING.held = True


class Home(Protocol):
    """What a segment knows of the arena that it belongs to."""

    stream: int

    def put(self, span: Span) -> Span:
        """Take back a span that nobody uses; the span that it became part of."""

    def home(self, size: int) -> list[Span]:
        """Where freed spans of a size wait for a request of exactly that size."""

    def drop_segment(self, segment: Segment) -> None:
        """Forget a segment that is free as a whole."""


class Segment:
    """Addresses that belong together, and the first of the spans that they are cut into.

    Either one allocation of the driver's, or a range of virtual addresses of which `pages` (address → bytes) hold
    memory.
    """

    __slots__ = ("address", "arena", "first", "packed", "pages", "size", "virtual")

    def __init__(self, address: int, size: int, arena: Home, virtual: bool = False) -> None:
        self.address = address
        self.size = size
        self.arena = arena
        self.virtual = virtual
        self.pages: dict[int, int] = {} if virtual else {address: size}
        self.first = Span(address, size, self, mapped=not virtual)
        self.packed: Span | None = None  # where an unfinished defragment ended: nothing was left to move before it

    def __iter__(self) -> Iterator[Span]:
        span: Span | None = self.first
        while span is not None:
            yield span
            span = span.next

    @property
    def mapped_bytes(self) -> int:
        return sum(self.pages.values())

    @property
    def live_bytes(self) -> int:
        return sum(span.size for span in self if span.block is not None)

    @property
    def is_free(self) -> bool:
        """Whether it holds memory, none of it in use."""
        return bool(self.pages) and all(span.binned or not span.mapped for span in self)


class Owner(Protocol):
    """What a block, a scope and a placement know of the pool that they belong to."""

    lock: Any
    device: Any

    def free(self, block: Block) -> None:
        """Take a block back."""

    def _pinned(self, span: Span, change: int) -> None:
        """Count a pin more or less. Called under `lock`."""

    def _know_stream(self, stream: int) -> None:
        """Heed a stream from now on. Called under `lock`."""

    def _retag(self, block: Block, tag: str | None) -> None:
        """Count a block under another tag."""


class Block:
    """The handle of some bytes of a pool. `address` is where they are now: `defragment()` may change it.

    Read `address` and queue the work that uses it while holding `pool.lock`, or pin the block.
    A block that was freed raises PoolError on any use.
    """

    # `_span` is also the right to free the block: deleting it is one atomic step, which only one caller wins.
    __slots__ = ("_span", "address", "nbytes", "pool")

    _span: Span
    address: int
    nbytes: int  # as requested
    pool: Owner

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            # only reached where a slot is empty, so the check costs a live block nothing
            if name in ("_span", "address"):
                raise PoolError("block: used after it was freed")
            raise AttributeError(f"'Block' object has no attribute {name!r}")

    @property
    def alive(self) -> bool:
        """Whether it has not been freed."""
        try:
            self._span  # noqa: B018
        except PoolError:
            return False
        return True

    @property
    def size(self) -> int:
        """Bytes it takes up, rounded as the pool does."""
        return self._span.size

    @property
    def stream(self) -> int:
        """The stream it was allocated on: work there needs no `record_stream`."""
        return self._span.stream

    @property
    def pins(self) -> int:
        """How often it is pinned."""
        return self._span.pins

    def free(self) -> None:
        """Give the bytes back to the pool. Raises PoolError the second time, and while the block is pinned."""
        self.pool.free(self)

    def pin(self) -> int:
        """Keep the block where it is until as many `unpin()`s; its address."""
        with self.pool.lock:
            span = self._span
            if span.segment is not None:
                self.pool._pinned(span, +1)
            return self.address

    def unpin(self) -> None:
        """Undo one `pin()`. Raises PoolError if there is none."""
        with self.pool.lock:
            span = self._span
            if span.segment is None:
                return
            if span.pins == 0:
                raise PoolError("unpin: the block is not pinned")
            self.pool._pinned(span, -1)

    def record_stream(self, stream: Any) -> None:
        """Say that work queued on `stream` uses the block: once it is freed, nobody else gets it before that is done.

        Needed for a stream other than the one that it was allocated on.
        """
        number = int(stream)
        if number in self._span.streams:  # one step, and true until the block is freed
            return
        with self.pool.lock:
            span = self._span
            if span.segment is None or number == span.segment.arena.stream or number in span.streams:
                return
            self.pool._know_stream(number)  # first: whoever reads `streams` without the lock relies on it
            span.streams += (number,)
            span.held = True

    def retag(self, tag: str | None) -> None:
        """Count the block under another tag (None: under none)."""
        self.pool._retag(self, tag)

    def __repr__(self) -> str:
        try:
            return f"Block({self.nbytes} bytes at {self.address:#x})"
        except PoolError:
            return f"Block({self.nbytes} bytes, freed)"
