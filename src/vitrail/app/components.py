"""The parts of the page around the views, as HTML: masthead, pickers, examples, classes and downloads."""

from collections.abc import Sequence
from functools import cache
from html import escape
from math import cos, pi, sin

import numpy as np
from PIL import ImageOps

from .. import __version__
from ..outputs import verdict_of
from ..plotting.overlay import AGAINST, FOR
from .fragments import css, data_address
from .pictures import EXAMPLES, example_picture
from .question import ViewContext

__all__ = ["best_classes", "draw_classes", "examples", "masthead", "own_guide", "picker", "taking_home"]

THUMB = 112  # pixels of an example's picture


def masthead(model: str) -> str:
    """Returns the masthead: rose window, name, and the model in use."""
    petals = "".join(
        f'<path d="M32 32 L{32 + 26 * _cos(k):.1f} {32 + 26 * _sin(k):.1f} A26 26 0 0 1 '
        f'{32 + 26 * _cos(k + 1):.1f} {32 + 26 * _sin(k + 1):.1f} Z" fill="{tint}"/>'
        for k, tint in enumerate((css(FOR), "#e0b04a", css(AGAINST), "#5b8f73") * 2)
    )
    rose = (
        '<svg viewBox="0 0 64 64" aria-hidden="true"><circle cx="32" cy="32" r="31" fill="#2a2e38"/>'
        f'<g stroke="#2a2e38" stroke-width="2.6" stroke-linejoin="round">{petals}</g>'
        '<circle cx="32" cy="32" r="8.5" fill="#faf8f4" stroke="#2a2e38" stroke-width="2.6"/></svg>'
    )
    return (
        f'<header class="vt-head">{rose}<div><h1>Vitrail</h1>'
        '<p>Which patches argue <b class="vt-for">for</b> a class, and which '
        '<b class="vt-against">against</b> it?</p></div>'
        f'<div class="vt-who">{escape(model)}<br>vitrail {escape(__version__)}</div>'
        '<button type="button" class="vt-button vt-dark" data-theme aria-label="Dark or light">◐</button></header>'
    )


def _cos(eighth: int) -> float:
    return cos(pi / 4 * eighth - pi / 8)


def _sin(eighth: int) -> float:
    return sin(pi / 4 * eighth - pi / 8)


def picker(most: int) -> str:
    """Returns the field that takes a picture of at most `most` bytes, by mouse, finger or clipboard."""
    return (
        f'<h2 class="vt-step">A picture</h2><label class="vt-drop" data-limit="{most}">'
        '<strong><span class="vt-mouse">Drop a photograph here</span>'
        '<span class="vt-touch">Choose or take a photograph</span></strong>'
        f'<span><span class="vt-mouse">or click, or paste; </span>up to {most / 1e6:.3g} MB; '
        "it stays in memory and is forgotten</span>"
        '<input type="file" accept="image/*" aria-label="Choose a photograph"></label>'
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


def own_guide(most: int) -> str:
    """Returns the field that takes a guide of at most `most` bytes."""
    return (
        f'<label class="vt-drop" data-limit="{most}"><strong>A guide of your own</strong>'
        "<span>of another class; without one the model draws its own</span>"
        '<input type="file" accept="image/*" aria-label="Choose a guide"></label>'
    )


def taking_home(example: str, files: Sequence[str], recipes: tuple[str, str]) -> str:
    """Returns the buttons that export the view: as link, code and files."""
    words = {"png": "PNG", "svg": "SVG", "safetensors": "safetensors", "webp": "film (WebP)"}
    saves = "".join(
        f'<button type="button" class="vt-button" data-download="{kind}">Save {words[kind]}</button>' for kind in files
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
