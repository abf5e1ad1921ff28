"""What an explanation costs: against the plain model's limit, against the stored-maps form, against other libraries."""

from .plan import PRESETS, Plan
from .results import Results
from .running import bench

__all__ = ["PRESETS", "Plan", "Results", "bench"]
