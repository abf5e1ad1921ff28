"""The picture of an explained text: its words in lines, each token on glass of its colour, the question above."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import OptionError
from vitrail.plotting.figure import method_words
from vitrail.plotting.lettering import lines, number, printable, write
from vitrail.plotting.palette import AGAINST, FOR, colour
from vitrail.plotting.panel import FRAME, INK, PALE, bar, blank
from vitrail.plotting.text_page import ink_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitrail.text.explanation import Piece, TextExplanation

__all__ = ["caption", "draw_text", "hidden_note", "span_of"]

WIDTH, MARGIN = 7.4, 0.3  # inches
SIZE, LINE = 12.0, 0.3  # of the text: points; inches from line to line
SMALL = 8.0  # points, of tokens that stand for no word
HEAD, SECOND, FOOT = 0.36, 0.22, 0.65  # inches: the question; "against …"; bar, numbers and method
BAR = 3.4  # inches
NOTE, NOTE_SIZE = 0.15, 7.5
TALLEST = 320  # inches; a PNG ends at 65536 pixels


def draw_text(ex: "TextExplanation", *, special: bool = False) -> "Figure":
    """Draw every text, for each of its targets, as a Matplotlib figure; `special` shows [CLS] and its like too.

    Each is scaled by the largest |score| of what is shown of it.

    Raises `OptionError` when the figure would be too tall.
    """
    ruler = _Ruler()
    blocks = [_block(ex, text, target, special, ruler) for text in range(len(ex)) for target in range(ex.targets)]
    height = sum(block.height for block in blocks) + MARGIN
    if height > TALLEST:
        raise OptionError(f"a picture of {len(ex)} texts would be {height:.0f} inches tall; draw fewer at a time")
    figure = blank(WIDTH, height)
    top = height - MARGIN / 2
    for block in blocks:
        _draw(figure, ex, block, top)
        top -= block.height
    return figure


def span_of(pieces: "Sequence[Piece]") -> tuple[float, float, float]:
    """The lowest and the highest score shown, and the largest in size, by which the colours are scaled."""
    scores = [piece.score for piece in pieces if piece.score is not None]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high, max(abs(low), abs(high))


def caption(ex: "TextExplanation") -> str:
    """Model, method, objective and mode in one line."""
    return " · ".join(filter(None, (str(ex.answer.metadata.get("model") or ""), method_words(ex.answer))))


def hidden_note(ex: "TextExplanation", text: int, target: int, special: bool, limit: float) -> list[str]:
    """A sentence where a token that is not shown scores more than all that are: the reader would take them for all."""
    if special:
        return []
    hidden = [
        (abs(float(score)), float(score), token)
        for score, token, is_special in zip(ex.of(text, target), ex.tokens[text], ex.special[text], strict=True)
        if is_special
    ]
    size, score, token = max(hidden, default=(0.0, 0.0, ""))
    return (
        [f"Not shown: {token} has {number(score, sign=ex.answer.signed)}, more than any word."] if size > limit else []
    )


@dataclass(frozen=True)
class _Placed:
    """A piece and where it stands: inches from the left margin, the line, its width."""

    piece: "Piece"
    x: float
    line: int
    width: float


@dataclass(frozen=True)
class _Block:
    """One text with one target, laid out."""

    text: int
    target: int
    placed: list[_Placed]
    lines: int
    notes: list[str]
    second: bool
    span: tuple[float, float, float]

    @property
    def height(self) -> float:
        return HEAD + SECOND * self.second + LINE * self.lines + FOOT + NOTE * len(self.notes) + 0.22


def _block(ex: "TextExplanation", text: int, target: int, special: bool, ruler: "_Ruler") -> _Block:
    pieces = ex.pieces(text, target, special=special)
    span = span_of(pieces)
    told = [*ex.answer.metadata["image_notes"][text], *hidden_note(ex, text, target, special, span[2])]
    notes = [line for note in told for line in lines(note, WIDTH - 2 * MARGIN, NOTE_SIZE)]
    placed, count = _flow(pieces, ruler)
    return _Block(text, target, placed, count, notes, ex.answer.against is not None, span)


def _flow(pieces: "Sequence[Piece]", ruler: "_Ruler") -> tuple[list[_Placed], int]:
    """Pieces set in lines, broken where there is space between them, or anywhere if one word is wider than a line."""
    room = WIDTH - 2 * MARGIN
    placed: list[_Placed] = []
    x, line, word = 0.0, 0, 0  # where the next piece goes; the first piece of the word that is being set
    for piece in pieces:
        if piece.score is None and not piece.text.strip():
            word = len(placed)
            if "\n" in piece.text and placed:
                x, line = 0.0, line + 1
            else:
                x += ruler.width(" ", SIZE) if x else 0.0
            continue
        if piece.special or (placed and placed[-1].piece.special):
            word = len(placed)
        width = ruler.width(piece.text, SMALL) + 0.1 if piece.special else ruler.width(piece.text, SIZE)
        if piece.special and x:
            x += 0.04
        if x + width > room and x > 0:
            begun = placed[word:]
            carried = x - begun[0].x if begun else 0.0
            if carried + width > room:
                begun, carried = [], 0.0
            line += 1
            del placed[len(placed) - len(begun) :]
            shift = begun[0].x if begun else 0.0
            placed += [_Placed(one.piece, one.x - shift, line, one.width) for one in begun]
            word = len(placed) - len(begun)
            x = carried
        placed.append(_Placed(piece, x, line, width))
        x += width + (0.04 if piece.special else 0.0)
    return placed, line + 1


def _draw(figure: "Figure", ex: "TextExplanation", block: _Block, top: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    low, high, limit = block.span
    (name, verdict), *other = ex.answer.sides(block.text, block.target)
    room = WIDTH - 2 * MARGIN
    y = top - 0.2
    write(figure, MARGIN, y, name, ending=f" {verdict}", width=room, size=12.5, weight="bold", color=FOR)
    if other:
        y -= SECOND
        style = {"width": room, "weight": "bold", "color": AGAINST}
        write(figure, MARGIN, y, f"against {other[0][0]}", ending=f" {other[0][1]}", size=10.0, **style)
    first = top - HEAD - SECOND * block.second - LINE * 0.72
    inches = figure.get_size_inches()
    for one in block.placed:
        base = first - LINE * one.line
        ink = INK
        if one.piece.score is not None and limit:
            ink = ink_on(one.piece.score / limit)
            rgb = colour(np.array(one.piece.score / limit)).reshape(3)
            place = (MARGIN + one.x) / inches[0], (base - 0.068) / inches[1]
            extent = one.width / inches[0], 0.235 / inches[1]
            frame = {"edgecolor": FRAME, "linewidth": 0.6} if one.piece.special else {"linewidth": 0}
            box = FancyBboxPatch(place, *extent, boxstyle="square,pad=0", facecolor=tuple(rgb), **frame)
            box.set_transform(figure.transFigure)
            figure.add_artist(box)
        small = one.piece.special
        x, lift = MARGIN + one.x + 0.05 * small, 0.018 * small
        size = SMALL if small else SIZE
        write(figure, x, base + lift, one.piece.text, width=room, size=size, color=ink, smallest=SMALL)
    below = first - LINE * (block.lines - 1) - 0.13
    if limit:
        scores = np.array([[low, high]])
        bar(figure, scores, limit, ex.answer.signed, (MARGIN, below, BAR, 0.1))
    else:
        write(figure, MARGIN, below - 0.2, "no signal: all scores are zero", width=room, size=8.0, color=INK)
    write(figure, MARGIN, below - 0.52, caption(ex), width=room, size=8.0, smallest=5.0, color=PALE)
    for number_, note in enumerate(block.notes):
        write(figure, MARGIN, below - 0.52 - NOTE * (number_ + 1), note, width=room, size=NOTE_SIZE, color=PALE)


class _Ruler:
    """Widths of words in inches, in the fonts of the picture."""

    def __init__(self) -> None:
        self._figure = blank(WIDTH, 1.0)
        self._known: dict[tuple[str, float], float] = {}

    def width(self, text: str, size: float) -> float:
        """How wide the text is, spaces at its ends included."""
        if (text, size) not in self._known:
            # A space by itself has no ink to measure: it is what it adds between two letters.
            inner = self._measure(f"|{text}|", size) - self._measure("||", size)
            self._known[text, size] = inner
        return self._known[text, size]

    def _measure(self, text: str, size: float) -> float:
        label = write(self._figure, 0.0, 0.0, printable(text), width=1e9, size=size)
        renderer = self._figure.canvas.get_renderer()  # type: ignore[attr-defined]
        width = label.get_window_extent(renderer).width / self._figure.dpi
        label.remove()
        return width
