"""Kernels for NVIDIA GPUs: compiled by numba-cuda to PTX and linked to machine code, without a GPU at hand."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any

from cuda.bindings import nvjitlink
from llvmlite import ir
from numba import cuda
from numba.cuda import compiler, libdevice, types
from numba.cuda.compiler import CUDAFlags
from numba.cuda.core.typed_passes import type_inference_stage
from numba.cuda.descriptor import cuda_target
from numba.cuda.extending import intrinsic

from ...dtypes import DType, float64
from ...errors import KernelError
from .intrinsics import F32, I16, I32, I64, Machine

_MATH = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt erf erfc lgamma sin cos tan sinh cosh tanh asin acos atan "
    "asinh acosh atanh floor ceil trunc rint atan2 pow fmod copysign hypot"
).split()


def _convert(text: str, constraint: str, result: ir.Type) -> Any:
    def convert(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [value.type])
        return b.call(ir.InlineAsm(kind, text, constraint), [value])

    return convert


def _shared_array(b: ir.IRBuilder, kind: ir.Type, length: int) -> ir.Value:
    name = b.module.get_unique_name("shared")
    memory = ir.GlobalVariable(b.module, ir.ArrayType(kind, length), name, addrspace=3)
    memory.linkage = "internal"
    memory.initializer = ir.Constant(memory.type.pointee, ir.Undefined)
    memory.align = 16
    return b.addrspacecast(b.bitcast(memory, kind.as_pointer(3)), kind.as_pointer())


def _flags() -> CUDAFlags:
    flags = CUDAFlags()
    flags.error_model = "numpy"
    flags.nvvm_options = {}
    return flags


def _result_type(typingctx: Any, function: FunctionType, arguments: tuple[Any, ...]) -> Any:
    """What a function returns for arguments of these types, by Numba's inference."""
    code = compiler.run_frontend(function, inline_closures=True)
    return type_inference_stage(typingctx, cuda_target.target_context, code, arguments, None).return_type


def _compile_part(context: Any, b: ir.IRBuilder, function: FunctionType, signature: Any) -> Any:
    """A function that the kernel being compiled calls: Numba's description of it (`fndesc`), and its `library`."""
    # without Numba's cache: it knows a function by its code, and ours share code under different bindings
    return context.compile_subroutine(b, function, signature, flags=_flags(), caching=False)


MACHINE = Machine(
    types,
    intrinsic,
    _flags,
    half_to_float=_convert("cvt.f32.f16 $0, $1;", "=f,h", F32),
    float_to_half=_convert("cvt.rn.f16.f32 $0, $1;", "=h,f", I16),
    float_to_bfloat=_convert("cvt.rn.bf16.f32 $0, $1;", "=h,f", I16),
    shared_array=_shared_array,
    result_type=_result_type,
    compile_part=_compile_part,
)


def _register(b: ir.IRBuilder, name: str) -> ir.Value:
    read = b.module.declare_intrinsic(f"llvm.nvvm.read.ptx.sreg.{name}", (), ir.FunctionType(I32, ()))
    return b.zext(b.call(read, ()), I64)


