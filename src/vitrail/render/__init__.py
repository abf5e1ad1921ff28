"""Explanations as pictures: red for, blue against, white at zero, the image underneath."""

from vitrail.render.figure import draw
from vitrail.render.film import save_film
from vitrail.render.light import draw_light, save_light
from vitrail.render.overlay import overlay
from vitrail.render.palette import colour
from vitrail.render.sheet import save_figure, save_picture
from vitrail.render.transfer import draw_transfer

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
