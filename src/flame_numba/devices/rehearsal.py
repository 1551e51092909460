"""Machines on which programs are rehearsed: ops take one for a GPU, or the CPU, and it notes what they would launch.

Nothing is compiled: a kernel is noted as the program that it would be compiled from. The GPU has addresses but no
memory. So what an op does can be asked anywhere, of operands of any size, and costs a millisecond.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from .base import Address, LaunchConfig, Stream
from .device import Device
from .host import HostBackend
from .simulated import SimulatedBackend

_MEMORY = 1 << 46  # bytes of addresses


class Noted(NamedTuple):
    """A kernel that would have been launched: its program, how it is spread out, and what it is given."""

    program: Any  # compile.Program
    config: LaunchConfig
    arguments: tuple[int | float, ...]


class RehearsedExecutable:
    """A kernel that is noted when it is launched."""

    def __init__(self, name: str, program: Any, notes: list[Noted]) -> None:
        self.name = name
        self._program = program
        self._notes = notes

    def launch(self, config: LaunchConfig, args: tuple[int | float, ...], stream: Stream = 0) -> None:
        self._notes.append(Noted(self._program, config, args))


class Rehearsal:
    """The part of a backend that notes. `launches`: what was launched, in order; `programs`: what was loaded."""

    launches: list[Noted]
    programs: list[Any]

    def load_program(self, program: Any) -> RehearsedExecutable:
        """What `load` would make of the program's machine code."""
        self.programs.append(program)
        return RehearsedExecutable(program.name, program, self.launches)


class RehearsalGpu(Rehearsal, SimulatedBackend):
    """Addresses without memory that ops take for a GPU's, by default an H100's or H200's. What is read is zeros."""

    kind = "cuda"

    def __init__(self, architecture: str = "sm_90a", multiprocessors: int = 132) -> None:
        super().__init__(_MEMORY)
        self.architecture = architecture
        self.multiprocessors = multiprocessors
        self.launches, self.programs = [], []

    def download(self, host: Address, source: Address, nbytes: int, stream: Stream = 0) -> None:
        super().download(host, source, nbytes, stream)
        ctypes.memset(host, 0, nbytes)

    download_async = download


class RehearsalHost(Rehearsal, HostBackend):
    """The CPU with nothing run. It has memory, zeros at first, since some ops for the CPU work on it themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.programs = [], []

    def allocate(self, nbytes: int) -> Address:
        address = super().allocate(nbytes)
        ctypes.memset(address, 0, nbytes)
        return address


class RehearsalDevice(Device):
    """A device of its own, equal to no other: what ops remember of a device, as its random numbers, stays apart."""

    __slots__ = ()

    def __init__(self, backend: RehearsalGpu | RehearsalHost) -> None:
        super().__init__(backend.kind)
        self._backend = backend

    def _key(self) -> tuple[Any, ...]:
        return ("rehearsal", id(self._backend))

    def __repr__(self) -> str:
        return f"<rehearsal for {self.backend.architecture}>"
