"""What pages need to be whole without a network: formulas set while the site is built, and the search's own worker.

MkDocs calls these functions by name.
"""

import io
import re
from functools import cache
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

FENCE = re.compile(r"^```math\n(?P<formula>.*?)\n```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"https://[^\s\"']+/iframe-worker/shim")  # where Material's offline plugin takes the worker from
INTERVAL = re.compile(r"(\[[-−]?\d[\d.]*,) ([-−]?\d[\d.]*\])")
SETTINGS: Any = {"svg.fonttype": "path", "svg.hashsalt": "vitrail"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with each ```math fence as a picture of lines, and intervals in tables that no line ends within.

    The repository's host sets the same fences by itself.
    """
    rows = (
        INTERVAL.sub("\\1\N{NO-BREAK SPACE}\\2", line) if line.startswith("|") else line
        for line in markdown.split("\n")
    )
    return FENCE.sub(lambda fence: f'<div class="formula">{formula(fence["formula"])}</div>', "\n".join(rows))


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """The finished page, with the worker that lies in the site."""
    return ELSEWHERE.sub(get_relative_url("theme/iframe-worker.js", page.url), output)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for the page that is shown where there is none."""
    return ELSEWHERE.sub("theme/iframe-worker.js", output_content)


@cache
def formula(latex: str) -> str:
    """A formula as inline SVG in the colour of the text around it."""
    figure, file = Figure(figsize=(0.01, 0.01)), io.StringIO()
    figure.text(0, 0, f"${latex}$", fontsize=13, color="#010203", math_fontfamily="cm")
    with rc_context(SETTINGS):
        metadata: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.02, transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("#010203", "currentColor").replace("\n", " ")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(latex, quote=True)}"', 1)
