"""`Stage`: where ops are rehearsed for an architecture."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import Context

from ..devices import Device, explain_missing_cuda
from ..devices.rehearsal import Noted, RehearsalDevice, RehearsalGpu, RehearsalHost
from ..pool import MemoryPool, PoolConfig

DEFAULT_ARCHITECTURE = "sm_90a"


class Stage:
    """A machine of an architecture, for one rehearsal at a time. Kept, as ops keep what they planned for a machine."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.backend = _machine(architecture)
        self.device = RehearsalDevice(self.backend)
        # a pool that only grows, in one step: there is no memory whose contents could be moved, nor pages worth mapping
        self._pool = MemoryPool(self.device, PoolConfig(slack=None, backend="segments"))
        self._lock = threading.Lock()

    def perform(self, work: Callable[[], None]) -> list[Noted]:
        """What the work launches, with none of the caller's modes: no autocast, no `no_grad`, no stream."""
        with self._lock:
            self.forget()
            Context().run(self._inside, work)
            return list(self.backend.launches)

    def forget(self) -> None:
        """What was launched until now does not count."""
        self.backend.launches.clear()

    def _inside(self, work: Callable[[], None]) -> None:
        with self.device, self._pool.use():
            try:
                work()
            finally:
                self._pool.trim()


def _machine(architecture: str) -> RehearsalGpu | RehearsalHost:
    if architecture == "cpu":
        return RehearsalHost()
    if architecture == architecture_at_hand() and not explain_missing_cuda():
        return RehearsalGpu(architecture, Device.cuda(0).backend.multiprocessors)
    return RehearsalGpu(architecture)


@functools.cache
def stage(architecture: str) -> Stage:
    return Stage(architecture)


def architecture_at_hand() -> str:
    return DEFAULT_ARCHITECTURE if explain_missing_cuda() else Device.cuda(0).backend.architecture
