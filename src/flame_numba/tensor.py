"""`Tensor`: shape, strides and offset over a Storage. Ops are installed as methods by `ops`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .devices import Device, current_device, current_stream
from .devices.streams import remembered
from .dtypes import DType, as_dtype, default_float
from .errors import DeviceMismatch, DTypeError, GradientError, ShapeError
from .host_values import HostValues
from .memory.staying import staying
from .pinned import hold
from .shapes import Shape, as_shape, expand_strides, is_contiguous, layout, numel
from .storage import Storage


class _NotASequence(ShapeError, TypeError):
    """What Python, and who asks whether it can iterate, expects of an object without a length."""


class Tensor(HostValues):
    """An n-dimensional array on a device.

    Views (reshape, permute, slices, expand …) share storage; `clone()` copies. A tensor with `requires_grad` takes
    part in the graph: ops on it are recorded, and `backward()` of a result fills its `.grad`.
    Made by `asarray`, `Tensor.zeros`, `Tensor.randn` and the like, not by calling the class.
    """

    __slots__ = (
        "__weakref__",
        "_contiguous",
        "_grad",
        "dtype",
        "hooks",
        "node",
        "offset",
        "requires_grad",
        "shape",
        "storage",
        "strides",
    )
    __array_priority__ = 1000  # NumPy arrays leave `array ⊕ tensor` to us
    __hash__ = object.__hash__  # identity; `==` compares elements

    def __init__(self, storage: Storage, shape: Shape, strides: Shape, offset: int = 0) -> None:
        self.storage = storage
        self.dtype = storage.dtype
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.requires_grad = False
        self._grad: Tensor | None = None
        self.node: Any = None  # the op that made it, if recorded
        self.hooks: Any = None  # functions that see a leaf's gradient
        self._contiguous: bool | None = None

    # --- what it is ---------------------------------------------------------------------------------------------
    @property
    def device(self) -> Device:
        return self.storage.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return numel(self.shape)

    size = numel

    @property
    def nbytes(self) -> int:
        """Bytes of the elements seen (a broadcast view counts each element as often as it is seen)."""
        return self.numel * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        if self._contiguous is None:
            self._contiguous = is_contiguous(self.shape, self.strides)
        return self._contiguous

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded op made it: its gradient is kept in `.grad`."""
        return self.node is None

    @property
    def grad(self) -> Tensor | None:
        """What backward passes have added up, or None. Set it to None, or to a tensor of this shape, dtype and device.

        The gradient of a two-byte tensor may be float32, as an unscaled one is. Raises DTypeError, ShapeError or
        DeviceMismatch for anything else.
        """
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            check_gradient("grad", value, self, wider=True)
        self._grad = value

    @property
    def is_inference(self) -> bool:
        """Whether its elements were made in `inference_mode`, and so cannot be saved for a backward pass."""
        return self.storage.version < 0

    @property
    def address(self) -> int:
        """Byte address of the first element, right now: the pool may move it. Taken under `backend.lock` to launch."""
        return int(self.storage.block.address) + self.offset * self.dtype.itemsize

    def alias(self, shape: Shape, strides: Shape, offset: int) -> Tensor:
        """Another tensor over the same storage, outside the graph."""
        return Tensor(self.storage, shape, strides, offset)

    def detach(self) -> Tensor:
        """The same elements, outside the graph."""
        return self.alias(self.shape, self.strides, self.offset)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Ask for a gradient (or no longer). Raises DTypeError unless the dtype is floating."""
        if value and not self.dtype.is_floating:
            raise DTypeError(f"requires_grad_: only floating tensors have gradients, this one is {self.dtype.name}")
        if not value and self.node is not None:
            raise GradientError("requires_grad_(False): the tensor is the result of an op; use detach()")
        self.requires_grad = value
        return self

    # --- copies by Python's own means -------------------------------------------------------------------------------
    def __copy__(self) -> Tensor:
        """Another tensor over the same storage, at the same place in the graph; the `.grad` of a leaf is its own."""
        result = _leaf(type(self), self, self.requires_grad)
        result.node = self.node
        if hasattr(self, "__dict__"):
            vars(result).update(vars(self))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A leaf with memory of its own on the same device, of the same class, with a copy of `.grad`, without hooks.

        A tensor that is met twice is copied once, so tied weights stay tied; but two views of one storage become
        two tensors that share nothing. Raises GradientError for the result of a recorded op.
        """
        self._check_leaf("deepcopy")
        result = memo[id(self)] = _leaf(type(self), self.detach().clone(), self.requires_grad)
        result._grad = deepcopy(self._grad, memo)
        if hasattr(self, "__dict__"):
            vars(result).update(deepcopy(vars(self), memo))
        return result

    def __reduce__(self) -> Any:
        """Pickled as its bytes on the host: class, dtype, device and requires_grad come back, `.grad` and hooks do not.

        Unpickling needs the device that it was on, else it raises DeviceError: pickle `x.to_device("cpu")` to read it
        elsewhere. Views are pickled each for itself. Raises GradientError for the result of a recorded op.
        """
        self._check_leaf("pickle")
        elements = self.numpy().reshape(-1).view(np.uint8)
        parts = (type(self), elements, self.dtype, self.shape, self.device, self.requires_grad)
        return _unpickled, parts, getattr(self, "__dict__", None)

    def _check_leaf(self, op: str) -> None:
        if self.node is not None:
            raise GradientError(
                f"{op}: the tensor of shape {self.shape} is the result of {self.node.name}, and its graph cannot be "
                "copied; detach() it, or clone() it to stay in the graph"
            )

    # --- to and from the host -----------------------------------------------------------------------------------
    @classmethod
    def empty(cls, shape: Any, *, dtype: DType | str | None = None, device: Device | str | None = None) -> Tensor:
        """Uninitialised elements. Default dtype float32, default device `default_device()`."""
        where = current_device() if device is None else Device.parse(device)
        return new(where, default_float if dtype is None else as_dtype(dtype), as_shape(shape))

    @classmethod
    def from_numpy(
        cls, array: npt.NDArray[Any], device: Device | str | None = None, non_blocking: bool = False
    ) -> Tensor:
        """A copy of a NumPy array on the device. Raises DTypeError for a dtype we do not have.

        `non_blocking`: if the array is page-locked (`pinned_empty`), only queue the copy on the current stream. The
        array must not be changed before that is done; it may be dropped.
        """
        host = np.asarray(array)
        if not host.dtype.isnative:
            host = host.astype(host.dtype.newbyteorder("="))
        dtype = as_dtype(host.dtype)
        host = np.ascontiguousarray(host).reshape(host.shape)
        result = cls.empty(host.shape, dtype=dtype, device=device)
        if host.size:
            backend = result.device.backend
            upload = backend.upload_async if non_blocking else backend.upload
            with staying(result.storage.block, backend) as start:
                upload(start, host.ctypes.data, host.nbytes, current_stream(backend))
            if non_blocking:
                hold(result.device.current_stream(), host)
        return result

    def record_stream(self, stream: Any) -> None:
        """Say that work which another library queued on `stream` uses the elements.

        A Stream, a handle, or another library's stream, which is kept: the pool remembers it. Their memory is not
        reused before that work is done. Ops and copies of this library do it by themselves. Raises DeviceError for
        what is no stream.
        """
        number, block = remembered(self.device.backend, stream), self.storage.block
        if block.stream != number:
            block.record_stream(number)

    def __len__(self) -> int:
        if not self.shape:
            raise _NotASequence("len: a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        found = self == value  # False for what is no number
        return bool(found.any() if isinstance(found, Tensor) else found)

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        if self.numel != 1:
            raise ShapeError(f"format: {spec!r} needs exactly one element, the shape is {self.shape}")
        return format(self.item(), spec)

    def __repr__(self) -> str:
        host = self.numpy()
        if self.dtype.is_floating and self.dtype.itemsize == 2:
            host = host.astype(np.float32)
        body = np.array2string(host, separator=", ", prefix="Tensor(", precision=4, threshold=200)
        notes = [self.dtype.name, str(self.device)]
        if self.numel == 0:
            notes.insert(0, f"shape={self.shape}")
        if self.node is not None:
            notes.append(f"grad_op={self.node.name}")
        elif self.requires_grad:
            notes.append("requires_grad")
        return f"{type(self).__name__}({body}, {', '.join(notes)})"

    if TYPE_CHECKING:  # the op table installs these

        def __getattr__(self, name: str) -> Callable[..., Any]: ...
        def __getitem__(self, key: Any) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]


