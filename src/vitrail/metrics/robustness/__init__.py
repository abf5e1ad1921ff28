"""Robustness: does the map hold when the image hardly changes?"""

from . import max_sensitivity  # noqa: F401  (registers itself)
