"""The words a kernel is written in. Imports no Numba: the words get their meaning when a kernel is compiled.

A kernel is a plain Python function over addresses and integers:

    def scale(y: Pointer, x: Pointer, factor: Number, n: int) -> None:
        for i in range(grid(), n, gridsize()):
            store_y(y, i, factor * load_x(x, i))

`compile.Program` names what it needs beyond this vocabulary: how to load and store each operand (`Load`, `Store`),
the type `C` that it computes in, constants, scalar formulas. On CUDA the words below are hardware registers and
instructions. On the host a kernel runs as one block of one thread: `grid` is 0, `gridsize` is 1, a barrier is nothing.
So a kernel must be correct for any launch shape, and then one source serves both machines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..dtypes import DType

Pointer = Any  # typed memory: p[i] reads and writes the stored type
Number = Any  # a value of the type the kernel computes in


def _only_compiled(name: str) -> NoReturn:
    raise RuntimeError(f"{name}() has a meaning only inside a compiled kernel")


def grid() -> int:
    """Index of this thread among all threads of the launch."""
    _only_compiled("grid")


def gridsize() -> int:
    """Number of threads in the launch."""
    _only_compiled("gridsize")


def thread_index() -> int:
    """Index of this thread in its block. Their number is the constant THREADS."""
    _only_compiled("thread_index")


def block_index() -> int:
    _only_compiled("block_index")


def block_count() -> int:
    _only_compiled("block_count")


def barrier() -> None:
    """Wait for all threads of the block; what they wrote to shared memory is then seen."""
    _only_compiled("barrier")


def udiv(a: int, b: int) -> int:
    """a // b for a ≥ 0, b > 0: in 32 bits where both fit (a 64-bit division is a slow call on a GPU)."""
    _only_compiled("udiv")


def fault(cell: Pointer, code: int) -> None:
    """Leave a fault code where the host finds it at its next synchronisation."""
    _only_compiled("fault")


def barrier_after(value: int) -> None:
    """A barrier that no thread passes before every thread holds its `value`: what it was loaded from may be written."""
    _only_compiled("barrier_after")


def ticket(counter: Pointer) -> int:
    """The next number, from 0: what a counter of 64 bits held before 1 was added, once for each call of any thread.

    Who draws a number knows that all lower ones belong to blocks that run or have run. So a block may wait for the
    work of lower tickets, whatever order the blocks are started in, and no two wait for each other.
    """
    _only_compiled("ticket")


def publish(flags: Pointer, index: int, value: int) -> None:
    """flags[index] = value (64 bits), for other blocks to await.

    All that this thread, or its block before its last barrier, read or wrote comes before.
    """
    _only_compiled("publish")


def await_all(flags: Pointer, first: int, end: int, value: int) -> None:
    """Wait until this value has been published at each index from `first` to before `end`.

    What this thread, or its block after its next barrier, reads or writes comes after. On the host nothing is waited
    for: the one thread has done all that has a lower ticket.
    """
    _only_compiled("await_all")


VOCABULARY = (
    "grid", "gridsize", "thread_index", "block_index", "block_count", "barrier", "barrier_after", "udiv", "fault",
    "ticket", "publish", "await_all",
)  # fmt: skip

# Bound for every program: its compute type C, infinity, threads in a block, and the primitives of formulas.
C: Any = _only_compiled
INF: Any = float("inf")
THREADS: int = 1


def block_sum(partial: Pointer, value: Number) -> Number:
    """The sum of all threads' values, known to each; `partial` is shared memory of THREADS elements."""
    _only_compiled("block_sum")


def block_max(partial: Pointer, value: Number) -> Number:
    """The largest of all threads' values."""
    _only_compiled("block_max")


def block_combine(partial: Pointer, value: Number) -> Number:
    """All threads' values, by the program's `combine`."""
    _only_compiled("block_combine")


def __getattr__(name: str) -> Any:
    """Names that a program binds itself (`load_x`, `store_y`, `TILE` …): imported by kernels so that they are known."""
    if name.startswith("__"):
        raise AttributeError(name)

    def unbound(*args: Any) -> NoReturn:
        _only_compiled(name)

    return unbound


@dataclass(frozen=True)
class Load:
    """`name(pointer, index)` → the element, converted to `compute`."""

    dtype: DType
    compute: DType


@dataclass(frozen=True)
class Store:
    """`name(pointer, index, value)`: round a `compute` value to the element type (to nearest even) and write it."""

    dtype: DType
    compute: DType


@dataclass(frozen=True)
class LoadVector:
    """`name(pointer, index)` → a tuple of `width` elements, read in one access, aligned to their size."""

    dtype: DType
    compute: DType
    width: int


@dataclass(frozen=True)
class StoreVector:
    """`name(pointer, index, values)`: write a tuple of `width` elements in one access."""

    dtype: DType
    compute: DType
    width: int


@dataclass(frozen=True)
class Array:
    """`name()` → a pointer to `length` elements: shared by the block, or private to the thread."""

    dtype: DType
    length: int
    shared: bool


@dataclass(frozen=True)
class Function:
    """A scalar function of `C` values given by its source: `def call(a, b): …`; `returns` names its result type."""

    source: str
    arity: int
    returns: DType
    given: DType | None = None  # its operands' type, if not the program's compute type


@dataclass(frozen=True, repr=False)
class Helper:
    """A plain function that the kernel calls; `returns` None for one that only writes."""

    function: Callable[..., Any]
    arity: int
    returns: DType | None

    def __repr__(self) -> str:  # part of a kernel's key, which has the function's file besides
        return f"Helper({self.function.__qualname__}, {self.arity}, {self.returns})"


@dataclass(frozen=True)
class Inline:
    """A plain function that the kernel calls with whatever it has: the types are inferred."""

    function: Callable[..., Any] = field(repr=False)


Binding = Load | Store | LoadVector | StoreVector | Array | Function | Helper | Inline | DType | int | float | bool
