"""Builds figures from words that fit their place, photographs, and signed maps with their bar of colours.

Places and sizes are in inches from the lower left.
"""

import math
from collections.abc import Sequence
from functools import cache
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from .overlay import AGAINST, FOR, ColormapLike, mapped, overlay, sides, strength
from .saving import figure_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = [
    "DPI",
    "FRAME",
    "INK",
    "PALE",
    "Box",
    "axes_at",
    "bar",
    "blank",
    "fitted",
    "lines",
    "number",
    "pixels",
    "printable",
    "show",
    "signed_map",
    "width_of",
    "write",
    "write_notes",
]

DPI = 200
BAR = 0.1
INK, PALE, FRAME = "#222222", "#6f6f6f", "#c9c9c9"

Box = tuple[float, float, float, float]  # left, bottom, width, height in inches

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


def blank(width: float, height: float) -> "Figure":
    """Returns a white figure of that many inches, which belongs to no window; a notebook shows it by itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure_class()(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@cache
def _figure_class() -> type["Figure"]:
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            return figure_bytes(self, "png")

    return Picture


def number(value: float, *, sign: bool = False) -> str:
    """Returns three significant digits with a real minus sign.

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
    """Returns the text with a box for every character that no font here can draw, line breaks in file names included.

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
    """Puts one line at (x, y), in inches from the lower left, no wider than `width`: smaller first, then shorter.

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
    """Returns a text's width in its figure, in inches."""
    return label.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi  # type: ignore[attr-defined]


def lines(text: str, width: float, size: float) -> list[str]:
    """Breaks a sentence into lines of about `width` inches, by the usual width of a letter."""
    return wrap(text, max(int(width / (size / 72 * 0.56)), 10))


def signed_map(
    figure: "Figure",
    scores: Float[np.ndarray, "rows cols"],
    image: UInt8[np.ndarray, "height width 3"] | None,
    box: Box,
    *,
    opacity: float | int = 1.0,
    smooth: bool = True,
    limit: float | None = None,
    signed: bool = True,
    colormap: ColormapLike | None = None,
    threshold: float | int = 0.0,
) -> None:
    """Draws a map over its image, scaled by `limit` (by default its largest absolute score), and its bar below it."""
    x, y, wide, high = box
    look = {"opacity": opacity, "smooth": smooth, "colormap": colormap, "signed": signed, "threshold": threshold}
    show(axes_at(figure, box), overlay(scores, image, limit=limit, size=pixels(box), **look))
    if strength(scores) > 0:
        bar(figure, scores, limit or strength(scores), signed, box, colormap=colormap, threshold=threshold)
        return
    reason = "the map is zero everywhere" if np.isfinite(scores).all() else "the map holds NaN or infinity"
    frame = {"facecolor": "white", "edgecolor": FRAME, "boxstyle": "round,pad=0.4"}
    style = {"ha": "center", "va": "center", "color": INK, "bbox": frame}
    write(figure, x + wide / 2, y + high / 2, "no signal", width=wide, size=12.0, **style)
    write(figure, x, y - 0.17, f"no signal: {reason}", width=wide, size=8.0, color=INK)


def bar(
    figure: "Figure",
    scores: Float[np.ndarray, "rows cols"],
    limit: float,
    signed: bool,
    box: Box,
    *,
    colormap: ColormapLike | None = None,
    threshold: float | int = 0.0,
) -> None:
    """Draws the colours that the map uses, from its lowest score to its highest, with their values."""
    x, y, wide, _ = box
    scores, both = sides(scores, signed)
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    axes = axes_at(figure, (x, y - 0.09 - BAR, wide, BAR))
    shown = np.linspace(low, high, 512)[None] / limit
    shown[np.abs(shown) < threshold] = 0
    show(axes, np.rint(255 * mapped(shown, colormap, signed=both)).astype(np.uint8))
    against, supports = (AGAINST, FOR) if colormap is None else (INK, INK)
    base, most = y - 0.09 - BAR - 0.135, wide / 2 - 0.12
    words = signed and wide > 2.4  # in a narrow panel the colours have to do
    left = number(low, sign=both) + ("  against" if words and low < 0 else "")
    right = ("for  " if words and high > 0 else "") + number(high, sign=both)
    lower = write(figure, x, base, "", ending=left, width=most, color=against if low < 0 else INK)
    upper = write(figure, x + wide, base, "", ending=right, width=most, color=supports if high > 0 else INK, ha="right")
    if low < 0 < high:
        zero = x + wide * -low / (high - low)
        axes.axvline(-low / (high - low) * 512 - 0.5, color=INK, linewidth=0.6)
        free = (x + width_of(lower, figure) + 0.09, x + wide - width_of(upper, figure) - 0.09)
        # Elsewhere it would run into the words at the ends.
        if x + wide * 0.36 < zero < x + wide * 0.64 and free[0] < zero < free[1]:
            write(figure, zero, base, "0", width=0.3, color=INK, ha="center")


def pixels(box: Box) -> tuple[int, int]:
    """Returns height and width of a box in pixels."""
    return max(round(box[3] * DPI), 1), max(round(box[2] * DPI), 1)


def fitted(shape: Sequence[int], high: float, narrowest: float, widest: float) -> tuple[float, float]:
    """Returns width and height of a panel for a picture of that shape, lower than `high` where it would be too wide."""
    rows, cols = shape
    wide = high * cols / rows
    return (widest, max(widest * rows / cols, 0.5)) if wide > widest else (max(wide, narrowest), high)


def write_notes(
    figure: "Figure", notes: Sequence[str], *, margin: float, step: float, size: float, smallest: float = 6.0
) -> None:
    """Writes lines at the foot of a figure, the last of them half a margin above its edge."""
    width = figure.get_size_inches()[0] - 2 * margin
    for number, note in enumerate(reversed(notes)):
        place = margin / 2 + number * step
        write(figure, margin, place, note, width=width, size=size, smallest=smallest, color=PALE)


def axes_at(figure: "Figure", box: Box) -> "Axes":
    """Returns empty axes that fill the box, in a thin frame."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    return axes


def show(axes: "Axes", rgb: np.ndarray) -> None:
    """Puts RGB pixels into axes, one for one."""
    axes.imshow(rgb, aspect="auto", interpolation="none", origin="upper")
