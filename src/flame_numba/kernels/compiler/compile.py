"""(kernel, types, machine) → executable, through a cache in memory and one on disk.

The key of a compiled kernel is a digest of all that decides its machine code: the source of the kernel and of the
intrinsics, its bindings, Python's, Numba's and LLVM's versions, and the architecture. A cache file is a line of JSON
and the code, with its checksum: data, never a pickle; a damaged file is compiled anew. With a warm cache Numba is
not imported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

from ...devices import Backend, Executable
from ...devices.locks import held_over_forks
from ...devices.rehearsal import Rehearsal
from ...dtypes import DType
from ...errors import KernelError
from .. import language
from . import arithmetic, block

_FORMAT = 1
_HERE = Path(__file__).parent
_COMMON = (
    "../language.py",
    "arithmetic.py",
    "block.py",
    "intrinsics.py",
    "machine_host.py",
    "machine_cuda.py",
    "compile.py",
)
_T = TypeVar("_T")
_LOCKS: dict[str, Any] = {}  # the one that `_compiling` makes
_LEFT: list[tuple[list[None], threading.Event, threading.Thread]] = []  # at work, perhaps for a caller that is gone


@dataclass(frozen=True)
class Program:
    """A kernel with every choice made: what `compile` turns into machine code.

    name: for people, and part of the symbol. function: the kernel, or `source`, the text of one named `kernel`.
    arguments: a DType for a pointer to such elements, "int" for int64, "number" for a scalar of the compute type.
    bindings: what the kernel's free names mean. threads: most threads a block is launched with (1 on the host).
    identity: all that decides what the function does, where its file does not (a function typed at a prompt).
    """

    name: str
    arguments: tuple[DType | str, ...]
    compute: DType
    bindings: Mapping[str, Any]  # to a Binding each
    function: Callable[..., None] | None = None
    source: str = ""
    threads: int = 256
    identity: str = ""

    @property
    def signature(self) -> str:
        """The launch's view of the arguments, see `Backend.load`."""
        number = {"float32": "f", "float64": "d"}.get(self.compute.accumulator.name, "q")
        return "".join(
            {"int": "q", "number": number}.get(a, "p") if isinstance(a, str) else "p" for a in self.arguments
        )

    def _parts(self) -> list[Callable[..., Any]]:
        """The functions that are compiled into the kernel, as far as the program binds them."""
        return [spec.function for spec in self.bindings.values() if isinstance(spec, language.Helper | language.Inline)]

    def text(self) -> str:
        """Everything of the program that decides its machine code."""
        if self.identity:
            body = self.identity
        elif self.function is not None:
            body = _made_of([self.function, *self._parts()], self.bindings)
        else:
            body = self.source + _made_of(self._parts(), self.bindings)
        bindings = sorted((name, repr(value)) for name, value in self.bindings.items())
        return repr((self.name, body, self.arguments, self.compute, bindings, self.threads))


@dataclass
class CompileStats:
    """What this process compiled, and what it found."""

    compiled: int = 0
    loaded: int = 0
    rebuilt: int = 0
    programs: list[str] = field(default_factory=list)


stats = CompileStats()


@functools.cache
def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        raise KernelError(f"a kernel's source must be a file, to know when it changed; {path} is none") from None


def _made_of(functions: Sequence[Callable[..., Any]], bound: Mapping[str, Any]) -> str:
    """All that these functions are made of: their files, those of what they call, and the constants that they name."""
    seen: dict[FunctionType, None] = {}
    constants: dict[str, Any] = {}
    waiting: list[Any] = list(functions)
    while waiting:
        function = waiting.pop()
        if function in seen or function.__module__ == language.__name__:
            continue
        seen[function] = None
        for name, value in _free_names(function):
            if isinstance(value, FunctionType) and name not in bound:
                waiting.append(value)
            elif isinstance(value, (bool, int, float, str, tuple, DType)):
                constants[f"{function.__qualname__}.{name}"] = value
    files = sorted(f"{_file_digest(f.__code__.co_filename)}:{f.__code__.co_qualname}" for f in seen)
    return repr((files, sorted(constants.items(), key=lambda item: item[0])))


