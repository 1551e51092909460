"""What decides what a Python function does: its code, and all that its free names stand for. Imports no Numba.

A kernel may be typed at a prompt, made by another function, or call helpers of other modules. So its key in the compile
cache is no file: it is its byte code, the constants that it captured, and the same of every function that it calls.
"""

from __future__ import annotations
import __future__

import ast
import dis
import hashlib
import inspect
import itertools
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from ...errors import KernelError
from .. import language

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass
class Captured:
    """The free names of a function and of the functions that it calls.

    Functions are copies that see what their names stood for when they were captured. A kernel is compiled later, for
    each kind of arguments: then a global may have another value, an array other elements.
    """

    function: FunctionType
    values: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)  # the same, in copies that do not change, and words
    functions: dict[str, FunctionType] = field(default_factory=dict)  # those called, each after those that it calls
    cuda: set[str] = field(default_factory=set)  # what is used of numba.cuda
    text: str = ""  # the key: equal for functions that do the same


def capture(function: FunctionType) -> Captured:
    """All of it. Raises KernelError for what no kernel can refer to, and for two meanings of one name."""
    found = Captured(function)
    found.text = hashlib.sha256(_describe_function(function, found, []).encode()).hexdigest()
    found.function = _fixed(function, found.kept)
    found.functions = {name: _fixed(called, found.kept) for name, called in found.functions.items()}
    return found


def _fixed(function: FunctionType, kept: dict[str, Any]) -> FunctionType:
    """The same function, its free names fixed to what is kept of them."""
    outside = function.__globals__
    scope = {name: kept[name] for name in kept.keys() & outside.keys()}
    scope |= {name: outside[name] for name in ("__name__", "__builtins__") if name in outside}
    code, cells = function.__code__, function.__closure__ or ()
    closure = tuple(CellType(kept[n]) if n in kept else c for n, c in zip(code.co_freevars, cells, strict=True))
    copy = FunctionType(code, scope, function.__name__, function.__defaults__, closure or None)
    copy.__annotations__ = function.__annotations__
    return copy


def _describe_function(function: FunctionType, found: Captured, callers: list[FunctionType]) -> str:
    if function in callers:
        raise KernelError(f"{callers[0].__name__}: {function.__name__} calls itself; a kernel's functions cannot")
    parts = [_code_text(function.__code__), repr(function.__defaults__)]
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for code in _codes(function.__code__):
        for name, path in _references(code):
            if name in cells:
                value = _content(cells[name], name, function)
            elif name in function.__globals__:
                value = function.__globals__[name]
            else:
                continue  # a builtin, or a name that the program binds
            parts.append(f"{name} = {_capture_name(name, path, value, found, [*callers, function])}")
    return "; ".join(parts)


def _content(cell: CellType, name: str, function: FunctionType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        raise KernelError(f"{function.__name__}: {name} has no value yet") from None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _references(code: CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(free name, the attributes taken of it: `a.b.c` gives b, c) for each use."""
    steps = list(dis.get_instructions(code))
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"):
            path = itertools.takewhile(lambda s: s.opname in ("LOAD_ATTR", "LOAD_METHOD"), steps[at + 1 : at + 4])
            yield str(step.argval), tuple(str(s.argval) for s in path)


def _capture_name(
    name: str, path: tuple[str, ...], value: Any, found: Captured, callers: list[FunctionType]
) -> str:  # fmt: skip
    if is_word(name, value):
        found.kept.setdefault(name, value)
        return "a word of the language"
    if name in found.values and not _same(found.values[name], value):
        raise KernelError(f"{callers[0].__name__}: {name} means two things in it and its helpers; rename one")
    found.values[name] = value
    if not isinstance(value, ModuleType) or _is_library(value):
        found.kept[name] = _copied(value)
    called = plain_function(value)
    if called is not None:
        if name in found.functions:
            return "described before"
        text = _describe_function(called, found, callers)
        found.functions[name] = called
        return text
    if isinstance(value, ModuleType):
        full = [*value.__name__.split("."), *path]
        if full[:2] == ["numba", "cuda"]:
            found.cuda.add((*full[2:], "?")[0])
        if not _is_library(value):
            return ".".join(full) + _describe_member(value, path, found.kept.setdefault(name, ModuleType(name)))
        return ".".join(full) + (_describe_of_library(value, path[0]) if path else "")
    if (stub := cuda_name(value)) is not None:
        found.cuda.add(stub)
    return _describe(name, value)


_LIBRARIES = {"numba", "numpy", *sys.stdlib_module_names}  # Numba knows what is in them by its name


def _is_library(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] in _LIBRARIES


def _describe_of_library(module: ModuleType, attribute: str) -> str:
    value = getattr(module, attribute, None)
    if not module.__name__.startswith(("numba", "numpy")):
        _refuse_function(module, attribute, value)
    return repr(value) if isinstance(value, _PLAIN) else ""


def _describe_member(module: ModuleType, path: tuple[str, ...], kept: ModuleType) -> str:
    """What module.a.b is; it is put into `kept`, a module of nothing else."""
    if not path or not hasattr(module, path[0]):
        return ""
    value = getattr(module, path[0])
    _refuse_function(module, path[0], value)
    if not isinstance(value, ModuleType) or _is_library(value):
        setattr(kept, path[0], _copied(value))
        return _describe(path[0], value)
    if not hasattr(kept, path[0]):
        setattr(kept, path[0], ModuleType(path[0]))
    return _describe_member(value, path[1:], getattr(kept, path[0]))


def _refuse_function(module: ModuleType, attribute: str, value: Any) -> None:
    if plain_function(value) is not None:
        raise KernelError(f"{module.__name__}.{attribute}: import the function itself: from {module.__name__} import …")


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return tuple(map(_copied, value)) if type(value) is tuple else value


def _describe(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, tuple):  # repr would leave out elements of large arrays
        elements = ", ".join(_describe(name, v) for v in value)
        return f"{type(value).__name__} {getattr(value, '_fields', '')} ({elements})"
    text = f"{type(value).__name__} {value!r}"
    if not isinstance(value, _PLAIN) and " at 0x" in text:
        raise KernelError(f"{name}: a kernel cannot use a {type(value).__name__}; pass it as an argument")
    return text


def is_word(name: str, value: Any) -> bool:
    """Whether a name stands for a word of the kernel language, whose meaning comes with the machine."""
    if isinstance(value, FunctionType) and value.__module__ == language.__name__:
        return True
    return name in vars(language) and vars(language)[name] is value and not isinstance(value, ModuleType)


def plain_function(value: Any) -> FunctionType | None:
    """The Python function behind a function or one of Numba's dispatchers."""
    value = getattr(value, "py_func", value)
    return value if isinstance(value, FunctionType) else None


def cuda_name(value: Any) -> str | None:
    """`grid` for a value that was imported by `from numba.cuda import grid`."""
    cuda = sys.modules.get("numba.cuda")
    name = getattr(value, "__name__", None)
    ours = cuda is not None and isinstance(name, str) and str(getattr(value, "__module__", "")).startswith("numba.cuda")
    return str(name) if ours and getattr(cuda, str(name), None) is value else None


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, _PLAIN) and type(a) is type(b) and repr(a) == repr(b))


