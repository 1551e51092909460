"""C functions around Python ones, for libraries that call back at moments of their own choosing.

A callback of `ctypes` alone is not enough there: an error may be pending in Python, which the callback would trip over
and lose, or Python may have ended or be about to, so that it must not run at all. So two small functions of machine
code go before it. They are made at first use, by one thread, and stay until the process ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from .locks import LLVM

_T = TypeVar("_T")
Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# %p is what the library passes; the names in braces are addresses
_SHIELD = """
define void @{name}(ptr %p) {{
  %t = alloca ptr
  %v = alloca ptr
  %b = alloca ptr
  %running = call i32 inttoptr (i64 {Py_IsInitialized} to ptr)()
  %ended = icmp eq i32 %running, 0
  br i1 %ended, label %done, label %alive
alive:
  %ending = call i32 inttoptr (i64 {is_finalizing} to ptr)()
  %going = icmp eq i32 %ending, 0
  br i1 %going, label %go, label %done
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

_MADE: dict[Any, int] = {}  # addresses of what was compiled, by what it was made of
_NUMBERS = count()  # a finalizer may export in the middle of the first export: then two are made, by names of their own
_ENGINES: list[Any] = []  # the one, once there is one


def keep_for_ever(value: _T) -> _T:
    """The value, which is never freed: threads and C code may use it until the process ends.

    A global of a module is not enough. Python clears modules one after the other while both still run.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value


def shielded(callback: Callable[[int], None]) -> int:
    """The address of `void f(void *p)` that calls `callback(p)` under the interpreter's lock.

    It leaves a pending error as it is, and does nothing once Python ends. The same for the same callback.
    """

    def body() -> str:
        function = keep_for_ever(Callback(callback))
        return _CALL.format(callback=ctypes.cast(function, ctypes.c_void_p).value)

    return _made(callback, body)


def capsule_destructor(capsule_name: ctypes.Array[ctypes.c_char], offset: int) -> int:
    """The address of a destructor of capsules: one that still has this name holds a struct whose own deleter, the
    function pointer at `offset`, is called; one with another name was taken over.
    """
    name = ctypes.addressof(capsule_name)

    def body() -> str:
        keep_for_ever(capsule_name)
        called = _python("PyCapsule_IsValid", "PyCapsule_GetPointer")
        return _DESTROY.format(capsule_name=name, offset=offset, **called)

    return _made((name, offset), body)


def _made(key: Any, body: Callable[[], str]) -> int:
    """The address of the function with this body, compiled once: the first exports may come from several threads."""
    found = _MADE.get(key)
    if found is None:
        with LLVM:
            found = _MADE.get(key)
            if found is None:
                found = _MADE[key] = _compile(f"flame_callback_{next(_NUMBERS)}", body())
    return found


def _python(*names: str) -> dict[str, int]:
    return {n: ctypes.cast(getattr(ctypes.pythonapi, n), ctypes.c_void_p).value or 0 for n in names}


def _compile(name: str, body: str) -> int:
    """Called under the lock."""
    import llvmlite.binding as llvm

    used = _python("Py_IsInitialized", "PyGILState_Ensure", "PyGILState_Release", "PyErr_Fetch", "PyErr_Restore")
    is_finalizing = "Py_IsFinalizing" if hasattr(ctypes.pythonapi, "Py_IsFinalizing") else "_Py_IsFinalizing"
    used["is_finalizing"] = _python(is_finalizing)[is_finalizing]
    module = llvm.parse_assembly(_SHIELD.format(name=name, body=body, **used))
    if not _ENGINES:
        _ENGINES.append(keep_for_ever(_new_engine()))
    engine = _ENGINES[0]
    engine.add_module(module)
    engine.finalize_object()
    return int(engine.get_function_address(name))


def _new_engine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
