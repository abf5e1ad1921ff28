"""How the question is steered: by a class to compare with, and by pictures of it."""

from .detail import LOSSES, Detail, detail, ordered, top_pairs
from .typical import Typical, TypicalPictures, picture_files, typical_pictures

__all__ = [
    "LOSSES",
    "Detail",
    "Typical",
    "TypicalPictures",
    "detail",
    "ordered",
    "picture_files",
    "top_pairs",
    "typical_pictures",
]
