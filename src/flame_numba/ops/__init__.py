"""The ops: tables of entries, one an op. `table.py` says what an entry is."""

from . import (
    convolution,
    creation,
    elementwise,
    indexing,
    linalg,
    losses,
    methods,
    movement,
    normalization,
    random,
    reductions,
)
from .table import TABLE, Entry

__all__ = [
    "TABLE",
    "Entry",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "linalg",
    "losses",
    "methods",
    "movement",
    "normalization",
    "random",
    "reductions",
]
