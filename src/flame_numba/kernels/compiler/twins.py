"""`numba.cuda` on the host: what a kernel in Numba's own style finds there when it is compiled for the CPU.

The threads of a launch run one after another. Which one runs now stands in a variable of the compiled code, written by
the loop around the kernel and read by `cuda.grid`, `cuda.threadIdx` and their like. So whatever threads do on their
own works as it does on a GPU; a barrier and shared memory only work where a block is one thread.
Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.datamodel import register_default
from numba.core.datamodel.models import OpaqueModel
from numba.core.imputils import lower_constant, lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, typeof_impl

from .intrinsics import I64, inline_function, stack_array
from .machine_host import MACHINE

types: Any = MACHINE.types

# the variable: index of the block (x, y, z), of the thread in it, number of blocks, threads in a block
_FIELDS = {"blockIdx": 0, "threadIdx": 3, "gridDim": 6, "blockDim": 9}
_AXES = ("x", "y", "z")


def _cell(b: ir.IRBuilder, state: str, index: int) -> ir.Value:
    memory = b.module.globals.get(state)
    if memory is None:
        memory = ir.GlobalVariable(b.module, ir.ArrayType(I64, 12), state)
        memory.linkage = "linkonce_odr"
        memory.initializer = ir.Constant(memory.type.pointee, None)
    return b.gep(memory, [ir.Constant(I64, 0), ir.Constant(I64, index)])


class _Triple:
    """The value of `cuda.threadIdx` and its like."""

    def __init__(self, state: str, name: str) -> None:
        self.state, self.name = state, name


class _TripleType(types.Opaque):
    def __init__(self, state: str, name: str) -> None:
        self.state, self.first = state, _FIELDS[name]
        super().__init__(f"cuda.{name} in {state}")


register_default(_TripleType)(OpaqueModel)


@typeof_impl.register(_Triple)
def _(value: _Triple, context: Any) -> _TripleType:
    return _TripleType(value.state, value.name)


@infer_getattr
class _TripleAttributes(AttributeTemplate):
    key = _TripleType

    def generic_resolve(self, kind: _TripleType, attribute: str) -> Any:
        return types.int64 if attribute in _AXES else None


@lower_constant(_TripleType)
def _(context: Any, b: ir.IRBuilder, kind: Any, value: Any) -> ir.Value:
    return context.get_dummy_value()


@lower_getattr_generic(_TripleType)
def _(context: Any, b: ir.IRBuilder, kind: _TripleType, value: Any, attribute: str) -> ir.Value:
    return b.load(_cell(b, kind.state, kind.first + _AXES.index(attribute)))


def _per_axis(state: str, value: Callable[[ir.IRBuilder, Callable[[str, int], ir.Value], int], ir.Value]) -> Any:
    """`cuda.grid` and `cuda.gridsize`: a number for one axis, a tuple for two or three."""

    @intrinsic(prefer_literal=True)
    def per_axis(typingctx: Any, ndim: Any) -> Any:
        count = getattr(ndim, "literal_value", None)
        if count not in (1, 2, 3):
            return None
        result = types.int64 if count == 1 else types.UniTuple(types.int64, count)

        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            def read(name: str, axis: int) -> ir.Value:
                return b.load(_cell(b, state, _FIELDS[name] + axis))

            values = [value(b, read, axis) for axis in range(count)]
            return values[0] if count == 1 else context.make_tuple(b, result, values)

        return result(ndim), codegen

    return per_axis


def set_thread(state: str) -> Any:
    """set_thread(index, value): what the loop around a kernel writes."""

    @intrinsic(prefer_literal=True)
    def write(typingctx: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            b.store(args[1], _cell(b, state, index.literal_value))
            return context.get_dummy_value()

        return types.void(index, types.int64), codegen

    return write


@intrinsic
def _nothing(typingctx: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def _array(typingctx: Any, shape: Any, dtype: Any) -> Any:
    """An array on the stack, its shape known when it is compiled."""
    sizes = shape.literal_value if hasattr(shape, "literal_value") else None
    if isinstance(shape, types.BaseTuple):
        sizes = tuple(getattr(n, "literal_value", None) for n in shape)
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if not sizes or None in sizes:
        return None
    kind = types.Array(dtype.dtype, len(sizes), "C")

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        element = context.get_data_type(kind.dtype)
        nbytes = context.get_abi_sizeof(element)
        count = 1
        strides: list[int] = []
        for n in reversed(sizes):
            strides.insert(0, count * nbytes)
            count *= n
        array = context.make_array(kind)(context, b)
        context.populate_array(
            array,
            data=stack_array(b, element, count),
            shape=cgutils.pack_array(b, [ir.Constant(I64, n) for n in sizes]),
            strides=cgutils.pack_array(b, [ir.Constant(I64, n) for n in strides]),
            itemsize=ir.Constant(I64, nbytes),
            meminfo=None,
        )
        return array._getvalue()

    return kind(shape, dtype), codegen


def _atomic(combine: str) -> Any:
    scope: dict[str, Any] = {}
    text = f"def atomic(array, index, value):\n    old = array[index]\n    array[index] = {combine}\n    return old\n"
    exec(text, scope)
    return scope["atomic"]


_ATOMICS = {
    "add": "old + value",
    "sub": "old - value",
    "max": "value if value > old or old != old else old",
    "min": "value if value < old or old != old else old",
    "and_": "old & value",
    "or_": "old | value",
    "xor": "old ^ value",
    "exch": "value",
}


class Namespace(ModuleType):
    """A module with other meanings for some names, and the real one's for the rest."""

    def __init__(self, real: Any, **names: Any) -> None:
        super().__init__(getattr(real, "__name__", "cuda"))
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def namespace(state: str, numba: Any = None) -> Any:
    """What `cuda` means on the host, for a kernel whose thread index is in the variable `state`."""

    def position(b: ir.IRBuilder, read: Callable[[str, int], ir.Value], axis: int) -> ir.Value:
        return b.add(b.mul(read("blockIdx", axis), read("blockDim", axis)), read("threadIdx", axis))

    def extent(b: ir.IRBuilder, read: Callable[[str, int], ir.Value], axis: int) -> ir.Value:
        return b.mul(read("gridDim", axis), read("blockDim", axis))

    arrays = Namespace(None, array=_array)
    atomics = {name: inline_function(MACHINE, _atomic(text)) for name, text in _ATOMICS.items()}
    return Namespace(
        None,
        **{name: _Triple(state, name) for name in _FIELDS},
        grid=_per_axis(state, position),
        gridsize=_per_axis(state, extent),
        syncthreads=_nothing,
        threadfence=_nothing,
        threadfence_block=_nothing,
        threadfence_system=_nothing,
        shared=arrays,
        local=arrays,
        atomic=Namespace(None, **atomics),
    )
