"""Sheets of one class against another, with pictures of the opposing class.

`draw_pair` shows one pair: the photograph, every loss one way and the other. `draw_pairs` shows a column for each of
several pairs, as the paper's Fig. 9 does.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..explanation import Explanation
from ..outputs import percent
from .canvas import FRAME, INK, PALE, Box, axes_at, blank, lines, number, pixels, show, signed_map, write, write_notes
from .figure import MARGIN, NOTE, NOTE_SIZE, seen_picture
from .overlay import AGAINST, FOR, resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..guidance.detail import Detail
    from ..guidance.typical import Typical, TypicalPictures

__all__ = ["draw_pair", "draw_pairs"]

PANEL, GAP = 2.3, 0.16  # inches: the height of a map, the space between two
TITLE, HEAD, FOOT = 0.36, 0.72, 0.5
THUMB, CAPTION = 0.98, 0.17  # a typical picture, and the line below it
COLUMNS = 3  # of typical pictures, in two rows
BARS = 5  # classes whose probabilities are shown
FORMULAS = {
    "logit": ("logit, Eq. 7", "l₁"),
    "normalized_difference": ("normalised difference, Eq. 8", "(l₁ − l₂) / l₁"),
    "difference": ("difference", "l₁ − l₂"),
    "ratio": ("ratio", "l₁ / l₂"),
}


def draw_pair(
    found: "Detail",
    target: int,
    against: int,
    *,
    typical: "dict[int, TypicalPictures] | None" = None,
    smooth: bool = True,
) -> "Figure":
    """Draws the maps of `target` against `against` above those of the reverse question, one column per loss.

    Red argues for the first class of a row's question, blue against it; each map is scaled by its own largest absolute
    score, and the bar below it has the true range. `typical` holds pictures by class, from `typical_pictures`; each row
    shows those of its opposing class with what the model takes them for.

    Raises `TargetError` for a pair that `found` does not hold.
    """
    typical = typical or {}
    first = found.view(found.losses[0], target, against)
    wide = _width(first)
    shown = [len(typical[index].pictures) for index in (target, against) if index in typical]
    beside = max(min(COLUMNS, max(shown, default=0)), 2) * (THUMB + 0.08) - 0.08
    left = wide if first.images is not None else 1.9
    width = 2 * MARGIN + left + len(found.losses) * (wide + GAP)
    width += (2.5 * GAP + beside) * bool(shown)
    notes = [line for note in _notes(found, target, against) for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    row = HEAD + PANEL + FOOT
    height = MARGIN + TITLE + 2 * row + NOTE * len(notes) + MARGIN / 2
    figure = blank(width, height)
    _title(figure, first, target, against, (MARGIN, height - MARGIN - 0.22, width - 2 * MARGIN))
    top = height - MARGIN - TITLE - HEAD - PANEL
    for number_of_row, (one, other) in enumerate(((target, against), (against, target))):
        y = top - number_of_row * row
        if number_of_row == 0:
            if first.images is not None:
                seen_picture(figure, first, 0, (MARGIN, y, left, PANEL))
        else:
            _bars(figure, first, target, against, (MARGIN, y, left, PANEL))
        x = MARGIN + left + GAP
        _question(figure, first, one, other, (x, y + PANEL + 0.45, width - x - MARGIN))
        for loss in found.losses:
            _panel(figure, found, loss, one, other, (x, y, wide, PANEL), smooth=smooth)
            x += wide + GAP
        if other in typical:
            _typical(figure, typical[other], first, one, other, (x + 1.5 * GAP, y, beside, PANEL))
    write_notes(figure, notes, margin=MARGIN, step=NOTE, size=NOTE_SIZE)
    return figure


def draw_pairs(
    columns: "Sequence[tuple[Detail, tuple[int, int], dict[int, TypicalPictures]]]",
    *,
    framed: Collection[int] = (),
    smooth: bool = True,
) -> "Figure":
    """Draws a column for each pair: the photograph, the map of the first loss, pictures of the opposing class.

    `framed` are the numbers of the columns that get a red frame.
    """
    maps = [found.view(found.losses[0], *pair) for found, pair, _ in columns]
    widths = [_width(ex) for ex in maps]
    thumb = min(min(widths), PANEL) / 2 - 0.04
    width = 2 * MARGIN + sum(widths) + 2 * GAP * (len(widths) - 1)
    loss = FORMULAS[columns[0][0].losses[0]]
    told = [
        f"{loss[0]}: {loss[1]}. Red argues for the first class l₁, blue for the second l₂; each map has its own scale. "
        "Below: pictures of the second class, and what the model takes them for."
        + " Red frame: the paper's case study."
        * bool(framed),
        *dict.fromkeys(
            f"{ex.class_name(pair[0])} against {ex.class_name(pair[1])}: {note}"
            for ex, (_, pair, _) in zip(maps, columns, strict=True)
            for note in ex.notes()
        ),
    ]
    notes = [line for note in told for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    head = 0.56
    height = MARGIN + head + PANEL + 0.4 + PANEL + FOOT + 0.42 + thumb + CAPTION + 0.2 + NOTE * len(notes) + MARGIN / 2
    figure = blank(width, height)
    x = MARGIN
    for place, ((_, pair, beside), ex, wide) in enumerate(zip(columns, maps, widths, strict=True)):
        if place in framed:
            base = MARGIN / 2 + NOTE * len(notes) + 0.1
            frame = axes_at(figure, (x - GAP / 2, base, wide + GAP, height - MARGIN / 2 - base))
            for spine in frame.spines.values():
                spine.set(color=FOR, linewidth=1.8)
        y = height - MARGIN - head - PANEL
        for line, (index, word, colour) in enumerate(((pair[1], "against ", AGAINST), (pair[0], "", FOR))):
            style: dict[str, Any] = {"ending": f" {ex.verdict(index)}", "weight": "bold", "color": colour}
            top = y + PANEL + 0.1 + 0.21 * line
            write(figure, x, top, word + ex.class_name(index), width=wide, size=11.0, **style)
        if ex.images is not None:
            show(
                axes_at(figure, (x, y, wide, PANEL)),
                resize(ex.images[0].numpy(force=True), pixels((x, y, wide, PANEL))),
            )
        write(figure, x, y - 0.16, ex.source() or "", width=wide, size=7.5, color=PALE)
        y -= 0.4 + PANEL
        image = None if ex.images is None else ex.images[0].numpy(force=True)
        scores = ex.map().numpy(force=True).astype(np.float64)
        signed_map(figure, scores, image, (x, y, wide, PANEL), smooth=smooth, signed=ex.signed)
        y -= FOOT + 0.42 + thumb
        pictures = beside.get(pair[1])
        if pictures is not None:
            title = f"pictures of {ex.class_name(pair[1])}"
            write(figure, x, y + thumb + 0.08, title, width=wide, size=8.5, color=INK)
            for at, one in enumerate(pictures.chosen(pair[0], 2)):
                _thumb(figure, one, ex, *pair, (x + at * (thumb + 0.08), y, thumb, thumb))
        x += wide + 2 * GAP
    write_notes(figure, notes, margin=MARGIN, step=NOTE, size=NOTE_SIZE)
    return figure


def _width(ex: Explanation) -> float:
    rows, cols = ex.grid if ex.images is None else ex.images.shape[1:3]
    return float(np.clip(PANEL * cols / rows, 1.6, 4.0))


Line = tuple[float, float, float]  # left, base, width in inches


def _title(figure: "Figure", ex: Explanation, target: int, against: int, place: Line) -> None:
    x, y, width = place
    for index, word, colour in ((target, "", FOR), (against, "against ", AGAINST)):
        text = write(
            figure, x, y, word + ex.class_name(index), ending=f" {ex.verdict(index)}", width=width * 0.45, size=14.0,
            weight="bold", color=colour,
        )  # fmt: skip
        x += _inches(figure, text) + 0.12


def _question(figure: "Figure", ex: Explanation, one: int, other: int, place: Line) -> None:
    x, y, width = place
    text = write(figure, x, y, ex.class_name(one), width=width * 0.4, size=10.0, weight="bold", color=FOR)
    x += _inches(figure, text) + 0.08
    write(figure, x, y, f"against {ex.class_name(other)}", width=width * 0.4, size=10.0, weight="bold", color=AGAINST)


def _inches(figure: "Figure", text: Any) -> float:
    return text.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi  # type: ignore[attr-defined]


def _bars(figure: "Figure", ex: Explanation, target: int, against: int, box: Box) -> None:
    """The model's best classes and their probabilities, the two of the question among them in their colours."""
    x, y, wide, high = box
    best = ex.logits[0].topk(min(BARS, ex.logits.shape[1])).indices.tolist()
    classes = best + [index for index in (target, against) if index not in best]
    write(figure, x, y + high + 0.09, "what the model says", width=wide, color=PALE)
    step = min(high / len(classes), 0.46)
    for place, index in enumerate(classes):
        base = y + high - (place + 1) * step
        colour = FOR if index == target else AGAINST if index == against else PALE
        write(
            figure, x, base + 0.17, ex.class_name(index), width=wide, size=8.0, color=colour,
            ending=f"  {ex.verdict(index)}  logit {number(float(ex.logits[0, index]))}",
        )  # fmt: skip
        if (probability := ex.probability(index)) is not None:
            axes = axes_at(figure, (x, base + 0.05, wide, 0.08))
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.barh(0.5, probability, height=1.0, color=colour)