def _code_text(code: CodeType) -> str:
    constants = [
        _code_text(c)
        if isinstance(c, CodeType)
        else repr(sorted(map(repr, c)))
        if isinstance(c, frozenset)
        else repr(c)
        for c in code.co_consts
    ]
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return repr((code.co_code, constants, shape, names, getattr(code, "co_exceptiontable", b"")))


# --- which operands it writes -----------------------------------------------------------------------------------------
def written(function: FunctionType) -> frozenset[str]:
    """Parameters that the function may write to, read off its source; all of them where that cannot be told."""
    names = frozenset(inspect.signature(function).parameters)
    tree = _verified_source(function)
    if tree is None:
        return names
    stored = _stored_through(tree)
    if stored - names:
        return names  # through another name, which may be a view of any operand
    harmless = {id(node) for parent in ast.walk(tree) for node in _only_read(parent)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in harmless}
    return names & (used | stored)


def marks(function: FunctionType) -> tuple[str, ...]:
    """What each parameter is annotated with, by name: "Pointer", "Number", "int" …, "None" without.

    Pointer and Number are one object to Python, `Any`: where an annotation is that, its name is read off the source.
    """
    given = [function.__annotations__.get(name) for name in inspect.signature(function).parameters]
    names = [str(getattr(a, "__name__", a)).rpartition(".")[2] for a in given]
    if Any in given:
        code = function.__code__
        if (code, code.co_filename) not in _SOURCE_MARKS:
            _SOURCE_MARKS[code, code.co_filename] = _source_marks(_verified_source(function))
        written_as = _SOURCE_MARKS[code, code.co_filename]
        names = [m if a is not Any else written_as.get(p, m) for p, a, m in zip(code.co_varnames, given, names)]
    return tuple(names)


_SOURCE_MARKS: dict[tuple[CodeType, str], dict[str, str]] = {}  # sources are slow to read


def _source_marks(tree: ast.AST | None) -> dict[str, str]:
    arguments = tree.args.args if isinstance(tree, ast.FunctionDef) else []
    found = {a.arg: a.annotation for a in arguments}
    named = {p: a.attr if isinstance(a, ast.Attribute) else getattr(a, "id", "") for p, a in found.items()}
    return {p: name for p, name in named.items() if name in ("Pointer", "Number")}


_ATTRIBUTES = ("shape", "size", "ndim", "strides", "itemsize", "nbytes")


def _only_read(node: ast.AST) -> list[ast.expr]:
    """The operands of an expression that it does no more with than read."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return [node.value]
    if isinstance(node, ast.Attribute) and node.attr in _ATTRIBUTES:
        return [node.value]
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        reads = node.func.id.startswith("load_") or node.func.id in ("len", "range", "min", "max")
        return list(node.args) if reads else []
    return []


def _stored_through(tree: ast.AST) -> set[str]:
    """Names that elements are stored through, but for arrays that the kernel makes by a call."""
    made, stored = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            base = node.value
            while isinstance(base, (ast.Subscript, ast.Attribute)):
                base = base.value
            stored.add(base.id if isinstance(base, ast.Name) else "?")
    return stored - made


_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def _verified_source(function: FunctionType) -> ast.AST | None:
    """The function's syntax tree, if its source is at hand and does compile to its code."""
    wanted = function.__code__
    text = "".join(linecache.getlines(wanted.co_filename, function.__globals__))
    try:
        tree = ast.parse(text)
        compiled = compile(text, wanted.co_filename, "exec", wanted.co_flags & _FUTURES, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    found = [code for code in _codes(compiled) if code.co_firstlineno == wanted.co_firstlineno]
    if not any(_code_text(code) == _code_text(wanted) for code in found):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == wanted.co_name:
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            if first == wanted.co_firstlineno:
                return node
    return None
