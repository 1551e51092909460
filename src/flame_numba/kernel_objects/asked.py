"""Asking an op for its kernels: `get` and `list_kernels`, known to users as `fn.kernels.get` and `fn.kernels.list`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..dtypes import DType, bool_, float32, int64
from ..errors import ConfigError, GradientError, KernelError
from ..grad import grad
from ..ops import TABLE
from ..ops.core.table import Booleans, Case, Entry, Floats, Integers, case
from ..ops.shape.creation import asarray
from ..ops.shape.movement import permute, strided_slice
from ..tensor import Tensor
from .kernel import LibraryKernel, kernel_of
from .stage import architecture_at_hand, stage

LAYOUTS = ("contiguous", "strided")
_ARCHITECTURE = re.compile(r"cpu|sm_\d{2,3}[af]?")
_ELEMENTWISE_SHAPE = (1024, 1024)


def get(
    op: str | Callable[..., Any],
    dtype: DType = float32,
    *operands: Any,
    gradient: bool = False,
    layout: str = "contiguous",
    architecture: str | None = None,
    **keywords: Any,
) -> LibraryKernel:
    """The kernel that an op makes its result with: the last that it launches. Needs no GPU.

    op: a name in the table of ops, an op of it (`fn.softmax`), or any function of tensors; then say its operands.
    operands: a tuple is the shape of a tensor of `dtype`, a tensor stands for one of its shape and dtype, anything else
    is passed on. Without any, the op's first test case that launches something. keywords: of the op.
    gradient: of its backward pass instead. layout: "contiguous" or "strided" operands.
    architecture: "sm_90a" and the like, or "cpu"; by default that of the first GPU, else "sm_90a".

    Raises KernelError if there is no such op or it launches nothing, GradientError if it has no derivative, ConfigError
    for a dtype, layout or architecture that is none, and what the op itself raises, as DTypeError.
    """
    launched = list_kernels(
        op, dtype, *operands, gradient=gradient, layout=layout, architecture=architecture, **keywords
    )
    return launched[-1]


def list_kernels(
    op: str | Callable[..., Any],
    dtype: DType = float32,
    *operands: Any,
    gradient: bool = False,
    layout: str = "contiguous",
    architecture: str | None = None,
    **keywords: Any,
) -> list[LibraryKernel]:
    """All kernels that an op launches, in order; arguments and errors as of `get`.

    An op that reads results on the host to go on, as `nonzero` does, sees zeros, and launches what it would for them.
    """
    where = _checked(dtype, layout, architecture)
    entry = _entry(op)
    name = getattr(op, "__name__", repr(op)) if entry is None else entry.name
    if gradient and entry is not None and entry.non_differentiable:
        raise GradientError(f"kernels: {name} has no derivative: {entry.non_differentiable}")
    call: Any = op if entry is None else entry.example or entry.op
    for example in _examples(entry, operands, keywords):
        found = _launched(call, example, dtype, layout, gradient, where)
        if found:
            return found
    raise KernelError(f"kernels: {name} launches no kernel for these operands")


def _checked(dtype: Any, layout: Any, architecture: Any) -> str:
    """The architecture meant. Raises ConfigError for choices that make no sense."""
    if not isinstance(dtype, DType):
        raise ConfigError(f"kernels: dtype must be a DType such as flame_numba.float32, got {dtype!r}")
    if layout not in LAYOUTS:
        raise ConfigError(f"kernels: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    where = architecture_at_hand() if architecture is None else architecture
    if not isinstance(where, str) or not _ARCHITECTURE.fullmatch(where):
        raise ConfigError(f"kernels: architecture must be 'cpu' or a name such as 'sm_90a', got {architecture!r}")
    return where


def _entry(op: Any) -> Entry | None:
    """The op's row of the table; None for a function that has none. Raises KernelError for an unknown name."""
    if isinstance(op, str):
        if op not in TABLE:
            near = difflib.get_close_matches(op, TABLE, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise KernelError(f"kernels: there is no op named {op!r}{hint}")
        return TABLE[op]
    if not callable(op):
        raise KernelError(f"kernels: op must be the name of an op or a function, got {op!r}")
    return next((entry for entry in TABLE.values() if entry.op is op), None)


def _examples(entry: Entry | None, operands: Sequence[Any], keywords: dict[str, Any]) -> Sequence[Case]:
    """Calls to try, in order."""
    if operands or entry is None:
        return (case(*operands, **keywords),)
    if entry.kind == "elementwise":
        return (case(*(_ELEMENTWISE_SHAPE,) * len(entry.parameters), **keywords),)
    return tuple(Case(c.operands, {**c.keywords, **keywords}) for c in entry.cases)


def _launched(
    call: Callable[..., Any], example: Case, dtype: DType, layout: str, gradient: bool, architecture: str
) -> list[LibraryKernel]:
    here = stage(architecture)

    def perform() -> None:
        operands = [_operand(o, dtype, layout) for o in example.operands]
        leaves = [x.requires_grad_(gradient) for x in operands if isinstance(x, Tensor) and x.dtype.is_floating]
        here.forget()
        results = call(*operands, **example.keywords)
        if gradient:
            here.forget()
            _backward(results, leaves)

    return [kernel_of(note, architecture) for note in here.perform(perform)]


def _backward(results: Any, leaves: list[Tensor]) -> None:
    many = results if isinstance(results, tuple) else (results,)
    ys = [y for y in many if isinstance(y, Tensor) and y.requires_grad]
    if ys:
        grad(ys, leaves, [Tensor.empty(y.shape, dtype=y.dtype) for y in ys], allow_unused=True)


def _operand(given: Any, dtype: DType, layout: str) -> Any:
    """A tensor without contents for a shape, whatever else as it is. See `table.Case`."""
    if isinstance(given, tuple):
        return _empty(given, dtype, layout)
    if isinstance(given, Floats):
        return _empty(given.shape, dtype, layout)
    if isinstance(given, Tensor):
        return _empty(given.shape, given.dtype, layout)
    if isinstance(given, Integers | Booleans):
        return _empty(given.shape, int64 if isinstance(given, Integers) else bool_, layout)
    return asarray(given) if isinstance(given, np.ndarray) else given


def _empty(shape: tuple[int, ...], dtype: DType, layout: str) -> Tensor:
    if layout == "contiguous" or not shape:
        return Tensor.empty(shape, dtype=dtype)
    view: Tensor
    if len(shape) == 1:
        view = strided_slice(Tensor.empty((2 * shape[0],), dtype=dtype), (0,), shape, (2,))
    else:
        view = permute(Tensor.empty(shape[::-1], dtype=dtype), tuple(reversed(range(len(shape)))))
    return view
