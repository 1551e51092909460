"""The ops: tables of entries, one an op. `core/table.py` says what an entry is; `public.py`, which names there are."""

from .core.table import TABLE, Entry
from .public import MODULES, PUBLIC

__all__ = ["MODULES", "PUBLIC", "TABLE", "Entry"]
