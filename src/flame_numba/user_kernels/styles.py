"""The three ways to write a kernel, and `ensure_kernel`, which tells them apart."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType, NoneType
from typing import Any

import numpy as np

from .. import dtypes
from ..devices import Device, Executable
from ..dtypes import DType
from ..errors import ConfigError, KernelError
from ..kernels.compiler import compile as compiler
from ..kernels.compiler import numba_style
from ..kernels.compiler.captured import Captured, capture, marks, plain_function, written
from ..kernels.compiler.compile import Program
from ..kernels.language import Inline, Load, Store
from ..kernels.user import cuda_source, nvrtc
from ..ops.core.launch import check_number
from ..tensor import Tensor
from .config import Launch
from .kernel import Kernel, Pack, check_writes

_KERNELS: dict[tuple[Any, ...], Kernel] = {}


def ensure_kernel(
    device: Device | str,
    name: str,
    code: Any,
    *,
    writes: Sequence[str] | None = None,
    any_layout: bool = False,
    bindings: Mapping[str, Any] | None = None,
    parameters: str | None = None,
    options: Sequence[str] = (),
) -> Kernel:
    """The kernel of this code on a device, compiled once: the same code again gives the same kernel, and the machine
    code is kept on disk.

    code: a Python function in the words of `flame_numba.kernels.language` (any device), a function in
    Numba's style, with or without `@cuda.jit` (any device; on the CPU with limits), or CUDA C++ text whose
    `__global__` function is called `name` (CUDA only). Python is compiled for the kinds of arguments that it is
    launched with, C++ at once.

    writes: names of the parameters that the kernel writes to; by default those that its source may write to (in C++:
    pointers that are not const). any_layout: take tensors that are not contiguous, by the address of their first
    element (kernels in Numba's style always do). bindings: meanings of further free names, such as
    `Array(float32, 64, shared=True)`. parameters: of C++, if they cannot be read off the source. options: for NVRTC.

    Raises KernelError for code that does not compile or cannot run on the device.
    """
    where = Device.parse(device)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"ensure_kernel: name must be a text, got {name!r}")
    writes = None if writes is None else _texts(name, "writes", writes)
    options = _texts(name, "options", options)
    if isinstance(code, str):
        if not isinstance(parameters, (str, NoneType)):
            raise ConfigError(f"{name}: parameters={parameters!r} must be a text, as between the parentheses in C++")
        return _ensure_cuda(where, name, code, writes, any_layout, parameters, options)
    function = plain_function(code)
    if function is None:
        raise KernelError(f"{name}: code must be a Python function or CUDA C++ text, got {type(code).__name__}")
    if parameters is not None or options:
        raise ConfigError(f"{name}: parameters= and options= are for CUDA C++, the code is a Python function")
    if bindings is not None and not (isinstance(bindings, Mapping) and all(isinstance(n, str) for n in bindings)):
        raise ConfigError(f"{name}: bindings={bindings!r} must map names to what they mean")
    captured = capture(function)
    numbas = function is not code or bool(captured.cuda)
    if numbas and bindings:
        raise ConfigError(f"{name}: bindings= are for kernels in the words of flame_numba.kernels.language")
    extra = repr(sorted((bindings or {}).items()))
    names = _parameters(name, function)
    kinds = () if numbas else marks(function)
    key = (where.backend, name, captured.text, numbas, kinds, writes, any_layout, extra)
    if key not in _KERNELS:
        targets = written(function) if writes is None else check_writes(name, names, writes)
        if numbas:
            _KERNELS[key] = NumbaKernel(where, name, names, targets, captured)
        else:
            _KERNELS[key] = LanguageKernel(where, name, names, targets, kinds, captured, bindings or {}, any_layout)
    return _KERNELS[key]


def _texts(name: str, what: str, given: Any) -> tuple[str, ...]:
    listed = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(isinstance(text, str) for text in listed):
        raise ConfigError(f"{name}: {what}={given!r} must be a list of texts")
    return listed


def _parameters(name: str, function: FunctionType) -> tuple[str, ...]:
    given = inspect.signature(function).parameters.values()
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty for p in given):
        raise KernelError(f"{name}: a kernel takes plain parameters: no defaults, *args or keywords")
    return tuple(p.name for p in given)


def _label(name: str) -> str:
    """A name as part of a symbol."""
    return re.sub(r"\W+", "_", name).strip("_") or "kernel"


class LanguageKernel(Kernel):
    """A function in the words of `kernels/language.py`: pointers, and numbers of one type that it computes in."""

    def __init__(
        self, device: Device, name: str, parameters: Sequence[str], writes: frozenset[str], marks: Sequence[str],
        captured: Captured, bindings: Mapping[str, Any], any_layout: bool,
    ) -> None:  # fmt: skip
        super().__init__(device, name, parameters, writes)
        self.any_layout = any_layout
        self._captured = captured
        self._bindings = dict(bindings)
        self._kinds = list(marks)  # the names of the annotations
        used = captured.function.__code__.co_names
        for at, parameter in enumerate(parameters):
            if f"load_{parameter}" in used or f"store_{parameter}" in used:
                self._kinds[at] = "Pointer"

    def prepare(self, arguments: Sequence[Any], launch: Launch) -> tuple[Executable, Pack]:
        if launch.grid[1:] + launch.block[1:] != (1, 1, 1, 1) or launch.shared_nbytes:
            raise ConfigError(
                f"{self.name}: the words of a kernel know one axis of blocks and of threads, and shared memory by "
                f"bindings; got a grid of {launch.grid}, a block of {launch.block}, {launch.shared_nbytes} bytes"
            )
        kinds = tuple(
            a.dtype if isinstance(a, Tensor) else self._number_kind(p, a, annotation)
            for p, a, annotation in zip(self.parameters, arguments, self._kinds, strict=True)
        )
        values = [
            self._number(p, k, a, kinds) if isinstance(k, str) else a
            for p, k, a in zip(self.parameters, kinds, arguments, strict=True)
        ]
        executable = self.executable((kinds, launch.threads), lambda: self._load(kinds, launch.threads))
        return executable, lambda: tuple([a.address if isinstance(a, Tensor) else a for a in values])

    def _number_kind(self, parameter: str, value: Any, annotation: str) -> str:
        if annotation == "Pointer":
            raise self.fail(parameter, f"must be a tensor, got {value!r}")
        if annotation == "int" or (annotation == "None" and isinstance(value, int)):
            if not isinstance(value, int):
                raise self.fail(parameter, f"must be a whole number, got {value!r}")
            return "int"
        return "number"

    def _number(self, parameter: str, kind: str, value: Any, kinds: tuple[DType | str, ...]) -> Any:
        compute = dtypes.int64 if kind == "int" else _compute_type([k for k in kinds if isinstance(k, DType)])
        if not compute.is_floating and not isinstance(value, int):
            raise self.fail(parameter, f"must be a whole number beside tensors of integers, got {value!r}")
        return check_number(value, compute, f"{self.name}: {parameter}")

    def _load(self, kinds: tuple[DType | str, ...], threads: int) -> Executable:
        backend, program = self.device.backend, self.program(kinds, threads)
        if backend.kind != "cpu":
            return compiler.load(program, backend)
        image, entry = compiler.machine_code(program, backend.kind, backend.architecture)
        numba_style.prepare_host(self.name, image)
        return backend.load(image, entry, program.signature)

    def program(self, kinds: tuple[DType | str, ...], threads: int) -> Program:
        """The kernel for these element types and kinds of numbers."""
        tensors = {p: k for p, k in zip(self.parameters, kinds, strict=True) if isinstance(k, DType)}
        for parameter, annotation in zip(self.parameters, self._kinds, strict=True):
            if annotation in ("int", "Number") and parameter in tensors:
                raise self.fail(parameter, "must be a number, got a tensor")
        compute = _compute_type(list(tensors.values()))
        bindings: dict[str, Any] = {}
        for parameter, dtype in tensors.items():
            mine = compute if dtype.is_floating else dtype.accumulator if dtype.is_integer else dtype
            bindings[f"load_{parameter}"] = Load(dtype, mine)
            bindings[f"store_{parameter}"] = Store(dtype, mine)
        constants = (bool, int, float, DType)
        bindings.update({n: v for n, v in self._captured.values.items() if isinstance(v, constants)})
        bindings.update(self._bindings)
        bindings.update({n: Inline(f) for n, f in self._captured.functions.items() if n not in self._bindings})
        return Program(
            _label(self.name), kinds, compute, bindings, self._captured.function, threads=threads,
            identity=self._captured.text,
        )  # fmt: skip


def _compute_type(tensors: list[DType]) -> DType:
    """What numbers are computed in: the common floating type of the tensors, widened, else 64-bit integers."""
    floating = [d for d in tensors if d.is_floating]
    if not floating:
        unsigned = bool(tensors) and all(d.kind == "uint" for d in tensors)
        return dtypes.uint64 if unsigned else dtypes.int64
    common = floating[0]
    for dtype in floating[1:]:
        common = dtypes.promote(common, dtype)
    return common.accumulator


class NumbaKernel(Kernel):
    """A function in Numba's style: arrays with shape and strides, `cuda.grid` and its like."""

    any_layout = True

    def __init__(
        self, device: Device, name: str, parameters: Sequence[str], writes: frozenset[str], captured: Captured
    ) -> None:
        super().__init__(device, name, parameters, writes)
        self._captured = captured
        if device.kind == "cpu":
            numba_style.check_host(name, captured, threads=1)

    def prepare(self, arguments: Sequence[Any], launch: Launch) -> tuple[Executable, Pack]:
        backend = self.device.backend
        if backend.kind == "cpu":
            numba_style.check_host(self.name, self._captured, launch.threads)
        wide = any(isinstance(a, Tensor) and a.dtype is dtypes.float64 for a in arguments)
        kinds = tuple([_numba_argument(a, wide) for a in arguments])
        for parameter, value, kind in zip(self.parameters, arguments, kinds, strict=True):
            if kind == "int64":
                check_number(value, dtypes.int64, f"{self.name}: {parameter}")

        def load() -> Executable:
            image, entry = numba_style.machine_code(
                _label(self.name), self._captured, kinds, backend.kind, backend.architecture, launch.threads
            )
            if backend.kind == "cpu":
                numba_style.prepare_host(self.name, image)
            return backend.load(image, entry, numba_style.letters(kinds, backend.kind))

        executable = self.executable((kinds, launch.threads if backend.kind == "cuda" else 1), load)

        def pack() -> tuple[Any, ...]:
            values: list[Any] = [] if backend.kind == "cuda" else [*launch.grid, *launch.block]
            for argument, kind in zip(arguments, kinds, strict=True):
                if isinstance(kind, numba_style.ArrayArgument):
                    values += kind.values(argument.address, argument.shape, argument.strides)
                else:
                    values.append(argument)
            return tuple(values)

        return executable, pack


def _numba_argument(value: Any, wide: bool) -> numba_style.Argument:
    if isinstance(value, Tensor):
        return numba_style.ArrayArgument(value.dtype, value.ndim, value.is_contiguous)
    if isinstance(value, (float, np.float32)):
        return "float64" if wide and not isinstance(value, np.float32) else "float32"
    return "int64"


class CudaKernel(Kernel):
    """A __global__ function of CUDA C++."""

    def __init__(
        self, device: Device, name: str, declared: Sequence[cuda_source.Parameter], writes: frozenset[str],
        any_layout: bool, executable: Executable,
    ) -> None:  # fmt: skip
        super().__init__(device, name, [p.name for p in declared], writes)
        self.any_layout = any_layout
        self._declared = tuple(declared)
        self._executable = executable

    def prepare(self, arguments: Sequence[Any], launch: Launch) -> tuple[Executable, Pack]:
        values = [_cuda_argument(self, p, a) for p, a in zip(self._declared, arguments, strict=True)]
        return self._executable, lambda: tuple([a.address if isinstance(a, Tensor) else a for a in values])


def _cuda_argument(kernel: Kernel, parameter: cuda_source.Parameter, value: Any) -> Any:
    dtype = parameter.dtype
    if parameter.is_pointer:
        if not isinstance(value, Tensor):
            raise kernel.fail(parameter.name, f"must be a tensor, got {value!r}")
        if dtype is not None and value.dtype is not dtype:
            raise kernel.fail(parameter.name, f"must be a tensor of {dtype.name}, got {value.dtype.name}")
        return value
    assert dtype is not None
    if isinstance(value, Tensor):
        raise kernel.fail(parameter.name, "must be a number, got a tensor")
    if dtype.is_floating:
        return check_number(value, dtype, f"{kernel.name}: {parameter.name}")
    if not isinstance(value, int):
        raise kernel.fail(parameter.name, f"must be a whole number, got {value!r}")
    bits = 8 * dtype.itemsize
    low, high = (0, 2**bits - 1) if dtype.kind in ("uint", "bool") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if not low <= int(value) <= high:
        raise kernel.fail(parameter.name, f"is {dtype.name}, which cannot hold {value}")
    number = int(value)
    return number - 2**64 if number >= 2**63 else number  # the same bits


def _ensure_cuda(
    device: Device, name: str, source: str, writes: tuple[str, ...] | None, any_layout: bool, parameters: str | None,
    options: tuple[str, ...],
) -> Kernel:  # fmt: skip
    if device.kind != "cuda":
        raise KernelError(f"{name}: CUDA C++ runs on CUDA devices, not on {device}; a Python function runs on both")
    key = (device.backend, name, source, writes, any_layout, parameters, options)
    if key not in _KERNELS:
        declared = cuda_source.parameters(name, source) if parameters is None else cuda_source.parse(name, parameters)
        names = [p.name for p in declared]
        targets = frozenset(p.name for p in declared if p.is_pointer and not p.is_const)
        targets = targets if writes is None else check_writes(name, names, writes)
        backend = device.backend
        image, entry = nvrtc.machine_code(name, source, backend.architecture, options)
        executable = backend.load(image, entry, "".join(p.letter for p in declared))
        _KERNELS.setdefault(key, CudaKernel(device, name, declared, targets, any_layout, executable))
    return _KERNELS[key]