def _free_names(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Names that a function finds outside itself, with what they stand for now."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    yield from ((name, cell.cell_contents) for name, cell in cells)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


@functools.cache
def _environment() -> str:
    packages = ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvrtc")
    versions = [f"{name} {_version(name)}" for name in packages]
    sources = [_file_digest(str(_HERE / name)) for name in _COMMON]
    return repr((_FORMAT, sys.version_info[:3], versions, sources))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def cache_folder() -> Path:
    """FLAME_NUMBA_CACHE, else flame-numba/kernels in the user's cache folder."""
    given = os.environ.get("FLAME_NUMBA_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flame-numba" / "kernels"


def digest(text: str, architecture: str) -> str:
    """The key of machine code made from a text for an architecture, by these versions of all that takes part."""
    return hashlib.sha256(f"{_environment()}\n{architecture}\n{text}".encode()).hexdigest()


def load(program: Program, backend: Backend) -> Executable:
    """The program as an executable of this machine, from the disk cache or compiled now."""
    if isinstance(backend, Rehearsal):
        return backend.load_program(program)
    image, entry = machine_code(program, backend.kind, backend.architecture)
    return backend.load(image, entry, program.signature)


def machine_code(program: Program, kind: str, architecture: str) -> tuple[bytes, str]:
    """Object code (kind "cpu") or a cubin (kind "cuda") and its entry; needs no GPU."""
    key = digest(program.text(), architecture)
    return cached(program.name, key, kind, lambda: _compile(program, kind, architecture, key))


def cached(name: str, key: str, kind: str, make: Callable[[], tuple[bytes, str]]) -> tuple[bytes, str]:
    """The machine code and entry of a key, from the disk or made now, in a thread of its own."""
    path = cache_folder() / key[:2] / f"{name}-{key}.{'o' if kind == 'cpu' else 'cubin'}"
    found = _read(path)
    if found:
        stats.loaded += 1
        return found
    image, entry = _apart(make)
    stats.compiled += 1
    stats.programs.append(name)
    _write(path, image, entry)
    return image, entry


def _read(path: Path) -> tuple[bytes, str] | None:
    try:
        header, _, image = path.read_bytes().partition(b"\n")
        fields = json.loads(header)
        if fields["sha256"] == hashlib.sha256(image).hexdigest():
            return image, str(fields["entry"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    stats.rebuilt += 1
    return None


def _write(path: Path, image: bytes, entry: str) -> None:
    header = json.dumps({"entry": entry, "sha256": hashlib.sha256(image).hexdigest()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(header.encode() + b"\n" + image)
        os.replace(file.name, path)  # whole or not at all, also with several processes
    except OSError:
        pass  # a read-only or full disk costs time, not results


def _machine(kind: str) -> ModuleType:
    try:
        if kind == "cuda":
            from . import machine_cuda

            return machine_cuda
        from . import machine_host

        return machine_host
    except ImportError as error:
        raise KernelError(
            f"kernels for {kind} cannot be compiled ({error}); install flame-numba[cu13] or [cu12]"
        ) from error


@functools.cache
def _names(kind: str, compute: DType) -> dict[str, Any]:
    """What the free names of a kernel mean: the vocabulary, and arithmetic in the compute type."""
    from . import intrinsics

    module = _machine(kind)
    machine = module.MACHINE
    names: dict[str, Any] = dict(module.VOCABULARY)
    names["udiv"] = intrinsics.unsigned_divide(machine)
    names["fault"] = intrinsics.report_fault(machine)
    names["C"] = machine.compute_type(compute)
    names["NAN"], names["INF"] = float("nan"), float("inf")
    if compute.is_floating:
        names.update(module.math_functions(compute))
    for name, (function, arity) in arithmetic.FUNCTIONS[compute.kind].items():
        if name in names:
            continue  # the machine has it
        tag = f"{name}_{compute.name}_{_file_digest(arithmetic.__file__)[:16]}"
        names[name] = intrinsics.python_function(machine, _rebind(function, names, tag), arity, compute, compute)
    return names


def _bind_all(program: Program, machine: Any, names: dict[str, Any], tag: str) -> None:
    """Add what the program binds, in the order that one may use another: values, block functions, helpers."""
    from . import intrinsics

    compute = program.compute
    functions: dict[str, tuple[Any, int, DType | None, DType | None]] = {}
    for name, spec in program.bindings.items():
        if isinstance(spec, language.Function):
            scope: dict[str, Any] = {}
            exec(spec.source, scope)
            functions[name] = (scope["call"], spec.arity, spec.given or compute, spec.returns)
        elif isinstance(spec, language.Helper):
            functions[name] = (spec.function, spec.arity, None, spec.returns)
        elif isinstance(spec, language.Inline):
            names[name] = intrinsics.inline_function(machine, _rebind(spec.function, names, f"{name}_{tag}"))
        else:
            names[name] = intrinsics.bind(machine, spec)
    if compute.kind != "bool":
        for name, function in (("block_sum", block.add), ("block_max", block.largest)):
            body = _rebind(function, names, f"{name}_of_two_{tag}")
            of_two = intrinsics.python_function(machine, body, 2, compute, compute)
            names[name] = _collective(machine, names, of_two, compute, f"{name}_{tag}")
    for name, (function, arity, given, returns) in functions.items():
        body = _rebind(function, names, f"{name}_{tag}")
        names[name] = intrinsics.python_function(machine, body, arity, given, returns)
    if "combine" in names:
        names["block_combine"] = _collective(machine, names, names["combine"], compute, f"block_combine_{tag}")


def _collective(machine: Any, names: dict[str, Any], combine: Any, compute: DType, name: str) -> Any:
    """What the threads of a block call together, to combine their values."""
    from . import intrinsics

    body = _rebind(block.block_combine, {**names, "combine": combine}, name)
    return intrinsics.block_function(machine, body, compute)


def _rebind(function: Any, names: Mapping[str, Any], name: str) -> FunctionType:
    """The same code with other meanings of its free names, under a name of its own.

    Names become symbols, which objects compiled in different processes share when they are loaded into one: two
    bodies must never have the same.
    """
    scope = {**function.__globals__, **names}
    code, cells = function.__code__, function.__closure__ or ()
    closure = tuple(CellType(names[n]) if n in names else c for n, c in zip(code.co_freevars, cells, strict=True))
    copy = FunctionType(code, scope, name, function.__defaults__, closure or None)
    copy.__qualname__ = name
    return copy


def _compiling() -> Any:
    """The lock of whoever compiles: Numba's compiler is not for two threads at once.

    Made when something is compiled first. By then the machine is open that it is compiled for, so a fork takes this
    lock before the machine's: a finalizer that runs in a compiling thread may wait for that one.
    """
    found = _LOCKS.get("compiling")
    if found is None:
        os.register_at_fork(before=_wait_for_left)  # which comes after the lock is taken
        found = _LOCKS.setdefault("compiling", held_over_forks(threading.RLock()))
    return found


def _wait_for_left() -> None:
    """Wait for compilations whose callers were interrupted: they can't be, and end by themselves."""
    while _LEFT:
        right, ended, thread = _LEFT[-1]
        try:
            right.pop()  # its thread had not begun, and now never will
        except IndexError:
            ended.wait()
            thread.join()
        _LEFT.pop()


def _apart(work: Callable[[], _T]) -> _T:
    """The result of `work`, done in a thread of its own; at most one such thread is at work at any time.

    Numba leaves exceptions behind that refer to their frames and to themselves. In the caller's thread these frames
    would lead on to the caller's, and its tensors would stay alive until Python collects garbage.
    """
    outcome: list[_T | BaseException] = []
    right: list[None] = [None]  # to begin: of whoever takes it out
    ended = threading.Event()

    def run() -> None:
        try:
            right.pop()
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)
        finally:
            ended.set()

    with _compiling():
        _wait_for_left()
        thread = threading.Thread(target=run, name="flame_numba compiler")
        _LEFT.append((right, ended, thread))
        thread.start()
        thread.join()
        _LEFT.pop()
    found = outcome.pop()
    if isinstance(found, BaseException):
        try:
            raise found
        finally:
            del found  # it refers to this frame now
    return found


def body(program: Program) -> Any:
    """The kernel as a Python function, its free names without a meaning yet."""
    if program.function is not None:
        return program.function
    scope: dict[str, Any] = {}
    exec(compile(program.source, f"<{program.name}>", "exec"), scope)
    return scope["kernel"]


def bound(program: Program, kind: str, key: str) -> tuple[FunctionType, tuple[Any, ...]]:
    """The kernel with a meaning for every name, and Numba's types of its arguments: all that a compiler of Numba takes.

    key: the digest of all that decides the machine code. It is part of the symbols, since many kernels are loaded into
    one process.
    """
    module = _machine(kind)
    names = dict(_names(kind, program.compute))
    names["THREADS"] = program.threads if kind == "cuda" else 1
    _bind_all(program, module.MACHINE, names, key[:16])
    types = module.MACHINE.types
    number = module.MACHINE.compute_type(program.compute)
    arguments = tuple(
        types.CPointer(module.MACHINE.storage_type(a))
        if isinstance(a, DType)
        else types.int64
        if a == "int"
        else number
        for a in program.arguments
    )
    return _rebind(body(program), names, f"{program.name}_{key[:16]}"), arguments


def _compile(program: Program, kind: str, architecture: str, key: str) -> tuple[bytes, str]:
    function, arguments = bound(program, kind, key)
    try:
        code: tuple[bytes, str] = _machine(kind).compile_kernel(function, arguments, program.threads, architecture)
        return code
    except Exception as error:
        raise KernelError(f"{program.name} does not compile for {kind} {architecture}: {error}") from error
