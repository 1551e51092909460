"""Finding writes out of bounds and after a free: bytes around and inside blocks that must not change."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

from .blocks import Block, Span

if TYPE_CHECKING:
    from ..devices import Backend

ZONE = 256  # bytes before and behind each block
_AROUND = 0xA5
_FREE = 0xFF  # a NaN in every floating dtype, -1 in every signed one


class Guard:
    """Keeps all free memory of a pool at 0xFF, and the zones around blocks at 0xA5. Waits for the device throughout."""

    def __init__(self, machine: Backend) -> None:
        self.machine = machine
        self.gone: Callable[[], bool] = lambda: False  # whether the memory was given back: it is not ours to look at

    def poison(self, span: Span) -> None:
        """What nobody may write any more."""
        self.fill(span.address, span.size)

    def fill(self, address: int, nbytes: int) -> None:
        self.machine.synchronize()
        if not self.gone():
            self.machine.fill(address, _FREE, nbytes)

    def prepare(self, span: Span) -> str:
        """Draw the zones of a new block, whose bytes are NaNs; what is wrong if they had been written while free."""
        damage = self._changed(span.address, span.size, _FREE)
        block = span.block
        assert block is not None
        if damage is not None:
            where = damage - span.address
            return f"memory was written after it was freed, at byte {where} of {span.size} at {span.address:#x}"
        self._zones(span, block.nbytes)
        return ""

    def _zones(self, span: Span, nbytes: int) -> None:
        self.machine.fill(span.address, _AROUND, ZONE)
        end = span.address + ZONE + nbytes
        self.machine.fill(end, _AROUND, span.address + span.size - end)

    def forgive(self, span: Span) -> None:
        """Draw what belongs to a block whose memory had been written, so that it can be freed."""
        block = span.block
        if block is not None:
            self._zones(span, block.nbytes)

    def damage(self, block: Block) -> str:
        """What is wrong with the zones of a live block; '' if nothing is."""
        return self.damage_of(block._span)

    def damage_of(self, span: Span) -> str:
        """What is wrong with a span, live or free; '' if nothing is."""
        if span.binned:
            found = self._changed(span.address, span.size, _FREE)
            return "" if found is None else f"free memory at {found:#x} was written"
        block = span.block
        if block is None or not block.alive:
            return ""
        found = self._changed(span.address, ZONE, _AROUND)
        if found is not None:
            return f"{block!r} was written {span.address + ZONE - found} bytes before its start"
        end = span.address + ZONE + block.nbytes
        found = self._changed(end, span.address + span.size - end, _AROUND)
        return "" if found is None else f"{block!r} was written {found - end + 1} bytes past its end"

    def _changed(self, address: int, nbytes: int, byte: int) -> int | None:
        """The address of the first byte that is something else."""
        if self.gone():
            return None
        self.machine.synchronize()
        host = ctypes.create_string_buffer(nbytes)
        self.machine.download(ctypes.addressof(host), address, nbytes)
        rest = host.raw.lstrip(bytes([byte]))
        return address + nbytes - len(rest) if rest else None
