"""A kernel made of named pieces: plain functions, compiled into it.

A piece is found where Python finds it, in the module of the function that calls it. It may take pointers, numbers,
named tuples, and other pieces (a hook, such as an epilogue). Its annotation says how it is compiled: one that returns
None, an int, a bool or a Number as a function of that type, which is quick to compile; any other has its result's type
inferred, and so do the pieces that it calls.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from ...dtypes import DType, bool_, int64
from ...errors import KernelError
from .. import language
from ..language import Helper, Inline


def pieces(
    body: Callable[..., Any], compute: DType, bound: Mapping[str, Any], words: Mapping[str, Callable[..., Any]]
) -> dict[str, Helper | Inline]:
    """Bindings for `body` and all that it calls, the called first.

    bound: names that have a meaning already. words: meanings for names that the functions leave open.
    """
    found: dict[str, Callable[..., Any]] = {}
    inferred: set[str] = set()

    def visit(name: str, function: Callable[..., Any], within: bool) -> None:
        if found.get(name, function) is not function:
            raise KernelError(f"{body.__name__}: two pieces are called {name}")
        within |= _result(function) not in _RESULTS
        if name in found and (name in inferred or not within):
            return
        if within:
            inferred.add(name)
        for called, piece in _called(function, bound, words):
            visit(called, piece, within)
        found.setdefault(name, function)

    visit(body.__name__, body, False)
    return {name: _piece(function, compute, name in inferred) for name, function in found.items()}


_RESULTS: dict[str, DType | None] = {"None": None, "int": int64, "bool": bool_, "Number": None}


def _result(function: Callable[..., Any]) -> str:
    return str(function.__annotations__.get("return"))


def _piece(function: Callable[..., Any], compute: DType, inferred: bool) -> Helper | Inline:
    if inferred:
        return Inline(function)
    result = _result(function)
    return Helper(function, function.__code__.co_argcount, compute if result == "Number" else _RESULTS[result])


def _called(
    function: Callable[..., Any], bound: Mapping[str, Any], words: Mapping[str, Callable[..., Any]]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in _globals(function.__code__):
        value = words.get(name, function.__globals__.get(name))
        if name not in bound and isinstance(value, FunctionType) and value.__module__ != language.__name__:
            yield name, value


@functools.cache
def _globals(code: CodeType) -> tuple[str, ...]:
    """The names that a function looks up outside itself, in the order that it does."""
    return tuple(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"))
