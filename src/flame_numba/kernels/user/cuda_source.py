"""The parameters of a kernel in CUDA C++, read off its source: what a launch must give it, and what it may write."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...dtypes import (
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)  # fmt: skip
from ...errors import KernelError

_TYPES: dict[str, DType] = {
    "float": float32, "double": float64, "half": float16, "__half": float16,
    "__nv_bfloat16": bfloat16, "nv_bfloat16": bfloat16, "bool": bool_,
    "char": int8, "signed char": int8, "int8_t": int8, "unsigned char": uint8, "uint8_t": uint8,
    "short": int16, "short int": int16, "int16_t": int16,
    "unsigned short": uint16, "unsigned short int": uint16, "uint16_t": uint16,
    "int": int32, "signed": int32, "signed int": int32, "int32_t": int32,
    "unsigned": uint32, "unsigned int": uint32, "uint32_t": uint32,
    "long": int64, "long int": int64, "long long": int64, "long long int": int64, "int64_t": int64, "ptrdiff_t": int64,
    "unsigned long": uint64, "unsigned long int": uint64, "unsigned long long": uint64,
    "unsigned long long int": uint64, "uint64_t": uint64, "size_t": uint64,
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One parameter: a pointer to elements (`dtype` None: of any dtype), or a number of `dtype`."""

    name: str
    dtype: DType | None
    is_pointer: bool
    is_const: bool

    @property
    def letter(self) -> str:
        """As `Backend.load` wants it."""
        if self.is_pointer:
            return "p"
        assert self.dtype is not None
        return {"float32": "f", "float64": "d"}.get(self.dtype.name, "q")


def parameters(name: str, source: str) -> tuple[Parameter, ...]:
    """Of the __global__ function `name` in the source. Raises KernelError where they cannot be read."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    base = name.partition("<")[0].rpartition("::")[2].strip()
    for match in re.finditer(rf"\b{re.escape(base)}\s*\(", text):
        before = re.split(r"[;{}]", text[: match.start()])[-1]
        if "__global__" in before:
            return parse(name, _balanced(text, match.end()))
    raise KernelError(
        f"{name}: no `__global__ void {base}(…)` found in the source; give parameters= as it declares them"
    )


def parse(name: str, declaration: str) -> tuple[Parameter, ...]:
    """`float* y, const float* x, int n` → its parameters."""
    inside = declaration.strip()
    if inside in ("", "void"):
        return ()
    return tuple(_parameter(name, part.strip()) for part in inside.split(","))


def _balanced(text: str, start: int) -> str:
    depth, end = 1, start
    while end < len(text) and depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


def _parameter(name: str, text: str) -> Parameter:
    match = re.fullmatch(r"(?P<type>.*?[\s*&])\s*(?P<name>\w+)\s*(?P<array>\[\s*\d*\s*\])?", text, flags=re.DOTALL)
    if match is None or "&" in text:
        raise KernelError(f"{name}: the parameter `{text}` is not understood; give parameters= in plain C types")
    kind = re.sub(r"\b(__restrict__|__restrict|restrict|volatile|__grid_constant__)\b", " ", match["type"])
    stars = kind.count("*") + bool(match["array"])
    pointee, _, _ = kind.partition("*")
    words = [word for word in pointee.split() if word != "const"]
    element = " ".join(words).removeprefix("std::")
    if stars > 1 or (element not in _TYPES and not (stars and element == "void")):
        known = "float, double, half, __nv_bfloat16, bool and C's integers"
        raise KernelError(
            f"{name}: the type of `{text}` is not known (known: {known}); give parameters= in these types"
        )
    if not stars and element in ("half", "__half", "__nv_bfloat16", "nv_bfloat16"):
        raise KernelError(f"{name}: `{text}`: pass a 2-byte number as float")
    return Parameter(match["name"], _TYPES.get(element), stars == 1, "const" in pointee.split())
