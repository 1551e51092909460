"""The pool that every tensor's bytes come from. Users hold what `memory_pool.py` has; the other files are its parts."""

from .blocks import Block
from .config import PoolConfig, parse_bytes
from .context import memory_tag
from .memory_pool import MemoryPool, current_pool, default_pool
from .report import LeakReport, Mark
from .scope import Scope
from .stats import DefragmentReport, PoolStats, TagStats
from .views import BlockView, Event, Frame, SegmentView

__all__ = [
    "Block",
    "BlockView",
    "DefragmentReport",
    "Event",
    "Frame",
    "LeakReport",
    "Mark",
    "MemoryPool",
    "PoolConfig",
    "PoolStats",
    "Scope",
    "SegmentView",
    "TagStats",
    "current_pool",
    "default_pool",
    "memory_tag",
    "parse_bytes",
]
