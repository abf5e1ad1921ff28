"""The picture of an explanation: photograph, signed map, the question above it, the true range below it.

Rows are images, columns are targets. Everything has its place in inches, so a picture is the same on every machine.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vitrail.errors import OptionError
from vitrail.explanation import Explanation
from vitrail.render.lettering import lines, number, write
from vitrail.render.overlay import overlay, resize, strength
from vitrail.render.palette import AGAINST, FOR, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

DPI = 200
MARGIN, GAP = 0.22, 0.16  # inches: around the picture, between its panels
HEAD, FOOT = 0.32, 0.6  # above each panel for the question, below it for the range and the method
SECOND = 0.21  # the second line of a question, "against …"
NOTE, NOTE_SIZE = 0.15, 7.5  # a line of the notes, in inches, and its letters in points
BAR = 0.1
SIDE, WIDEST = 3.1, 5.0  # the panels' height, and the width at which a wide image gets a lower panel instead
TALLEST = 320  # inches; a PNG ends at 65536 pixels
INK, PALE, FRAME = "#222222", "#6f6f6f", "#c9c9c9"


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
    wide, high = _panel(first)
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
    figure = _figure(width, height)
    for i in range(rows):
        x, y = MARGIN, height - i * row - head - high
        if photograph:
            _photograph(figure, first, i, (x, y, wide, high))
            x += wide + GAP
        for ex in columns:
            limit = _shared(ex) if shared_scale else None
            for target in range(ex.targets):
                _map(figure, ex, i, target, (x, y, wide, high), opacity=opacity, smooth=smooth, limit=limit)
                x += wide + GAP
    for line, note in enumerate(reversed(notes)):
        write(figure, MARGIN, MARGIN / 2 + line * NOTE, note, width=width - 2 * MARGIN, size=NOTE_SIZE, color=PALE)
    return figure


Box = tuple[float, float, float, float]  # left, bottom, width, height in inches


def _check(columns: list[Explanation], opacity: float | int) -> None:
    if not columns or not len(columns[0]):
        raise OptionError("there is nothing to draw: no explanation, or one of no image")
    counts = [len(ex) for ex in columns]
    if len(set(counts)) > 1:
        raise OptionError(f"explanations drawn side by side must be of the same images, but they hold {counts} of them")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity={opacity} must lie between 0 (the photograph) and 1 (the map over it)")


def _panel(ex: Explanation) -> tuple[float, float]:
    rows, cols = ex.grid if ex.images is None else ex.images.shape[1:3]
    wide = SIDE * cols / rows
    if wide > WIDEST:
        return WIDEST, max(WIDEST * rows / cols, 0.5)
    return max(wide, 1.6), SIDE


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from vitrail.render.sheet import notebook_figure

    figure = notebook_figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _shared(ex: Explanation) -> float:
    maps = ex.scores.numpy(force=True).reshape(-1, *ex.grid)
    return max(strength(scores) for scores in maps)  # a map without signal has no say


def _photograph(figure: "Figure", ex: Explanation, i: int, box: Box) -> None:
    x, y, wide, high = box
    assert ex.images is not None
    _show(_axes(figure, box), resize(ex.images[i].numpy(force=True), _pixels(box)))
    source = _source(ex, i)
    if source:
        write(figure, x, y + high + 0.09, source, width=wide, size=8.0, color=PALE)
    write(figure, x, y - 0.185, "what the model saw", width=wide, size=8.0, color=PALE)
    model = str(ex.metadata.get("model") or "")
    if model:
        write(figure, x, y - 0.345, model, width=wide, size=8.0, color=PALE)


def _map(
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
    x, y, wide, high = box
    scores = ex.map(i, target).numpy(force=True).astype(np.float64)
    image = None if ex.images is None else ex.images[i].numpy(force=True)
    _show(_axes(figure, box), overlay(scores, image, opacity=opacity, smooth=smooth, limit=limit, size=_pixels(box)))
    _title(figure, ex, i, target, box)
    if strength(scores) > 0:
        _bar(figure, scores, limit or strength(scores), ex.signed, box)
    else:
        reason = "the map is zero everywhere" if np.isfinite(scores).all() else "the map holds NaN or infinity"
        frame = {"facecolor": "white", "edgecolor": FRAME, "boxstyle": "round,pad=0.4"}
        style = {"ha": "center", "va": "center", "color": INK, "bbox": frame}
        write(figure, x + wide / 2, y + high / 2, "no signal", width=wide, size=12.0, **style)
        write(figure, x, y - 0.17, f"no signal: {reason}", width=wide, size=8.0, color=INK)
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


def _bar(figure: "Figure", scores: Float[np.ndarray, "rows cols"], limit: float, signed: bool, box: Box) -> None:
    """The colours that the map uses, from its lowest score to its highest, and what they are in numbers."""
    x, y, wide, _ = box
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    axes = _axes(figure, (x, y - 0.09 - BAR, wide, BAR))
    _show(axes, np.rint(255 * colour(np.linspace(low, high, 512)[None] / limit)).astype(np.uint8))
    base, most = y - 0.09 - BAR - 0.135, wide / 2 - 0.12
    words = signed and wide > 2.4  # in a narrow panel the colours have to do
    left = number(low, sign=signed) + ("  against" if words and low < 0 else "")
    right = ("for  " if words and high > 0 else "") + number(high, sign=signed)
    write(figure, x, base, "", ending=left, width=most, color=AGAINST if low < 0 else INK)
    write(figure, x + wide, base, "", ending=right, width=most, color=FOR if high > 0 else INK, ha="right")
    if low < 0 < high:
        zero = x + wide * -low / (high - low)
        axes.axvline(-low / (high - low) * 512 - 0.5, color=INK, linewidth=0.6)
        if x + wide * 0.36 < zero < x + wide * 0.64:  # elsewhere it would run into the words at the ends
            write(figure, zero, base, "0", width=0.3, color=INK, ha="center")


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


def _pixels(box: Box) -> tuple[int, int]:
    return max(round(box[3] * DPI), 1), max(round(box[2] * DPI), 1)


def _axes(figure: "Figure", box: Box) -> "Axes":
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    return axes


def _show(axes: "Axes", rgb: np.ndarray) -> None:
    axes.imshow(rgb, aspect="auto", interpolation="none", origin="upper")
