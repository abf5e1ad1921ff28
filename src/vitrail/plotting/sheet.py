"""Pictures as files: PNG and JPEG for screens, PDF and SVG for print, the same bytes for the same picture."""

import io
import os
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import OptionError
from vitrail.explanation import Explanation
from vitrail.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "figure_html", "save_figure", "save_picture", "suffix_of", "write_figure"]

# No dates, and the same identifiers in every run: a picture in a repository changes only when it looks different.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"Software": "Vitrail"},
    "jpg": {},
    "jpeg": {},
    "pdf": {"Creator": "Vitrail", "Producer": "Vitrail", "CreationDate": None},
    "svg": {"Creator": "Vitrail", "Date": None},
}
SETTINGS: Any = {
    "svg.hashsalt": "vitrail",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # letters stay letters, as publishers ask
    "savefig.dpi": "figure",  # a reader's own style sheet shall not change the picture
    "savefig.bbox": "standard",
    "savefig.transparent": False,
}


def save_picture(explanations: Explanation | Sequence[Explanation], path: str | os.PathLike[str], **look: Any) -> Path:
    """Draw and write: PNG, PDF or SVG by the suffix of `path`; the options are those of `draw`. Returns the path.

    Raises `OptionError` for another suffix, `OutputFileError` when the file cannot be written.
    """
    from vitrail.plotting.figure import draw

    suffix_of(path)  # before the drawing, which takes longer than a refusal should
    return save_figure(draw(explanations, **look), path)


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Writes a figure whole or not at all: PNG, JPEG, PDF or SVG by the suffix of `path`. Returns the path.

    Raises `OptionError` for another suffix, `OutputFileError` when the file cannot be written.
    """
    kind = suffix_of(path)
    buffer = io.BytesIO()
    write_figure(figure, buffer, kind)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    return Path(path)


def write_figure(figure: "Figure", file: io.BytesIO, kind: str) -> None:
    """Writes a figure into an open file; `kind` is a key of `FORMATS`."""
    from matplotlib import rc_context

    # A tenth larger than at the usual level of 6, and three times sooner: a folder of pictures spends its time here.
    speed: dict[str, Any] = {"png": {"compress_level": 3}, "jpg": {"quality": 92}, "jpeg": {"quality": 92}}
    options = {"pil_kwargs": speed[kind]} if kind in speed else {}
    with rc_context(SETTINGS):
        figure.savefig(file, format=kind, metadata=FORMATS[kind] or None, facecolor=figure.get_facecolor(), **options)


def figure_html(figure: "Figure", words: str) -> str:
    """Returns a figure inside a page, with what it shows in `words` below it: for notebooks."""
    buffer = io.BytesIO()
    write_figure(figure, buffer, "png")
    address = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    return (
        f'<figure style="margin: 0"><img src="{address}" alt="{escape(words)}" style="max-width: 100%">'
        f"<figcaption><code>{escape(words)}</code></figcaption></figure>"
    )


def suffix_of(path: str | os.PathLike[str]) -> str:
    """Returns a figure's format by the suffix of its path, a key of `FORMATS`. Raises `OptionError` for another."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise OptionError(f"cannot tell the format of {os.fspath(path)}: name it .png, .jpg, .pdf or .svg")
    return kind


def notebook_figure(**size: Any) -> "Figure":
    """A Matplotlib figure that a notebook shows by itself, though pyplot knows nothing of it."""
    return _notebook_class()(**size)


@cache
def _notebook_class() -> type["Figure"]:
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            write_figure(self, buffer, "png")
            return buffer.getvalue()

    return Picture
