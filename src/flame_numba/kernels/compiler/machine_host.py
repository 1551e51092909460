"""Kernels for the host: one block of one thread, compiled by Numba's CPU target to an object file."""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba.core import cgutils, compiler, types
from numba.core.compiler import Flags, compile_extra
from numba.core.registry import cpu_target
from numba.core.typed_passes import type_inference_stage
from numba.extending import intrinsic

from ...dtypes import DType, float64
from .intrinsics import F16, F32, I16, I32, I64, Machine, binary_llvm, llvm_function, of_arity, stack_array

_MATH = (
    "exp expm1 log log1p log10 sqrt erf erfc sin cos tan sinh cosh tanh asin acos atan asinh acosh atanh atan2 pow"
).split()
_LIBM = {"log2": 1, "exp2": 1, "lgamma": 1, "hypot": 2}  # functions of C's library, and their operands


def _half_to_float(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return b.fpext(b.bitcast(bits, F16), F32)


def _float_to_half(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return b.bitcast(b.fptrunc(value, F16), I16)


def _float_to_bfloat(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Round to nearest even: add half a unit of the last place kept, less one if it is even; a NaN stays one."""
    bits = b.bitcast(value, I32)
    odd = b.and_(b.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
    rounded = b.add(b.add(bits, ir.Constant(I32, 0x7FFF)), odd)
    quiet = b.or_(bits, ir.Constant(I32, 0x400000))
    chosen = b.select(b.fcmp_unordered("uno", value, value), quiet, rounded)
    return b.trunc(b.lshr(chosen, ir.Constant(I32, 16)), I16)


def _flags() -> Flags:
    flags = Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    return flags


def _copysign(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    kind = ir.FunctionType(x.type, [x.type, x.type])
    return b.call(b.module.declare_intrinsic("llvm.copysign", [x.type], kind), [x, y])


def _libm(name: str, arity: int, compute: DType) -> Any:
    number = MACHINE.compute_type(compute)
    symbol = name if compute is float64 else name + "f"

    def build(typingctx: Any, *given: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            kind = ir.FunctionType(args[0].type, [a.type for a in args])
            return b.call(cgutils.get_or_insert_function(b.module, kind, symbol), args)

        return number(*(number,) * arity), codegen

    return intrinsic(of_arity(build, arity))


def _result_type(typingctx: Any, function: FunctionType, arguments: tuple[Any, ...]) -> Any:
    """What a function returns for arguments of these types, by Numba's inference."""
    code = compiler.run_frontend(function, inline_closures=True)
    return type_inference_stage(typingctx, cpu_target.target_context, code, arguments, None).return_type


MACHINE = Machine(
    types, intrinsic, _flags, _half_to_float, _float_to_half, _float_to_bfloat, stack_array, _result_type
)  # fmt: skip


def _constant(value: int) -> Any:
    @intrinsic
    def constant(typingctx: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return ir.Constant(I64, value)

        return types.int64(), codegen

    return constant


@intrinsic
def _nothing(typingctx: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _barrier_after(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _ticket(typingctx: Any, counter: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        cell = b.bitcast(args[0], I64.as_pointer())
        drawn = b.load(cell)
        b.store(b.add(drawn, ir.Constant(I64, 1)), cell)
        return drawn

    return types.int64(counter), codegen


@intrinsic
def _publish(typingctx: Any, flags: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        b.store(args[2], b.gep(b.bitcast(args[0], I64.as_pointer()), [args[1]]))
        return context.get_dummy_value()

    return types.void(flags, types.int64, types.int64), codegen


@intrinsic
def _await_all(typingctx: Any, flags: Any, first: Any, end: Any, value: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_dummy_value()

    return types.void(flags, types.int64, types.int64, types.int64), codegen


VOCABULARY = {
    "grid": _constant(0),
    "gridsize": _constant(1),
    "thread_index": _constant(0),
    "block_index": _constant(0),
    "block_count": _constant(1),
    "barrier": _nothing,
    "barrier_after": _barrier_after,
    "ticket": _ticket,
    "publish": _publish,
    "await_all": _await_all,
}


def math_functions(compute: DType) -> dict[str, Any]:
    """The primitives of formulas for a floating compute type. `math.exp(float32)` is expf in Numba."""
    rounding = {name: llvm_function(MACHINE, f"llvm.{name}", compute) for name in ("floor", "ceil", "trunc", "rint")}
    binary = {
        "fmod": binary_llvm(MACHINE, compute, lambda b, x, y: b.frem(x, y)),
        "copysign": binary_llvm(MACHINE, compute, _copysign),
    }
    libm = {name: _libm(name, arity, compute) for name, arity in _LIBM.items()}
    return {**{name: getattr(math, name) for name in _MATH}, **rounding, **binary, **libm}


def compile_kernel(
    function: FunctionType, arguments: tuple[Any, ...], threads: int, architecture: str
) -> tuple[bytes, str]:
    """Object code and the name of its entry."""
    compiled = compile_library(function, arguments)
    return compiled.library._get_compiled_object(), compiled.fndesc.llvm_func_name


def compile_library(function: FunctionType, arguments: tuple[Any, ...]) -> Any:
    """What Numba's compiler returns: `library` holds the machine code, `fndesc` its names."""
    context = cpu_target.typing_context, cpu_target.target_context
    return compile_extra(*context, function, arguments, types.void, _flags(), {})
