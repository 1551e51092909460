"""What a kernel is called with, written down once.

    PRODUCT = Arguments(
        product, y="y", a=operand("a", "row column"), b=operand("b", "row column"), size=integers("m n")
    )

From this follow the types of the call, the order of what a launch passes, and the kernel that unpacks it. The body
gets each group as a named tuple, a value that costs nothing once it is compiled in:

    def product(y, a, b, size):
        … load_a(a.data, i * a.row + k * a.column) …
"""

from __future__ import annotations

import functools
import inspect
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...dtypes import DType
from ...errors import KernelError
from ..compiler.compile import Program
from .pieces import pieces


@dataclass(frozen=True)
class Group:
    """Arguments that belong together, by name: "int", "number", another group, or whose elements a pointer leads to."""

    fields: tuple[tuple[str, str | Group], ...]

    @functools.cached_property
    def form(self) -> type:
        """The named tuple that a kernel gets; groups with the same names have the same."""
        return _form(tuple(name for name, _ in self.fields))

    def flat(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Each argument's name and kind, in the order of the call."""
        for name, kind in self.fields:
            if isinstance(kind, Group):
                yield from kind.flat(f"{prefix}{name}_")
            else:
                yield prefix + name, kind

    def forms(self) -> Iterator[tuple[Group, str]]:
        """The groups in it, and itself, with the name of each one's form."""
        for _, kind in self.fields:
            if isinstance(kind, Group):
                yield from kind.forms()
        yield self, "form_" + "_".join(name for name, _ in self.fields)

    def unpacked(self, prefix: str) -> str:
        """The expression that makes the named tuple of a kernel's parameters."""
        parts = [
            kind.unpacked(f"{prefix}{name}_") if isinstance(kind, Group) else prefix + name
            for name, kind in self.fields
        ]  # fmt: skip
        return f"form_{'_'.join(name for name, _ in self.fields)}({', '.join(parts)})"

    def extend(self, given: list[Any], values: Any, label: str) -> None:
        """Append the values of this group, in the order of the call. Raises KernelError for too few or too many."""
        if len(values) != len(self.fields):
            names = ", ".join(name for name, _ in self.fields)
            raise KernelError(f"{label}: expected {len(self.fields)} values ({names}), got {len(values)}")
        for (name, kind), value in zip(self.fields, values, strict=True):
            if isinstance(kind, Group):
                kind.extend(given, value, f"{label}.{name}")
            else:
                given.append(value)


@functools.cache
def _form(names: tuple[str, ...]) -> type:
    return namedtuple("Values", names)


def _plain(kind: Group) -> int:
    """How many values a group has that holds no others; −1 for one that does."""
    return -1 if any(isinstance(inner, Group) for _, inner in kind.fields) else len(kind.fields)


def group(**fields: str | Group) -> Group:
    return Group(tuple(fields.items()))


def integers(names: str) -> Group:
    return Group(tuple((name, "int") for name in names.split()))


def operand(elements: str, strides: str) -> Group:
    """`data`, a pointer to elements of a kind, and strides along the axes of these names."""
    return Group((("data", elements), *integers(strides).fields))


class Arguments:
    """The groups that a kernel's body takes, in its order, and all that follows from them."""

    def __init__(self, body: Callable[..., None], **groups: str | Group) -> None:
        parameters = tuple(inspect.signature(body).parameters)
        if parameters != tuple(groups):
            raise KernelError(f"{body.__name__} takes {parameters}, not {tuple(groups)}")
        self.body = body
        self.name = body.__name__
        self.groups = group(**groups)
        self.flat = tuple(self.groups.flat())
        self._order: list[tuple[str, Any, int | None]] = [
            (name, kind, _plain(kind) if isinstance(kind, Group) else None) for name, kind in groups.items()
        ]

    def types(self, elements: Mapping[str, DType]) -> tuple[DType | str, ...]:
        """A program's `arguments`. elements: the dtype of each kind of elements that pointers lead to."""
        kinds = {kind for _, kind in self.flat} - {"int", "number"}
        if kinds != set(elements):
            raise KernelError(f"{self.name}: needs dtypes for {sorted(kinds)}, got them for {sorted(elements)}")
        return tuple(elements.get(kind, kind) for _, kind in self.flat)

    def pack(self, **values: Any) -> tuple[Any, ...]:
        """The arguments of a launch: for each group its values, a sequence, in the order of its names."""
        given: list[Any] = []
        for name, kind, plain in self._order:
            if name not in values:
                raise KernelError(f"{self.name}: {name} is missing")
            value = values[name]
            if plain is None:
                given.append(value)
            elif len(value) == plain:  # the short way: most groups hold no others
                given += value
            else:
                kind.extend(given, value, f"{self.name}.{name}")
        if len(values) != len(self._order):
            raise KernelError(f"{self.name}: takes no {', '.join(values.keys() - dict(self.groups.fields))}")
        return tuple(given)

    @functools.cached_property
    def source(self) -> str:
        """The kernel: it takes all arguments one by one, and hands them to the body in groups."""
        names = ", ".join(name for name, _ in self.flat)
        parts = ", ".join(k.unpacked(f"{n}_") if isinstance(k, Group) else n for n, k in self.groups.fields)
        return f"def kernel({names}):\n    {self.name}({parts})\n"

    def program(
        self, name: str, elements: Mapping[str, DType], compute: DType, bindings: Mapping[str, Any], threads: int = 256,
        **words: Callable[..., Any],
    ) -> Program:  # fmt: skip
        """The kernel with every choice made. words: meanings of names that the body leaves open."""
        forms = {label: part.form for part, label in self.groups.forms()}
        bound = {**bindings, **forms}
        bound |= pieces(self.body, compute, bound, words)
        return Program(name, self.types(elements), compute, bound, source=self.source, threads=threads)


__all__ = ["Arguments", "Group", "group", "integers", "operand"]
