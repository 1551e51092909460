"""What all of a user's kernels have in common: checked arguments, checked launches, versions of what they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..devices import Device, Executable, LaunchConfig, Stream, current_stream
from ..errors import ConfigError, DeviceMismatch, DTypeError, GradientError, KernelError, ShapeError
from ..grad import is_recording
from ..ops.core.debug import is_debugging, settle
from ..ops.core.launch import note_use
from ..ops.core.mutation import check_target
from ..scalars import plain
from ..tensor import Tensor
from .config import Launch

Pack = Callable[[], tuple[Any, ...]]  # the arguments as the launch wants them; called when no block can move
_NOTHING = nullcontext()
_DEFAULT_SHARED_NBYTES = 48 << 10  # beyond, the driver wants to be told


class Kernel:
    """A kernel on a device, for `launch_kernel`. Made by `ensure_kernel`.

    name; device; parameters: their names, in order; writes: those that it may write to.
    """

    any_layout = False  # whether tensors may be views that are not contiguous

    def __init__(self, device: Device, name: str, parameters: Sequence[str], writes: frozenset[str]) -> None:
        self.device, self.name, self.parameters, self.writes = device, name, tuple(parameters), writes
        self._executables: dict[Any, Executable] = {}
        self._checked: set[LaunchConfig] = set()  # within the device's limits

    def prepare(self, arguments: Sequence[Any], launch: Launch) -> tuple[Executable, Pack]:
        """The executable for arguments of these kinds, and what to give it. Raises DTypeError, KernelError."""
        raise NotImplementedError

    def executable(self, key: Any, load: Callable[[], Executable]) -> Executable:
        """`load`ed once for a key."""
        found = self._executables.get(key)
        if found is None:
            found = self._executables.setdefault(key, load())  # two threads may both load it; one is used
        return found

    def fail(self, parameter: str, what: str) -> DTypeError:
        return DTypeError(f"{self.name}: {parameter} {what}")

    def __repr__(self) -> str:
        marked = ", ".join(f"{p} (written)" if p in self.writes else p for p in self.parameters)
        return f"<kernel {self.name}({marked}) on {self.device}>"


def launch_kernel(kernel: Kernel, config: Any, *arguments: Any) -> None:
    """Queue a kernel on its device: on tensors, which it gets by address, and numbers.

    config: `Launch(grid, block, …)`, `(grid, block)`, or a number of items, for a thread each. Everything is checked
    before: the config against the device's limits (ConfigError), number and kinds of the arguments (KernelError,
    DTypeError), their device (DeviceMismatch) and layout (ShapeError); a refused launch raises KernelError. What the
    kernel writes counts as changed in place. Nothing is recorded: call it in the forward of a `custom_op`, or on
    tensors outside the graph; a tensor that requires a gradient raises GradientError.
    """
    if not isinstance(kernel, Kernel):
        raise KernelError(f"launch_kernel: expected a kernel of ensure_kernel, got {type(kernel).__name__}")
    launch = Launch.of(config)
    backend = kernel.device.backend
    if launch.config not in kernel._checked:
        launch.check(backend.limits, kernel.name)
        kernel._checked.add(launch.config)
    given = [a if isinstance(a, np.float32) else plain(a) for a in arguments]  # a float32 stays one
    tensors = _check_tensors(kernel, given)
    executable, pack = kernel.prepare(given, launch)
    stream = launch.stream
    if stream is not None and not isinstance(stream, Stream):
        stream = Stream.from_handle(kernel.device, stream)
    if stream is not None and stream.device != kernel.device:
        raise DeviceMismatch(f"{kernel.name}: the stream is of {stream.device}, the kernel of {kernel.device}")
    for name, x in tensors:
        if name in kernel.writes:
            x.storage.version += 1
    with stream or _NOTHING, backend.lock:  # the addresses that `pack` reads stay true until the work is queued
        number = current_stream(backend)
        if backend.streams_used:
            note_use(given, number)
        if launch.shared_nbytes > _DEFAULT_SHARED_NBYTES and hasattr(executable, "allow_shared"):
            executable.allow_shared(launch.shared_nbytes)
        try:
            executable.launch(launch.config, pack(), number)
        except KernelError as error:  # it knows the symbol only
            raise KernelError(str(error).replace(executable.name, kernel.name)) from None
    if is_debugging():
        settle(backend, kernel.name)


def _check_tensors(kernel: Kernel, arguments: Sequence[Any]) -> list[tuple[str, Tensor]]:
    if len(arguments) != len(kernel.parameters):
        raise KernelError(f"{kernel.name}: takes ({', '.join(kernel.parameters)}), got {len(arguments)} arguments")
    tensors = []
    for name, value in zip(kernel.parameters, arguments, strict=True):
        if isinstance(value, Tensor):
            tensors.append((name, value))
        elif not isinstance(value, (int, float, np.float32)):
            raise kernel.fail(name, f"must be a tensor or a number, got {type(value).__name__}; see asarray()")
    for name, x in tensors:
        if x.device is not kernel.device and x.device != kernel.device:
            raise DeviceMismatch(f"{kernel.name}: {name} is on {x.device}, the kernel on {kernel.device}")
        if x.requires_grad and is_recording():
            raise GradientError(
                f"{kernel.name}: {name} requires a gradient, but launch_kernel records nothing; launch in the forward "
                f"of a custom_op, or pass {name}.detach()"
            )
        if not kernel.any_layout and not x.is_contiguous:
            raise ShapeError(
                f"{kernel.name}: {name} must be contiguous, its shape is {x.shape} and its strides {x.strides}; "
                "pass contiguous(), or make the kernel with any_layout=True and pass it the strides"
            )
        if name in kernel.writes:
            check_target(f"{kernel.name}: {name}", x)
    return tensors


def check_writes(name: str, parameters: Sequence[str], writes: Sequence[str]) -> frozenset[str]:
    """Raises ConfigError unless `writes` names parameters."""
    unknown = [w for w in writes if w not in parameters]
    if isinstance(writes, str) or unknown:
        raise ConfigError(f"{name}: writes={writes!r} must list names of its parameters {tuple(parameters)}")
    return frozenset(writes)
