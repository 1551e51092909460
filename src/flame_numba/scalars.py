"""What a number is: Python's, NumPy's scalars, and the element of an array or a tensor of one."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from .errors import DTypeError

PYTHON = (bool, int, float)
NUMBERS = (*PYTHON, np.generic)  # what an op takes as a number, as far as a type can say
CLAIMS = (numbers.Number, np.generic)  # what calls itself a number, such as a complex: an op may have none for it


def plain(value: Any) -> Any:
    """A NumPy scalar as Python's; anything else as it is."""
    if not isinstance(value, np.generic):
        return value
    item = value.item()
    return float(item) if isinstance(item, np.longdouble) else item  # Python has no number for it


def element(value: Any) -> Any:
    """`plain`, also of an array or a tensor of one element."""
    one = hasattr(value, "item") and getattr(value, "size", None) == 1 and not isinstance(value, np.generic)
    return value.item() if one else plain(value)


def is_number(value: Any) -> bool:
    """Whether it is a number of Python's or NumPy's."""
    return isinstance(plain(value), PYTHON)


def as_number(op: str, name: str, value: Any) -> bool | int | float:
    """A Python number of what is one: an array or a tensor of one element, too, and what float() takes but strings.

    Raises DTypeError (a TypeError) that names the argument.
    """
    number = element(value)
    if isinstance(number, PYTHON):
        return number
    if isinstance(value, (str, bytes, np.complexfloating)) or not hasattr(value, "__float__"):
        raise DTypeError(f"{op}: {name} must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DTypeError(f"{op}: {name} must be one number, got {value!r}") from None
