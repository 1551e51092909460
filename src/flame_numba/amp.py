"""Mixed precision: `autocast` says in which dtype products run, `GradScaler` keeps f16 gradients from vanishing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from .dtypes import bool_, float32, float64
from .errors import ConfigError, DTypeError, GradientError, NonFinite
from .kernels.elementwise import formula
from .ops.core.autocast import autocast
from .ops.core.update import update
from .ops.reduce.reductions import any as any_of
from .ops.shape.creation import zeros
from .optim import Optimizer
from .scalars import is_number
from .shapes import row_major
from .tensor import Tensor, new

__all__ = ["GradScaler", "autocast"]

_LARGEST = 3.4e38  # about the largest f32
_SMALLEST = 2.0**-24  # a loss that is finite only below it has no gradients that f16 could hold
_ALIGNMENT = 16  # flags of one gradient begin at a multiple: its kernel can then write vectors


@update
def _unscale(result, bad, gradient, factor):  # type: ignore[no-untyped-def]
    """The gradient times a factor, and whether that is infinite or NaN."""
    value = gradient * factor
    return value, formula.logical_not(formula.apply("abs", value) < float("inf"))


class GradScaler:
    """Multiplies the loss by a scale, so that small gradients stay above f16's smallest numbers, and divides it out.

    A step whose gradients hold an infinity or a NaN is skipped, and the scale shrinks by `backoff_factor`; after
    `growth_interval` good steps in a row it grows by `growth_factor`. (Micikevicius et al. 2017) It does not fall below
    2⁻²⁴: by then the gradients are not finite whatever the scale is, and `update` says so.

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    One value a step comes to the host: whether the gradients are finite. With enabled=False everything passes through.
    """

    def __init__(
        self, init_scale: float = 2.0**16, growth_factor: float = 2.0, backoff_factor: float = 0.5,
        growth_interval: int = 2000, enabled: bool = True,
    ) -> None:  # fmt: skip
        for name, value in (
            ("init_scale", init_scale), ("growth_factor", growth_factor), ("backoff_factor", backoff_factor),
        ):  # fmt: skip
            if not is_number(value):
                raise DTypeError(f"GradScaler: {name} must be a number, got {value!r}")
        growth_interval = _count("growth_interval", growth_interval)
        if not 0 < init_scale < float("inf"):
            raise ConfigError(f"GradScaler: init_scale={init_scale} must be > 0 and finite")
        if not growth_factor >= 1 or not 0 < backoff_factor < 1 or growth_interval < 1:
            raise ConfigError(
                f"GradScaler: growth_factor={growth_factor} must be ≥ 1, backoff_factor={backoff_factor} "
                f"in 0 … 1, growth_interval={growth_interval} ≥ 1"
            )
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval, self.enabled = growth_interval, enabled
        self._scale, self._good_steps = float(init_scale), 0
        self._bad: WeakKeyDictionary[Optimizer, Tensor | None] = WeakKeyDictionary()  # unscaled, not yet stepped
        self._stepped: WeakSet[Optimizer] = WeakSet()  # since the last update
        self._overflowed: list[bool] = []  # of the steps since the last update

    def get_scale(self) -> float:
        """What the loss is multiplied by; 1 if not enabled."""
        return self._scale if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """loss · scale, in f32 if the loss is f16 or bf16: the product could exceed f16."""
        if not self.enabled:
            return loss
        if not isinstance(loss, Tensor):
            raise DTypeError(f"scale: the loss must be a tensor, got {type(loss).__name__}")
        wide = loss.to_dtype(float32) if loss.dtype.itemsize == 2 else loss
        return wide * self._scale

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale now, say to clip them; `step` then does not.

        Gradients in f16 or bf16 become f32, where small ones survive. Raises GradientError the second time in a step.
        """
        if not self.enabled:
            return
        self._check("unscale_", optimizer)
        if optimizer in self._bad:
            raise GradientError("unscale_: this optimizer's gradients were unscaled already since its last step")
        self._bad[optimizer] = _unscale_all(optimizer.parameters, 1 / self._scale)

    def step(self, optimizer: Optimizer) -> bool:
        """`optimizer.step()` with unscaled gradients, unless one is infinite or NaN; whether the step was taken.

        Waits for the device, once. Raises GradientError the second time before an `update`: it would divide by the
        scale again.
        """
        if not self.enabled:
            optimizer.step()
            return True
        self._check("step", optimizer)
        if optimizer not in self._bad:
            self.unscale_(optimizer)
        bad = self._bad.pop(optimizer)
        overflowed = bad is not None and bool(bad.item())
        self._overflowed.append(overflowed)
        self._stepped.add(optimizer)
        if not overflowed:
            optimizer.step()
        return not overflowed

    def _check(self, op: str, optimizer: Any) -> None:
        if not isinstance(optimizer, Optimizer):
            raise DTypeError(f"{op}: expected an optimizer, got {type(optimizer).__name__}")
        if optimizer in self._stepped:
            raise GradientError(f"{op}: step() was called for this optimizer already; call update() after it")

    def update(self) -> None:
        """Adapt the scale to what the steps since the last call met. Raises GradientError if there were none.

        Raises NonFinite, with everything ready for the next step, if the scale can fall no further: that step may be a
        good one, and then training goes on.
        """
        if not self.enabled:
            return
        if not self._overflowed:
            raise GradientError("update: no step() since the last update()")
        bad, at_the_end = any(self._overflowed), self._scale <= _SMALLEST
        if bad:
            self._scale, self._good_steps = max(self._scale * self.backoff_factor, min(self._scale, _SMALLEST)), 0
        else:
            self._good_steps += 1
            if self._good_steps >= self.growth_interval:
                self._grow()
        self._overflowed.clear()
        self._stepped.clear()
        if bad and at_the_end:
            raise NonFinite(
                f"update: a gradient is infinite or NaN although the loss scale is down to {self._scale:g}, its least; "
                "detect_anomaly() names the op that made the first one"
            )

    def _grow(self) -> None:
        self._good_steps = 0
        if self._scale * self.growth_factor < _LARGEST:  # an infinite scale would never recover
            self._scale *= self.growth_factor

    # --- copying and pickling: between steps, as what is unscaled but not stepped belongs to optimizers of this process
    def __getstate__(self) -> dict[str, Any]:
        return {**self.state_dict(), "enabled": self.enabled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = (state[name] for name in ("scale", "growth_factor", "backoff_factor", "growth_interval", "enabled"))
        self.__init__(*settings)  # type: ignore[misc]
        self._good_steps = state["good_steps"]

    def state_dict(self) -> dict[str, Any]:
        """The scale, the good steps so far, and the settings."""
        return {
            "scale": self._scale, "good_steps": self._good_steps, "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor, "growth_interval": self.growth_interval,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises ConfigError or DTypeError, and changes nothing, if it is not one."""
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ConfigError(f"load_state_dict: the state of the GradScaler lacks {', '.join(sorted(missing))}")
        good_steps = _count("good_steps", state["good_steps"])
        checked = GradScaler(state["scale"], state["growth_factor"], state["backoff_factor"], state["growth_interval"])
        self._scale, self._good_steps = checked._scale, good_steps
        self.growth_factor, self.backoff_factor = checked.growth_factor, checked.backoff_factor
        self.growth_interval = checked.growth_interval


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DTypeError(f"GradScaler: {name} must be an int, got {value!r}")
    return int(value)


def _unscale_all(parameters: list[Tensor], factor: float) -> Tensor | None:
    """Replace gradients by gradient · factor; whether one is infinite or NaN, as a bool on the device.

    The gradients' own memory is left alone: a gradient may be a broadcast view, or shared by two parameters.
    """
    given = [p for p in parameters if p.grad is not None]
    if not given:
        return None
    sizes = [-(-p.numel // _ALIGNMENT) * _ALIGNMENT for p in given]
    flags = zeros((sum(sizes),), dtype=bool_, device=given[0].device)
    start = 0
    for parameter, size in zip(given, sizes, strict=True):
        gradient = parameter.grad
        assert gradient is not None
        result = new(gradient.device, float64 if gradient.dtype is float64 else float32, gradient.shape)
        _unscale(result, flags.alias(gradient.shape, row_major(gradient.shape), start), gradient, factor)
        parameter.grad = result
        start += size
    return any_of(flags)  # type: ignore[no-any-return]
