"""`Module`: an object whose attributes hold parameters, buffers and other modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from reprlib import recursive_repr
from typing import Any

import numpy as np
import numpy.typing as npt

from ..devices import Device
from ..dtypes import as_dtype, bfloat16
from ..errors import ConfigError, DTypeError, ShapeError, ShareError
from ..ops.core.copies import copied, copy_into
from ..ops.shape.creation import asarray
from ..pool import memory_tag
from ..tensor import Parameter, Tensor

Array = npt.NDArray[Any]


class Module:
    """Part of a network. Subclasses set attributes in `__init__` and define `forward`; calling the module calls it.

    What the attributes are decides what they mean: a Parameter is trained, any other Tensor is a buffer (saved and
    moved, not trained), a Module is a part. Lists, tuples and dicts of these, nested too, count as well. No
    `super().__init__()` is needed. Names are paths, such as `layers.0.weight`. A tensor that an op recorded, such as a
    result of `forward` that is kept to look at, is no buffer; nor is what leads back to a module that holds this one.
    """

    training: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        # an array or another tensor would take the parameter's place as a buffer, which no optimizer sees
        plain = isinstance(value, (Tensor, np.ndarray)) and not isinstance(value, Parameter)
        if plain and isinstance(vars(self).get(name), Parameter):
            raise DTypeError(
                f"{type(self).__name__}: {name} is a Parameter, a plain {type(value).__name__} in its place would "
                f"not be trained; set a Parameter, or copy values with {name}.detach().copy_(value)"
            )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        with memory_tag("activations", weak=True):
            return self.forward(*args, **keywords)

    # --- what it holds ------------------------------------------------------------------------------------------
    def members(self) -> Iterator[tuple[str, Any]]:
        """(path, value) of the attributes; of those that are lists, tuples or dicts, of their innermost items."""
        for name, value in vars(self).items():
            yield from _items(name, value)

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct parts."""
        return ((name, value) for name, value in self.members() if isinstance(value, Module))

    def modules(self) -> Iterator[Module]:
        """The module itself and all below it, each once."""
        seen: set[int] = set()
        pending: list[Module] = [self]
        while pending:
            module = pending.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                pending.extend(reversed([child for _, child in module.children()]))

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(path, tensor) of all parameters and buffers; one that is shared comes under each of its names."""
        yield from _named_tensors(self, prefix, ())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) of all parameters; one that is shared comes once, under its first name."""
        return _once((name, x) for name, x in self.named_tensors() if isinstance(x, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        return (x for _, x in self.named_parameters())

    # --- training -----------------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> Module:
        """Set `training` here and below: dropout drops only while it is True. Returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """`train(False)`."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    # --- moving -------------------------------------------------------------------------------------------------
    def to_dtype(self, dtype: Any) -> Module:
        """Cast all floating parameters and buffers, which stay the same objects; forget gradients. Returns the module.

        Make optimizers afterwards: their state has the dtype of before. Raises DTypeError for a dtype of integers.
        """
        target = as_dtype(dtype)
        if not target.is_floating:
            raise DTypeError(f"to_dtype: a module's parameters are floating, not {target.name}")
        for tensor in self._tensors():
            if tensor.dtype.is_floating and tensor.dtype is not target:
                _replace(tensor, copied(tensor.detach(), target))
        return self

    def to_device(self, device: Device | str) -> Module:
        """Move all parameters and buffers, which stay the same objects; forget gradients. Returns the module."""
        target = Device.parse(device)
        for tensor in self._tensors():
            if tensor.device != target:
                _replace(tensor, Tensor.from_numpy(tensor.numpy(), target))
        return self

    def _tensors(self) -> list[Tensor]:
        return [x for _, x in _once(self.named_tensors())]

    # --- saving -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers on the host, by path; bfloat16 as `ml_dtypes.bfloat16`.

        `np.savez(path, **state)` writes it, and `load_state_dict(np.load(path))` reads it back. Waits for the device.
        """
        return {name: x.numpy() for name, x in self.named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Overwrite all parameters and buffers with these values, cast to their dtype: arrays, tensors, PyTorch's too.

        Raises ConfigError listing every name that is missing or unknown, ShapeError for a shape that differs and
        DTypeError for values of another kind (integers for a floating parameter); the module is then unchanged.
        """
        if not isinstance(state, Mapping):
            raise DTypeError(f"load_state_dict: state must map names to arrays, got {type(state).__name__}")
        own = dict(self.named_tensors())
        missing, unknown = sorted(own.keys() - set(state)), sorted(set(state) - own.keys())
        if missing or unknown:
            told = "; ".join(f"{what}: {', '.join(n)}" for what, n in (("missing", missing), ("unknown", unknown)) if n)
            raise ConfigError(f"load_state_dict: the names do not fit {type(self).__name__}; {told}")
        for name, source in [(name, _fitting(name, x, state[name])) for name, x in own.items()]:
            copy_into(own[name].detach(), source)

    # --- for people ---------------------------------------------------------------------------------------------
    def extra_repr(self) -> str:
        """What the module's line says between the parentheses."""
        return ""

    @recursive_repr()
    def __repr__(self) -> str:
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n".join([f"{type(self).__name__}({extra}", *lines, ")"])


def _items(path: str, value: Any, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """`above`: the containers that hold this one; one that holds itself is not entered again."""
    if isinstance(value, (list, tuple, dict)):
        above = (*above, id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if id(item) not in above:
                yield from _items(f"{path}.{key}", item, above)
    else:
        yield path, value


def _named_tensors(module: Module, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """`above`: the modules that hold this one, which a reference back does not enter again."""
    above = (*above, id(module))
    for name, value in module.members():
        if isinstance(value, Tensor):
            if value.node is None or isinstance(value, Parameter):
                yield prefix + name, value
        elif isinstance(value, Module) and id(value) not in above:
            yield from _named_tensors(value, f"{prefix}{name}.", above)


def _once(named: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, x in named:
        if id(x) not in seen:
            seen.add(id(x))
            yield name, x


def _replace(tensor: Tensor, value: Tensor) -> None:
    """Make `tensor` stand for other data: optimizers and modules keep their reference to it."""
    tensor.storage, tensor.dtype = value.storage, value.dtype
    tensor.shape, tensor.strides, tensor.offset = value.shape, value.strides, value.offset
    tensor._contiguous = None
    tensor.grad = None


def _fitting(name: str, own: Tensor, value: Any) -> Tensor:
    """The value as a tensor on `own`'s device, checked against it."""
    if hasattr(value, "detach"):  # PyTorch's parameters, too
        value = value.detach()
    elif isinstance(value, np.ndarray):
        value = _from_npz(value)
    try:
        found: Tensor = asarray(value, device=own.device)
    except (DTypeError, ShapeError, ShareError) as error:
        raise type(error)(f"load_state_dict: {name} is no array of numbers: {error}") from None
    if found.shape != own.shape:
        raise ShapeError(f"load_state_dict: {name} has shape {found.shape}, the module's has {own.shape}")
    if found.dtype.is_floating != own.dtype.is_floating:
        raise DTypeError(f"load_state_dict: {name} has dtype {found.dtype.name}, the module's has {own.dtype.name}")
    return found


def _from_npz(array: Array) -> Array:
    # np.load does not know bfloat16: it gives back two-byte elements without a type
    return array.view(bfloat16.numpy) if array.dtype == "V2" else array
