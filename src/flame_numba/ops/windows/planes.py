"""The launch of a kernel that fills planes, a pool's or a resampling's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...tensor import Tensor
from ..core.launch import run, spread


def fill_planes(
    program: Callable[..., Any], choices: tuple[Any, ...], numbers: tuple[int, ...], *tensors: Tensor
) -> None:
    """Fill the first tensor: an element for each thread of a GPU, a row at a time on the host.

    numbers: the sizes of inputs and outputs, and what the kernel takes after them.
    """
    y = tensors[0]
    width = y.shape[-1]
    step = width if y.device.kind == "cpu" else 1
    rows, segments = y.numel // width, width // step
    blocks = spread(y.device.backend, rows * segments)
    run(y.device, program, choices, (*tensors, rows, segments, step, *numbers), blocks)
