"""Localisation: does the relevance lie on the object, as far as boxes and masks tell?"""

from . import energy, pointing, segmentation  # noqa: F401  (each registers itself)
