"""Figures as files and inside web pages: the same bytes for the same figure; pages of one file, without scripts."""

import io
import os
import re
from base64 import b64encode
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FORMATS",
    "figure_bytes",
    "figure_html",
    "inline_svg",
    "picture_address",
    "save_figure",
    "suffix_of",
    "web_page",
]

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


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Writes a figure whole or not at all: PNG, JPEG, PDF or SVG by the suffix of `path`. Returns the path.

    Raises `OptionError` for another suffix, `OutputFileError` when the file cannot be written.
    """
    content = figure_bytes(figure, suffix_of(path))
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def figure_bytes(figure: "Figure", kind: str) -> bytes:
    """Returns a figure as the content of a file; `kind` is a key of `FORMATS`."""
    from matplotlib import rc_context

    # A tenth larger than at the usual level of 6, and three times sooner: a folder of pictures spends its time here.
    speed: dict[str, Any] = {"png": {"compress_level": 3}, "jpg": {"quality": 92}, "jpeg": {"quality": 92}}
    options = {"pil_kwargs": speed[kind]} if kind in speed else {}
    buffer = io.BytesIO()
    with rc_context(SETTINGS):
        figure.savefig(buffer, format=kind, metadata=FORMATS[kind] or None, facecolor=figure.get_facecolor(), **options)
    return buffer.getvalue()


def figure_html(figure: "Figure", words: str) -> str:
    """Returns a figure inside a page, with what it shows in `words` below it: for notebooks."""
    address = picture_address(figure_bytes(figure, "png"))
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


def web_page(package: str, template: str = "page.html", /, **values: Any) -> str:
    """Returns a template of a package filled in; `style` is the style sheet that all pages share."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(files(package).joinpath(template).read_text(encoding="utf-8"))
    return page.render(style=files("vitrail.plotting").joinpath("web.css").read_text(encoding="utf-8"), **values)


def picture_address(picture: bytes, kind: str = "png") -> str:
    """Returns a picture as an address that holds it whole.

    >>> picture_address(b"abc")
    'data:image/png;base64,YWJj'
    """
    return f"data:image/{kind};base64,{b64encode(picture).decode()}"


def inline_svg(svg: str, name: str, description: str) -> str:
    """Returns an SVG document as a part of a page: without preamble and metadata, its names made its own by `name`.

    >>> inline_svg('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><g id="a"/></svg>', "one", "A & B")
    '<svg role="img" aria-label="A &amp; B"><g id="one-a"/></svg>'
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    said = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{said}"', 1).strip()
