"""What an explanation costs: against the plain model's limit, against the stored-maps form, against other libraries."""

from .results import Results
from .run import PRESETS, Plan, bench

__all__ = ["PRESETS", "Plan", "Results", "bench"]
