"""The layers: parameters with their usual first values, around one op each."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt
from typing import Any

from ..devices import Device
from ..errors import ConfigError, DTypeError
from ..ops import random
from ..ops.elementwise import activations, trigonometry
from ..ops.index import gather
from ..ops.products import linalg
from ..ops.rows import norms
from ..ops.shape import movement
from ..ops.windows import convolution, pooling
from ..scalars import as_number
from ..shapes import as_int, as_ints
from ..tensor import Parameter, Tensor
from . import init
from .module import Module

Pair = int | tuple[int, int]


def _parameter(shape: tuple[int, ...], dtype: Any, device: Device | str | None) -> Parameter:
    return Parameter(Tensor.empty(shape, dtype=dtype, device=device))


def _positive(layer: str, **sizes: int) -> list[int]:
    """The sizes as Python ints. Raises ConfigError for those below 1, DTypeError for what is no int."""
    for name, size in sizes.items():
        if isinstance(size, bool) or as_int(layer, name, size) < 1:
            raise ConfigError(f"{layer}: {name}={size!r} must be an int ≥ 1")
    return [as_int(layer, name, size) for name, size in sizes.items()]


def _pair(layer: str, name: str, value: Pair, least: int = 1) -> Pair:
    """An int or a pair of them, of Python ints. Raises ConfigError for one below `least`, DTypeError for no ints."""
    try:
        pair: Pair = as_ints(value)
    except TypeError:
        raise DTypeError(f"{layer}: {name} must be an int or a pair of ints, got {value!r}") from None
    numbers = (pair, pair) if isinstance(pair, int) else pair
    if len(numbers) != 2 or any(not isinstance(n, int) or n < least for n in numbers):
        raise ConfigError(f"{layer}: {name}={value!r} must be an int ≥ {least} or a pair of them")
    return pair


class Linear(Module):
    """x·weightᵀ + bias: (…, in_features) → (…, out_features). Both start as U(±1/√in_features)."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = None,
        device: Device | str | None = None,
    ) -> None:  # fmt: skip
        in_features, out_features = _positive("Linear", in_features=in_features, out_features=out_features)
        self.weight = _parameter((out_features, in_features), dtype, device)
        self.bias = _parameter((out_features,), dtype, device) if bias else None
        init.kaiming_uniform_(self.weight, sqrt(5))
        if self.bias is not None:
            init.uniform_(self.bias, -1 / sqrt(in_features), 1 / sqrt(in_features))

    def forward(self, x: Tensor) -> Tensor:
        return linalg.linear(x, self.weight, self.bias)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} → {self.weight.shape[0]}{'' if self.bias is not None else ', no bias'}"


