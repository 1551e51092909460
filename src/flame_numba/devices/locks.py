"""Locks that a process may be forked around."""

from __future__ import annotations

import os
import threading
from typing import Any


def held_over_forks(lock: Any) -> Any:
    """The lock, free in a forked child: `os.fork` waits for whoever holds it, so that what it guards is whole there.

    Made once and for the life of the process. Whoever holds it must not wait for one that was registered after it: a
    fork takes the last one first.
    """
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


LLVM = held_over_forks(threading.RLock())  # its linker is one for the process, and not for two threads at once
