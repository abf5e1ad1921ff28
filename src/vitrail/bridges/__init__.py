"""Vitrail's methods as other packages of the field call theirs. None of those packages is imported here."""

from .captum import CaptumAttribution
from .quantus import quantus_explainer

__all__ = ["CaptumAttribution", "quantus_explainer"]
