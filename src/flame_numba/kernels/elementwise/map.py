"""Elementwise kernels from scalar formulas: one for contiguous operands, in vectors, and one for any strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...dtypes import DType, bool_
from ..compiler.compile import Program
from ..language import Binding, Load, LoadVector, Store, StoreVector
from .formula import Expr, emit, is_truth, variables

THREADS = 256


@dataclass(frozen=True)
class Operand:
    """A variable of the formula: a tensor of `dtype`, or (dtype None) a number given at launch."""

    name: str
    dtype: DType | None
    is_bool: bool = False  # the formula uses it as a truth value


@dataclass(frozen=True)
class Map:
    """outputs[k][i] = formula_k(inputs[…][i]) for all i. Formulas compute in `compute`."""

    name: str
    formulas: tuple[Expr, ...]
    outputs: tuple[DType, ...]
    inputs: tuple[Operand, ...]
    compute: DType

    def _stored_as(self, dtype: DType) -> DType:
        return bool_ if dtype is bool_ and self._gives_truth else self.compute

    @property
    def _gives_truth(self) -> bool:
        return all(is_truth(f) for f in self.formulas)

    def arguments(self) -> tuple[DType | str, ...]:
        return (*self.outputs, *("number" if x.dtype is None else x.dtype for x in self.inputs))

    def pointers(self) -> list[str]:
        """Names of the operands that have memory: outputs, then tensor inputs."""
        return [f"y{k}" for k in range(len(self.outputs))] + [x.name for x in self.inputs if x.dtype is not None]

    def bindings(self, width: int) -> dict[str, Binding]:
        result: dict[str, Binding] = {}
        for k, dtype in enumerate(self.outputs):
            result[f"store_y{k}"] = Store(dtype, self._stored_as(dtype))
            if width > 1:
                result[f"store_vector_y{k}"] = StoreVector(dtype, self._stored_as(dtype), width)
        for x in self.inputs:
            if x.dtype is not None:
                compute = bool_ if x.is_bool else self.compute
                result[f"load_{x.name}"] = Load(x.dtype, compute)
                if width > 1:
                    result[f"load_vector_{x.name}"] = LoadVector(x.dtype, compute, width)
        return result


def _parameters(job: Map) -> str:
    return ", ".join([f"y{k}" for k in range(len(job.outputs))] + [x.name for x in job.inputs])


def _element(job: Map, index: dict[str, str], indent: str) -> list[str]:
    """Load, compute, store for one element; `index` gives each pointer's index text."""
    used = variables(*job.formulas)
    lines = [
        f"{x.name}_ = load_{x.name}({x.name}, {index[x.name]})" if x.dtype is not None else f"{x.name}_ = {x.name}"
        for x in job.inputs
        if x.name in used
    ]
    body, results = emit(job.formulas, "_")
    lines += body + [f"store_y{k}(y{k}, {index[f'y{k}']}, {text})" for k, text in enumerate(results)]
    return [indent + line for line in lines]


def contiguous(job: Map, width: int) -> Program:
    """kernel(outputs…, inputs…, n): all operands contiguous; `width` elements an access, a scalar tail."""
    index = dict.fromkeys(job.pointers(), "i")
    lines = [f"def kernel({_parameters(job)}, n):"]
    if width > 1:
        lines += [f"    whole = n // {width}", "    for i in range(grid(), whole, gridsize()):"]
        used = variables(*job.formulas)
        for x in job.inputs:
            if x.dtype is not None and x.name in used:
                lines.append(f"        {x.name}_v = load_vector_{x.name}({x.name}, i)")
        results: list[list[str]] = []
        for k in range(width):
            for x in job.inputs:
                if x.name in used:
                    value = f"{x.name}_v[{k}]" if x.dtype is not None else x.name
                    lines.append(f"        {x.name}_{k} = {value}")
            body, texts = emit(job.formulas, f"_{k}")
            lines += ["        " + line for line in body]
            results.append(texts)
        for o in range(len(job.outputs)):
            values = ", ".join(_typed(job, o, texts[o]) for texts in results)
            lines.append(f"        store_vector_y{o}(y{o}, i, ({values}))")
        lines.append(f"    for i in range(whole * {width} + grid(), n, gridsize()):")
    else:
        lines.append("    for i in range(grid(), n, gridsize()):")
    lines += _element(job, index, "        ")
    return _program(job, f"map_{job.name}_v{width}", "\n".join(lines) + "\n", 1, width)


def _typed(job: Map, output: int, text: str) -> str:
    """A tuple's elements must have one type, also where a formula is a bare truth value or argument."""
    return text if is_truth(job.formulas[output]) else f"C({text})"


def strided(job: Map, rank: int) -> Program:
    """kernel(outputs…, inputs…, rows, segments, run, sizes[rank], strides[rank] of each pointer).

    The last axis is cut in segments of `run` elements; an item is one segment of one row. A run of 1 gives a thread
    an element (neighbouring threads, neighbouring elements); a run of the whole axis divides once a row, which is
    what a machine of one thread wants.
    """
    pointers = job.pointers()
    sizes = [f"n{a}" for a in range(rank)]
    strides = [f"{p}_s{a}" for p in pointers for a in range(rank)]
    lines = [
        f"def kernel({', '.join([_parameters(job), 'rows', 'segments', 'run', *sizes, *strides])}):",
        "    for item in range(grid(), rows * segments, gridsize()):",
        "        rest = udiv(item, segments)",
        "        start = (item - rest * segments) * run",
        *(f"        {p}_at = 0" for p in pointers),
    ]
    for a in range(rank - 2, -1, -1):
        lines.append(f"        quotient = udiv(rest, n{a})")
        lines.append(f"        coordinate = rest - quotient * n{a}")
        lines += [f"        {p}_at += coordinate * {p}_s{a}" for p in pointers]
        lines.append("        rest = quotient")
    lines.append(f"        for j in range(start, min(start + run, n{rank - 1})):")
    index = {p: f"{p}_at + j * {p}_s{rank - 1}" for p in pointers}
    lines += _element(job, index, "            ")
    integers = 3 + rank + rank * len(pointers)
    return _program(job, f"map_{job.name}_r{rank}", "\n".join(lines) + "\n", integers, 1)


def _program(job: Map, name: str, source: str, integers: int, width: int) -> Program:
    arguments = (*job.arguments(), *("int",) * integers)
    return Program(name, arguments, job.compute, job.bindings(width), source=source, threads=THREADS)


def vector_width(dtypes: Sequence[DType]) -> int:
    """Elements in a 16-byte access of the widest operand."""
    return 16 // max(d.itemsize for d in dtypes)
