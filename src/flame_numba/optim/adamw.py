"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

from ..errors import ConfigError
from ..kernels.elementwise.formula import sqrt as root
from ..tensor import Tensor
from .optimizer import Optimizer, Rule, Slot, at_least_zero, below_one


# 1 − β comes from the host: computed in f32, 1 − 0.999 would be off by 10⁻⁵ of itself
@Rule
def _adamw(p, m, v, g, keep, beta1, rest1, beta2, rest2, rate, correction, eps):  # type: ignore[no-untyped-def]
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * (g * g)
    return keep * p - rate * (m / (root(v) * correction + eps)), m, v


class AdamW(Optimizer):
    """p ← (1 − lr·weight_decay)·p − lr·m̂ / (√v̂ + eps), with m̂, v̂ the running means of g and g², unbiased.

    (Loshchilov and Hutter 2019)
    """

    settings = ("lr", "betas", "eps", "weight_decay")
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    def __init__(
        self, parameters: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _check(self, settings: Mapping[str, Any]) -> None:
        betas = settings["betas"]
        at_least_zero("AdamW", lr=settings["lr"], eps=settings["eps"], weight_decay=settings["weight_decay"])
        if not isinstance(betas, tuple) or len(betas) != 2:
            raise ConfigError(f"AdamW: betas={betas!r} must be two numbers")
        below_one("AdamW", beta1=betas[0], beta2=betas[1])

    def _state_names(self) -> tuple[str, ...]:
        return ("mean", "square")

    def _update(self, parameter: Tensor, gradient: Tensor, slot: Slot) -> None:
        beta1, beta2 = self.betas
        _adamw(
            parameter, slot.master, slot.state["mean"], slot.state["square"], gradient,
            1 - self.lr * self.weight_decay, beta1, 1 - beta1, beta2, 1 - beta2,
            self.lr / (1 - beta1**slot.steps), 1 / sqrt(1 - beta2**slot.steps), self.eps,
        )  # fmt: skip
