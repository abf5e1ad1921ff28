"""Explanations as pictures: red for, blue against, white at zero, the image underneath."""

from vitrail.render.figure import draw
from vitrail.render.overlay import overlay
from vitrail.render.palette import colour
from vitrail.render.sheet import save_figure, save_picture

__all__ = ["colour", "draw", "overlay", "save_figure", "save_picture"]
