"""Localisation: does the relevance lie on the object, as far as boxes and masks tell?"""

from . import energy, grid_pointing, pointing, segmentation  # noqa: F401  (each registers itself)
