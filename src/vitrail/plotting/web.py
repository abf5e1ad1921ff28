"""Web pages of one file: the template beside the code that fills it, the style that all share, pictures inside."""

import base64
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

__all__ = ["inline_svg", "picture_address", "web_page"]


def web_page(package: str, **values: Any) -> str:
    """The template `page.html` of a package with these values, and with `style`, the style sheet of all pages."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(package).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(style=files("vitrail.plotting").joinpath("web.css").read_text(encoding="utf-8"), **values)


def picture_address(picture: bytes, kind: str = "png") -> str:
    """A picture as an address that holds it whole.

    >>> picture_address(b"abc")
    'data:image/png;base64,YWJj'
    """
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def inline_svg(svg: str, name: str, description: str) -> str:
    """An SVG document as a part of a page: without preamble and metadata, its names made its own by `name`.

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
