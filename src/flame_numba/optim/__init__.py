"""Optimizers: one fused kernel a parameter and step, f32 masters for f16 and bf16 parameters."""

from .adamw import AdamW
from .optimizer import Optimizer
from .sgd import SGD

__all__ = ["SGD", "AdamW", "Optimizer"]
