"""Modules that are functions too: `fn.grad(y, x)` is a call, and `import flame_numba.grad` still gives the module."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module: ModuleType, function: Callable[..., Any]) -> None:
    """Have a call of the module call the function, whose signature and help it shows."""

    class CallableModule(ModuleType):
        __call__ = staticmethod(function)
        __wrapped__ = staticmethod(function)

    module.__class__ = CallableModule
