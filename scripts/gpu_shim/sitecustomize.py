"""For `make gpu` and `make bench` alone: lets numba-cuda 0.30 start beside NumPy 2.5.

It uses `np.row_stack`, another name of `np.vstack`, which NumPy 2.5 removed. The library asks for an older one;
those commands install nothing, so they must live with the one at hand. Python runs a module of this name before
anything else, in each process that finds this folder on its path.
"""

try:
    import numpy as np
except ImportError:
    pass  # then there is nothing to mend
else:
    if not hasattr(np, "row_stack"):
        np.row_stack = np.vstack  # type: ignore[attr-defined]
