"""Vitrail: see why a Vision Transformer decided as it did."""

from importlib.metadata import version

from .compare import compare
from .comparison import Comparison
from .explain import explain
from .explanation import Explanation
from .guidance import Guide
from .methods import list_methods
from .models import VisionModel, list_models, load, wrap
from .models.hugging_face_text import load_text
from .models.preprocess import Preprocess
from .objectives import list_objectives
from .plan import Plan, plan
from .text import TextExplanation, explain_text

__all__ = [
    "Comparison",
    "Explanation",
    "Guide",
    "Plan",
    "Preprocess",
    "TextExplanation",
    "VisionModel",
    "compare",
    "explain",
    "explain_text",
    "list_methods",
    "list_models",
    "list_objectives",
    "load",
    "load_text",
    "plan",
    "wrap",
]

__version__ = version("vitrail")
