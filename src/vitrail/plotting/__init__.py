"""Explanations as pictures: red for, blue against, white at zero, the image underneath."""

from vitrail.plotting.figure import draw
from vitrail.plotting.film import save_film
from vitrail.plotting.light import draw_light, save_light
from vitrail.plotting.overlay import overlay
from vitrail.plotting.palette import colour
from vitrail.plotting.sheet import save_figure, save_picture
from vitrail.plotting.transfer import draw_transfer

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
