"""The structs of DLPack 1.1 and its capsules. https://dmlc.github.io/dlpack/latest/c_api.html"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from ..devices.native import capsule_destructor, shielded
from ..dtypes import BY_NAME, DType
from ..errors import DTypeError, ShareError

VERSION = (1, 1)
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # device types
READ_ONLY, COPIED = 1, 2  # flags
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}
_CODE_NAMES = {0: "int", 1: "uint", 2: "float", 3: "opaque", 4: "bfloat", 5: "complex", 6: "bool"}


class Place(ctypes.Structure):
    """DLDevice."""

    _fields_ = (("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class ElementType(ctypes.Structure):
    """DLDataType."""

    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class View(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("place", Place),
        ("ndim", ctypes.c_int32),
        ("dtype", ElementType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    """DLManagedTensor, of versions before 1.0."""

    _fields_ = (("view", View), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("view", View),
    )


# capsules keep no copy of their names
_NAMES: dict[type, tuple[Any, Any]] = {
    Managed: (ctypes.create_string_buffer(b"dltensor"), ctypes.create_string_buffer(b"used_dltensor")),
    ManagedVersioned: (
        ctypes.create_string_buffer(b"dltensor_versioned"),
        ctypes.create_string_buffer(b"used_dltensor_versioned"),
    ),
}
_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(("PyCapsule_New", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(("PyCapsule_GetPointer", _api))
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(("PyCapsule_SetName", _api))


def element_type(dtype: DType) -> ElementType:
    code = _CODES["bfloat" if dtype.name == "bfloat16" else dtype.kind]
    return ElementType(code, 8 * dtype.itemsize, 1)


def as_our_dtype(given: ElementType) -> DType:
    """Raises DTypeError for complex numbers, vectors and types of less than a byte."""
    kind = _CODE_NAMES.get(given.code, f"code {given.code}")
    name = "bool" if (kind, given.bits) == ("bool", 8) else f"{kind}{given.bits}"
    if given.lanes != 1 or name not in BY_NAME:
        lanes = f" × {given.lanes}" if given.lanes != 1 else ""
        raise DTypeError(f"from_dlpack: there is no dtype for DLPack's {name}{lanes}")
    return BY_NAME[name]


# --- out ----------------------------------------------------------------------------------------------------------
_EXPORTED: dict[int, tuple[Any, Callable[[], None]]] = {}  # by address: the struct with what it points to; what to do


def _deleted(address: int) -> None:
    found = _EXPORTED.pop(address, None)
    if found is not None:
        found[1]()


def export(managed: Any, keep: Any, done: Callable[[], None]) -> Any:
    """A capsule over a filled struct. `keep` is what it points to; `done` is called once, when nobody uses it more."""
    kind: Any = type(managed)
    address = ctypes.addressof(managed)
    managed.deleter = shielded(_deleted)
    capsule = _new(address, ctypes.addressof(_NAMES[kind][0]), capsule_destructor(_NAMES[kind][0], kind.deleter.offset))
    _EXPORTED[address] = ((managed, keep), done)  # nobody else has the capsule yet
    return capsule


# --- in -----------------------------------------------------------------------------------------------------------
class Taken:
    """A struct that another library exported, taken over from its capsule: given back when this is gone."""

    __slots__ = ("managed",)

    def __init__(self, managed: Any) -> None:
        self.managed = managed

    @property
    def read_only(self) -> bool:
        return isinstance(self.managed, ManagedVersioned) and bool(self.managed.flags & READ_ONLY)

    def __del__(
        self,
        _at_exit: Callable[[], bool] = sys.is_finalizing,  # names of modules may be gone then
        _as_function: Callable[[int], Callable[[int], None]] = _Deleter,
        _address: Callable[[Any], int] = ctypes.addressof,
    ) -> None:
        # a library that ends with Python may be half gone, and with it what would free the memory
        if self.managed.deleter and not _at_exit():
            _as_function(self.managed.deleter)(_address(self.managed))


def look_into(capsule: Any) -> Any:
    """The struct of a capsule that nobody took over yet. Raises ShareError for another object or version."""
    for kind, (name, _) in _NAMES.items():
        if _is_valid(capsule, ctypes.addressof(name)):
            managed = kind.from_address(_pointer(capsule, ctypes.addressof(name)))  # type: ignore[attr-defined]
            if kind is ManagedVersioned and managed.major != VERSION[0]:
                raise ShareError(f"from_dlpack: version {managed.major}.{managed.minor} of DLPack is not understood")
            return managed
    raise ShareError(f"from_dlpack: expected a DLPack capsule that was not used before, got {capsule!r}")


def take_over(capsule: Any, managed: Any) -> Taken:
    """Whose struct it is from now on."""
    _rename(capsule, ctypes.addressof(_NAMES[type(managed)][1]))
    return Taken(managed)
