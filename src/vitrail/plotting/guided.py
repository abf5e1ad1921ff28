"""The picture of a guided question: the photograph with its map, unguided beside it, and what was stitched."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrail.errors import OptionError
from vitrail.explanation import Explanation
from vitrail.plotting.figure import (
    FOOT,
    GAP,
    HEAD,
    MARGIN,
    NOTE,
    NOTE_SIZE,
    SECOND,
    explained,
    panel_size,
    seen_picture,
)
from vitrail.plotting.lettering import lines, write
from vitrail.plotting.panel import PALE, Box, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_guided"]

LABEL = 0.24  # inches above the question: what this map is
BETWEEN = 0.1  # below a row, before the label of the next
MOST = 4  # stitched pictures shown of one photograph


def draw_guided(
    guided: Explanation, unguided: Explanation | None = None, *, smooth: bool = True, opacity: float | int = 1.0
) -> "Figure":
    """Draw one photograph: the guided map of its own patches, the unguided one, and below them each stitched input.

    Each map is scaled by its own largest absolute score. Of more than `MOST` stitched inputs the first are shown.

    Raises `OptionError` for an explanation without a guide, of several photographs, or of several targets.
    """
    if not guided.guided:
        raise OptionError("draw_guided() shows explanations with guide=; this one has none, draw() shows it")
    if len(guided) != 1 or guided.targets != 1:
        raise OptionError(
            f"draw_guided() shows one photograph and one target, not {len(guided)} with {guided.targets}: "
            "draw them one by one, as in guided[0]"
        )
    first = _Row([_Panel(guided, None)] if guided.images is not None else [])
    first.panels.append(_Panel(guided, "with the guide: the photograph's own patches"))
    if unguided is not None:
        first.panels.append(_Panel(unguided, "without a guide"))
    parts = guided.guided[:MOST]
    second = _Row([panel for part in parts for panel in _both(part)])
    width = 2 * MARGIN + max(first.width, second.width)
    told = dict.fromkeys(guided.notes())
    told |= dict.fromkeys(f"Without a guide: {note}" for note in (unguided.notes() if unguided is not None else ()))
    told |= dict.fromkeys(
        [f"{len(parts)} of {len(guided.guided)} stitched inputs shown."] * (len(guided.guided) > MOST)
    )
    notes = [line for note in told for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    height = MARGIN / 2 + first.height + second.height + NOTE * len(notes) + MARGIN / 2
    figure = blank(width, height)
    top = height - MARGIN / 2
    first.draw(figure, top, smooth=smooth, opacity=opacity)
    second.draw(figure, top - first.height, smooth=smooth, opacity=opacity)
    for line, note in enumerate(reversed(notes)):
        write(figure, MARGIN, MARGIN / 2 + line * NOTE, note, width=width - 2 * MARGIN, size=NOTE_SIZE, color=PALE)
    return figure


@dataclass
class _Panel:
    """The map of an explanation under a label, or, without one, the picture alone."""

    ex: Explanation
    label: str | None

    def draw(self, figure: "Figure", box: Box, head: float, *, smooth: bool, opacity: float | int) -> None:
        x, y, wide, high = box
        if self.label is None:
            seen_picture(figure, self.ex, 0, box)
            return
        write(figure, x, y + high + head - 0.14, self.label, width=wide, size=8.0, color=PALE)
        explained(figure, self.ex, 0, 0, box, opacity=opacity, smooth=smooth, limit=None)


@dataclass
class _Row:
    """Panels side by side."""

    panels: list[_Panel]

    @property
    def sizes(self) -> list[tuple[float, float]]:
        return [panel_size(panel.ex) for panel in self.panels]

    @property
    def head(self) -> float:
        return LABEL + HEAD + SECOND * any(panel.ex.against is not None for panel in self.panels)

    @property
    def width(self) -> float:
        return sum(wide for wide, _ in self.sizes) + GAP * (len(self.panels) - 1)

    @property
    def height(self) -> float:
        return self.head + max(high for _, high in self.sizes) + FOOT + BETWEEN

    def draw(self, figure: "Figure", top: float, *, smooth: bool, opacity: float | int) -> None:
        x = MARGIN
        for panel, (wide, high) in zip(self.panels, self.sizes, strict=True):
            box = (x, top - self.head - high, wide, high)
            panel.draw(figure, box, self.head, smooth=smooth, opacity=opacity)
            x += wide + GAP


def _both(part: Explanation) -> list[_Panel]:
    """A stitched input as it was, where its picture is known, and with its map."""
    guide, stitch = part.metadata["guides"][0], part.metadata["stitch"]
    name = "drawn by the model" if guide["drawn"] else guide["source"] or "a picture"
    where = _Panel(part, f"{stitch['layout']}, original {stitch['side']}; guide: {name}")
    return [_Panel(part, None), where] if part.images is not None else [where]
