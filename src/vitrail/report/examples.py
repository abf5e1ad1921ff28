"""Best and worst images of each method as one figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..plotting.canvas import INK, PALE, axes_at, blank, pixels, show, signed_map, write
from ..plotting.overlay import resize
from .leaderboard import Column
from .pictures import Extreme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_gallery"]

SIDE, GAP, APART, NAMES, MARGIN = 1.15, 0.06, 0.22, 1.35, 0.18  # inches
HEAD, FOOT, TOP, NOTE = 0.2, 0.36, 0.34, 0.2
EACH = 2  # images on either side
MOST = 24  # methods; more would be a figure nobody prints


def draw_gallery(found: Mapping[str, Mapping[str, list[Extreme]]], column: Column) -> "Figure":
    """Returns a row for each method: the images where it is best on the left, worst on the right, each next to
    its map.
    """
    shown = [(label, sides) for label, sides in found.items() if any(sides.values())]
    rows = shown[:MOST]
    pair = 2 * SIDE + GAP
    half = EACH * (pair + APART)
    width = 2 * MARGIN + NAMES + 2 * half
    row = HEAD + SIDE + FOOT
    figure = blank(width, 2 * MARGIN + TOP + row * len(rows) + NOTE)
    top = figure.get_size_inches()[1] - MARGIN - TOP
    for number, side in enumerate(("best", "worst")):
        x = MARGIN + NAMES + number * half
        write(figure, x, top + 0.1, side, width=half, size=11.0, weight="bold", color=INK)
    for place, (label, sides) in enumerate(rows):
        y = top - (place + 1) * row + FOOT
        write(figure, MARGIN, y + SIDE / 2, label, width=NAMES - 0.1, size=10.0, weight="bold", color=INK)
        for number, side in enumerate(("best", "worst")):
            for k, one in enumerate(sides[side][:EACH]):
                x = MARGIN + NAMES + number * half + k * (pair + APART)
                high = SIDE * min(one.seen.shape[0] / one.seen.shape[1], 1.0)
                box = (x, y, SIDE, high)
                show(axes_at(figure, box), resize(one.seen, pixels(box)))
                signed_map(figure, one.scores, one.seen, (x + SIDE + GAP, y, SIDE, high), signed=one.signed)
                write(figure, x, y + high + 0.06, one.title, width=pair, size=7.5, color=INK)
                write(figure, x, y - 0.16, column.text(one.value), width=SIDE, size=7.5, color=PALE)
    said = f"Below each picture: {column.title} of this image alone. Each map is scaled by its own largest |score|."
    if len(rows) < len(shown):
        said += f" The first {len(rows)} of {len(shown)} methods."
    write(figure, MARGIN, MARGIN, said, width=width - 2 * MARGIN, size=7.0, color=PALE)
    return figure
