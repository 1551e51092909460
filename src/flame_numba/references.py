"""How many hold an object: Python's count of references, always read in the same way, so that counts compare."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def references(get: Callable[[Any, Any], object], owner: Any, key: Any) -> int:
    """References to what `get(owner, key)` gives (`getattr` and a name, `getitem` and a key), as counted here."""
    return sys.getrefcount(get(owner, key))


class _Slot:
    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = object()


ONE = references(getattr, _Slot(), "held")  # the count of an object that one slot, or one dict, refers to
