"""Pictures of a run as PNG files, and of a memory pool also as pages of HTML.

matplotlib is imported when the first PNG is drawn; the pages need nothing.
"""

from .memory import pool_picture, pool_timeline
from .png import loss_curve

__all__ = ["loss_curve", "pool_picture", "pool_timeline"]
