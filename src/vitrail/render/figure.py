"""The picture of an explanation: photograph, signed map, the question above it, the true range below it.

Rows are images, columns are targets. Everything has its place in inches, so a picture is the same on every machine.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import OptionError
from vitrail.explanation import Explanation
from vitrail.render.lettering import lines, write
from vitrail.render.overlay import resize, strength
from vitrail.render.palette import AGAINST, FOR
from vitrail.render.panel import PALE, Box, axes_at, blank, pixels, show, signed_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "explained", "panel_size", "seen_picture"]

MARGIN, GAP = 0.22, 0.16  # inches: around the picture, between its panels
HEAD, FOOT = 0.32, 0.6  # above each panel for the question, below it for the range and the method
SECOND = 0.21  # the second line of a question, "against …"
NOTE, NOTE_SIZE = 0.15, 7.5  # a line of the notes, in inches, and its letters in points
SIDE, WIDEST = 3.1, 5.0  # the panels' height, and the width at which a wide image gets a lower panel instead
TALLEST = 320  # inches; a PNG ends at 65536 pixels


def draw(
    explanations: Explanation | Sequence[Explanation],
    *,
    opacity: float | int = 1.0,
    smooth: bool = True,
    shared_scale: bool = False,
    photograph: bool = True,
) -> "Figure":
    """Draw an explanation, or several of the same images side by side, as a Matplotlib figure.

    Each map is scaled by its own largest absolute score, unless `shared_scale` asks for one scale over all images and
    targets of an explanation. `opacity` and `smooth` are those of `overlay`; `photograph=False` leaves out the first
    column. The figure belongs to no window and no global state: a notebook shows it, `save_figure` writes it.

    Raises `OptionError` when there is nothing to draw, the explanations hold different numbers of images, or the figure
    would be too tall.
    """
    columns = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    _check(columns, opacity)
    first, rows = columns[0], len(columns[0])
    photograph = photograph and first.images is not None
    wide, high = panel_size(first)
    count = sum(ex.targets for ex in columns) + photograph
    width = 2 * MARGIN + count * wide + (count - 1) * GAP
    told = dict.fromkeys(note for ex in columns for note in ex.notes())
    notes = [line for note in told for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    head = MARGIN / 2 + HEAD + SECOND * any(ex.against is not None for ex in columns)
    row = head + high + FOOT
    height = rows * row + NOTE * len(notes) + MARGIN / 2
    if height > TALLEST:
        raise OptionError(
            f"a picture of {rows} images would be {height:.0f} inches tall; draw {int(TALLEST // row)} at a time"
        )
    figure = blank(width, height)
    for i in range(rows):
        x, y = MARGIN, height - i * row - head - high
        if photograph:
            seen_picture(figure, first, i, (x, y, wide, high))
            x += wide + GAP
        for ex in columns:
            limit = _shared(ex) if shared_scale else None
            for target in range(ex.targets):
                explained(figure, ex, i, target, (x, y, wide, high), opacity=opacity, smooth=smooth, limit=limit)
                x += wide + GAP
    for line, note in enumerate(reversed(notes)):
        write(figure, MARGIN, MARGIN / 2 + line * NOTE, note, width=width - 2 * MARGIN, size=NOTE_SIZE, color=PALE)
    return figure


def _check(columns: list[Explanation], opacity: float | int) -> None:
    if not columns or not len(columns[0]):
        raise OptionError("there is nothing to draw: no explanation, or one of no image")
    counts = [len(ex) for ex in columns]
    if len(set(counts)) > 1:
        raise OptionError(f"explanations drawn side by side must be of the same images, but they hold {counts} of them")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity={opacity} must lie between 0 (the photograph) and 1 (the map over it)")


def panel_size(ex: Explanation) -> tuple[float, float]:
    """Width and height of a panel, in inches."""
    rows, cols = ex.grid if ex.images is None else ex.images.shape[1:3]
    wide = SIDE * cols / rows
    if wide > WIDEST:
        return WIDEST, max(WIDEST * rows / cols, 0.5)
    return max(wide, 1.6), SIDE


def _shared(ex: Explanation) -> float:
    maps = ex.scores.numpy(force=True).reshape(-1, *ex.grid)
    return max(strength(scores) for scores in maps)  # a map without signal has no say


def seen_picture(figure: "Figure", ex: Explanation, i: int, box: Box) -> None:
    """The image itself, with its file's name above it and the model's below."""
    x, y, wide, high = box
    assert ex.images is not None
    show(axes_at(figure, box), resize(ex.images[i].numpy(force=True), pixels(box)))
    source = _source(ex, i)
    if source:
        write(figure, x, y + high + 0.09, source, width=wide, size=8.0, color=PALE)
    shown = str(ex.metadata.get("picture") or "what the model saw")
    write(figure, x, y - 0.185, shown, width=wide, size=8.0, color=PALE)
    model = str(ex.metadata.get("model") or "")
    if model:
        write(figure, x, y - 0.345, model, width=wide, size=8.0, color=PALE)


def explained(
    figure: "Figure",
    ex: Explanation,
    i: int,
    target: int,
    box: Box,
    *,
    opacity: float | int,
    smooth: bool,
    limit: float | None,
) -> None:
    """One map: the question above it, the bar of its colours and the method below."""
    x, y, wide, _ = box
    scores = ex.map(i, target).numpy(force=True).astype(np.float64)
    image = None if ex.images is None else ex.images[i].numpy(force=True)
    signed_map(figure, scores, image, box, opacity=opacity, smooth=smooth, limit=limit, signed=ex.signed)
    _title(figure, ex, i, target, box)
    write(figure, x, y - 0.51, _method(ex, i), width=wide, size=8.0, smallest=5.0, color=PALE)


def _title(figure: "Figure", ex: Explanation, i: int, target: int, box: Box) -> None:
    x, y, wide, high = box
    (name, verdict), *other = ex.sides(i, target)
    top = y + high + 0.09
    if other:
        style = {"width": wide, "weight": "bold", "color": AGAINST}
        write(figure, x, top, f"against {other[0][0]}", ending=f" {other[0][1]}", size=10.0, **style)
        top += SECOND
    write(figure, x, top, name, ending=f" {verdict}", width=wide, size=12.5, weight="bold", color=FOR)


def _method(ex: Explanation, i: int) -> str:
    specific = ex.metadata.get("class_specific", True)
    parts = [ex.method, ex.objective.replace("_", " ") if specific else "the same for every class"]
    modes = ex.metadata.get("gradients") or ()  # one per image, where they were chosen by themselves
    gradient = modes[i] if i < len(modes) else ex.metadata.get("gradient", "full")
    parts += [f"{gradient} gradient"] if gradient != "full" else []
    parts += ["centred"] if ex.metadata.get("centred") else []
    parts += [] if ex.signed else ["unsigned"]
    return " · ".join(parts)


def _source(ex: Explanation, i: int) -> str:
    sources = ex.metadata.get("sources") or ()
    return str(sources[i] or "") if i < len(sources) else ""