class Parameter(Tensor):
    """A leaf tensor that requires a gradient, and that modules and optimizers collect.

    `Parameter(tensor)` shares the tensor's storage. Raises DTypeError unless the dtype is floating.
    """

    __slots__ = ()

    def __init__(self, data: Tensor) -> None:
        if not isinstance(data, Tensor):
            raise DTypeError(f"Parameter: expected a tensor, got {type(data).__name__}; see asarray()")
        super().__init__(data.storage, data.shape, data.strides, data.offset)
        self.requires_grad_()
        data.storage.block.retag("parameters")


def _leaf(kind: type[Tensor], data: Tensor, requires_grad: bool) -> Tensor:
    """A leaf of the class over the memory of `data`."""
    result = kind.__new__(kind)  # not by calling it: a subclass may take other arguments
    Tensor.__init__(result, data.storage, data.shape, data.strides, data.offset)
    result.dtype, result.requires_grad = data.dtype, requires_grad
    if isinstance(result, Parameter):
        data.storage.block.retag("parameters")
    return result


def _unpickled(
    kind: type[Tensor], elements: npt.NDArray[Any], dtype: DType, shape: Shape, device: Device, requires_grad: bool
) -> Tensor:
    """What `Tensor.__reduce__` took apart."""
    data = Tensor.from_numpy(elements.view(dtype.numpy).reshape(shape), device)
    return _leaf(kind, data, requires_grad)


