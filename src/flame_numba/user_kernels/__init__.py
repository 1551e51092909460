"""Kernels of the user's own: `ensure_kernel` compiles one, `launch_kernel` checks its arguments and launches it.

- `config.py`: how a launch is spread out, checked against the device's limits
- `kernel.py`: what all kernels have in common, and the launch
- `styles.py`: the three ways to write one: the words of this library, Numba's own, CUDA C++
"""

from .config import Launch
from .kernel import Kernel, launch_kernel
from .styles import ensure_kernel

__all__ = ["Kernel", "Launch", "ensure_kernel", "launch_kernel"]
