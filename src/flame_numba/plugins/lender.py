"""Blocks of a pool lent to other libraries: pinned while they are out, and safe to use by anyone when they are back."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..memory.context import memory_tag
from ..pool import MemoryPool, PoolConfig
from ..storage import Pin

if TYPE_CHECKING:
    from ..devices import Device

LEGACY_STREAM = 1  # the driver's own name of the legacy default stream
DEFAULT_STREAMS = (0, 1, 2)  # unnamed, legacy, per thread: all of them synchronise with the legacy one

_LENDERS: dict[Device, Lender] = {}
_LOCK = threading.RLock()
_LATER: deque[Pin] = deque()  # given back while another thread held the pool


def give_back(loan: Pin) -> None:
    """Unpin a block and free it. Waits for no lock, so any finalizer may call it."""
    lock = loan.block.pool.lock
    if lock.acquire(blocking=False):
        try:
            loan.release()
            loan.block.free()
        finally:
            lock.release()
    else:
        _LATER.append(loan)


def settle() -> None:
    """Free what `give_back` had to leave. Called before each new loan."""
    while _LATER:
        try:
            loan = _LATER.popleft()
        except IndexError:
            return  # another thread was faster
        with loan.block.pool.lock:
            loan.release()
            loan.block.free()


def borrow(pool: MemoryPool, nbytes: int, tag: str, stream: int = 0) -> Pin:
    """A pinned block, counted under `tag` unless the caller is in a `memory_tag` already. Raises OutOfMemory."""
    settle()
    with memory_tag(tag, weak=True):
        block = pool.allocate(nbytes, stream=stream)
    return Pin(block)


class Lender:
    """Lends blocks of one pool to libraries that name no stream, or one that may be gone when the pool looks again.

    So the pool never hears of their streams: to it all loans are of stream 0. A stream that synchronises with the
    legacy default stream (`joins`; all that Numba makes do) needs no more than a barrier there between the old use of
    some bytes and the new one. Another stream is joined to the default one by events at both ends of the loan.
    Neither makes the host wait.
    """

    def __init__(self, pool: MemoryPool) -> None:
        self.pool = pool
        self._backend = pool.device.backend
        self._returned = False  # whether a block came back since the last barrier

    def lend(self, nbytes: int, tag: str, stream: int = 0, joins: bool = True) -> Pin:
        """A pinned block, ready for work on `stream`. Raises OutOfMemory."""
        loan = borrow(self.pool, nbytes, tag)
        try:
            if joins:
                self._barrier()
            else:
                self._queue_after(stream, LEGACY_STREAM)
        except BaseException:
            give_back(loan)
            raise
        return loan

    def take_back(self, loan: Pin, stream: int = 0, joins: bool = True) -> None:
        """The borrower has queued its last work, on `stream`. May be called by finalizers, in any thread."""
        try:
            if joins:
                self._returned = True  # before anyone can get the block
            else:
                self._queue_after(LEGACY_STREAM, stream)
        except DeviceError:
            self._backend.synchronize()  # the stream was destroyed, but its work may still run
        finally:
            give_back(loan)

    def _barrier(self) -> None:
        """Put the work that borrowers have queued before the work that they will queue."""
        if not self._returned:
            return
        with self.pool.lock:  # nobody may pass before the event is queued
            if self._returned:
                self._returned = False
                # an event on the legacy stream waits for all streams that synchronise with it, and they wait for it
                self._backend.destroy_event(self._backend.record_event(LEGACY_STREAM))

    def _queue_after(self, later: int, earlier: int) -> None:
        """Make work that will be queued on `later` wait for what `earlier` holds."""
        event = self._backend.record_event(earlier)
        try:
            self._backend.wait_event(later, event)
        finally:
            self._backend.destroy_event(event)  # the driver keeps it until it has happened


def use_pool(pool: MemoryPool) -> None:
    """Let the plugins take memory of the pool's device from it, from now on."""
    with _LOCK:
        if pool.device not in _LENDERS or _LENDERS[pool.device].pool is not pool:
            _LENDERS[pool.device] = Lender(pool)


def lender_for(device: Device) -> Lender:
    """Who lends memory of a device to the plugins."""
    lender = _LENDERS.get(device)
    if lender is None:
        with _LOCK:
            lender = _LENDERS.get(device)
            if lender is None:
                # segments: the only memory that other processes can open by the handles that Numba exports
                lender = _LENDERS[device] = Lender(MemoryPool.with_config(device, PoolConfig(backend="segments")))
    return lender


def pool_for(device: Device) -> MemoryPool:
    """The pool that the plugins take memory of a device from: that of `use_pool()`, else one of their own."""
    return lender_for(device).pool