def check_gradient(op: str, gradient: Any, of: Tensor, wider: bool = False) -> None:
    """Raises DTypeError, ShapeError or DeviceMismatch unless it is a tensor that can be the gradient of `of`."""
    if not isinstance(gradient, Tensor):
        kind = type(gradient).__name__
        raise DTypeError(f"{op}: the gradient must be a tensor of shape {of.shape}, got {kind}; see asarray()")
    if gradient.shape != of.shape:
        raise ShapeError(f"{op}: the gradient must have the tensor's shape {of.shape}, it has {gradient.shape}")
    if gradient.dtype is not of.dtype and not (wider and gradient.dtype is of.dtype.accumulator):
        raise DTypeError(
            f"{op}: the gradient must have the tensor's dtype {of.dtype.name}, it is {gradient.dtype.name}"
        )
    if gradient.device != of.device:
        raise DeviceMismatch(
            f"{op}: the gradient must be on the tensor's device {of.device}, it is on {gradient.device}"
        )


def new(device: Device, dtype: DType, shape: Shape) -> Tensor:
    """An uninitialised contiguous tensor."""
    strides, count = layout(shape)
    return dense(device, dtype, shape, strides, count)


def dense(device: Device, dtype: DType, shape: Shape, strides: Shape, count: int) -> Tensor:
    """`new` for one who knows the row-major strides and the number of elements already."""
    result = Tensor(Storage(device, dtype, count), shape, strides)
    result._contiguous = True
    return result


def expanded(x: Tensor, shape: Shape) -> Tensor:
    """A view of the broadcast shape, outside the graph."""
    return x if x.shape == shape else x.alias(shape, expand_strides(x.shape, x.strides, shape), x.offset)


def add_methods(methods: Mapping[str, Any], owner: type[Tensor] = Tensor) -> None:
    """Give Tensor (or Parameter) methods: how ops, graph and exchange come to it from the layers above, all of them.

    A function becomes a method, a property a property, a staticmethod a maker such as `Tensor.zeros`.
    """
    for name, method in methods.items():
        setattr(owner, name, method)
