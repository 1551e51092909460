"""What Python cannot say: loads and stores of every element type, vectors, shared memory, bits, divisions.

Written once as LLVM instructions; `Machine` holds the few points where CUDA and the host differ. Imported only to
compile, never to run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from llvmlite import ir

from ...dtypes import DType, bfloat16, float16, float32, float64
from ..language import Array, Load, LoadVector, Store, StoreVector

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


@dataclass(frozen=True)
class Machine:
    """Numba's parts for one target, and the instructions that differ between targets."""

    types: Any
    intrinsic: Callable[..., Any]
    flags: Callable[[], Any]  # compiler flags: division by zero gives an infinity, not an exception
    half_to_float: Callable[[ir.IRBuilder, ir.Value], ir.Value]  # i16 → float
    float_to_half: Callable[[ir.IRBuilder, ir.Value], ir.Value]
    float_to_bfloat: Callable[[ir.IRBuilder, ir.Value], ir.Value]
    shared_array: Callable[[ir.IRBuilder, ir.Type, int], ir.Value]
    result_type: Callable[[Any, FunctionType, tuple[Any, ...]], Any]  # (typing context, function, argument types)
    compile_part: Callable[[Any, ir.IRBuilder, FunctionType, Any], Any]  # (context, builder, function, signature)

    def compute_type(self, dtype: DType) -> Any:
        """Numba's type of a value in a kernel."""
        if dtype.kind == "bool":
            return self.types.boolean
        if dtype.kind == "float":
            return self.types.float64 if dtype is float64 else self.types.float32
        return self.types.uint64 if dtype.kind == "uint" else self.types.int64

    def storage_type(self, dtype: DType) -> Any:
        """Numba's type of an element in memory; the bits of f16, bf16 and bool travel as integers."""
        if dtype is float16 or dtype is bfloat16:
            return self.types.uint16
        return self.types.uint8 if dtype.kind == "bool" else getattr(self.types, dtype.name)


def _storage_ir(dtype: DType) -> ir.Type:
    if dtype is float32:
        return F32
    return F64 if dtype is float64 else ir.IntType(8 * dtype.itemsize)


def _widen(machine: Machine, b: ir.IRBuilder, dtype: DType, value: ir.Value) -> ir.Value:
    """An element's bits → its own compute type."""
    if dtype is float16:
        return machine.half_to_float(b, value)
    if dtype is bfloat16:
        return b.bitcast(b.shl(b.zext(value, I32), ir.Constant(I32, 16)), F32)
    if dtype.kind == "float":
        return value
    if dtype.kind == "bool":
        return b.icmp_unsigned("!=", value, ir.Constant(I8, 0))
    if dtype.itemsize == 8:
        return value
    return b.sext(value, I64) if dtype.kind == "int" else b.zext(value, I64)


def _convert(b: ir.IRBuilder, value: ir.Value, source: DType, target: DType) -> ir.Value:
    """Between compute types. Out-of-range floats to integers are undefined, as in NumPy."""
    src, dst = source.accumulator if source.kind != "bool" else source, target
    if src.kind == dst.kind == "float":
        if (src is float64) == (dst is float64):
            return value
        return b.fptrunc(value, F32) if src is float64 else b.fpext(value, F64)
    if dst.kind == "bool":
        if src.kind == "bool":
            return value
        zero = ir.Constant(value.type, 0)
        return b.fcmp_unordered("!=", value, zero) if src.kind == "float" else b.icmp_unsigned("!=", value, zero)
    if dst.kind == "float":
        kind = F64 if dst is float64 else F32
        return b.sitofp(value, kind) if src.kind == "int" else b.uitofp(value, kind)
    if src.kind == "float":
        return b.fptosi(value, I64) if dst.kind == "int" else _float_to_unsigned(b, value)
    return b.zext(value, I64) if src.kind == "bool" else value


