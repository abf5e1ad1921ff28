"""Explained texts as a web page of its own: every token on glass of its colour, no scripts, nothing fetched."""

from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, StrictUndefined

from vitrail.plotting.lettering import number
from vitrail.plotting.palette import colour

if TYPE_CHECKING:
    from vitrail.text.explanation import TextExplanation

__all__ = ["hex_colour", "ink_on", "text_page"]

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 17px/1.9 "DejaVu Sans", system-ui, sans-serif; color: #222; background: #fff; max-width: 46rem;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.15rem; line-height: 1.35; margin: 0; } h1 + h1 { font-size: .95rem; }
section { margin: 0 0 2.8rem; }
p.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .7rem 0 .8rem; }
p.text span { border-radius: .22em; padding: .12em .06em; }
p.text .special { font: .72em/1 "DejaVu Sans Mono", monospace; color: #555; border: 1px solid #c9c9c9;
  padding: .25em .35em; vertical-align: .12em; margin: 0 .2em; }
.bar { height: .6rem; max-width: 22rem; border: 1px solid #c9c9c9; }
.ends { display: flex; justify-content: space-between; max-width: 22rem; font-size: .78rem; line-height: 1.7; }
.by, .note { font-size: .78rem; color: #6f6f6f; line-height: 1.5; margin: .15rem 0; }
</style>
{% for part in parts %}
<section>
{% for side in part.sides %}
<h1 style="color: {{ side.colour }}">{{ side.words }}</h1>
{% endfor %}
<p class="text" dir="auto">
{%- for piece in part.pieces -%}
{%- if piece.background is none -%}{{ piece.text }}
{%- else -%}
<span{% if piece.special %} class="special"{% endif %}
 style="background: {{ piece.background }}; color: {{ piece.ink }}"
 title="{{ piece.score }}">
{{- piece.text -}}
</span>
{%- endif -%}
{%- endfor -%}
</p>
{% if part.stops %}
<div class="bar" style="background: linear-gradient(to right, {{ part.stops }})"></div>
<div class="ends"><span style="color: {{ part.low_colour }}">{{ part.low }}</span>
<span style="color: {{ part.high_colour }}">{{ part.high }}</span></div>
{% else %}
<p class="note">no signal: all scores are zero</p>
{% endif %}
<p class="by">{{ part.by }}</p>
{% for note in part.notes %}<p class="note">{{ note }}</p>{% endfor %}
</section>
{% endfor %}
</html>
"""
INK = "#222222"
DARK = 0.8  # from here on white letters have the better contrast


def text_page(ex: "TextExplanation", *, special: bool = False) -> str:
    """The page. Each text is scaled by the largest |score| of what is shown of it; `special` shows [CLS] and its like.

    A token's number appears where the pointer rests on it.
    """
    parts = [_part(ex, text, target, special) for text in range(len(ex)) for target in range(ex.targets)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    title = f"{ex.question()} · {ex.answer.method}" if len(ex) == 1 else f"{len(ex)} texts · {ex.answer.method}"
    return environment.from_string(PAGE).render(parts=parts, title=title)


def hex_colour(score: float) -> str:
    """The colour of a score from -1 to 1, as style sheets write it.

    >>> hex_colour(0.0)
    '#ffffff'
    """
    red, green, blue = np.rint(255 * colour(np.array(score)).reshape(3)).astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(score: float) -> str:
    """The colour of letters that can be read on the glass of a score from -1 to 1.

    >>> ink_on(0.1), ink_on(-1.0)
    ('#222222', '#ffffff')
    """
    return INK if abs(score) < DARK else "#ffffff"


def _part(ex: "TextExplanation", text: int, target: int, special: bool) -> dict[str, object]:
    from vitrail.plotting.text_figure import caption, hidden_note, span_of

    pieces = ex.pieces(text, target, special=special)
    low, high, limit = span_of(pieces)
    (name, verdict), *other = ex.answer.sides(text, target)
    sides = [{"words": f"{name} {verdict}", "colour": hex_colour(1.0)}]
    sides += [{"words": f"against {side[0]} {side[1]}", "colour": hex_colour(-1.0)} for side in other]
    stops = ", ".join(hex_colour(x / limit) for x in np.linspace(low, high, 17)) if limit else ""
    signed = ex.answer.signed
    return {
        "sides": sides,
        "pieces": [
            {
                "text": piece.text,
                "special": piece.special,
                "background": None if piece.score is None or not limit else hex_colour(piece.score / limit),
                "ink": INK if piece.score is None or not limit else ink_on(piece.score / limit),
                "score": "" if piece.score is None else number(piece.score, sign=signed),
            }
            for piece in pieces
        ],
        "stops": stops,
        "low": number(low, sign=signed) + ("  against" if signed and low < 0 else ""),
        "high": ("for  " if signed and high > 0 else "") + number(high, sign=signed),
        "low_colour": hex_colour(-1.0) if low < 0 else INK,
        "high_colour": hex_colour(1.0) if high > 0 else INK,
        "by": caption(ex),
        "notes": ex.answer.metadata["image_notes"][text] + hidden_note(ex, text, target, special, limit),
    }
