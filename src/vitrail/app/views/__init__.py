"""The views of the page: from a model, an image and a question to HTML, without visitors or HTTP."""

from collections.abc import Callable

from ..exports import ViewResult
from ..pictures import Picture
from ..question import ViewContext
from .comparisons import draw_detail, draw_gallery, draw_guide_view
from .counterfactual import draw_film, draw_rewriting
from .map import draw_heads, draw_layers, draw_map
from .words import WordsDrawing

__all__ = ["LONG_VIEWS", "QUICK_VIEWS", "WordsDrawing"]

Tick = Callable[[str, int, int], None]

QUICK_VIEWS: dict[str, Callable[[ViewContext], ViewResult]] = {
    "map": draw_map,
    "layers": draw_layers,
    "heads": draw_heads,
    "detail": draw_detail,
}

# These are given a picture of the visitor's to be a guide, where there is one, and tell how far they have come.
LONG_VIEWS: dict[str, Callable[[ViewContext, Picture | None, Tick], ViewResult]] = {
    "methods": draw_gallery,
    "guide": draw_guide_view,
    "transfer": draw_film,
    "rewrite": draw_rewriting,
}