def _float_to_unsigned(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    # negative numbers wrap, as NumPy's do; only values from 2⁶³ up need the unsigned instruction
    large = b.fcmp_ordered(">=", value, ir.Constant(value.type, 2.0**63))
    return b.select(large, b.fptoui(value, I64), b.fptosi(value, I64))


def _round_to_odd(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """f64 → f32 so that a second rounding, to 16 bits, gives the correctly rounded result.

    Truncate towards zero and set the last bit if anything was lost. (Boldo and Melquiond 2005)
    """
    nearest = b.fptrunc(value, F32)
    back = b.fpext(nearest, F64)
    magnitude = ir.Constant(I64, 2**63 - 1)  # all bits but the sign: ordered as the absolute values are
    over = b.icmp_unsigned(">", b.and_(b.bitcast(back, I64), magnitude), b.and_(b.bitcast(value, I64), magnitude))
    bits = b.sub(b.bitcast(nearest, I32), b.zext(over, I32))
    inexact = b.fcmp_ordered("!=", back, value)
    return b.bitcast(b.or_(bits, b.zext(inexact, I32)), F32)


def _narrow(machine: Machine, b: ir.IRBuilder, dtype: DType, value: ir.Value) -> ir.Value:
    """A value of the dtype's compute type → an element's bits."""
    if dtype is float16:
        return machine.float_to_half(b, value)
    if dtype is bfloat16:
        return machine.float_to_bfloat(b, value)
    if dtype.kind == "float":
        return value
    if dtype.kind == "bool":
        return b.zext(value, I8)
    return value if dtype.itemsize == 8 else b.trunc(value, ir.IntType(8 * dtype.itemsize))


def _to_element(machine: Machine, b: ir.IRBuilder, spec: Store | StoreVector, value: ir.Value) -> ir.Value:
    if spec.compute is float64 and spec.dtype.kind == "float" and spec.dtype.itemsize == 2:
        return _narrow(machine, b, spec.dtype, _round_to_odd(b, value))
    compute = spec.dtype if spec.dtype.kind == "bool" else spec.dtype.accumulator
    return _narrow(machine, b, spec.dtype, _convert(b, value, spec.compute, compute))


def _from_element(machine: Machine, b: ir.IRBuilder, spec: Load | LoadVector, value: ir.Value) -> ir.Value:
    return _convert(b, _widen(machine, b, spec.dtype, value), spec.dtype, spec.compute)


def _element_pointer(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value, element: ir.Type) -> ir.Value:
    return b.gep(b.bitcast(pointer, element.as_pointer()), [index], inbounds=True)


def load(machine: Machine, spec: Load) -> Any:
    element, result = _storage_ir(spec.dtype), machine.compute_type(spec.compute)

    @machine.intrinsic
    def load_element(typingctx: Any, pointer: Any, index: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return _from_element(machine, b, spec, b.load(_element_pointer(b, args[0], args[1], element)))

        return result(pointer, machine.types.int64), codegen

    return load_element


def store(machine: Machine, spec: Store) -> Any:
    element, given = _storage_ir(spec.dtype), machine.compute_type(spec.compute)

    @machine.intrinsic
    def store_element(typingctx: Any, pointer: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            b.store(_to_element(machine, b, spec, args[2]), _element_pointer(b, args[0], args[1], element))
            return context.get_dummy_value()

        return machine.types.void(pointer, machine.types.int64, given), codegen

    return store_element


def _vector_ir(element: ir.Type, width: int) -> tuple[ir.Type, int]:
    """The type that one access moves, and elements in a word of it.

    Elements below 32 bits travel packed in words: the compiler splits a vector of eight 16-bit elements in two.
    """
    bits = element.width if isinstance(element, ir.IntType) else 32 if element is F32 else 64
    packed = 32 // bits if bits < 32 and width * bits % 32 == 0 else 1
    word = ir.IntType(32) if packed > 1 else element
    return ir.VectorType(word, width // packed), packed


def load_vector(machine: Machine, spec: LoadVector) -> Any:
    element = _storage_ir(spec.dtype)
    vector, packed = _vector_ir(element, spec.width)
    nbytes = spec.width * spec.dtype.itemsize
    result = machine.types.UniTuple(machine.compute_type(spec.compute), spec.width)

    def item(b: ir.IRBuilder, values: ir.Value, k: int) -> ir.Value:
        word = b.extract_element(values, ir.Constant(I32, k // packed))
        if packed == 1:
            return word
        return b.trunc(b.lshr(word, ir.Constant(I32, k % packed * element.width)), element)

    @machine.intrinsic
    def load_elements(typingctx: Any, pointer: Any, index: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values = b.load(_element_pointer(b, args[0], args[1], vector), align=nbytes)
            items = [_from_element(machine, b, spec, item(b, values, k)) for k in range(spec.width)]
            return context.make_tuple(b, result, items)

        return result(pointer, machine.types.int64), codegen

    return load_elements


def store_vector(machine: Machine, spec: StoreVector) -> Any:
    element = _storage_ir(spec.dtype)
    vector, packed = _vector_ir(element, spec.width)
    nbytes = spec.width * spec.dtype.itemsize
    given = machine.types.UniTuple(machine.compute_type(spec.compute), spec.width)

    def word(b: ir.IRBuilder, items: list[ir.Value]) -> ir.Value:
        if packed == 1:
            return items[0]
        shifted = [b.shl(b.zext(item, I32), ir.Constant(I32, j * element.width)) for j, item in enumerate(items)]
        return functools.reduce(b.or_, shifted)

    @machine.intrinsic
    def store_elements(typingctx: Any, pointer: Any, index: Any, values: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            items = [_to_element(machine, b, spec, b.extract_value(args[2], k)) for k in range(spec.width)]
            all_words: ir.Value = ir.Constant(vector, ir.Undefined)
            for k in range(0, spec.width, packed):
                all_words = b.insert_element(all_words, word(b, items[k : k + packed]), ir.Constant(I32, k // packed))
            b.store(all_words, _element_pointer(b, args[0], args[1], vector), align=nbytes)
            return context.get_dummy_value()

        return machine.types.void(pointer, machine.types.int64, given), codegen

    return store_elements


def array(machine: Machine, spec: Array) -> Any:
    element = machine.storage_type(spec.dtype)

    @machine.intrinsic
    def make_array(typingctx: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            kind = _storage_ir(spec.dtype)
            if spec.shared:
                return machine.shared_array(b, kind, spec.length)
            return stack_array(b, kind, spec.length)

        return machine.types.CPointer(element)(), codegen

    return make_array


def stack_array(b: ir.IRBuilder, kind: ir.Type, length: int) -> ir.Value:
    """Memory of the function's frame, allotted once at its entry (an alloca in a loop would grow the stack)."""
    with b.goto_entry_block():
        memory = b.alloca(ir.ArrayType(kind, length))
        memory.align = 16
    return b.bitcast(memory, kind.as_pointer())


def unsigned_divide(machine: Machine) -> Any:
    """Divide in 32 bits where both numbers fit; the branch costs nothing beside a 64-bit division."""
    int64 = machine.types.int64

    @machine.intrinsic
    def udiv(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            wide = b.lshr(b.or_(args[0], args[1]), ir.Constant(I64, 32))
            narrow = b.icmp_unsigned("==", wide, ir.Constant(I64, 0))
            with b.if_else(narrow) as (then, otherwise):
                with then:
                    short = b.zext(b.udiv(b.trunc(args[0], I32), b.trunc(args[1], I32)), I64)
                    from_short = b.block
                with otherwise:
                    long = b.udiv(args[0], args[1])
                    from_long = b.block
            result = b.phi(I64)
            result.add_incoming(short, from_short)
            result.add_incoming(long, from_long)
            return result

        return int64(int64, int64), codegen

    return udiv


def report_fault(machine: Machine) -> Any:
    @machine.intrinsic
    def fault(typingctx: Any, cell: Any, code: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            b.store(args[1], b.bitcast(args[0], I64.as_pointer()))
            return context.get_dummy_value()

        return machine.types.void(cell, machine.types.int64), codegen

    return fault


def llvm_function(machine: Machine, name: str, dtype: DType) -> Any:
    """A one-argument LLVM intrinsic such as llvm.floor."""
    number = machine.compute_type(dtype)

    @machine.intrinsic
    def call(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return b.call(b.module.declare_intrinsic(name, [args[0].type]), args)

        return number(number), codegen

    return call


def _call_python(
    machine: Machine, context: Any, b: ir.IRBuilder, function: Any, signature: Any, args: Any,
    made: dict[Any, Any] | None = None,
) -> Any:  # fmt: skip
    """made: what the function was compiled to in this program, by signature, for its next call."""
    part = None if made is None else made.get(signature)
    if part is None:
        part = machine.compile_part(context, b, function, signature)
        if made is not None:
            made[signature] = part
    elif part.library is not context.active_code_library:
        context.active_code_library.add_linking_library(part.library)
    return context.call_internal(b, part.fndesc, signature, args)


def binary_llvm(machine: Machine, dtype: DType, build: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
    """A function of two numbers given by its LLVM instructions."""
    number = machine.compute_type(dtype)

    @machine.intrinsic
    def call(typingctx: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return build(b, args[0], args[1])

        return number(number, number), codegen

    return call


def python_function(
    machine: Machine, function: FunctionType, arity: int, given: DType | None, returns: DType | None
) -> Any:
    """A Python function compiled into the kernel that calls it.

    given: the type that its operands are converted to (None: they stay as they are); returns: None for nothing.
    """
    result = machine.types.void if returns is None else machine.compute_type(returns)
    # a helper belongs to one program; a function of formulas, whose operands are converted, to all
    made: dict[Any, Any] | None = {} if given is None else None

    def build(typingctx: Any, *args: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            return _call_python(machine, context, b, function, signature, values, made)

        return result(*(args if given is None else [machine.compute_type(given)] * arity)), codegen

    return machine.intrinsic(of_arity(build, arity))


def of_arity(build: Callable[..., Any], arity: int) -> Any:
    """build(typing context, *operands) with so many operands by name: that is how Numba learns their number."""
    names = ", ".join(["typingctx", *(f"a{k}" for k in range(arity))])
    return eval(f"lambda {names}: build({names})", {"build": build})


def inline_function(machine: Machine, function: FunctionType) -> Any:
    """A Python function compiled into the kernel that calls it; its result has the type that Numba infers."""
    made: dict[Any, Any] = {}

    def build(typingctx: Any, *args: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            return _call_python(machine, context, b, function, signature, values, made)

        return machine.result_type(typingctx, function, args)(*args), codegen

    return machine.intrinsic(of_arity(build, function.__code__.co_argcount))


def block_function(machine: Machine, function: FunctionType, compute: DType) -> Any:
    """A function (shared memory, value) → value that all threads of a block call together."""
    number = machine.compute_type(compute)

    @machine.intrinsic
    def call(typingctx: Any, partial: Any, value: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return _call_python(machine, context, b, function, signature, args)

        return number(partial, number), codegen

    return call


def bind(machine: Machine, spec: Any) -> Any:
    """The compiled meaning of one binding of a program that is no function of Python's."""
    if isinstance(spec, DType):
        return machine.compute_type(spec)
    return _bind(machine, spec) if type(spec) in _MAKERS else spec


_MAKERS: dict[type, Callable[[Machine, Any], Any]] = {
    Load: load,
    Store: store,
    LoadVector: load_vector,
    StoreVector: store_vector,
    Array: array,
}


@functools.cache  # Numba keeps every intrinsic for ever, and takes time to register one
def _bind(machine: Machine, spec: Any) -> Any:
    return _MAKERS[type(spec)](machine, spec)