class Conv2d(Module):
    """Cross-correlation: (N, in_channels, H, W) → (N, out_channels, oh, ow). Starts as U(±1/√fan_in), bias too."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0,
        dilation: Pair = 1, groups: int = 1, bias: bool = True, *, dtype: Any = None,
        device: Device | str | None = None,
    ) -> None:  # fmt: skip
        in_channels, out_channels, groups = _positive(
            "Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups
        )
        if in_channels % groups or out_channels % groups:
            raise ConfigError(f"Conv2d: groups={groups} must divide in_channels and out_channels")
        kernel_size = _pair("Conv2d", "kernel_size", kernel_size)
        window = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.stride, self.groups = _pair("Conv2d", "stride", stride), groups
        self.padding = padding if isinstance(padding, str) else _pair("Conv2d", "padding", padding, 0)
        self.dilation = _pair("Conv2d", "dilation", dilation)
        self.weight = _parameter((out_channels, in_channels // groups, *window), dtype, device)
        self.bias = _parameter((out_channels,), dtype, device) if bias else None
        init.kaiming_uniform_(self.weight, sqrt(5))
        if self.bias is not None:
            bound = 1 / sqrt(in_channels // groups * prod(window))
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return convolution.conv2d(  # type: ignore[no-any-return]
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        out, inner, *window = self.weight.shape
        told = [f"{inner * self.groups} → {out}", f"kernel {tuple(window)}"]
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            if getattr(self, name) != usual:
                told.append(f"{name}={getattr(self, name)}")
        return ", ".join(told if self.bias is not None else [*told, "no bias"])


class LayerNorm(Module):
    """(x − mean) / √(variance + eps)·weight + bias over the last axis, of size n. (Ba, Kiros and Hinton 2016)"""

    def __init__(
        self, n: int, eps: float = 1e-5, affine: bool = True, *, dtype: Any = None, device: Device | str | None = None
    ) -> None:
        (n,) = _positive("LayerNorm", n=n)
        self.n, self.eps = n, eps
        self.weight = _parameter((n,), dtype, device) if affine else None
        self.bias = _parameter((n,), dtype, device) if affine else None
        if self.weight is not None and self.bias is not None:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return norms.layer_norm(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.n}, eps={self.eps:g}"


class RMSNorm(Module):
    """x / √(mean(x²) + eps)·weight over the last axis, of size n. (Zhang and Sennrich 2019)"""

    def __init__(self, n: int, eps: float = 1e-5, *, dtype: Any = None, device: Device | str | None = None) -> None:
        (n,) = _positive("RMSNorm", n=n)
        self.eps = eps
        self.weight = _parameter((n,), dtype, device)
        init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return norms.rms_norm(x, self.weight, self.eps)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"


class Embedding(Module):
    """Rows of a table: integer indices (…) → (…, n). Starts as N(0, 1)."""

    def __init__(self, rows: int, n: int, *, dtype: Any = None, device: Device | str | None = None) -> None:
        rows, n = _positive("Embedding", rows=rows, n=n)
        self.weight = _parameter((rows, n), dtype, device)
        init.normal_(self.weight)

    def forward(self, indices: Tensor) -> Tensor:
        return gather.embedding(indices, self.weight)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} rows of {self.weight.shape[1]}"


class Sequential(Module):
    """Modules one after another; names are `0.weight`, `1.bias` …"""

    def __init__(self, *layers: Module) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise ConfigError(f"Sequential: layer {i} must be a Module, got {type(layer).__name__}")
        self.layers = list(layers)

    def members(self) -> Iterator[tuple[str, Any]]:
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: int) -> Module:
        return self.layers[i]

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)


# --- without parameters -------------------------------------------------------------------------------------------
class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return activations.relu(x)  # type: ignore[no-any-return]


class Sigmoid(Module):
    """1 / (1 + e⁻ˣ)."""

    def forward(self, x: Tensor) -> Tensor:
        return activations.sigmoid(x)  # type: ignore[no-any-return]


class GELU(Module):
    """x·Φ(x). (Hendrycks and Gimpel 2016)"""

    def forward(self, x: Tensor) -> Tensor:
        return activations.gelu(x)  # type: ignore[no-any-return]


class SiLU(Module):
    """x·σ(x). (Elfwing et al. 2017)"""

    def forward(self, x: Tensor) -> Tensor:
        return activations.silu(x)  # type: ignore[no-any-return]


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return trigonometry.tanh(x)  # type: ignore[no-any-return]


class Flatten(Module):
    """Axes start … end merged into one: by default all but the first, (N, …) → (N, n)."""

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = as_int("Flatten", "start_axis", start_axis)
        self.end_axis = as_int("Flatten", "end_axis", end_axis)

    def forward(self, x: Tensor) -> Tensor:
        return movement.flatten(x, self.start_axis, self.end_axis)  # type: ignore[no-any-return]


class _Pool2d(Module):
    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        layer = type(self).__name__
        self.kernel_size = _pair(layer, "kernel_size", kernel_size)
        self.stride = None if stride is None else _pair(layer, "stride", stride)
        self.padding = _pair(layer, "padding", padding, 0)

    def extra_repr(self) -> str:
        stride = self.kernel_size if self.stride is None else self.stride
        return f"{self.kernel_size}, stride={stride}" + (f", padding={self.padding}" if self.padding else "")


class AvgPool2d(_Pool2d):
    """Mean over windows (stride: the kernel's size): (N, C, H, W) → (N, C, oh, ow)."""

    def forward(self, x: Tensor) -> Tensor:
        return pooling.avg_pool2d(x, self.kernel_size, self.stride, self.padding)  # type: ignore[no-any-return]


class MaxPool2d(_Pool2d):
    """Largest of each window (stride: the kernel's size): (N, C, H, W) → (N, C, oh, ow)."""

    def forward(self, x: Tensor) -> Tensor:
        return pooling.max_pool2d(x, self.kernel_size, self.stride, self.padding)  # type: ignore[no-any-return]


class Dropout(Module):
    """While training, elements set to 0 with probability p and the others divided by 1 − p; else x itself."""

    def __init__(self, p: float = 0.5) -> None:
        p = float(as_number("Dropout", "p", p))
        if not 0 <= p < 1:
            raise ConfigError(f"Dropout: p={p} must be in 0 ≤ p < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = random.dropout(x, self.p, self.training)
        return y

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
