"""Explanations as pictures: red for, blue against, white at zero, the image underneath."""

from vitrail.plotting.figure import draw, save_picture
from vitrail.plotting.film import save_film
from vitrail.plotting.overlay import colour, draw_light, overlay, save_light
from vitrail.plotting.saving import save_figure
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
