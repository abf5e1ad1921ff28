"""How much memory there is, how much a pass takes, and what to do when it runs out."""

from .batch_size import Sizing, fitting, in_passes, kept_bytes, most_images, usable
from .measure import Allocations, free_memory, saved_bytes

__all__ = [
    "Allocations",
    "Sizing",
    "fitting",
    "free_memory",
    "in_passes",
    "kept_bytes",
    "most_images",
    "saved_bytes",
    "usable",
]
