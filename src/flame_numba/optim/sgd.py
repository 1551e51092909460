"""Stochastic gradient descent, with momentum if wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, DTypeError
from ..tensor import Tensor
from .optimizer import Optimizer, Rule, Slot, at_least_zero, below_one


@Rule
def _plain(p, g, lr, decay):  # type: ignore[no-untyped-def]
    return p - lr * (g + decay * p)


@Rule
def _momentum(p, velocity, g, lr, decay, momentum):  # type: ignore[no-untyped-def]
    velocity = momentum * velocity + (g + decay * p)
    return p - lr * velocity, velocity


@Rule
def _nesterov(p, velocity, g, lr, decay, momentum):  # type: ignore[no-untyped-def]
    g = g + decay * p
    velocity = momentum * velocity + g
    return p - lr * (g + momentum * velocity), velocity


class SGD(Optimizer):
    """p ← p − lr·(g + weight_decay·p); with momentum μ, v ← μ·v + g + weight_decay·p and p ← p − lr·v.

    nesterov takes lr·(g + μ·v) instead, the gradient a step ahead. (Sutskever et al. 2013)
    """

    settings = ("lr", "momentum", "weight_decay", "nesterov")
    optional_state = ("velocity",)  # while there is momentum
    momentum: float
    weight_decay: float
    nesterov: bool

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def _check(self, settings: Mapping[str, Any]) -> None:
        at_least_zero("SGD", lr=settings["lr"], weight_decay=settings["weight_decay"])
        below_one("SGD", momentum=settings["momentum"])
        if not isinstance(settings["nesterov"], bool):
            raise DTypeError(f"SGD: nesterov must be True or False, got {settings['nesterov']!r}")
        if settings["nesterov"] and settings["momentum"] == 0:
            raise ConfigError("SGD: nesterov=True needs momentum > 0")

    def _state_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def _update(self, parameter: Tensor, gradient: Tensor, slot: Slot) -> None:
        if not self.momentum:
            _plain(parameter, slot.master, gradient, self.lr, self.weight_decay)
            return
        rule = _nesterov if self.nesterov else _momentum
        velocity = slot.state["velocity"]
        rule(parameter, slot.master, velocity, gradient, self.lr, self.weight_decay, self.momentum)
