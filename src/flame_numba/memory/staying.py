"""Blocks that stay where they are while a copy to or from the host may wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..devices import Backend


@contextmanager
def staying(block: Any, machine: Backend) -> Iterator[int]:
    """The address of a block that the caller holds, and that nothing moves meanwhile.

    A driver may wait for all that its queue holds, so no lock is held: that would stop every other thread at its next
    launch. The CPU does at once what it is told, and other threads' work waits for it anyway.
    """
    if machine.kind == "cpu":
        with machine.lock:
            yield block.address
        return
    address = block.pin()
    try:
        yield address
    finally:
        block.unpin()
