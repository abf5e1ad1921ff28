"""What stands around the views, as HTML: masthead, examples, a guide's field, and what can be taken home."""

from collections.abc import Sequence
from functools import cache
from html import escape
from math import cos, pi, sin

import numpy as np
from PIL import ImageOps

from .. import __version__
from ..plotting.overlay import AGAINST, FOR
from .fragments import css, data_address
from .pictures import EXAMPLES, example_picture
from .service import Shown

__all__ = ["examples", "masthead", "own_guide", "picker", "taking_home"]

THUMB = 112  # pixels of an example's picture


def masthead(model: str) -> str:
    """The rose window, the name, and the model that answers."""
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
    """The pictures that suit the model, each a button."""
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


def taking_home(example: str, shown: Shown) -> str:
    """What the view can be taken along as: link, code, files."""
    words = {"png": "PNG", "svg": "SVG", "safetensors": "safetensors", "webp": "film (WebP)"}
    saves = "".join(
        f'<button type="button" class="vt-button" data-download="{kind}">Save {words[kind]}</button>'
        for kind in shown.files or ()
    )
    python, command = (escape(text) for text in shown.recipes or ("", ""))
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
