"""Generated words, explained: what in the image and what in the text a vision-language model wrote each of them for."""

from .explain import explain_generation
from .explanation import GenerationExplanation
from .loading import VisionLanguageModel, load_vlm

__all__ = ["GenerationExplanation", "VisionLanguageModel", "explain_generation", "load_vlm"]
