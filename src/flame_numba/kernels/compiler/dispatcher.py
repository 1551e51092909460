"""A kernel of the library as an ordinary dispatcher of Numba's: `jit[blocks, threads](y, x, n)` on device arrays.

Our kernels take addresses, Numba's dispatchers pass arrays. So the dispatcher is that of a function which takes the
address of each array, brings each number to its type, and calls the kernel, which is compiled into it.
"""

from __future__ import annotations

import inspect
from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import types
from numba.cuda.core.errors import TypingError
from numba.cuda.extending import intrinsic

from ...dtypes import DType, bfloat16, float16
from . import compile as compiler
from . import intrinsics
from .compile import Program
from .machine_cuda import MACHINE


def dispatcher(program: Program) -> Any:
    """The program as a `numba.cuda.jit` dispatcher, compiled by Numba at its first launch, for the GPU at hand.

    Its block may not have more threads than the program says.
    """
    key = compiler.digest(program.text(), "dispatcher")
    kernel, _ = compiler.bound(program, "cuda", key)
    parameters = tuple(inspect.signature(compiler.body(program)).parameters)
    names: dict[str, Any] = {"kernel_": intrinsics.python_function(MACHINE, kernel, len(parameters), None, None)}
    values = []
    for parameter, argument in zip(parameters, program.arguments, strict=True):
        names[f"{parameter}_"] = _conversion(program, parameter, argument)
        values.append(f"{parameter}_({parameter})")
    given = ", ".join(parameters)
    scope: dict[str, Any] = {}
    exec(f"def wrapper({given}):\n    kernel_({', '.join(values)})\n", scope)
    function = compiler._rebind(scope["wrapper"], names, program.name)
    function.__doc__ = f"{program.name}({given}): arrays on the device for pointers, numbers for the rest."
    # not optimised once more when it is linked: its machine code is made as that of `machine_cuda` is
    return cuda.jit(launch_bounds=program.threads, lto=False)(function)


def _conversion(program: Program, parameter: str, argument: DType | str) -> Any:
    """What makes the kernel's argument of the dispatcher's."""
    if isinstance(argument, DType):
        return _address(f"{program.name}: {parameter}", argument)
    return types.int64 if argument == "int" else MACHINE.compute_type(program.compute)


def _elements(dtype: DType) -> tuple[Any, ...]:
    """Numba's types of array elements that hold such a dtype: its own, or bits where Numba computes in another way."""
    if dtype is bfloat16:
        return types.uint16, types.bfloat16
    if dtype is float16:
        return types.float16, types.uint16
    return (types.boolean, types.uint8) if dtype.kind == "bool" else (getattr(types, dtype.name),)


def _address(where: str, dtype: DType) -> Any:
    """A function of the kernel: array → address of its first element."""
    element = MACHINE.storage_type(dtype)
    taken = _elements(dtype)

    @intrinsic
    def address(typingctx: Any, array: Any) -> Any:
        if not isinstance(array, types.Array) or array.dtype not in taken or array.layout != "C":
            wanted = " or ".join(str(t) for t in taken)
            raise TypingError(f"{where}: expected an array of {wanted} in row-major order, got {array}")

        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            data = context.make_array(array)(context, b, args[0]).data
            return b.bitcast(data, context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(array), codegen

    return address
