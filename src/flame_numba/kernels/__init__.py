"""The kernels, by family. `get` gives any of them as an object, `list` all that an op launches, in order.

They are written in the words of `language.py`, and `compiler/` makes machine code of them. `get` and `list` ask the
ops, which are built on this package: so they live in `flame_numba.kernel_objects`, and `flame_numba` enters them here.
"""

from collections.abc import Callable
from typing import Any

get: Callable[..., Any]
list: Callable[..., Any]
