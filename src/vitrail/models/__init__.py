"""What is explained: a Vision Transformer together with its preprocessing and class names."""

from . import hugging_face, image_sources, open_clip_source  # noqa: F401  (they register themselves)
from .loading import list_models, load
from .preprocess import Preprocess
from .vision_model import VisionModel
from .wrapping import wrap

__all__ = ["Preprocess", "VisionModel", "list_models", "load", "wrap"]