def _index(*names: str) -> Any:
    """An int64 from special registers: one of them, the product of two, or a·b + c."""

    @intrinsic
    def index(typingctx: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values = [_register(b, name) for name in names]
            product = b.mul(values[0], values[1]) if len(values) > 1 else values[0]
            return b.add(product, values[2]) if len(values) > 2 else product

        return types.int64(), codegen

    return index


def _asm(b: ir.IRBuilder, text: str, constraint: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    """An instruction that reads or writes memory: it stays where it is, and memory accesses on their side of it."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return b.call(ir.InlineAsm(kind, text, constraint + ",~{memory}", side_effect=True), args, attrs=("convergent",))


def _at(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value | None = None) -> ir.Value:
    """The address in global memory of a number of 64 bits."""
    element = b.gep(b.bitcast(pointer, I64.as_pointer()), [index or ir.Constant(I64, 0)])
    return b.addrspacecast(element, I64.as_pointer(1))


@intrinsic
def _barrier_after(typingctx: Any, value: Any) -> Any:
    """Each thread's vote depends on its value, so it cannot be cast while the value is still being loaded.

    A plain barrier lets loads pass that are not used yet: their addresses could be read after it.
    """

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(I32, [I32])
        vote = b.module.globals.get("llvm.nvvm.barrier0.or") or ir.Function(b.module, kind, "llvm.nvvm.barrier0.or")
        b.call(vote, [b.trunc(args[0], I32)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _ticket(typingctx: Any, counter: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _asm(b, "atom.relaxed.gpu.global.add.u64 $0, [$1], 1;", "=l,l", I64, [_at(b, args[0])])

    return types.int64(counter), codegen


@intrinsic
def _publish(typingctx: Any, flags: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        _asm(b, "st.release.gpu.global.u64 [$0], $1;", "l,l", ir.VoidType(), [_at(b, args[0], args[1]), args[2]])
        return context.get_dummy_value()

    return types.void(flags, types.int64, types.int64), codegen


_AWAIT = """{
    .reg .pred stop;
    .reg .u64 at, found;
    mov.u64 at, $0;
next:
    setp.ge.u64 stop, at, $1;
    @stop bra done;
again:
    ld.acquire.gpu.global.u64 found, [at];
    setp.ne.u64 stop, found, $2;
    @stop bra again;
    add.u64 at, at, 8;
    bra next;
done:
}"""


@intrinsic
def _await_all(typingctx: Any, flags: Any, first: Any, end: Any, value: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        begin, end = _at(b, args[0], args[1]), _at(b, args[0], args[2])
        _asm(b, _AWAIT, "l,l,l", ir.VoidType(), [begin, end, args[3]])
        return context.get_dummy_value()

    return types.void(flags, types.int64, types.int64, types.int64), codegen


VOCABULARY = {
    "grid": _index("ctaid.x", "ntid.x", "tid.x"),
    "gridsize": _index("nctaid.x", "ntid.x"),
    "thread_index": _index("tid.x"),
    "block_index": _index("ctaid.x"),
    "block_count": _index("nctaid.x"),
    "barrier": cuda.syncthreads,
    "barrier_after": _barrier_after,
    "ticket": _ticket,
    "publish": _publish,
    "await_all": _await_all,
}


def math_functions(compute: DType) -> dict[str, Any]:
    """The primitives of formulas for a floating compute type: libdevice's."""
    suffix = "" if compute is float64 else "f"
    return {name: getattr(libdevice, name + suffix) for name in _MATH}


def compile_kernel(
    function: FunctionType, arguments: tuple[Any, ...], threads: int, architecture: str
) -> tuple[bytes, str]:
    """Machine code (cubin) for an architecture such as "sm_90a", and the name of its entry."""
    ptx, entry = compile_ptx(function, arguments, threads, architecture)
    return link(ptx, architecture)[0], entry


def compile_ptx(function: FunctionType, arguments: tuple[Any, ...], threads: int, architecture: str) -> tuple[str, str]:
    """PTX for an architecture, and the name of its entry."""
    found = re.fullmatch(r"sm_(\d+)(\d)([a-z]?)", architecture)
    if found is None:
        raise KernelError(f"architecture={architecture!r}: expected a name such as 'sm_90a'")
    major, minor, suffix = found.groups()
    capability = (int(major), int(minor), suffix) if suffix else (int(major), int(minor))
    ptx, _ = cuda.compile(
        function,
        types.void(*arguments),
        device=False,
        abi="numba",
        cc=capability,
        output="ptx",
        launch_bounds=threads,
    )
    return ptx, re.search(r"\.entry\s+([\w$]+)\s*\(", ptx).group(1)  # type: ignore[union-attr]


def link(ptx: str, architecture: str) -> tuple[bytes, str]:
    """Machine code, and ptxas's report of registers and spills. Raises KernelError with its log."""
    options = [f"-arch={architecture}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        data = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel")
        nvjitlink.complete(handle)
        image = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, image)
        return bytes(image), _log(handle, nvjitlink.get_info_log_size, nvjitlink.get_info_log)
    except nvjitlink.nvJitLinkError as error:
        log = _log(handle, nvjitlink.get_error_log_size, nvjitlink.get_error_log)
        raise KernelError(f"nvJitLink: {error}: {log}") from None
    finally:
        nvjitlink.destroy(handle)


def _log(handle: Any, size: Any, read: Any) -> str:
    text = bytearray(max(size(handle), 1))
    read(handle, text)
    return text.decode(errors="replace").strip("\0")
