"""How much memory there is, how much a pass takes, and what to do when it runs out."""

from .allocations import Allocations
from .free import free_memory
from .passes import in_passes, ran_out
from .saved import saved_bytes
from .sizing import Sizing, fitting, kept_bytes, most_images, usable

__all__ = [
    "Allocations",
    "Sizing",
    "fitting",
    "free_memory",
    "in_passes",
    "kept_bytes",
    "most_images",
    "ran_out",
    "saved_bytes",
    "usable",
]
