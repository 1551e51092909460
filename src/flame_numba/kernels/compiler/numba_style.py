"""Kernels in Numba's own style, over arrays: `i = cuda.grid(1)`, `x.shape[0]`, `y[i] = x[i]`. For both machines.

On a GPU Numba compiles them as they are. On the host `cuda` means what `twins.py` says, and a loop around the kernel
runs it for each thread of the launch. An array is passed as its address, shape and strides, as Numba itself does.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from ...dtypes import DType, bfloat16, float16
from ...errors import KernelError
from . import compile as compiler
from .captured import Captured, cuda_name

_SUPPORTED = (
    "grid", "gridsize", "threadIdx", "blockIdx", "blockDim", "gridDim", "syncthreads", "threadfence",
    "threadfence_block", "threadfence_system", "shared", "local", "atomic", "jit",
)  # fmt: skip
_TOGETHER = {"syncthreads", "shared"}


@dataclass(frozen=True)
class ArrayArgument:
    """An array of a dtype; `packed`: in row-major order without gaps."""

    dtype: DType
    ndim: int
    packed: bool

    @property
    def letters(self) -> str:
        return "qqqqp" + "q" * (2 * self.ndim)

    def values(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
        """As Numba passes an array: owner, parent, elements, bytes of one, address, shape, strides in bytes."""
        size, count = self.dtype.itemsize, 1
        for n in shape:
            count *= n
        return (0, 0, count, size, address, *shape, *(s * size for s in strides))


Argument = ArrayArgument | str  # a number: "int64", "float32" or "float64"
_LETTERS = {"int64": "q", "float32": "f", "float64": "d"}


def letters(arguments: tuple[Argument, ...], kind: str) -> str:
    """The launch's view of the arguments, see `Backend.load`. On the host the launch's shape comes first."""
    shape = "" if kind == "cuda" else "q" * 6
    return shape + "".join(a.letters if isinstance(a, ArrayArgument) else _LETTERS[a] for a in arguments)


def check_host(name: str, captured: Captured, threads: int) -> None:
    """Raise KernelError for what the CPU device cannot do with a kernel in Numba's style."""
    unknown = sorted(captured.cuda - set(_SUPPORTED))
    if unknown:
        raise KernelError(
            f"{name}: cuda.{unknown[0]} has no meaning on the CPU device, where a kernel has {', '.join(_SUPPORTED)}"
        )
    if threads > 1 and captured.cuda & _TOGETHER:
        word = sorted(captured.cuda & _TOGETHER)[0]
        raise KernelError(
            f"{name}: cuda.{word} with {threads} threads a block: the CPU device runs threads one after another, "
            "so those that cooperate must be one a block there"
        )


def prepare_host(name: str, image: bytes) -> None:
    """Before machine code for the host is loaded: make the functions of Numba's own library known that it may call.

    Raises KernelError for code that calls Python.
    """
    if b"numba_gil_ensure" in image:
        raise KernelError(
            f"{name}: needs Python while it runs, as print does; on the CPU device a kernel cannot have it"
        )
    if b"\0numba_" in image:  # a symbol: Numba's random numbers, math.gamma and others
        from numba.core.registry import cpu_target

        _ = cpu_target.target_context


def machine_code(
    name: str,
    captured: Captured,
    arguments: tuple[Argument, ...],
    kind: str,
    architecture: str,
    threads: int,
) -> tuple[bytes, str]:
    """Object code or a cubin and its entry, from the disk cache or compiled now. Raises KernelError."""
    source = compiler._file_digest(__file__) + compiler._file_digest(__file__.replace("numba_style", "twins"))
    text = repr(("numba style", source, name, captured.text, arguments, threads if kind == "cuda" else 1))
    key = compiler.digest(text, architecture)

    def make() -> tuple[bytes, str]:
        try:
            return _compile(name, captured, arguments, kind, architecture, threads, key[:16])
        except KernelError:
            raise
        except Exception as error:
            raise KernelError(f"{name} does not compile for {kind} {architecture}: {error}") from error

    return compiler.cached(name, key, kind, make)


def _compile(
    name: str,
    captured: Captured,
    arguments: tuple[Argument, ...],
    kind: str,
    architecture: str,
    threads: int,
    tag: str,
) -> tuple[bytes, str]:
    from . import intrinsics

    module = compiler._machine(kind)
    names = {} if kind == "cuda" else _host_names(captured, f"thread_{tag}")
    for helper_name, helper in captured.functions.items():
        body = compiler._rebind(helper, names, f"{helper_name}_{tag}")
        names[helper_name] = intrinsics.inline_function(module.MACHINE, body)
    body = compiler._rebind(captured.function, names, f"{name}_{tag}")
    types = tuple(_type(module.MACHINE.types, a, name, kind) for a in arguments)
    if kind != "cuda":
        body = _over_threads(body, f"thread_{tag}", f"{name}_{tag}", len(arguments))
        types = (module.MACHINE.types.int64,) * 6 + types
    code: tuple[bytes, str] = module.compile_kernel(body, types, threads, architecture)
    return code


def _type(types: Any, argument: Argument, name: str, kind: str) -> Any:
    if isinstance(argument, str):
        return getattr(types, argument)
    dtype = argument.dtype
    if dtype is bfloat16 or (dtype is float16 and kind != "cuda"):
        raise KernelError(
            f"{name}: Numba has no {dtype.name} arrays {'here' if kind == 'cuda' else 'on the CPU'}; write the kernel "
            "in the words of flame_numba.kernels.language, which computes 2-byte floats in float32 anywhere"
        )
    element = types.boolean if dtype.kind == "bool" else getattr(types, dtype.name)
    return types.Array(element, argument.ndim, "C" if argument.packed else "A")


def _host_names(captured: Captured, state: str) -> dict[str, Any]:
    """The twins of what the kernel uses of Numba."""
    from . import twins

    cuda = twins.namespace(state)
    names: dict[str, Any] = {}
    for name, value in captured.values.items():
        if isinstance(value, ModuleType) and value.__name__ == "numba.cuda":
            names[name] = cuda
        elif isinstance(value, ModuleType) and value.__name__ == "numba":
            names[name] = twins.Namespace(value, cuda=cuda)
        elif name not in captured.functions and (stub := cuda_name(value)) is not None:
            names[name] = getattr(cuda, stub)
    return names


def _over_threads(body: FunctionType, state: str, symbol: str, count: int) -> FunctionType:
    """The loop that runs a kernel for each thread of a launch, one after another."""
    from . import intrinsics, twins
    from .machine_host import MACHINE

    given = ", ".join(f"a{i}" for i in range(count))
    shape = ("gx", "gy", "gz", "bx", "by", "bz")
    lines = [f"def kernel({', '.join(shape)}, {given}):"]
    lines += [f"    write({6 + i}, {n})" for i, n in enumerate(shape)]
    indent = "    "
    for index, axis, n in zip((2, 1, 0, 5, 4, 3), "kjiwvu", ("gz", "gy", "gx", "bz", "by", "bx"), strict=True):
        lines += [f"{indent}for {axis} in range({n}):", f"{indent}    write({index}, {axis})"]
        indent += "    "
    lines.append(f"{indent}body({given})")
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    names = {"write": twins.set_thread(state), "body": intrinsics.inline_function(MACHINE, body)}
    return compiler._rebind(scope["kernel"], names, f"loop_{symbol}")
