"""From tensors to a launch: plans (what to run, worked out once a shape) and the call itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...devices import Backend, Device, Executable, LaunchConfig, current_stream
from ...dtypes import DType
from ...errors import DeviceMismatch, DTypeError
from ...faults import raise_fault
from ...kernels.compiler import compile as compiler
from ...kernels.compiler.compile import Program
from ...kernels.elementwise import map as maps
from ...kernels.elementwise.formula import Expr
from ...shapes import Shape, broadcast, check_sizes, collapse, expand_strides, numel, row_major
from ...tensor import Tensor, dense
from .debug import is_debugging, settle

_EXECUTABLES: dict[tuple[Any, ...], Executable] = {}
_MAX_PLANS = 4096  # shapes vary without end in some programs: forget all, then learn again


def executable(backend: Backend, build: Callable[..., Program], *choices: Any) -> Executable:
    """The kernel that `build(*choices)` describes, compiled and loaded once for this machine."""
    key = (backend, build, choices)
    found = _EXECUTABLES.get(key)
    if found is None:
        found = _EXECUTABLES.setdefault(key, compiler.load(build(*choices), backend))
    return found


def run(
    device: Device,
    build: Callable[..., Program],
    choices: tuple[Any, ...],
    arguments: Sequence[Any],
    blocks: int,
    threads: int = 256,
    may_fault: bool = False,
) -> None:
    """Launch a kernel on the current stream. Tensors among the arguments stand for their addresses.

    may_fault: it may leave a fault. On the CPU device, where it has run on return, that is raised here.
    """
    backend = device.backend
    stream = current_stream(backend)
    kernel = executable(backend, build, *choices)
    config = LaunchConfig(max(1, min(blocks, 0x7FFFFFFF)), 1, threads)
    with backend.lock:
        if backend.streams_used:
            note_use(arguments, stream)
        kernel.launch(config, tuple([a.address if isinstance(a, Tensor) else a for a in arguments]), stream)
        if may_fault and backend.kind == "cpu":  # still under the lock: no other thread gets this one's fault
            raise_fault(device)
    if is_debugging():
        settle(backend, build.__name__.removesuffix("_program"))


def note_use(operands: Sequence[Any], stream: int) -> None:
    """Tell the pools which blocks of other streams `stream` uses, so that their memory is not reused too early.

    Before the launch: a stream that a pool meets for the first time first waits for the moves until now.
    """
    for x in operands:
        if isinstance(x, Tensor):
            block = x.storage.block
            if block.stream != stream:
                block.record_stream(stream)


def spread(backend: Backend, items: int, threads: int = 256) -> int:
    """Blocks for a grid-stride loop over items."""
    return -(-items // threads) if backend.kind != "cpu" else 1


def same_device(tensors: Sequence[Tensor], op: str) -> Device:
    """The device that all tensors are on. Raises DeviceMismatch."""
    first = tensors[0].storage.device
    for t in tensors:
        if t.storage.device is not first and t.storage.device != first:
            names = ", ".join(str(t.device) for t in tensors)
            raise DeviceMismatch(f"{op}: tensors are on {names}; move them to one device with to_device()")
    return first


class Plan:
    """A launch of an elementwise kernel with everything settled but the addresses."""

    __slots__ = ("config", "kernel", "numel", "shape", "strides", "tail")

    def __init__(self, shape: Shape, kernel: Executable | None, config: LaunchConfig, tail: tuple[int, ...]) -> None:
        self.shape = shape
        self.strides = row_major(shape)
        self.numel = numel(shape)
        self.kernel = kernel  # None: nothing to do
        self.config = config
        self.tail = tail


class MapKernel:
    """Formulas over named operands, run on tensors and numbers of any dtype and layout.

    truths: names of the operands that the formulas use as truth values.
    """

    def __init__(self, name: str, names: Sequence[str], formulas: Sequence[Expr], truths: Sequence[str] = ()) -> None:
        self.name = name
        self.names = tuple(names)
        self.formulas = tuple(formulas)
        self.truths = frozenset(truths)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def __call__(
        self,
        inputs: Sequence[Any],
        dtypes: tuple[DType, ...],
        compute: DType,
        into: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Compute the formulas in `compute`; results have `dtypes`, or are written `into` the given tensors."""
        device = None
        parts: list[Any] = [compute, dtypes, into is None]
        operands = inputs if into is None else (*into, *inputs)
        for x in operands:
            if isinstance(x, Tensor):
                storage = x.storage
                if device is None:
                    device = storage.device
                elif storage.device is not device and storage.device != device:
                    same_device([t for t in operands if isinstance(t, Tensor)], self.name)
                # the offset matters to a plan only by its alignment
                parts += (x.dtype, x.shape, x.strides, x.offset & 15)
            else:
                parts.append(None)
        assert device is not None
        backend = device.backend
        parts.append(backend)
        key = tuple(parts)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(backend, inputs, dtypes, compute, into)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        if into is None:
            outputs = [dense(device, d, plan.shape, plan.strides, plan.numel) for d in dtypes]
        else:
            outputs = list(into)
            for x in into:
                x.storage.version += 1  # before the write: memory that is lent for reading only refuses
        if plan.kernel is not None:
            stream = current_stream(backend)
            with backend.lock:
                if backend.streams_used:
                    note_use((*outputs, *inputs), stream)
                arguments: list[Any] = []
                for x in (*outputs, *inputs):
                    if isinstance(x, Tensor):
                        arguments.append(x.storage.block.address + x.offset * x.dtype.itemsize)
                    else:
                        arguments.append(x)
                plan.kernel.launch(plan.config, (*arguments, *plan.tail), stream)
            if is_debugging():
                settle(backend, self.name)
        return outputs

    def _plan(
        self,
        backend: Backend,
        inputs: Sequence[Any],
        dtypes: tuple[DType, ...],
        compute: DType,
        into: Sequence[Tensor] | None,
    ) -> Plan:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        for x in (*tensors, *(into or ())):
            check_sizes(x.shape, self.name)
        shape = into[0].shape if into else broadcast([x.shape for x in tensors], self.name)
        outs = [(o.dtype, o.strides, o.offset) for o in into] if into else [(d, row_major(shape), 0) for d in dtypes]
        strides = [o[1] for o in outs] + [expand_strides(x.shape, x.strides, shape) for x in tensors]
        sizes, walks = collapse(shape, strides)
        operands = tuple(
            maps.Operand(name, x.dtype if isinstance(x, Tensor) else None, name in self.truths)
            for name, x in zip(self.names, inputs, strict=True)
        )
        job = maps.Map(self.name, self.formulas, tuple(o[0] for o in outs), operands, compute)
        total = 1
        for n in sizes:
            total *= n
        if total == 0:
            return Plan(shape, None, LaunchConfig(1), ())
        if len(sizes) == 1 and all(walk == (1,) for walk in walks):
            bytes_at = [o[2] * o[0].itemsize for o in outs] + [x.offset * x.dtype.itemsize for x in tensors]
            return self._contiguous(backend, shape, job, total, bytes_at)
        return self._strided(backend, shape, job, sizes, walks)

    def _contiguous(self, backend: Backend, shape: Shape, job: maps.Map, total: int, bytes_at: list[int]) -> Plan:
        dtypes = [*job.outputs, *(x.dtype for x in job.inputs if x.dtype is not None)]
        width = 1 if backend.kind == "cpu" else maps.vector_width(dtypes)
        if any(at % (width * d.itemsize) for at, d in zip(bytes_at, dtypes, strict=True)):
            width = 1  # an offset view: vectors would not be aligned
        kernel = executable(backend, maps.contiguous, job, width)
        blocks = spread(backend, max(1, total // width), maps.THREADS)
        return Plan(shape, kernel, LaunchConfig(min(blocks, 0x7FFFFFFF), 1, maps.THREADS), (total,))

    def _strided(self, backend: Backend, shape: Shape, job: maps.Map, sizes: Shape, walks: list[Shape]) -> Plan:
        rank = next((r for r in (1, 2, 4, 8) if r >= len(sizes)), len(sizes))
        lead = rank - len(sizes)
        sizes = (1,) * lead + sizes
        walks = [(0,) * lead + walk for walk in walks]
        rows = 1
        for n in sizes[:-1]:
            rows *= n
        run = sizes[-1] if backend.kind == "cpu" else 1
        segments = -(-sizes[-1] // run)
        kernel = executable(backend, maps.strided, job, rank)
        blocks = spread(backend, rows * segments, maps.THREADS)
        tail = (rows, segments, run, *sizes, *(s for walk in walks for s in walk))
        return Plan(shape, kernel, LaunchConfig(min(blocks, 0x7FFFFFFF), 1, maps.THREADS), tail)


def check_number(value: Any, compute: DType, op: str) -> Any:
    """A Python number as the kernel's scalar type, which has 64 bits; raises DTypeError if it cannot hold it."""
    kind = compute.kind
    try:
        if kind == "float":
            return float(value)
        if kind == "bool":
            return int(bool(value))
        number = int(value)
    except (TypeError, ValueError, OverflowError):  # no number, NaN, or beyond float64
        raise _misfit(value, compute, op) from None
    low, high = (0, 2**64 - 1) if kind == "uint" else (-(2**63), 2**63 - 1)
    if not low <= number <= high:
        raise _misfit(value, compute, op)
    return number - 2**64 if number >= 2**63 else number  # the same bits, as the launch's int64


def check_element(value: Any, dtype: DType, op: str) -> Any:
    """`check_number` for what becomes an element as it is: it must be in the range of `dtype` itself."""
    if value.__class__ is float and dtype.kind == "float":
        return value
    if not hasattr(value, "__float__"):  # not even of a string that float() could read
        raise DTypeError(f"{op}: expected a number, got {value!r}")
    number = check_number(value, dtype, op)
    if dtype.is_integer and dtype.itemsize < 8:
        bits = 8 * dtype.itemsize
        low, high = (0, 2**bits - 1) if dtype.kind == "uint" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if not low <= number <= high:
            raise _misfit(value, dtype, op)
    return number


def _misfit(value: Any, dtype: DType, op: str) -> DTypeError:
    try:
        said = f"the number {value}" if hasattr(value, "__float__") else repr(value)
    except ValueError:  # Python does not print ints of thousands of digits
        said = "a number of thousands of digits"
    return DTypeError(f"{op}: {said} does not fit {dtype.name}")
