"""What the ops offer by name: all that stands in the `__all__` of a module of theirs."""

import sys

from . import flame as flame  # it and `methods` only give Tensor what it has
from .arrange.diagonals import *  # noqa: F403
from .arrange.rearrange import *  # noqa: F403
from .attention.attention import *  # noqa: F403
from .attention.positions import *  # noqa: F403
from .core.debug import *  # noqa: F403
from .elementwise.activations import *  # noqa: F403
from .elementwise.arithmetic import *  # noqa: F403
from .elementwise.bitwise import *  # noqa: F403
from .elementwise.limits import *  # noqa: F403
from .elementwise.trigonometry import *  # noqa: F403
from .index.gather import *  # noqa: F403
from .index.scatter import *  # noqa: F403
from .inplace import *  # noqa: F403
from .losses.losses import *  # noqa: F403
from .order.prod import *  # noqa: F403
from .order.scans import *  # noqa: F403
from .order.searching import *  # noqa: F403
from .order.sorting import *  # noqa: F403
from .products.einsum import *  # noqa: F403
from .products.linalg import *  # noqa: F403
from .random import *  # noqa: F403
from .reduce.lengths import *  # noqa: F403
from .reduce.reductions import *  # noqa: F403
from .rows.channel_norms import *  # noqa: F403
from .rows.modulation import *  # noqa: F403
from .rows.norms import *  # noqa: F403
from .rows.softmax import *  # noqa: F403
from .shape.creation import *  # noqa: F403
from .shape.joining import *  # noqa: F403
from .shape.movement import *  # noqa: F403
from .windows.convolution import *  # noqa: F403
from .windows.pooling import *  # noqa: F403
from .windows.upsampling import *  # noqa: F403

MODULES = [module for name, module in sorted(sys.modules.items()) if name.startswith(f"{__package__}.")]
MODULES = [module for module in MODULES if hasattr(module, "__all__")]
PUBLIC = [name for module in MODULES for name in module.__all__]

__all__ = PUBLIC
