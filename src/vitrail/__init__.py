"""Vitrail: see why a Vision Transformer decided as it did."""

from importlib.metadata import version

from .explain import explain
from .explanation import Explanation
from .guidance import Guide
from .methods import list_methods
from .models import VisionModel, list_models, load, wrap
from .models.preprocess import Preprocess
from .objectives import list_objectives

__all__ = [
    "Explanation",
    "Guide",
    "Preprocess",
    "VisionModel",
    "explain",
    "list_methods",
    "list_models",
    "list_objectives",
    "load",
    "wrap",
]

__version__ = version("vitrail")
