"""The figure of an explanation: photograph, signed map, the question above it, the true range below it.

Rows are images, columns are targets; many images fill a grid. Everything has its place in inches, so a figure is the
same on every machine. That of a guided question adds the unguided map and the stitched inputs.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from ..explanation import Explanation
from .canvas import INK, PALE, Box, axes_at, blank, fitted, lines, pixels, show, signed_map, write, write_notes
from .overlay import AGAINST, FOR, ColormapLike, check_threshold, resize, strength
from .saving import save_figure, suffix_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "draw_guided", "explained", "method_words", "panel_size", "save_picture", "seen_picture"]

MARGIN, GAP = 0.22, 0.16  # inches: around the picture, between its panels
HEAD, FOOT = 0.32, 0.6  # above each panel for the question, below it for the range and the method
SECOND = 0.21  # the second line of a question, "against …"
NOTE, NOTE_SIZE = 0.15, 7.5  # a line of the notes, in inches, and its letters in points
SIDE, WIDEST = 3.1, 5.0  # the panels' height, and the width at which a wide image gets a lower panel instead
SMALL, APART = 1.9, 0.34  # the panels' height in a grid, and the space between its columns
LISTED, MOST = 6, 36  # images below each other; more are a grid, and of more than MOST the first
ASPECT = 1.4  # of a grid, about
LARGEST = 320  # inches; a PNG ends at 65536 pixels
LABEL = 0.24  # above a guided question's map: what this map is
BETWEEN = 0.1  # below a row of a guided question, before the label of the next
STITCHES = 4  # stitched inputs shown of one photograph


def draw(
    explanations: Explanation | Sequence[Explanation],
    *,
    opacity: float | int = 1.0,
    smooth: bool = True,
    shared_scale: bool = False,
    photograph: bool | None = None,
    max_images: int | None = MOST,
    colormap: ColormapLike | None = None,
    threshold: float | int = 0.0,
    side: float | int | None = None,
) -> "Figure":
    """Draws an explanation, or several of the same images side by side, as a Matplotlib figure.

    Up to 6 images stand below each other, each next to its photograph; more fill a grid of smaller maps without
    photographs, unless `photograph` says otherwise. At most `max_images` are drawn (default 36; None for all), and a
    line below tells how many are left out. Each map is scaled by its own largest absolute score, unless `shared_scale`
    asks for one scale over all images and targets of an explanation. `opacity`, `smooth`, `colormap` and `threshold`
    are those of `overlay`. `side` is the height of a panel in inches (default 3.1, in a grid 1.9): letters keep their
    size, so a lower one makes them larger next to the maps. The figure belongs to no window and no global state: a
    notebook shows it, `save_figure` writes it.

    Raises `OptionError` when there is nothing to draw, the explanations hold different numbers of images, an option is
    out of its range, or the figure would be too large.
    """
    columns = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    _check(columns, opacity, max_images, side)
    check_threshold(threshold)
    total = len(columns[0])
    columns = [ex[:max_images] for ex in columns] if max_images is not None and total > max_images else columns
    first, rows = columns[0], len(columns[0])
    small = rows > LISTED
    photograph = first.images is not None and (not small if photograph is None else photograph)
    wide, high = panel_size(first, side or (SMALL if small else SIDE))
    count = sum(ex.targets for ex in columns) + photograph
    group = count * wide + (count - 1) * GAP
    head = MARGIN / 2 + HEAD + SECOND * any(ex.against is not None for ex in columns)
    row = head + high + FOOT + NOTE * any(ex.competes for ex in columns)
    across = min(max(round((ASPECT * rows * row / group) ** 0.5), 1), rows) if small else 1
    width = 2 * MARGIN + across * group + (across - 1) * APART
    # In a grid there is room for a file's name below a map, and what all maps share is said once.
    shared = list(dict.fromkeys(method_words(ex) for ex in columns))
    named = small and not photograph and len(shared) == 1
    told = [f"{shared[0]}."] if named else []
    told += [f"The first {rows} of {total} images; max_images={total} draws all."] if rows < total else []
    told += dict.fromkeys(note for ex in columns for note in ex.notes())
    if threshold:
        told.append(f"Scores below {100 * threshold:.3g} % of a map's largest are drawn as zero.")
    notes = [line for note in told for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    height = -(-rows // across) * row + NOTE * len(notes) + MARGIN / 2
    if max(height, width) > LARGEST:
        raise OptionError(
            f"a picture of {rows} images would be {width:.0f} × {height:.0f} inches large; draw fewer with max_images="
        )
    figure = blank(width, height)
    look = {"opacity": opacity, "smooth": smooth, "colormap": colormap, "threshold": threshold}
    limits = [_shared(ex) if shared_scale else None for ex in columns]
    for i in range(rows):
        x = MARGIN + i % across * (group + APART)
        y = height - i // across * row - head - high
        if photograph:
            seen_picture(figure, first, i, (x, y, wide, high))
            x += wide + GAP
        for ex, limit in zip(columns, limits, strict=True):
            for target in range(ex.targets):
                below = (first.source(i) or f"image {i}") if named else method_words(ex)
                explained(figure, ex, i, target, (x, y, wide, high), below=below, limit=limit, **look)
                x += wide + GAP
    write_notes(figure, notes, margin=MARGIN, step=NOTE, size=NOTE_SIZE)
    return figure


def save_picture(explanations: Explanation | Sequence[Explanation], path: str | os.PathLike[str], **look: Any) -> Path:
    """Draws with the options of `draw` and writes PNG, JPEG, PDF or SVG, by the suffix of `path`. Returns the path.

    Raises `OptionError` for another suffix, `OutputFileError` when the file cannot be written.
    """
    suffix_of(path)  # before the drawing, which takes longer than a refusal should
    return save_figure(draw(explanations, **look), path)


def _check(columns: list[Explanation], opacity: float | int, max_images: int | None, side: float | int | None) -> None:
    if not columns or not len(columns[0]):
        raise OptionError("there is nothing to draw: no explanation, or one of no image")
    counts = [len(ex) for ex in columns]
    if len(set(counts)) > 1:
        raise OptionError(f"explanations drawn side by side must be of the same images, but they hold {counts} of them")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity={opacity} must lie between 0 (the photograph) and 1 (the map over it)")
    if max_images is not None and max_images < 1:
        raise OptionError(f"max_images={max_images} must be 1 or more, or None for all")
    if side is not None and not 1 <= side <= 20:
        raise OptionError(f"side={side} must lie between 1 and 20 inches")


def panel_size(ex: Explanation, side: float | int = SIDE) -> tuple[float, float]:
    """Returns width and height of a panel, in inches; `side` is the height of one that is not very wide."""
    return fitted(ex.grid if ex.images is None else ex.images.shape[1:3], float(side), 1.6, WIDEST * side / SIDE)


def _shared(ex: Explanation) -> float:
    maps = ex.scores.numpy(force=True).reshape(-1, *ex.grid)
    return max(strength(scores) for scores in maps)  # a map without signal has no say


def seen_picture(figure: "Figure", ex: Explanation, i: int, box: Box) -> None:
    """Draws the image itself, with its file's name above it and the model's below."""
    x, y, wide, high = box
    assert ex.images is not None
    show(axes_at(figure, box), resize(ex.images[i].numpy(force=True), pixels(box)))
    source = ex.source(i)
    if source:
        write(figure, x, y + high + 0.09, source, width=wide, size=8.0, color=PALE)
    shown = ex.provenance.picture or "what the model saw"
    write(figure, x, y - 0.185, shown, width=wide, size=8.0, color=PALE)
    model = ex.provenance.model or ""
    if model:
        write(figure, x, y - 0.345, model, width=wide, size=8.0, color=PALE)


def explained(
    figure: "Figure",
    ex: Explanation,
    i: int,
    target: int,
    box: Box,
    *,
    below: str | None = None,
    limit: float | None = None,
    **look: Any,
) -> None:
    """Draws a map with the question above it, the colour bar and a line below, by default on how the map was made."""
    x, y, wide, _ = box
    scores = ex.map(i, target).numpy(force=True).astype(np.float64)
    image = None if ex.images is None else ex.images[i].numpy(force=True)
    signed_map(figure, scores, image, box, limit=limit, signed=ex.signed, **look)
    _title(figure, ex, i, target, box, plain=look.get("colormap") is not None)
    below = method_words(ex) if below is None else below
    write(figure, x, y - 0.51, below, width=wide, size=8.0, smallest=5.0, color=PALE)
    if ex.competes:
        rivals = ex.competition_words(i, target)
        write(figure, x, y - 0.51 - NOTE, rivals, width=wide, size=8.0, smallest=5.0, color=PALE)


def _title(figure: "Figure", ex: Explanation, i: int, target: int, box: Box, *, plain: bool) -> None:
    x, y, wide, high = box
    (name, verdict), *other = ex.sides(i, target)
    top = y + high + 0.09
    if other:
        style = {"width": wide, "weight": "bold", "color": INK if plain else AGAINST}
        write(figure, x, top, f"against {other[0][0]}", ending=f" {other[0][1]}", size=10.0, **style)
        top += SECOND
    colour = INK if plain else FOR
    write(figure, x, top, name, ending=f" {verdict}", width=wide, size=12.5, weight="bold", color=colour)


def method_words(ex: Explanation) -> str:
    """Returns how the map was made, in one line: "complete · logit · libra gradient, class competition"."""
    specific = ex.provenance.class_specific is not False
    parts = [ex.method, ex.objective.replace("_", " ") if specific else "the same for every class"]
    parts += [", ".join(filter(None, (ex.gradient_words(), "class competition" * ex.competes)))]
    parts += [ex.finer_words()]
    parts += ["centred" if ex.provenance.centred else "", "" if ex.signed else "unsigned"]
    return " · ".join(filter(None, parts))


def draw_guided(
    guided: Explanation, unguided: Explanation | None = None, *, smooth: bool = True, opacity: float | int = 1.0
) -> "Figure":
    """Draws one photograph: the guided map of its own patches, the unguided one, and below them each stitched input.

    Each map is scaled by its own largest absolute score. Of more than `STITCHES` stitched inputs the first are shown.

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
    parts = guided.guided[:STITCHES]
    second = _Row([panel for part in parts for panel in _both(part)])
    width = 2 * MARGIN + max(first.width, second.width)
    told = dict.fromkeys(guided.notes())
    told |= dict.fromkeys(f"Without a guide: {note}" for note in (unguided.notes() if unguided is not None else ()))
    told |= dict.fromkeys(
        [f"{len(parts)} of {len(guided.guided)} stitched inputs shown."] * (len(guided.guided) > STITCHES)
    )
    notes = [line for note in told for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    height = MARGIN / 2 + first.height + second.height + NOTE * len(notes) + MARGIN / 2
    figure = blank(width, height)
    top = height - MARGIN / 2
    first.draw(figure, top, smooth=smooth, opacity=opacity)
    second.draw(figure, top - first.height, smooth=smooth, opacity=opacity)
    write_notes(figure, notes, margin=MARGIN, step=NOTE, size=NOTE_SIZE)
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
    guide, stitch = part.provenance.beside[0], part.provenance.stitch
    assert stitch is not None  # of a stitched map
    name = "drawn by the model" if guide.drawn else guide.source or "a picture"
    where = _Panel(part, f"{stitch.layout}, original {stitch.side}; guide: {name}")
    return [_Panel(part, None), where] if part.images is not None else [where]
