"""Explanations as pictures: red for, blue against, white at zero, the image underneath."""

from .figure import draw, save_picture
from .film import save_film
from .overlay import colour, draw_light, overlay, save_light
from .saving import save_figure
from .transfer import draw_transfer

__all__ = [
    "colour",
    "draw",
    "draw_light",
    "draw_transfer",
    "overlay",
    "save_figure",
    "save_film",
    "save_light",
    "save_picture",
]
