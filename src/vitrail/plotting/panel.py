"""One panel of a picture: a photograph, or a signed map with the bar of its colours, at a place in inches."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from vitrail.plotting.lettering import number, width_of, write
from vitrail.plotting.overlay import overlay, sides, strength
from vitrail.plotting.palette import AGAINST, FOR, ColormapLike, mapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DPI", "FRAME", "INK", "PALE", "Box", "axes_at", "bar", "blank", "pixels", "show", "signed_map"]

DPI = 200
BAR = 0.1
INK, PALE, FRAME = "#222222", "#6f6f6f", "#c9c9c9"

Box = tuple[float, float, float, float]  # left, bottom, width, height in inches


def blank(width: float, height: float) -> "Figure":
    """A white figure of that many inches, known to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from vitrail.plotting.sheet import notebook_figure

    figure = notebook_figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def signed_map(
    figure: "Figure",
    scores: Float[np.ndarray, "rows cols"],
    image: UInt8[np.ndarray, "height width 3"] | None,
    box: Box,
    *,
    opacity: float | int = 1.0,
    smooth: bool = True,
    limit: float | None = None,
    signed: bool = True,
    colormap: ColormapLike | None = None,
    threshold: float | int = 0.0,
) -> None:
    """A map over its image, scaled by `limit` (its own largest absolute score unless given), and its bar below it."""
    x, y, wide, high = box
    look = {"opacity": opacity, "smooth": smooth, "colormap": colormap, "signed": signed, "threshold": threshold}
    show(axes_at(figure, box), overlay(scores, image, limit=limit, size=pixels(box), **look))
    if strength(scores) > 0:
        bar(figure, scores, limit or strength(scores), signed, box, colormap=colormap, threshold=threshold)
        return
    reason = "the map is zero everywhere" if np.isfinite(scores).all() else "the map holds NaN or infinity"
    frame = {"facecolor": "white", "edgecolor": FRAME, "boxstyle": "round,pad=0.4"}
    style = {"ha": "center", "va": "center", "color": INK, "bbox": frame}
    write(figure, x + wide / 2, y + high / 2, "no signal", width=wide, size=12.0, **style)
    write(figure, x, y - 0.17, f"no signal: {reason}", width=wide, size=8.0, color=INK)


def bar(
    figure: "Figure",
    scores: Float[np.ndarray, "rows cols"],
    limit: float,
    signed: bool,
    box: Box,
    *,
    colormap: ColormapLike | None = None,
    threshold: float | int = 0.0,
) -> None:
    """The colours that the map uses, from its lowest score to its highest, and what they are in numbers."""
    x, y, wide, _ = box
    scores, both = sides(scores, signed)
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    axes = axes_at(figure, (x, y - 0.09 - BAR, wide, BAR))
    shown = np.linspace(low, high, 512)[None] / limit
    shown[np.abs(shown) < threshold] = 0
    show(axes, np.rint(255 * mapped(shown, colormap, signed=both)).astype(np.uint8))
    against, supports = (AGAINST, FOR) if colormap is None else (INK, INK)
    base, most = y - 0.09 - BAR - 0.135, wide / 2 - 0.12
    words = signed and wide > 2.4  # in a narrow panel the colours have to do
    left = number(low, sign=both) + ("  against" if words and low < 0 else "")
    right = ("for  " if words and high > 0 else "") + number(high, sign=both)
    lower = write(figure, x, base, "", ending=left, width=most, color=against if low < 0 else INK)
    upper = write(figure, x + wide, base, "", ending=right, width=most, color=supports if high > 0 else INK, ha="right")
    if low < 0 < high:
        zero = x + wide * -low / (high - low)
        axes.axvline(-low / (high - low) * 512 - 0.5, color=INK, linewidth=0.6)
        free = (x + width_of(lower, figure) + 0.09, x + wide - width_of(upper, figure) - 0.09)
        # Elsewhere it would run into the words at the ends.
        if x + wide * 0.36 < zero < x + wide * 0.64 and free[0] < zero < free[1]:
            write(figure, zero, base, "0", width=0.3, color=INK, ha="center")


def pixels(box: Box) -> tuple[int, int]:
    """Height and width of a box in pixels."""
    return max(round(box[3] * DPI), 1), max(round(box[2] * DPI), 1)


def axes_at(figure: "Figure", box: Box) -> "Axes":
    """Empty axes that fill the box, in a thin frame."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    return axes


def show(axes: "Axes", rgb: np.ndarray) -> None:
    """Put RGB pixels into axes, one for one."""
    axes.imshow(rgb, aspect="auto", interpolation="none", origin="upper")
