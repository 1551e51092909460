"""flame_numba: a tensor runtime for NVIDIA GPUs written wholly in Python, on Numba.

The public names, and nothing else. Importing touches no GPU and does not import Numba.
"""

import sys as _sys

from . import amp, nn, optim
from . import gpu as cuda
from .amp import GradScaler
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
    OutOfMemory,
    PoolError,
    ShapeError,
)
from .grad import GradientMap, backward, enable_grad, grad, no_grad
from .gradcheck import gradcheck
from .ops import elementwise as _elementwise
from .ops.autocast import autocast
from .ops.convolution import avg_pool2d, conv2d, max_pool2d
from .ops.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from .ops.elementwise import *  # noqa: F403
from .ops.formula_op import elementwise, fuse
from .ops.indexing import embedding, masked_fill, one_hot, take, take_along_axis
from .ops.linalg import linear, matmul, outer
from .ops.losses import binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss
from .ops.movement import (
    broadcast_to,
    clone,
    concat,
    contiguous,
    flatten,
    flip,
    narrow,
    pad,
    permute,
    reshape,
    split,
    squeeze,
    stack,
    to_device,
    to_dtype,
    transpose,
    unsqueeze,
    view,
)
from .ops.normalization import layer_norm, log_softmax, rms_norm, softmax
from .ops.random import Generator, bernoulli, dropout, manual_seed, permutation, rand, randint, randn
from .ops.reductions import all, any, argmax, argmin, logsumexp, max, mean, min, prod, std, sum, var
from .ops.table import REALS, Domain
from .pinned import HostCopy, pinned_empty, pinned_pool
from .pool import MemoryPool, PoolConfig, current_pool, default_pool, memory_tag
from .storage import Storage
from .tensor import Parameter, Tensor

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
    "Generator",
    "GradScaler",
    "GradientError",
    "GradientMap",
    "HostCopy",
    "IndexOutOfRange",
    "KernelError",
    "MemoryPool",
    "OutOfMemory",
    "Parameter",
    "PoolConfig",
    "PoolError",
    "ShapeError",
    "Storage",
    "Stream",
    "Tensor",
    "all",
    "amp",
    "any",
    "arange",
    "argmax",
    "argmin",
    "asarray",
    "autocast",
    "avg_pool2d",
    "backward",
    "bernoulli",
    "bfloat16",
    "binary_cross_entropy_with_logits",
    "bool",
    "broadcast_to",
    "clone",
    "concat",
    "contiguous",
    "conv2d",
    "cross_entropy",
    "cuda",
    "current_device",
    "current_pool",
    "default_device",
    "default_pool",
    "dropout",
    "elementwise",
    "embedding",
    "empty",
    "empty_like",
    "enable_grad",
    "eye",
    "flatten",
    "flip",
    "float16",
    "float32",
    "float64",
    "full",
    "full_like",
    "fuse",
    "grad",
    "gradcheck",
    "int8",
    "int16",
    "int32",
    "int64",
    "l1_loss",
    "layer_norm",
    "linear",
    "linspace",
    "log_softmax",
    "logsumexp",
    "manual_seed",
    "masked_fill",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "memory_tag",
    "min",
    "mse_loss",
    "narrow",
    "nn",
    "no_grad",
    "one_hot",
    "ones",
    "ones_like",
    "optim",
    "outer",
    "pad",
    "permutation",
    "permute",
    "pinned_empty",
    "pinned_pool",
    "prod",
    "promote",
    "rand",
    "randint",
    "randn",
    "reshape",
    "rms_norm",
    "softmax",
    "split",
    "squeeze",
    "stack",
    "std",
    "sum",
    "take",
    "take_along_axis",
    "tensor",
    "to_device",
    "to_dtype",
    "transpose",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unsqueeze",
    "var",
    "view",
    "zeros",
    "zeros_like",
]
__all__ += _elementwise.__all__  # a new formula is public by being there

# The import hook of numba-cuda (0.30) takes every module with "numba.cuda" in its name, ours too, for Numba's and
# recurses without end. So `flame_numba.cuda` is a module of another name, entered here.
_sys.modules[__name__ + ".cuda"] = cuda
