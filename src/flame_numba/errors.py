"""Every error the library raises on purpose. Each is also the built-in error a Python user expects."""


class FlameError(Exception):
    """Base of all errors of flame_numba."""


class ShapeError(FlameError, ValueError):
    """Shapes do not fit: broadcasting, matmul, reshape, concatenation."""


class AxisError(FlameError, IndexError, ValueError):
    """An axis is out of range or named twice."""


class IndexOutOfRange(FlameError, IndexError):
    """An index into a tensor is out of range."""


class DTypeError(FlameError, TypeError):
    """A dtype has no meaning for the op, two dtypes have no common one, or an argument is of a type it cannot be."""


class DeviceMismatch(FlameError, ValueError):
    """Tensors of one op live on different devices."""


class DeviceError(FlameError, RuntimeError):
    """A device is absent, or its driver reported an error."""


class OutOfMemory(FlameError, MemoryError):
    """The pool could not serve a request; the pool's state is as it was before."""


class PoolError(FlameError, RuntimeError):
    """A block was freed twice, is stale, or belongs to another pool."""


class GradientError(FlameError, RuntimeError):
    """No gradient: the op has none, the graph was freed, or a saved tensor was changed."""


class ShareError(FlameError, BufferError, ValueError):
    """Memory cannot be shared with another library as asked, or may not be written to."""


class NonFinite(FlameError, FloatingPointError):
    """An op made a NaN (or an infinity, if asked for), and somebody was watching: see `detect_anomaly`."""


class KernelError(FlameError, RuntimeError):
    """A kernel could not be compiled, loaded or launched."""


class ConfigError(FlameError, ValueError):
    """A setting has a value that makes no sense."""
