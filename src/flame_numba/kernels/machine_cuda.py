"""Kernels for NVIDIA GPUs: compiled by numba-cuda to PTX and linked to machine code, without a GPU at hand."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any

from cuda.bindings import nvjitlink
from llvmlite import ir
from numba import cuda
from numba.cuda import libdevice, types
from numba.cuda.compiler import CUDAFlags
from numba.cuda.extending import intrinsic

from ..dtypes import DType, float64
from ..errors import KernelError
from .intrinsics import F32, I16, I32, I64, Machine

_MATH = (
    "exp expm1 log log1p sqrt rsqrt erf erfc sin cos tan sinh cosh tanh asin acos atan asinh acosh atanh "
    "floor ceil trunc rint atan2 pow fmod copysign"
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


MACHINE = Machine(
    types,
    intrinsic,
    _flags,
    half_to_float=_convert("cvt.f32.f16 $0, $1;", "=f,h", F32),
    float_to_half=_convert("cvt.rn.f16.f32 $0, $1;", "=h,f", I16),
    float_to_bfloat=_convert("cvt.rn.bf16.f32 $0, $1;", "=h,f", I16),
    shared_array=_shared_array,
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


VOCABULARY = {
    "grid": _index("ctaid.x", "ntid.x", "tid.x"),
    "gridsize": _index("nctaid.x", "ntid.x"),
    "thread_index": _index("tid.x"),
    "block_index": _index("ctaid.x"),
    "block_count": _index("nctaid.x"),
    "barrier": cuda.syncthreads,
}


def math_functions(compute: DType) -> dict[str, Any]:
    """The primitives of formulas for a floating compute type: libdevice's."""
    suffix = "" if compute is float64 else "f"
    return {name: getattr(libdevice, name + suffix) for name in _MATH}


def compile_kernel(
    function: FunctionType, arguments: tuple[Any, ...], threads: int, architecture: str
) -> tuple[bytes, str]:
    """Machine code (cubin) for an architecture such as "sm_90a", and the name of its entry."""
    major, minor, suffix = re.fullmatch(r"sm_(\d+)(\d)([a-z]?)", architecture).groups()  # type: ignore[union-attr]
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
    entry = re.search(r"\.entry\s+([\w$]+)\s*\(", ptx).group(1)  # type: ignore[union-attr]
    return link(ptx, architecture)[0], entry


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
