"""Pictures with what is known of them, from folders, tables, archives and the built-in world."""

from .base import Dataset, Sample
from .open import open_data

__all__ = ["Dataset", "Sample", "open_data"]
