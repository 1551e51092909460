"""The Python array API standard 2024.12 (https://data-apis.org/array-api/2024.12), but for complex numbers.

Thin: standard names and signatures over the ops of `flame_numba`. Libraries find it by `x.__array_namespace__()`.
"""

from __future__ import annotations

import sys
from math import e, inf, nan, pi
from typing import Any

from ..devices import Stream
from ..dtypes import bool_, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64
from ..errors import ConfigError, DeviceError
from ..ops.shape.movement import to_device as _move
from ..tensor import Tensor, add_methods
from . import arrays, data_types, elementwise, info, reductions
from .arrays import *  # noqa: F403
from .data_types import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .info import __array_namespace_info__
from .reductions import *  # noqa: F403

__array_api_version__ = "2024.12"
_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")

bool = bool_
newaxis = None


def _namespace(x: Tensor, /, *, api_version: str | None = None) -> Any:
    """The array API namespace of a tensor. Raises ConfigError (a ValueError) for a version not supported."""
    if api_version is not None and api_version not in _VERSIONS:
        raise ConfigError(f"__array_namespace__: version {api_version!r} is not one of {', '.join(_VERSIONS)}")
    return sys.modules[__name__]


def _to_device(x: Tensor, device: Any, /, *, stream: Any = None) -> Tensor:
    """A copy on another device, or the tensor itself if it is there; queued on `stream`, by default the current one."""
    if stream is None:
        return _move(x, device)
    if not isinstance(stream, Stream):
        raise DeviceError(f"to_device: stream must be a Stream (see `Device.new_stream`) or None, got {stream!r}")
    with stream:
        return _move(x, device)


add_methods({"__array_namespace__": _namespace, "to_device": _to_device})

__all__ = [
    "__array_api_version__",
    "__array_namespace_info__",
    "bool",
    "e",
    "float32",
    "float64",
    "inf",
    "int8",
    "int16",
    "int32",
    "int64",
    "nan",
    "newaxis",
    "pi",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]
__all__ += [*arrays.__all__, *data_types.__all__, *elementwise.__all__, *reductions.__all__]


def __dir__() -> list[str]:
    return __all__


del info