def _panel(figure: "Figure", found: "Detail", loss: str, one: int, other: int, box: Box, *, smooth: bool) -> None:
    x, y, wide, high = box
    ex = found.view(loss, one, other)
    instead = ex.provenance.difference_instead[0][0]
    name, formula = FORMULAS["difference" if instead else loss]
    scores = ex.map().numpy(force=True).astype(np.float64)
    image = None if ex.images is None else ex.images[0].numpy(force=True)
    signed_map(figure, scores, image, box, smooth=smooth, signed=ex.signed)
    title = f"{FORMULAS[loss][0]}: difference instead" if instead else name
    write(figure, x, y + high + 0.24, title, width=wide, size=8.5, color=INK)
    scalar = f"{formula} = {number(found.value(loss, one, other), sign=True)}"
    write(figure, x, y + high + 0.08, scalar, width=wide, size=8.0, color=PALE)


def _notes(found: "Detail", target: int, against: int) -> list[str]:
    ex = found.view(found.losses[0], target, against)
    options = filter(None, (ex.method, ex.gradient_words(), "centred" if ex.provenance.centred else ""))
    said = [
        f"{' · '.join(options)}. Red argues for a row's first class l₁, blue against it; each map has its own scale."
    ]
    said += ex.provenance.notes
    for loss in found.losses:
        for pair in ((target, against), (against, target)):
            said += found.view(loss, *pair).notes()
    return list(dict.fromkeys(said))


