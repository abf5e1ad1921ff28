"""The page in HTML: its template, style sheet and script, and the examples, classes and exports of an answer."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from math import cos, pi, sin
from typing import TYPE_CHECKING, get_args

import numpy as np
from PIL import ImageOps

from .. import __version__
from ..attention.gradient_modes import GradientMode
from ..methods import list_methods
from ..outputs import verdict_of
from ..plotting.overlay import AGAINST, FOR, colour
from ..plotting.transfer import COLOURS
from ..views import USUAL
from .fragments import STOPS, css, data_address
from .pictures import EXAMPLES, example_picture
from .question import DRAW, LONGEST_TEXT, MOST_TOKENS, WAITING, Question, ViewContext, scores_cells
from .views.comparisons import GROUPS, LAYOUTS
from .views.words import VISIONS, WORD_METHODS

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = [
    "best_classes",
    "draw_cells",
    "draw_classes",
    "examples",
    "marked",
    "page",
    "page_files",
    "rose",
    "served",
    "taking_home",
    "template",
]

TITLES = {
    "map": "Map",
    "methods": "Methods",
    "layers": "Layers",
    "heads": "Heads",
    "detail": "Detail",
    "guide": "Guide",
    "transfer": "Transfer",
    "rewrite": "Rewrite",
    "words": "Words",
}
SCRIPTS = (("plotting", "words"), ("app", "shared"), ("app", "page"))  # that make one script
STYLES = (("plotting", "words"), ("app", "page"))  # that make one style sheet
THUMB = 112  # pixels of an example's picture
LIGHTER = 0.5  # on a dark page words have the colours of a score of that size: as strong to the eye as on paper


@cache
def page_files() -> Mapping[str, tuple[bytes, str]]:
    """Returns the files that the page asks for, by name: their bytes and their type."""
    return served("page", SCRIPTS, STYLES)


def served(
    name: str, scripts: Sequence[tuple[str, str]], styles: Sequence[tuple[str, str]]
) -> Mapping[str, tuple[bytes, str]]:
    """Returns the one script and the one style sheet of a page, made of these files: (package, name) each."""

    def joined(parts: Sequence[tuple[str, str]], kind: str) -> str:
        return "".join(
            files(f"vitrail.{part}").joinpath(f"{one}.{kind}").read_text(encoding="utf-8") for part, one in parts
        )

    return {
        f"{name}.js": (joined(scripts, "js").encode(), "text/javascript; charset=utf-8"),
        f"{name}.css": ((_colours() + joined(styles, "css")).encode(), "text/css; charset=utf-8"),
    }


def marked(served: Mapping[str, tuple[bytes, str]]) -> dict[str, str]:
    """Returns the addresses of a page's files, which change with them."""
    return {name: f"static/{name}?{hashlib.sha256(content).hexdigest()[:12]}" for name, (content, _) in served.items()}


