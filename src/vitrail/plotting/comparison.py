"""The sheet of a comparison: the photograph and one panel a method, with what each took; a row for each target.

A method that failed keeps its place, empty, with the reason in it. With one row the panels flow over as many lines as
look well; with several the methods stand in columns, in bands below one another where they are many.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..comparison import Compared, Comparison
from ..errors import OptionError
from .canvas import INK, PALE, Box, axes_at, blank, fitted, lines, pixels, show, signed_map, write, write_notes
from .overlay import AGAINST, FOR, resize, sides

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_comparison", "two_ended"]

MARGIN, GAP = 0.22, 0.14  # inches: around the sheet, between its panels
SIDE, NARROWEST, WIDEST = 1.75, 1.45, 2.8  # a panel's height, and the limits of its width
HEAD, SECOND, FOOT = 0.34, 0.17, 0.6  # above a panel its name, below it the bar, the range, and what it took
SECOND_LINE = 0.14  # below the panels where there is more to say of a method
NOTE, NOTE_SIZE = 0.14, 7.0
MOST, WIDEST_BAND = 8, 16  # panels in a line, the photograph among them: of one row, and of several
TALLEST = 320  # inches; a PNG ends at 65536 pixels
Cell = tuple[Comparison, int, Compared | None]  # the comparison, its row, the method; None for the photograph


def draw_comparison(
    comparisons: Comparison | Sequence[Comparison],
    *,
    smooth: bool = True,
    opacity: float | int = 1.0,
    columns: int | None = None,
) -> "Figure":
    """Draws a comparison, or several of the same methods below one another, one row for each image and target.

    Each map is scaled by its own largest absolute score; those of unsigned methods use the red half only. `columns` is
    how many panels stand in a line, the photograph among them; default: what looks well.

    Raises `OptionError` when there is nothing to draw, the comparisons are of different methods, or the sheet would be
    too tall.
    """
    found = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    _check(found, columns)
    grid = _grid(found, columns)
    wide, high = _panel(found[0])
    width = 2 * MARGIN + max(map(len, grid)) * (wide + GAP) - GAP
    notes = [line for note in _notes(found) for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    head = HEAD + SECOND * any(one.against is not None for one in found)
    foot = FOOT + SECOND_LINE * any(_traits(answer) for one in found for answer in one.answers)
    height = MARGIN / 2 + len(grid) * (head + high + foot) + NOTE * len(notes) + MARGIN / 2
    if height > TALLEST:
        raise OptionError(
            f"a sheet of {len(grid)} lines would be {height:.0f} inches tall; draw fewer images at a time"
        )
    figure = blank(width, height)
    y = height - MARGIN / 2
    for line in grid:
        y -= head + high
        for place, cell in enumerate(line):
            box = (MARGIN + place * (wide + GAP), y, wide, high)
            _cell(figure, cell, box, smooth=smooth, opacity=opacity)
        y -= foot
    write_notes(figure, notes, margin=MARGIN, step=NOTE, size=NOTE_SIZE, smallest=5.0)
    return figure


def _check(found: list[Comparison], columns: int | None) -> None:
    if not found or not len(found[0]):
        raise OptionError("there is nothing to draw: no comparison, or one of no method")
    labels = [[one.label for one in each.answers] for each in found]
    if any(each != labels[0] for each in labels):
        raise OptionError("comparisons drawn on one sheet must be of the same methods, in the same order")
    if columns is not None and columns < 2:
        raise OptionError(f"columns={columns} leaves no place for a map beside the photograph; 2 is the least")


def _grid(found: list[Comparison], columns: int | None) -> list[list[Cell]]:
    """The panels, line by line."""
    rows = [(one, row) for one in found for row in range(len(one.target))]
    count = len(found[0])
    if len(rows) == 1:
        (one, row) = rows[0]
        cells: list[Cell] = [(one, row, None), *((one, row, answer) for answer in one.answers)]
        lines_ = max(round((len(cells) / 1.9) ** 0.5), -(-len(cells) // MOST), 1)
        per = columns or -(-len(cells) // lines_)
        return [cells[start : start + per] for start in range(0, len(cells), per)]
    per = columns - 1 if columns else -(-count // _bands(count, len(rows)))
    return [
        [(one, row, None), *((one, row, answer) for answer in one.answers[start : start + per])]
        for start in range(0, count, per)
        for one, row in rows
    ]


def _bands(count: int, rows: int) -> int:
    """Returns the number of bands for a sheet about twice as wide as high."""

    def unlike(bands: int) -> float:
        wide = (-(-count // bands) + 1) * (SIDE + GAP)
        return abs(math.log(wide / (bands * rows * (HEAD + SIDE + FOOT)) / 2))

    return min(range(-(-count // (WIDEST_BAND - 1)), count + 1), key=unlike)


def _panel(one: Comparison) -> tuple[float, float]:
    grids = [answer.explanation.grid for answer in one.answers if answer.explanation is not None]
    shape = one.image.shape[:2] if one.image is not None else grids[0] if grids else (1, 1)
    return fitted(shape, SIDE, NARROWEST, WIDEST)


def _cell(figure: "Figure", cell: Cell, box: Box, *, smooth: bool, opacity: float | int) -> None:
    one, row, answer = cell
    if answer is None:
        _photograph(figure, one, row, box)
    elif answer.explanation is None:
        _failure(figure, answer, box)
    else:
        _map(figure, one, row, answer, box, smooth=smooth, opacity=opacity)


def _photograph(figure: "Figure", one: Comparison, row: int, box: Box) -> None:
    x, y, wide, high = box
    if one.image is not None:
        show(axes_at(figure, box), resize(one.image.numpy(force=True), pixels(box)))
    (name, verdict), *other = one.sides(row)
    top = y + high + 0.08
    if other:
        style = {"width": wide, "weight": "bold", "color": AGAINST}
        write(figure, x, top, f"against {other[0][0]}", ending=f" {other[0][1]}", size=8.0, smallest=5.0, **style)
        top += SECOND
    write(figure, x, top, name, ending=f" {verdict}", width=wide, size=10.0, weight="bold", color=FOR)
    source = one.provenance.source() or ""
    model = one.provenance.model or ""
    told = filter(None, (source, "what the model saw" if one.image is not None else "", model))
    for number, text in enumerate(told):
        write(figure, x, y - 0.16 - 0.145 * number, text, width=wide, size=7.5, smallest=5.0, color=PALE)


def _map(
    figure: "Figure", one: Comparison, row: int, answer: Compared, box: Box, *, smooth: bool, opacity: float | int
) -> None:
    assert answer.explanation is not None
    x, y, wide, _ = box
    scores = answer.explanation.map(0, row).numpy(force=True).astype(np.float64)
    image = None if one.image is None else one.image.numpy(force=True)
    signed_map(figure, scores, image, box, opacity=opacity, smooth=smooth, signed=answer.signed)
    _label(figure, answer, box)
    for number, text in enumerate((_took(answer, len(one.target)), _traits(answer))):
        write(figure, x, y - 0.47 - SECOND_LINE * number, text, width=wide, size=7.5, smallest=5.0, color=PALE)


def _failure(figure: "Figure", answer: Compared, box: Box) -> None:
    x, y, wide, high = box
    axes_at(figure, box).set_facecolor("#f6f6f6")
    _label(figure, answer, box)
    said = lines(" ".join(str(answer.error).split()), wide - 0.2, 6.5)
    most = max(int((high - 0.55) / 0.115), 1)
    if len(said) > most:
        said = [*said[: most - 1], f"{said[most - 1].rstrip()} …"]
    write(figure, x + wide / 2, y + high - 0.25, "no map", width=wide - 0.2, size=9.0, ha="center", color=INK)
    for number, text in enumerate(said):
        place = y + high - 0.47 - 0.115 * number
        write(figure, x + 0.1, place, text, width=wide - 0.15, size=6.5, smallest=5.0, color=PALE)
    write(figure, x, y - 0.16, type(answer.error).__name__, width=wide, size=7.5, smallest=5.0, color=INK)


def _label(figure: "Figure", answer: Compared, box: Box) -> None:
    x, y, wide, high = box
    name = answer.label.replace(":", " · ")
    write(figure, x, y + high + 0.08, name, width=wide, size=10.0, weight="bold", color=INK)


def _took(answer: Compared, targets: int) -> str:
    """What a panel took: passes and seconds."""
    return f"{answer.passes} · {_seconds(answer.seconds)}" + (f" for {targets}" if targets > 1 else "")


def _traits(answer: Compared) -> str:
    """Whether a map can be negative and depends on the class, and the options beyond what the label says."""
    parts = ([] if answer.signed else ["unsigned"]) + ([] if answer.class_specific else ["any class"])
    known = answer.label.partition(":")[2]
    ex = answer.explanation
    if ex is not None and not known and "gradient" not in answer.options:
        mode = ex.gradient_mode()
        parts += [] if mode in (None, "full") else [f"{mode} gradient"]
    parts += ["class competition"] if ex is not None and ex.competes else []
    return " · ".join(parts + [f"{name}={value}" for name, value in answer.options.items() if value != known])


def _seconds(seconds: float) -> str:
    """Seconds in words: "0.034 s", "12 s", "2.1 min"."""
    if seconds >= 100:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def two_ended(found: Sequence[Comparison]) -> str:
    """Returns the key's text on unsigned maps whose sides of zero are two ends of an axis; empty where there
    are none.
    """
    names = [
        one.label
        for each in found
        for one in each.answers
        if one.explanation is not None and not one.signed and sides(one.explanation.map().numpy(force=True), False)[1]
    ]
    told = ", ".join(dict.fromkeys(names))
    return f" (in {told} the two colours are the ends of an axis, neither for nor against)" if names else ""


def _notes(found: list[Comparison]) -> list[str]:
    first = found[0]
    said = []
    for one in found:
        source = one.provenance.source() or ""
        where = f"{source}, " if source and len(found) > 1 else ""
        said += [f"{where}{note}" for note in one.notes()]
    device = first.provenance.device or "cpu"
    asked = "" if first.objective == "logit" else f" Explained: {first.objective.replace('_', ' ')}."
    key = (
        "Red: for the class; blue: against it. Each map is scaled by its own largest absolute score, unsigned ones on "
        f"the red half{two_ended(found)}. F, B: forward and backward passes of the model; time: measured on "
        f"{device}.{asked}"
    )
    return [key, *dict.fromkeys(said)]