def _typical(figure: "Figure", pictures: "TypicalPictures", ex: Explanation, asked: int, label: int, box: Box) -> None:
    """Pictures of the opposing class, above the most typical, below those most like the class that is asked about."""
    x, y, wide, high = box
    count, name = len(pictures.pictures), ex.class_name(label)
    write(
        figure, x, y + high + 0.24, f"pictures of {name}", width=wide, size=8.5, color=INK,
        ending=f" ({count} in {pictures.folder.name})",
    )  # fmt: skip
    of_them = (
        f"predicted {name}: {pictures.predicted_as(label)};  {ex.class_name(asked)}: {pictures.predicted_as(asked)}"
    )
    write(figure, x, y + high + 0.08, of_them, width=wide, size=8.0, smallest=5.5, color=PALE)
    chosen = pictures.chosen(asked, 2 * COLUMNS)
    step = THUMB + CAPTION + 0.06
    for place, one in enumerate(chosen):
        left, base = x + place % COLUMNS * (THUMB + 0.08), y + high - THUMB - place // COLUMNS * step
        _thumb(figure, one, ex, asked, label, (left, base, THUMB, THUMB))
    if count > len(chosen):
        words = f"above the most typical, below those most like {ex.class_name(asked)}"
        write(figure, x, y + high - 2 * step - 0.06, words, width=wide, size=7.0, color=PALE)


def _thumb(figure: "Figure", one: "Typical", ex: Explanation, asked: int, label: int, box: Box) -> None:
    axes = axes_at(figure, box)
    show(axes, resize(_square(one.picture.numpy(force=True)), pixels(box)))
    colour = FOR if one.predicted == asked else AGAINST if one.predicted == label else INK
    for spine in axes.spines.values():
        spine.set(color=colour if one.predicted == asked else FRAME, linewidth=1.6 if one.predicted == asked else 0.6)
    style: dict[str, Any] = {"weight": "bold"} if one.predicted == asked else {}
    verdict = f" {percent(float(one.probabilities[one.predicted]))}"
    write(
        figure, box[0], box[1] - CAPTION + 0.05, ex.class_name(one.predicted), ending=verdict, width=box[2], size=7.0,
        smallest=5.0, color=colour, **style,
    )  # fmt: skip


def _square(picture: np.ndarray) -> np.ndarray:
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
