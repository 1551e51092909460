"""Optional packages: imported when first needed, with an error that says which extra installs them."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import FlameError


class MissingExtra(FlameError, ImportError):
    """A package that an extra of flame-numba installs is absent."""


def require(module: str, *, extra: str, purpose: str) -> Any:
    """The imported module. Raises MissingExtra, naming the extra, if its package is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is there and lacks something else: its own message is the better one
        raise MissingExtra(f"{purpose} needs {package}: pip install 'flame-numba[{extra}]'") from error