def template(name: str) -> "Template":
    """Returns the HTML of a page."""
    from jinja2 import Environment, StrictUndefined

    text = files("vitrail.app").joinpath(f"{name}.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text)


def _colours() -> str:
    """Returns the colours of the maps as variables of the style sheet, for the light and the dark page."""
    red, blue = (css(colour(np.array(side * LIGHTER)).tolist()) for side in (1, -1))
    ramp = ", ".join(css(rgb) for rgb in colour(np.linspace(-1, 1, STOPS)).tolist())
    return (
        f":root {{ --vt-for: light-dark({css(FOR)}, {red}); --vt-against: light-dark({css(AGAINST)}, {blue}); "
        f"--vt-curve-0: light-dark({COLOURS[0]}, #eceae4); --vt-curve-1: {COLOURS[1]}; "
        f"--vt-ramp: linear-gradient(to right, {ramp}); }}\n"
    )


def page(models: Sequence[str], limit: int, vlms: Sequence[str] = ()) -> str:
    """Returns the page before anything is asked, for these models and uploads of at most `limit` bytes.

    `vlms` are the vision-language models.
    """
    methods = {
        "signed": [info.name for info in list_methods() if info.signed],
        "unsigned": [info.name for info in list_methods() if not info.signed],
    }
    return template("page").render(
        models=models, limit=limit, methods=methods, titles=TITLES, draw=DRAW, waiting=WAITING, groups=GROUPS,
        layouts=LAYOUTS, gradients=(Question.gradient, *get_args(GradientMode)), rose=rose(), version=__version__,
        vlms=vlms, usual=Question(), word_methods=WORD_METHODS, visions=VISIONS, longest=LONGEST_TEXT, most=MOST_TOKENS,
        files=marked(page_files()),
    )  # fmt: skip


def rose() -> str:
    """Returns the rose window as SVG."""

    def rim(eighth: int) -> str:
        angle = pi / 4 * eighth - pi / 8
        return f"{32 + 26 * cos(angle):.1f} {32 + 26 * sin(angle):.1f}"

    petals = "".join(
        f'<path d="M32 32 L{rim(k)} A26 26 0 0 1 {rim(k + 1)} Z" fill="{tint}"/>'
        for k, tint in enumerate((css(FOR), "#e0b04a", css(AGAINST), "#5b8f73") * 2)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" aria-hidden="true">'
        f'<circle cx="32" cy="32" r="31" fill="#2a2e38"/><g stroke="#2a2e38" stroke-width="2.6">{petals}</g>'
        '<circle cx="32" cy="32" r="8.5" fill="#faf8f4" stroke="#2a2e38" stroke-width="2.6"/></svg>'
    )


def examples(keys: Sequence[str]) -> str:
    """Returns the example images of a model, each a button."""
    thumbs = []
    for key in keys:
        title = escape(EXAMPLES[key].title)
        thumbs.append(
            f'<button type="button" data-example="{key}" title="{title}" aria-label="Example: {title}">'
            f'<img src="{_thumb(key)}" alt=""></button>'
        )
    return f'<div class="vt-examples" role="group" aria-label="Examples">{"".join(thumbs)}</div>'


@cache
def _thumb(key: str) -> str:
    small = example_picture(key).open()
    return data_address(np.asarray(ImageOps.fit(small, (THUMB, THUMB))))


def taking_home(example: str, files: Sequence[str], recipes: tuple[str, str]) -> str:
    """Returns the buttons that export the view: as link, code and files."""
    words = {
        "png": "PNG",
        "svg": "SVG",
        "safetensors": "safetensors",
        "webp": "film (WebP)",
        "html": "page (HTML)",
        "json": "JSON",
    }
    saves = "".join(
        f'<button type="button" class="vt-button" data-save="{kind}">Save {words[kind]}</button>' for kind in files
    )
    python, command = (escape(text) for text in recipes)
    upload = (
        "" if example else '<p class="vt-below">Your picture is not in the link: it is kept for a few minutes only.</p>'
    )
    save = f'<div class="vt-row">{saves}</div>' if saves else ""
    return (
        '<div class="vt-take"><div class="vt-rows"><div class="vt-row">'
        '<button type="button" class="vt-button" data-copy="link">Copy link</button>'
        '<button type="button" class="vt-button" data-copy="python">Copy as Python</button>'
        '<button type="button" class="vt-button" data-copy="command">Copy as command</button></div>'
        f"{save}</div>{upload}"
        f'<details><summary>Show the code</summary><pre data-text="python" tabindex="0">{python}</pre>'
        f'<pre data-text="command" tabindex="0">{command}</pre></details></div>'
    )


COUNT = 6


def best_classes(context: ViewContext, count: int = COUNT) -> list[int]:
    """Returns the strongest classes, and those of the question if they are not among them."""
    best = context.logits.topk(min(count, len(context.logits))).indices.tolist()
    named = [index for index in (context.target, context.against) if index is not None]
    return best + [index for index in dict.fromkeys(named) if index not in best]


def draw_classes(context: ViewContext) -> str:
    """Returns the classes as buttons with bars, the target red, the contrastive class blue; and two search fields."""
    logits = context.logits.double()
    shares = None if context.output.link is None else context.output.probabilities(logits)
    target, against = context.target, context.against
    explained = escape(context.class_name(target))
    rows = []
    for index in best_classes(context):
        role, word = "", f"hold against {explained}"
        if index == target:
            role, word = " vt-is-for", "explained"
        elif index == against:
            role, word = " vt-is-against", f"held against {explained}"
        name, share = escape(context.class_name(index)), None if shares is None else float(shares[index])
        said = verdict_of(share, float(logits[index]))
        track = "" if share is None else f'<span class="vt-track"><i style="width:{100 * share:.1f}%"></i></span>'
        rows.append(
            f'<button type="button" class="vt-class{role}" data-class="{index}" '
            f'aria-pressed="{"true" if role else "false"}" aria-label="{name}, {said}, {word}">'
            f'<span class="vt-name">{name}</span><span class="vt-share">{said}</span>{track}</button>'
        )
    if against is None:
        versus = (
            f'<p class="vt-say">Why {explained}? <span class="vt-mouse">Click</span><span class="vt-touch">Tap</span> '
            "another class to hold it against this one.</p>"
        )
    else:
        versus = (
            '<div class="vt-versus"><button type="button" class="vt-button" data-class="swap">⇄ Swap the two</button>'
            f'<button type="button" class="vt-button" data-class="{target}">Only {explained}</button></div>'
        )
    other = "" if against is None else escape(context.class_name(against))
    return (
        f'<div class="vt-classes" role="group" aria-label="Classes">{"".join(rows)}</div>{versus}'
        f"{_combo('target', 'Why this class?', target, explained, '')}"
        f"{_combo('against', 'Rather than that one?', against, other, 'no second class')}"
    )


def _combo(name: str, label: str, index: int | None, value: str, empty: str) -> str:
    """Returns a field that finds any class by its name; the page's script fills its list."""
    chosen = "" if index is None else f' data-index="{index}"'
    return (
        f'<div class="vt-combo" id="vt-{name}" data-combo="{name}" data-empty="{empty}">'
        f'<label for="vt-in-{name}">{label}</label>'
        f'<input id="vt-in-{name}" type="text" role="combobox" aria-expanded="false" aria-autocomplete="list" '
        f'aria-controls="vt-list-{name}" autocomplete="off" autocapitalize="off" spellcheck="false" '
        f'value="{value}" placeholder="{empty or "type a class"}"{chosen}>'
        f'<ul id="vt-list-{name}" role="listbox" aria-label="{label}" hidden></ul></div>'
    )


def draw_cells(question: Question, patch: tuple[int, int] | None = None) -> str:
    """Returns the field of the map's resolution, with what divides a patch of that size in pixels (height, width);
    where it is not known, with what divides any square one. Nothing for a method that scores whole patches.
    """
    if not scores_cells(question.method):
        return ""
    high, wide = (2, 2) if patch is None else patch
    fitting = [str(cells) for cells in range(1, min(high, wide)) if not (high % cells or wide % cells)]
    fitting += ["pixel"] if high == wide else []
    chosen = "pixel" if patch is not None and question.resolution == str(high) == str(wide) else question.resolution
    fitting += [] if chosen in fitting else [chosen]  # which a link may ask for
    options = []
    for one in fitting:
        words = f"{one} × {one}" if one.isdecimal() and one != Question.resolution else one
        options.append(f'<option value="{one}"{" selected" if one == chosen else ""}>{words}</option>')
    return (
        '<label for="vt-resolution">Cells per patch</label>'
        f'<select id="vt-resolution" name="resolution" data-change>{"".join(options)}</select>'
        f'<p class="vt-below">1: a score for each patch. Finer maps cost {USUAL["shift"]} times as much: they are the '
        f"mean of {USUAL['shift']} passes over the image, moved by parts of a patch</p>"
    )
