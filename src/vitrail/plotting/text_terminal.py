"""Explained texts in a terminal: every token on a ground of its colour."""

from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from vitrail.errors import escaped
from vitrail.plotting.lettering import number
from vitrail.plotting.text_figure import caption, hidden_note, span_of
from vitrail.plotting.text_page import hex_colour, ink_on

if TYPE_CHECKING:
    from vitrail.text.explanation import TextExplanation

__all__ = ["text_lines"]

FAINT = 0.04  # of the largest score: below it a token keeps the terminal's own ground


def text_lines(ex: "TextExplanation", text: int = 0, target: int = 0, *, special: bool = False) -> Text:
    """One text with one target: the question, the coloured text, the range of its scores and the method."""
    first, *other = (_in_line(" ".join(side)) for side in ex.answer.sides(text, target))
    shown = Text()
    shown.append(first, style="bold red")
    for side in other:
        shown.append(f" against {side}", style="bold blue")
    shown.append("\n")
    pieces = ex.pieces(text, target, special=special)
    low, high, limit = span_of(pieces)
    for piece in pieces:
        faint = piece.score is None or not limit or abs(piece.score) < FAINT * limit
        if faint or piece.score is None:
            shown.append(piece.text, style="dim" if piece.special else "")
        else:
            shown.append(piece.text, style=_ground(piece.score / limit))
        shown.append(" " if piece.special else "")
    signed = ex.answer.signed
    shown.append(f"\n{number(low, sign=signed)} to {number(high, sign=signed)} · {_in_line(caption(ex))}", style="dim")
    for note in [*ex.answer.metadata["image_notes"][text], *hidden_note(ex, text, target, special, limit)]:
        shown.append(f"\n{_in_line(note)}", style="dim")
    return shown


def _in_line(text: str) -> str:
    """A name or sentence that begins no line of its own: names of classes and models may hold line breaks."""
    return escaped(text, keep="")


def _ground(score: float) -> Style:
    return Style(color=ink_on(score), bgcolor=hex_colour(score))
