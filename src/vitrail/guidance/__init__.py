"""How a question is steered: by a guide beside the original, or by a class to compare with and pictures of it."""

from .detail import LOSSES, Detail, detail, ordered, top_pairs
from .guide import Guide, as_guide
from .typical import Typical, TypicalPictures, picture_files, typical_pictures

__all__ = [
    "LOSSES",
    "Detail",
    "Guide",
    "Typical",
    "TypicalPictures",
    "as_guide",
    "detail",
    "ordered",
    "picture_files",
    "top_pairs",
    "typical_pictures",
]
