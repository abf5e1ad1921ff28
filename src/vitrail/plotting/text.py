"""An explained text as a figure, as a web page and in a terminal: every token on glass of its colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.style import Style
from rich.text import Text

from ..errors import OptionError, escaped
from .canvas import FRAME, INK, PALE, bar, blank, lines, number, width_of, write
from .figure import method_words
from .overlay import AGAINST, FOR, colour
from .saving import web_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..text.explanation import Piece, TextExplanation

__all__ = ["draw_text", "hex_colour", "text_lines", "text_page"]

WIDTH, MARGIN = 7.4, 0.3  # inches
SIZE, LINE = 12.0, 0.3  # of the text: points; inches from line to line
SMALL = 8.0  # points, of tokens that stand for no word
HEAD, SECOND, FOOT = 0.36, 0.22, 0.65  # inches: the question; "against …"; bar, numbers and method
BAR = 3.4  # inches
NOTE, NOTE_SIZE = 0.15, 7.5
TALLEST = 320  # inches; a PNG ends at 65536 pixels
DARK = 0.8  # scores from here on have the better contrast with white letters
FAINT = 0.04  # of the largest score: below it a token keeps the terminal's own ground


def draw_text(ex: "TextExplanation", *, special: bool = False) -> "Figure":
    """Draws every text, for each of its targets, as a Matplotlib figure; `special` shows [CLS] and its like too.

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


def _span_of(pieces: "Sequence[Piece]") -> tuple[float, float, float]:
    """The lowest and the highest score shown, and the largest in size, by which the colours are scaled."""
    scores = [piece.score for piece in pieces if piece.score is not None]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high, max(abs(low), abs(high))


def _caption(ex: "TextExplanation") -> str:
    """Model, method, objective and mode in one line."""
    return " · ".join(filter(None, (ex.answer.provenance.model or "", method_words(ex.answer))))


def _notes(ex: "TextExplanation", text: int, target: int, special: bool, limit: float) -> list[str]:
    """The text's own notes, and one where a token that is not shown scores more than all that are."""
    notes = list(ex.answer.provenance.image_notes[text])
    hidden = [
        (abs(float(score)), float(score), token)
        for score, token, is_special in zip(ex.of(text, target), ex.tokens[text], ex.special[text], strict=True)
        if is_special and not special
    ]
    size, score, token = max(hidden, default=(0.0, 0.0, ""))
    if size > limit:
        notes.append(f"Not shown: {token} has {number(score, sign=ex.answer.signed)}, more than any word.")
    return notes


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
    span = _span_of(pieces)
    told = _notes(ex, text, target, special, span[2])
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
            ink = _ink_on(one.piece.score / limit)
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
    write(figure, MARGIN, below - 0.52, _caption(ex), width=room, size=8.0, smallest=5.0, color=PALE)
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
            self._known[text, size] = self._measure(f"|{text}|", size) - self._measure("||", size)
        return self._known[text, size]

    def _measure(self, text: str, size: float) -> float:
        label = write(self._figure, 0.0, 0.0, text, width=1e9, size=size)
        width = width_of(label, self._figure)
        label.remove()
        return width


def text_page(ex: "TextExplanation", *, special: bool = False) -> str:
    """Returns the page. Each text is scaled by the largest |score| of what is shown of it; `special` shows [CLS] and
    its like.

    A token's number appears where the pointer rests on it.
    """
    parts = [_part(ex, text, target, special) for text in range(len(ex)) for target in range(ex.targets)]
    title = f"{ex.question()} · {ex.answer.method}" if len(ex) == 1 else f"{len(ex)} texts · {ex.answer.method}"
    return web_page("vitrail.plotting", "text.html", parts=parts, title=title)


def hex_colour(score: float) -> str:
    """Returns the colour of a score from -1 to 1, as style sheets write it.

    >>> hex_colour(0.0)
    '#ffffff'
    """
    red, green, blue = np.rint(255 * colour(np.array(score)).reshape(3)).astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _ink_on(score: float) -> str:
    """The colour of letters that can be read on the glass of a score from -1 to 1.

    >>> _ink_on(0.1), _ink_on(-1.0)
    ('#222222', '#ffffff')
    """
    return INK if abs(score) < DARK else "#ffffff"


def _part(ex: "TextExplanation", text: int, target: int, special: bool) -> dict[str, object]:
    pieces = ex.pieces(text, target, special=special)
    low, high, limit = _span_of(pieces)
    (name, verdict), *other = ex.answer.sides(text, target)
    sides = [{"words": f"{name} {verdict}", "colour": hex_colour(1.0)}]
    sides += [{"words": f"against {side[0]} {side[1]}", "colour": hex_colour(-1.0)} for side in other]
    stops = ", ".join(hex_colour(x / limit) for x in np.linspace(low, high, 17)) if limit else ""
    signed = ex.answer.signed
    return {
        "sides": sides,
        "pieces": [
            {
                "text": piece.text,
                "special": piece.special,
                "background": None if piece.score is None or not limit else hex_colour(piece.score / limit),
                "ink": INK if piece.score is None or not limit else _ink_on(piece.score / limit),
                "score": "" if piece.score is None else number(piece.score, sign=signed),
            }
            for piece in pieces
        ],
        "stops": stops,
        "low": number(low, sign=signed) + ("  against" if signed and low < 0 else ""),
        "high": ("for  " if signed and high > 0 else "") + number(high, sign=signed),
        "low_colour": hex_colour(-1.0) if low < 0 else INK,
        "high_colour": hex_colour(1.0) if high > 0 else INK,
        "by": _caption(ex),
        "notes": _notes(ex, text, target, special, limit),
    }


def text_lines(ex: "TextExplanation", text: int = 0, target: int = 0, *, special: bool = False) -> Text:
    """Returns one text with one target: the question, the coloured text, the range of its scores and the method."""
    first, *other = (escaped(" ".join(side), keep="") for side in ex.answer.sides(text, target))
    shown = Text()
    shown.append(first, style="bold red")
    for side in other:
        shown.append(f" against {side}", style="bold blue")
    shown.append("\n")
    pieces = ex.pieces(text, target, special=special)
    low, high, limit = _span_of(pieces)
    for piece in pieces:
        faint = piece.score is None or not limit or abs(piece.score) < FAINT * limit
        if faint or piece.score is None:
            shown.append(piece.text, style="dim" if piece.special else "")
        else:
            score = piece.score / limit
            shown.append(piece.text, style=Style(color=_ink_on(score), bgcolor=hex_colour(score)))
        shown.append(" " if piece.special else "")
    signed = ex.answer.signed
    last = f"{number(low, sign=signed)} to {number(high, sign=signed)} · {_caption(ex)}"
    for line in (last, *_notes(ex, text, target, special, limit)):
        shown.append(f"\n{escaped(line, keep='')}", style="dim")  # names of classes and models may hold line breaks
    return shown
