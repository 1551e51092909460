"""What a program becomes, for people to read: its source, the assembly, the machine code and what that takes.

Compiled anew each time, whatever the cache holds: of a kernel that runs, only the machine code is kept.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ...dtypes import DType
from ...errors import KernelError
from .. import language
from . import compile as compiler
from .compile import Program


@dataclass(frozen=True)
class Listing:
    """A compiled kernel for a GPU. log: what the assembler (ptxas) says of it."""

    entry: str
    ptx: str
    cubin: bytes
    log: str


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a multiprocessor, as NVIDIA's assembler reports it.

    registers: a thread. spill_bytes: of registers kept in local memory, stored or loaded, a thread. stack_bytes: a
    thread. shared_bytes: of shared memory that the kernel declares, a block; dynamic_shared_bytes: that its launch asks
    for besides. cubin_bytes: of the linked file.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    dynamic_shared_bytes: int
    cubin_bytes: int


def cuda_listing(program: Program, architecture: str) -> Listing:
    """The program compiled for a GPU such as "sm_90a"; needs none. Raises KernelError if it does not compile."""
    machine = compiler._machine("cuda")

    def make() -> Listing:
        function, arguments = compiler.bound(program, "cuda", _key(program, architecture))
        ptx, entry = machine.compile_ptx(function, arguments, program.threads, architecture)
        return Listing(entry, ptx, *machine.link(ptx, architecture))

    return _compiled(program, architecture, make)


def host_assembly(program: Program, architecture: str) -> str:
    """The program compiled for this host, as assembly. Raises KernelError if it does not compile."""
    machine = compiler._machine("cpu")

    def make() -> str:
        function, arguments = compiler.bound(program, "cpu", _key(program, architecture))
        text: str = machine.assembly(function, arguments)
        return text

    return _compiled(program, architecture, make)


def _key(program: Program, architecture: str) -> str:
    return compiler.digest(program.text(), architecture)


def _compiled(program: Program, architecture: str, make: Callable[[], Any]) -> Any:
    try:
        return compiler._apart(make)
    except KernelError:
        raise
    except Exception as error:
        raise KernelError(f"{program.name} does not compile for {architecture}: {error}") from error


def resources(listing: Listing, dynamic_shared_bytes: int = 0) -> Resources:
    """The numbers in ptxas's report. dynamic_shared_bytes: of the launch."""

    def number(pattern: str) -> int:
        found = re.search(rf"(\d+) {pattern}", listing.log)
        return int(found[1]) if found else 0  # what is not used is not reported

    spills = number("bytes spill stores") + number("bytes spill loads")
    registers = re.search(r"Used (\d+) registers", listing.log)
    if registers is None:
        raise KernelError(f"{listing.entry}: the linker's report names no registers: {listing.log!r}")
    stack, shared = number("bytes stack frame"), number("bytes smem")
    return Resources(int(registers[1]), spills, stack, shared, dynamic_shared_bytes, len(listing.cubin))


def disassemble(cubin: bytes) -> str:
    """Machine code as text (SASS). Raises KernelError without NVIDIA's disassembler, or if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([_nvdisasm(), "-c", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise KernelError(f"nvdisasm: {done.stderr.strip()}")
    return done.stdout


def _nvdisasm() -> str:
    """NVIDIA's disassembler, from its wheel, which is as new as the compiler's, or from the toolkit on PATH."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("nvdisasm", "nvdisasm.exe"):
            return str(file.locate())
    found = shutil.which("nvdisasm")
    if found is None:
        raise KernelError("sass: nvdisasm is not installed; pip install nvidia-cuda-nvdisasm, or the CUDA toolkit")
    return found


def source(program: Program, kind: str = "cuda") -> str:
    """The kernel as Python: what its free names mean, as comments, the functions that it calls, and itself."""
    meanings = [f"# {name} = {_meaning(value)}" for name, value in _values(program, kind)]
    kernel = program.source.strip() if program.function is None else _text(program.function)
    return "\n\n\n".join(["\n".join(meanings), *_helpers(program), kernel]) + "\n"


def _values(program: Program, kind: str) -> Iterator[tuple[str, Any]]:
    yield "C", program.compute
    yield "THREADS", program.threads if kind == "cuda" else 1
    for name, value in program.bindings.items():
        if not isinstance(value, language.Helper | language.Inline | language.Function):
            yield name, value


def _meaning(value: Any) -> str:
    if isinstance(value, DType):
        return value.name
    if isinstance(value, language.Load | language.LoadVector):
        width = f"{value.width} × " if isinstance(value, language.LoadVector) else ""
        return f"load {width}{value.dtype.name} as {value.compute.name}"
    if isinstance(value, language.Store | language.StoreVector):
        width = f"{value.width} × " if isinstance(value, language.StoreVector) else ""
        return f"store {value.compute.name} as {width}{value.dtype.name}"
    if isinstance(value, language.Array):
        return f"{value.length} × {value.dtype.name} of {'shared' if value.shared else 'private'} memory"
    return repr(value)


def _helpers(program: Program) -> Iterator[str]:
    """The sources of functions that the program binds, under the names that the kernel calls them by."""
    for name, spec in program.bindings.items():
        if isinstance(spec, language.Function):
            yield spec.source.strip().replace("def call(", f"def {name}(", 1)
        elif isinstance(spec, language.Helper | language.Inline):
            given = spec.function.__name__
            yield _text(spec.function) + ("" if given == name else f"\n\n\n{name} = {given}")


def _text(function: Callable[..., Any]) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()
    except OSError:
        raise KernelError(f"{function.__qualname__}: its source is not at hand") from None
