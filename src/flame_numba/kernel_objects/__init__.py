"""The kernels of the library as objects to look at and to launch: `fn.kernels.get("softmax", fn.bfloat16)`.

Nobody keeps a list of which op launches what. The op is asked: it runs on a machine that has no memory and notes each
launch (`devices/rehearsal.py`), with operands of the table's own test cases or of shapes that the caller gives.
"""

from .asked import get, list_kernels
from .kernel import LibraryKernel, Parameter

__all__ = ["LibraryKernel", "Parameter", "get", "list_kernels"]
