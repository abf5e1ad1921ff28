"""Words and numbers in a picture: short, with a true minus, and always inside their place."""

import math
from functools import cache
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["lines", "number", "printable", "width_of", "write"]

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

FOR_OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)


def number(value: float, *, sign: bool = False) -> str:
    """Three significant digits with a real minus sign.

    >>> number(-0.04494), number(0.25, sign=True), number(1.5e-7), number(0.0, sign=True)
    ('−0.0449', '+0.25', '1.5×10⁻⁷', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    text = f"{abs(value):.3g}"
    if "e" in text:
        digits, exponent = text.split("e")
        text = f"{digits}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return ("−" if value < 0 else "+" if sign else "") + text


def printable(text: str) -> str:
    """The text with a box for every character that no font here can draw, line breaks in file names included.

    >>> printable("zebra\\n☃")
    'zebra□☃'
    """
    known = _characters()
    return "".join(character if ord(character) in known else "□" for character in text)


@cache
def _families() -> list[str]:
    """The one font that is everywhere the same, and behind it, for scripts that it lacks, what this machine has."""
    from matplotlib.font_manager import fontManager

    here = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FOR_OTHER_SCRIPTS if name in here)]


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    known = frozenset[int]().union(*(get_font(findfont(name)).get_charmap() for name in _families()))
    return known - set(range(32))


def write(
    figure: "Figure",
    x: float,
    y: float,
    text: str,
    *,
    width: float,
    size: float = 8.0,
    smallest: float = 6.0,
    ending: str = "",
    **style: Any,
) -> "Text":
    """Put one line at (x, y), in inches from the lower left, no wider than `width`: smaller first, then shorter.

    What is cut is the end of `text`; `ending`, which follows it, is always there whole.
    """
    inches_wide, inches_high = figure.get_size_inches()
    text, ending = printable(text), printable(ending)
    place = x / inches_wide, y / inches_high
    label = figure.text(
        *place, text + ending, fontsize=size, family=_families(), parse_math=False, usetex=False, **style
    )
    while (
        size > smallest and width_of(label, figure) > width
    ):  # letters snap to pixels: width is no smooth function of size
        size = max(smallest, 0.99 * size * min(1.0, width / width_of(label, figure)))
        label.set_fontsize(size)
    while len(text) > 1 and width_of(label, figure) > width * 1.001:
        text = text[: min(len(text) - 1, int(len(text) * width / width_of(label, figure)) + 1)].rstrip()
        label.set_text(f"{text}…{ending}")
    return label


def width_of(label: "Text", figure: "Figure") -> float:
    """How wide a text is in its figure, in inches."""
    return label.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi  # type: ignore[attr-defined]


def lines(text: str, width: float, size: float) -> list[str]:
    """Break a sentence into lines of about `width` inches, by the usual width of a letter."""
    return wrap(text, max(int(width / (size / 72 * 0.56)), 10))
