"""`LibraryKernel`: a kernel with every choice made, to look at and to launch."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from ..devices import Device, LaunchConfig
from ..devices.rehearsal import Noted
from ..dtypes import DType
from ..errors import KernelError
from ..kernels.compiler import compile as compiler
from ..kernels.compiler import listing
from ..kernels.compiler.compile import Program
from ..kernels.compiler.listing import Listing, Resources


@dataclass(frozen=True)
class Parameter:
    """What a kernel takes.

    kind: a DType for the address of such elements, "int" (64 bits), or "number" (of the type that is computed in).
    value: of an int or a number, as the op gives it; None for an address.
    """

    name: str
    kind: DType | str
    value: int | float | None


@dataclass(frozen=True, repr=False, eq=False)
class LibraryKernel:
    """A kernel for an architecture such as "sm_90a", or "cpu", as an op would launch it. Compiled when first asked.

    blocks, threads: how its op launches it (x, y, z where there is more than one axis).
    """

    program: Program
    architecture: str
    config: LaunchConfig
    parameters: tuple[Parameter, ...]

    def __repr__(self) -> str:
        given = ", ".join(f"{p.name}: {getattr(p.kind, 'name', p.kind)}" for p in self.parameters)
        return f"<kernel {self.name}({given}) for {self.architecture}>"

    @property
    def name(self) -> str:
        """As profilers show it, but for a digest."""
        return self.program.name

    @property
    def blocks(self) -> int | tuple[int, int, int]:
        return _axes(self.config.blocks, self.config.blocks_y, self.config.blocks_z)

    @property
    def threads(self) -> int | tuple[int, int, int]:
        return _axes(self.config.threads, self.config.threads_y, self.config.threads_z)

    @property
    def numbers(self) -> tuple[int | float, ...]:
        """The values of its ints and numbers, in order, as its op gives them."""
        return tuple(p.value for p in self.parameters if p.value is not None)

    @property
    def source(self) -> str:
        """Python: what its free names mean, the functions that it calls, and the kernel itself."""
        return listing.source(self.program, "cpu" if self.architecture == "cpu" else "cuda")

    @property
    def ptx(self) -> str:
        """NVIDIA's assembly. Raises KernelError for a kernel of the CPU device, or one that does not compile."""
        return self._listing.ptx

    @property
    def entry(self) -> str:
        """The name of the kernel in its PTX."""
        return self._listing.entry

    @property
    def cubin(self) -> bytes:
        """The machine code, as a file that the driver loads."""
        return self._listing.cubin

    @functools.cached_property
    def sass(self) -> str:
        """The machine code as text. Raises KernelError where NVIDIA's disassembler is not installed."""
        return listing.disassemble(self.cubin)

    @property
    def resources(self) -> Resources:
        """Registers, spills, stack and shared memory, in bytes."""
        return listing.resources(self._listing, self.config.shared_nbytes)

    @functools.cached_property
    def assembly(self) -> str:
        """Of a kernel of the CPU device: the host's assembly. Of another: its PTX."""
        if self.architecture != "cpu":
            return self.ptx
        return listing.host_assembly(self.program, Device.cpu().backend.architecture)

    @functools.cached_property
    def jit(self) -> Any:
        """The same function as a `numba.cuda.jit` dispatcher: `k.jit[k.blocks, k.threads](y, x, *k.numbers)`.

        It takes row-major arrays on the device for addresses (bfloat16 as bits in uint16) and numbers for the rest, in
        the order of `parameters`; Numba compiles it at its first launch, for the GPU at hand. It checks no sizes.
        Raises KernelError for a kernel of the CPU device.
        """
        self._check_gpu("jit")
        compiler._machine("cuda")  # says what to install, if Numba's part for CUDA is missing
        from ..kernels.compiler.dispatcher import dispatcher

        return dispatcher(self.program)

    @functools.cached_property
    def _listing(self) -> Listing:
        self._check_gpu("ptx, sass, resources")
        return listing.cuda_listing(self.program, self.architecture)

    def _check_gpu(self, wanted: str) -> None:
        if self.architecture == "cpu":
            raise KernelError(f"{self.name}: {wanted} are of GPUs; a kernel of the CPU device has source and assembly")


def _axes(x: int, y: int, z: int) -> int | tuple[int, int, int]:
    return x if y == z == 1 else (x, y, z)


def kernel_of(note: Noted, architecture: str) -> LibraryKernel:
    """What was noted in a rehearsal for an architecture."""
    program: Program = note.program
    names = inspect.signature(compiler.body(program)).parameters
    parameters = tuple(
        Parameter(name, kind, None if isinstance(kind, DType) else value)
        for name, kind, value in zip(names, program.arguments, note.arguments, strict=True)
    )
    config = LaunchConfig(1) if architecture == "cpu" else note.config  # there, one thread does it all
    return LibraryKernel(program, architecture, config, parameters)
