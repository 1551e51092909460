"""Kernels for the host: one block of one thread, compiled by Numba's CPU target to an object file."""

from __future__ import annotations

import functools
import math
from types import CodeType, FunctionType
from typing import Any

from llvmlite import ir
from numba.core import cgutils, compiler, types, typing
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.extending import _Intrinsic
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
    flags.no_compile = True  # by Numba's own engine, which runs what it compiles: `_Library.emit` does it
    flags.error_model = "numpy"
    return flags


class _Typing(typing.Context):
    """Numba's typing context for the host, that remembers what Numba's own functions return for which operands.

    To find out what the sum of two numbers is, Numba asks some twenty templates, most of them NumPy's, each time:
    a fifth of the time of a compile.
    """

    def __init__(self) -> None:
        self.__dict__ = cpu_target.typing_context.__dict__  # its very state, one method differs
        self._remembered: dict[tuple[Any, tuple[Any, ...]], Any] = {}

    def resolve_function_type(self, func: Any, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        if kws or not _is_settled(func.typing_key if isinstance(func, types.Function) else func):
            return super().resolve_function_type(func, args, kws)
        key = func, args  # it holds `func`, which holds the implementations of the signatures that it gave
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = super().resolve_function_type(func, args, kws)
        return found


def _is_settled(function: Any) -> bool:
    """Whether nobody gives it another meaning later, as `numba.extending.overload` may to a function of the user's."""
    settled = ("_operator", "builtins", "math")
    return isinstance(function, (_Intrinsic, str)) or getattr(function, "__module__", "") in settled  # "getiter"


# A rewrite of expressions of arrays, of which kernels have none, and a report of threads.
_NEEDLESS = {"NopythonRewrites", "DumpParforDiagnostics"}
_OF_CLOSURES = {"InlineClosureLikes"}


class _Compiler(CompilerBase):
    """Numba's passes without those that find nothing to do in our kernels; each of them analyses the function anew."""

    def define_pipelines(self) -> list[Any]:
        constants = self.state.func_id.code.co_consts
        return [_passes(any(isinstance(constant, CodeType) for constant in constants))]


@functools.cache
def _passes(closures: bool) -> Any:
    """The passes of a function that does, or does not, define another one. They keep nothing of what they compile."""
    state = CompilerBase(_TYPING, cpu_target.target_context, None, (), types.void, _flags(), {}).state
    manager = DefaultPassBuilder.define_nopython_pipeline(state)
    needless = _NEEDLESS if closures else _NEEDLESS | _OF_CLOSURES
    manager.passes = [(each, said) for each, said in manager.passes if each.__name__ not in needless]
    manager.finalize()
    return manager


class _Library(CPUCodeLibrary):
    """A kernel and its parts as one module of LLVM: optimised once, as a whole, and emitted as an object file.

    Numba's own libraries are one for every part: each is optimised, compiled to machine code that nobody runs, and
    kept in Numba's engine for the life of the process, which is slower the more it holds.
    """

    def add_llvm_module(self, ll_module: Any) -> None:
        # Numba's passes for single functions stay: without them some loops are not vectorised later
        ll_module.data_layout = self._codegen._data_layout
        manager, builder = self._codegen._function_pass_manager()
        for function in ll_module.functions:
            if not function.is_declaration:
                manager.run(function, builder)
        self._final_module.link_in(ll_module)

    def emit(self, entry: str) -> bytes:
        """The object file. Of its names it shows only the entry."""
        with global_compiler_lock:
            image: bytes = self._codegen._tm.emit_object(self._optimized(entry))
        return image

    def emit_assembly(self, entry: str) -> str:
        """The same as text."""
        with global_compiler_lock:
            text: str = self._codegen._tm.emit_assembly(self._optimized(entry))
        return text

    def _optimized(self, entry: str) -> Any:
        self._entry = entry
        self.finalize()
        return self._final_module

    def _optimize_final_module(self) -> None:
        for defined in (*self._final_module.functions, *self._final_module.global_variables):
            if not defined.is_declaration and defined.name != self._entry:
                defined.linkage = "internal"  # so what is inlined everywhere is not compiled on its own
        # Numba has a cheaper pass before, to count references; kernels have none
        manager, builder = self._codegen._module_pass_manager()
        manager.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._verify_declare_only_symbols()
        self._finalized = True


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


def _compile(library: Any, function: FunctionType, arguments: tuple[Any, ...], result: Any) -> Any:
    """A function compiled into the library: `fndesc` is Numba's description of it."""
    context = cpu_target.target_context
    return compile_extra(
        _TYPING, context, function, arguments, result, _flags(), {}, library=library, pipeline_class=_Compiler
    )


def _compile_part(context: Any, b: ir.IRBuilder, function: FunctionType, signature: Any) -> Any:
    return _compile(context.active_code_library, function, signature.args, signature.return_type)


_TYPING = _Typing()
MACHINE = Machine(
    types, intrinsic, _flags, _half_to_float, _float_to_half, _float_to_bfloat, stack_array, _result_type, _compile_part
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
    library, entry = _compiled(function, arguments)
    return library.emit(entry), entry


def assembly(function: FunctionType, arguments: tuple[Any, ...]) -> str:
    """The machine code of a kernel, as text."""
    library, entry = _compiled(function, arguments)
    return library.emit_assembly(entry)


def _compiled(function: FunctionType, arguments: tuple[Any, ...]) -> tuple[_Library, str]:
    library = _Library(cpu_target.target_context.codegen(), function.__qualname__)
    return library, _compile(library, function, arguments, types.void).fndesc.llvm_func_name
