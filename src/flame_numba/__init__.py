"""flame_numba: a tensor runtime for NVIDIA GPUs written wholly in Python, on Numba.

The public names, and nothing else. Importing touches no GPU and does not import Numba.
"""

import sys as _sys

from . import amp, array_api, grad, kernel_objects, kernels, nn, optim, tensor
from . import gpu as cuda
from .amp import GradScaler
from .callable_module import make_callable as _make_callable
from .checkpoint import checkpoint
from .custom import custom_op
from .derivatives import hessian, hvp, jacobian, jvp, vjp
from .devices import Device, Event, Stream, current_device, default_device
from .dtypes import (
    DType,
    bfloat16,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    promote,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .dtypes import bool_ as bool
from .errors import (
    AxisError,
    ConfigError,
    DeviceError,
    DeviceMismatch,
    DTypeError,
    FlameError,
    GradientError,
    IndexOutOfRange,
    KernelError,
    NonFinite,
    OutOfMemory,
    PoolError,
    ShapeError,
    ShareError,
)
from .grad import (
    GradientMap,
    GraphStats,
    UnusedParameter,
    backward,
    detect_anomaly,
    enable_grad,
    graph_stats,
    inference_mode,
    is_recomputing,
    is_recording,
    no_grad,
    set_grad_enabled,
    unused_parameters,
)
from .gradcheck import GradientComparison, compare_gradients, gradcheck, gradgradcheck, numerical_gradient
from .ops.core.autocast import autocast
from .ops.core.formula_op import elementwise, fuse
from .ops.core.table import REALS, Domain
from .ops.public import *  # noqa: F403
from .ops.public import PUBLIC as _PUBLIC
from .ops.shape.creation import asarray as _asarray
from .pinned import HostCopy, pinned_empty, pinned_pool
from .pool import MemoryPool, PoolConfig, current_pool, default_pool, memory_tag
from .storage import Storage
from .tensor import Parameter, Tensor
from .user_kernels import Kernel, Launch, ensure_kernel, launch_kernel

_make_callable(grad, grad.grad)
_make_callable(tensor, _asarray)
kernels.get, kernels.list = kernel_objects.get, kernel_objects.list_kernels

__version__ = "0.1.0"

__all__ = [
    "REALS",
    "AxisError",
    "ConfigError",
    "DType",
    "DTypeError",
    "Device",
    "DeviceError",
    "DeviceMismatch",
    "Domain",
    "Event",
    "FlameError",
    "GradScaler",
    "GradientComparison",
    "GradientError",
    "GradientMap",
    "GraphStats",
    "HostCopy",
    "IndexOutOfRange",
    "Kernel",
    "KernelError",
    "Launch",
    "MemoryPool",
    "NonFinite",
    "OutOfMemory",
    "Parameter",
    "PoolConfig",
    "PoolError",
    "ShapeError",
    "ShareError",
    "Storage",
    "Stream",
    "Tensor",
    "UnusedParameter",
    "amp",
    "array_api",
    "autocast",
    "backward",
    "bfloat16",
    "bool",
    "checkpoint",
    "compare_gradients",
    "cuda",
    "current_device",
    "current_pool",
    "custom_op",
    "default_device",
    "default_pool",
    "detect_anomaly",
    "elementwise",
    "enable_grad",
    "ensure_kernel",
    "float16",
    "float32",
    "float64",
    "fuse",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "graph_stats",
    "hessian",
    "hvp",
    "inference_mode",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_recomputing",
    "is_recording",
    "jacobian",
    "jvp",
    "kernels",
    "launch_kernel",
    "memory_tag",
    "nn",
    "no_grad",
    "numerical_gradient",
    "optim",
    "pinned_empty",
    "pinned_pool",
    "promote",
    "set_grad_enabled",
    "tensor",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unused_parameters",
    "vjp",
]
__all__ += _PUBLIC  # a new op is public by standing in its module's __all__

# The import hook of numba-cuda (0.30) takes every module with "numba.cuda" in its name, ours too, for Numba's and
# recurses without end. So `flame_numba.cuda` is a module of another name, entered here.
_sys.modules[__name__ + ".cuda"] = cuda
