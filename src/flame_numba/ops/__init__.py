"""The ops: tables of entries, one an op. `table.py` says what an entry is."""

from types import ModuleType

from . import (
    activations,
    attention,
    bitwise,
    channel_norms,
    closeness,
    convolution,
    creation,
    diagonals,
    einsum,
    elementwise,
    flame,
    glue,
    indexing,
    inplace,
    linalg,
    losses,
    methods,
    movement,
    normalization,
    norms,
    pooling,
    positions,
    random,
    rearrange,
    reductions,
    scans,
    scatter,
    searching,
    sorting,
    trigonometry,
    upsampling,
)
from .table import TABLE, Entry

MODULES = sorted(
    (value for value in globals().values() if isinstance(value, ModuleType) and hasattr(value, "__all__")),
    key=lambda module: module.__name__,
)
PUBLIC = [name for module in MODULES for name in module.__all__]  # what `flame_numba` offers of them

__all__ = ["MODULES", "PUBLIC", "TABLE", "Entry"]
