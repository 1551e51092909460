"""Where new blocks go in this thread or task: the pool in `use()`, the scope, the tag."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ..devices.contexts import CONTEXTS
from .blocks import Owner


class Placement(NamedTuple):
    """The `with` blocks around an allocation, outermost first."""

    pools: tuple[Owner, ...] = ()
    scopes: tuple[tuple[Owner, str], ...] = ()
    tag: str | None = None

    def scope_of(self, pool: Owner) -> str:
        """The innermost scope of a pool; '' outside any."""
        for owner, name in reversed(self.scopes):
            if owner is pool:
                return name
        return ""


PLACEMENT: ContextVar[Placement | None] = ContextVar("flame_numba_placement", default=None)
_NOWHERE = Placement()


def current_placement() -> Placement:
    return PLACEMENT.get() or _NOWHERE


@contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Make it the placement inside."""
    CONTEXTS.enter()
    before = PLACEMENT.get()
    try:  # whenever an interrupt comes, the placement of before is put back first
        PLACEMENT.set(placement)
        yield
    finally:
        PLACEMENT.set(before)
        CONTEXTS.leave()


@contextmanager
def memory_tag(name: str, weak: bool = False) -> Iterator[None]:
    """Count blocks that are allocated inside under this tag, in every pool. weak: unless there is a tag already."""
    here = current_placement()
    if weak and here.tag is not None:
        yield
        return
    with placed(here._replace(tag=name)):
        yield
