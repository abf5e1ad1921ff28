"""Pictures with what is known of them, from folders, tables, archives and the built-in world."""

from .dataset import Dataset, Sample
from .opening import open_data

__all__ = ["Dataset", "Sample", "open_data"]
