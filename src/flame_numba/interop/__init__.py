"""Memory shared with other libraries, without a copy: DLPack and `__cuda_array_interface__`, both ways.

What goes out is pinned in its pool until the other library lets go of it. What comes in is held until the last tensor
over it is gone and the work that uses it is done; no pool moves or counts it.
"""

from ..tensor import add_methods
from .cuda_array import cuda_array_interface, from_cuda_array
from .dlpack import dlpack_capsule, dlpack_device, from_dlpack
from .foreign import adopt, adopt_array

add_methods(  # the names that other libraries look for
    {
        "__dlpack__": dlpack_capsule,
        "__dlpack_device__": dlpack_device,
        "__cuda_array_interface__": property(cuda_array_interface),
    }
)

__all__ = ["adopt", "adopt_array", "from_cuda_array", "from_dlpack"]
