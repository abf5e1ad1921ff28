"""One file for each view of the page: from a model, a picture and a question to HTML. They know no visitor, no web."""

from collections.abc import Callable

from ..exports import Answer
from ..pictures import Picture
from .asking import Asked
from .detail import draw_detail
from .gallery import draw_gallery
from .guide import draw_guide_view
from .heads import draw_heads
from .layers import draw_layers
from .map import draw_map
from .rewrite import draw_rewriting
from .transfer import draw_film

__all__ = ["LONG_VIEWS", "QUICK_VIEWS"]

Tick = Callable[[str, int, int], None]

QUICK_VIEWS: dict[str, Callable[[Asked], Answer]] = {
    "map": draw_map,
    "layers": draw_layers,
    "heads": draw_heads,
    "detail": draw_detail,
}

# These are given a picture of the visitor's to be a guide, where there is one, and tell how far they have come.
LONG_VIEWS: dict[str, Callable[[Asked, Picture | None, Tick], Answer]] = {
    "methods": draw_gallery,
    "guide": draw_guide_view,
    "transfer": draw_film,
    "rewrite": draw_rewriting,
}
