"""C functions around Python ones, for libraries that call back at moments of their own choosing.

A callback of `ctypes` alone is not enough there: an error may be pending in Python, which the callback would trip over
and lose, or Python may have ended, so that it must not run at all. So two small functions of machine code go before it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# %p is what the library passes; the names in braces are addresses
_SHIELD = """
define void @{name}(ptr %p) {{
  %t = alloca ptr
  %v = alloca ptr
  %b = alloca ptr
  %running = call i32 inttoptr (i64 {Py_IsInitialized} to ptr)()
  %ended = icmp eq i32 %running, 0
  br i1 %ended, label %done, label %go
go:
  %gil = call i32 inttoptr (i64 {PyGILState_Ensure} to ptr)()
  call void inttoptr (i64 {PyErr_Fetch} to ptr)(ptr %t, ptr %v, ptr %b)
  {body}
restore:
  %t1 = load ptr, ptr %t
  %v1 = load ptr, ptr %v
  %b1 = load ptr, ptr %b
  call void inttoptr (i64 {PyErr_Restore} to ptr)(ptr %t1, ptr %v1, ptr %b1)
  call void inttoptr (i64 {PyGILState_Release} to ptr)(i32 %gil)
  br label %done
done:
  ret void
}}
"""
_CALL = """call void inttoptr (i64 {callback} to ptr)(ptr %p)
  br label %restore"""
_DESTROY = """%name = inttoptr i64 {capsule_name} to ptr
  %named = call i32 inttoptr (i64 {PyCapsule_IsValid} to ptr)(ptr %p, ptr %name)
  %used = icmp eq i32 %named, 0
  br i1 %used, label %restore, label %unused
unused:
  %held = call ptr inttoptr (i64 {PyCapsule_GetPointer} to ptr)(ptr %p, ptr %name)
  %place = getelementptr i8, ptr %held, i64 {offset}
  %deleter = load ptr, ptr %place
  call void %deleter(ptr %held)
  br label %restore"""

_KEPT: list[Any] = []  # C code may call them until the process ends


def shielded(callback: Callable[[int], None]) -> int:
    """The address of `void f(void *p)` that calls `callback(p)` under the interpreter's lock.

    It leaves a pending error as it is, and does nothing once Python has ended.
    """
    function = Callback(callback)
    _KEPT.append(function)
    address = ctypes.cast(function, ctypes.c_void_p).value
    return _compile(f"flame_shield_{len(_KEPT)}", _CALL.format(callback=address))


def capsule_destructor(capsule_name: ctypes.Array[ctypes.c_char], offset: int) -> int:
    """The address of a destructor of capsules: one that still has this name holds a struct whose own deleter, the
    function pointer at `offset`, is called; one with another name was taken over.
    """
    _KEPT.append(capsule_name)
    body = _DESTROY.format(
        capsule_name=ctypes.addressof(capsule_name),
        offset=offset,
        **_python("PyCapsule_IsValid", "PyCapsule_GetPointer"),
    )
    return _compile(f"flame_destructor_{len(_KEPT)}", body)


def _python(*names: str) -> dict[str, int]:
    return {n: ctypes.cast(getattr(ctypes.pythonapi, n), ctypes.c_void_p).value or 0 for n in names}


def _compile(name: str, body: str) -> int:
    import llvmlite.binding as llvm

    used = _python("Py_IsInitialized", "PyGILState_Ensure", "PyGILState_Release", "PyErr_Fetch", "PyErr_Restore")
    module = llvm.parse_assembly(_SHIELD.format(name=name, body=body, **used))
    engine = _engine()
    engine.add_module(module)
    engine.finalize_object()
    return int(engine.get_function_address(name))


@functools.cache
def _engine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
