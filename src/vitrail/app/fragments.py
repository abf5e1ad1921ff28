"""Pieces of HTML from which the views are built: panels of glass, bars, curves, notes. Everything inline, no address.

Words that come from outside (class names, file names, messages) pass through `escape`.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..errors import reworded
from ..explanation import Explanation
from ..plotting.canvas import number
from ..plotting.overlay import colour, overlay, sides, strength
from .jobs import Report

__all__ = [
    "CONTROLS",
    "WORD_CONTROLS",
    "bar",
    "css",
    "curves",
    "data_address",
    "film",
    "glass",
    "grid",
    "notes",
    "nothing",
    "on_page",
    "opacity",
    "panel",
    "picture",
    "player",
    "problem",
    "progress",
    "question",
    "scores_of",
    "section",
]  # fmt: skip

STOPS = 24  # of the gradient in a bar

BESIDE = " beside the guide"  # as a verdict of `Explanation.sides` ends

# What the page's controls are called, by what they are in Python.
CONTROLS = {
    "target": "Why this class?",
    "against": "Rather than that one?",
    "method": "Method",
    "methods": "Which methods",
    "gradient": "Gradient",
    "resolution": "Cells per patch",
    "layouts": "How the two are laid together",
    "steps": "Steps",
    "until": "Stop at this probability",
    "budget": "Levels per pixel",
}

WORD_CONTROLS = {  # in the view of words
    "prompt": "Question",
    "answer": "Answer",
    "against": "Rather than this word?",
    "method": "Method for words",
    "gradient": "Gradient for words",
    "vision": "Where the maps end",
    "max_new_tokens": "Most tokens of its answer",
}

Pixels = UInt8[np.ndarray, "height width 3"]
Map = Float[np.ndarray, "rows cols"]


def data_address(pixels: Pixels, *, lossless: bool = False) -> str:
    """Returns an image as a data address."""
    buffer = io.BytesIO()
    options = {"lossless": True} if lossless else {"quality": 88, "method": 2}
    Image.fromarray(pixels).save(buffer, format="webp", **options)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def css(rgb: Sequence[float]) -> str:
    """Returns a colour with channels in [0, 1] as CSS.

    >>> css((1.0, 0.5, 0.0))
    '#ff8000'
    """
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)


def scores_of(ex: Explanation, image: int = 0, target: int = 0) -> Map:
    """Returns the scores of one map as they are drawn."""
    return sides(ex.map(image, target).numpy(force=True).astype(np.float64), ex.signed)[0]


def glass(
    photo: str,
    scores: Map,
    shown: Pixels,
    *,
    limit: float | None = None,
    alt: str = "",
    grid: str = "",
    inside: str = "",
) -> str:
    """Returns the photograph (address `photo`) with the map over it; the page's slider sets the opacity."""
    height, width = shown.shape[:2]
    drawn = data_address(overlay(scores, shown, limit=limit))
    return (
        f'<div class="vt-glass" style="aspect-ratio:{width}/{height}"{grid}>'
        f'<img class="vt-photo" src="{photo}" alt="" draggable="false">'
        f'<img class="vt-map" src="{drawn}" alt="{escape(alt)}" draggable="false">{inside}</div>'
    )


def grid(scores: Map, rows: int, cols: int) -> str:
    """Returns the attributes for pointing at patches: their number, and the score of each."""
    if scores.shape != (rows, cols):  # of pixels: the mean over each patch
        tall, wide = scores.shape[0] // rows, scores.shape[1] // cols
        scores = scores[: rows * tall, : cols * wide].reshape(rows, tall, cols, wide).mean(axis=(1, 3))
    values = " ".join(number(float(value), sign=True) for value in scores.ravel())
    return f' data-rows="{rows}" data-cols="{cols}" data-scores="{values}"'


def bar(scores: Map, *, signed: bool, limit: float | None = None) -> str:
    """Returns the colour bar of a map, from its lowest score to its highest, with the range in numbers."""
    scores, both = sides(scores, signed)
    limit = limit or strength(scores)
    if limit == 0 or strength(scores) == 0:
        return '<p class="vt-none">no signal: the map is zero everywhere</p>'
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    stops = ", ".join(css(rgb) for rgb in colour(np.linspace(low, high, STOPS) / limit).tolist())
    zero = f'<i style="left:{100 * -low / (high - low):.2f}%"></i>' if low < 0 < high else ""
    words = ("<em>against</em>", "<em>for</em>") if signed else ("", "")
    left, right = number(low, sign=both), number(high, sign=both)
    return (
        f'<div class="vt-bar" role="img" aria-label="scores from {left} to {right}">'
        f'<div class="vt-ramp" style="background:linear-gradient(to right, {stops})">{zero}</div>'
        f'<span class="{"vt-against" if low < 0 else ""}">{left} {words[0] if low < 0 else ""}</span>'
        f'<span class="{"vt-for" if high > 0 else ""}">{words[1] if high > 0 else ""} {right}</span></div>'
    )


def question(ex: Explanation, target: int = 0) -> str:
    """Returns the question of a map: the target in red, the contrastive class in blue."""
    (name, verdict), *other = ex.sides(0, target)
    where = ", beside the guide" if other and all(one.endswith(BESIDE) for _, one in ex.sides(0, target)) else ""
    if where:  # said once
        verdict, other = verdict.removesuffix(BESIDE), [(each, one.removesuffix(BESIDE)) for each, one in other]
    said = f'<b class="vt-for">{escape(name)} <em>{verdict}</em></b>'
    if other:
        said += f' <b class="vt-against">against {escape(other[0][0])} <em>{other[0][1]}</em></b>'
    return said + where


def panel(
    photo: str,
    shown: Pixels,
    ex: Explanation,
    *,
    target: int = 0,
    title: str | None = None,
    below: str = "",
    limit: float | None = None,
    attributes: str = "",
    inside: str = "",
) -> str:
    """Returns one map with title, colour bar and a line below. The title is the question unless given as HTML.

    `inside` is HTML that lies over the map.
    """
    scores = scores_of(ex, 0, target)
    told = f"signed map, {ex.question(0, target)}" if ex.signed else f"map, {ex.question(0, target)}"
    return (
        f'<figure class="vt-panel"><figcaption>{question(ex, target) if title is None else title}</figcaption>'
        f"{glass(photo, scores, shown, limit=limit, alt=told, grid=attributes, inside=inside)}"
        f'{bar(scores, signed=ex.signed, limit=limit)}<div class="vt-below">{below}</div></figure>'
    )


def picture(address: str, size: tuple[int, int], title: str, below: str = "", alt: str = "") -> str:
    """Returns an image without a map; `size` is (height, width), title and line below are HTML."""
    return (
        f'<figure class="vt-panel"><figcaption>{title}</figcaption>'
        f'<div class="vt-glass" style="aspect-ratio:{size[1]}/{size[0]}">'
        f'<img class="vt-photo" src="{address}" alt="{escape(alt)}"></div>'
        f'<p class="vt-below">{below}</p></figure>'
    )


def film(
    photo: str, shown: Pixels, maps: Sequence[Map], *, title: str, alt: str, limit: float | None, words: Sequence[str]
) -> str:
    """Returns several maps in one place, of which the page's slider shows one, with `words` below each."""
    height, width = shown.shape[:2]
    frames = "".join(
        f'<img class="vt-map vt-frame" data-frame="{n}" src="{data_address(overlay(scores, shown, limit=limit))}" '
        f'alt="{escape(alt)}, {n + 1} of {len(maps)}" draggable="false"{"" if n == 0 else " hidden"}>'
        for n, scores in enumerate(maps)
    )
    below = "".join(
        f'<div class="vt-frame" data-frame="{n}"{"" if n == 0 else " hidden"}>'
        f'{bar(scores, signed=True, limit=limit)}<p class="vt-below">{word}</p></div>'
        for n, (scores, word) in enumerate(zip(maps, words, strict=True))
    )
    return (
        f'<figure class="vt-panel"><figcaption>{title}</figcaption>'
        f'<div class="vt-glass" style="aspect-ratio:{width}/{height}">'
        f'<img class="vt-photo" src="{photo}" alt="" draggable="false">{frames}</div>{below}</figure>'
    )


def curves(
    lines: Sequence[tuple[str, str, Sequence[float]]],
    *,
    label: str,
    marks: Sequence[int] = (),
    level: float | None = None,
    low: float | None = None,
    high: float | None = None,
    ends: tuple[str, str] | None = None,
) -> str:
    """Curves over steps as a small drawing: each a name, a colour and its values; `level` is a dashed line.

    `ends` are the words below the two ends of the axis, by default the steps.
    """
    count = max(len(values) for _, _, values in lines)
    everything = [value for _, _, values in lines for value in values]
    bottom = min(everything) if low is None else low
    top = max(everything) if high is None else high
    span = top - bottom or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        return 58 + 382 * step / max(count - 1, 1), 150 - 135 * (value - bottom) / span

    drawn = [f'<line x1="58" x2="440" y1="{y}" y2="{y}" class="axis"/>' for y in (15, 150)]
    drawn += [f'<text x="52" y="{y}" text-anchor="end">{number(v)}</text>' for y, v in ((19, top), (153, bottom))]
    left, right = ends or ("0", f"{count - 1} steps")
    drawn += [f'<text x="58" y="168">{left}</text><text x="440" y="168" text-anchor="end">{right}</text>']
    if level is not None:
        drawn.append(
            f'<line x1="58" x2="440" y1="{place(0, level)[1]:.1f}" y2="{place(0, level)[1]:.1f}" class="level"/>'
        )
    for n, step in enumerate(marks):
        x = place(step, 0.0)[0]
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="15" y2="150" class="mark vt-frame" data-frame="{n}"'
            f"{'' if n == 0 else ' hidden'}/>"
        )
    for name, tint, values in lines:
        points = " ".join("{:.1f},{:.1f}".format(*place(step, value)) for step, value in enumerate(values))
        drawn.append(f'<polyline points="{points}" stroke="{tint}"><title>{escape(name)}</title></polyline>')
    key = "".join(f'<span><i style="background:{tint}"></i>{escape(name)}</span>' for name, tint, _ in lines)
    return (
        f'<figure class="vt-panel vt-curves"><figcaption>{escape(label)}</figcaption>'
        f'<svg viewBox="0 0 450 175" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'
        f'<p class="vt-key">{key}</p></figure>'
    )


def player(words: Sequence[str], *, label: str, first: int = 0) -> str:
    """Returns the slider of a film and the button that plays it; `words` describe each frame."""
    said = escape("|".join(words))
    return (
        '<div class="vt-player"><button type="button" class="vt-button" data-play aria-label="Play">▶</button>'
        f'<input type="range" min="0" max="{len(words) - 1}" value="{first}" aria-label="{escape(label)}" '
        f'data-words="{said}"><output></output></div>'
    )


def opacity() -> str:
    """Returns the slider for the opacity of the maps in all views."""
    return (
        '<label class="vt-opacity"><span>Opacity of the map</span>'
        '<input type="range" min="0" max="1" step="0.01" value="1" data-opacity><output>100 %</output></label>'
    )


def section(*panels: str, kind: str = "") -> str:
    """Panels side by side, as many as there is room for."""
    return f'<div class="vt-panels {kind}">{"".join(panels)}</div>'


def notes(ex: Explanation) -> str:
    """Returns the notes on an explanation."""
    return "".join(f'<p class="vt-note">{escape(on_page(note))}</p>' for note in ex.notes())


def nothing(text: str) -> str:
    """Returns a view that has not been drawn yet; `text` is HTML."""
    return f'<div class="vt-wait">{text}</div>'


def progress(report: Report) -> str:
    """Returns the progress of a long piece of work."""
    share = 100 * report.done / report.total if report.total else None
    value = f' aria-valuenow="{share:.0f}"' if share is not None else ""
    width = f"width:{share:.1f}%" if share is not None else ""
    said = f"{escape(report.doing)}: {report.done} of {report.total}" if report.total else f"{escape(report.doing)} …"
    return (
        f'<div class="vt-progress" role="progressbar" aria-label="{escape(report.doing)}"{value}>'
        f'<div class="{"" if width else "vt-unknown"}" style="{width}"></div><p>{said}</p></div>'
    )


def problem(message: str, controls: Mapping[str, str] = CONTROLS) -> str:
    """Returns an alert with the reason of a failure, in the page's words and without paths of the machine."""
    return f'<div class="vt-problem" role="alert">{escape(on_page(message, controls))}</div>'


def on_page(message: str, controls: Mapping[str, str] = CONTROLS) -> str:
    """Returns a message of the library in the words of the page's controls.

    >>> on_page('nothing comes near the target: try gradient="libra"')
    'nothing comes near the target: try “Gradient” at libra'
    >>> on_page("25 tokens fit no grid: give grid=")
    '25 tokens fit no grid: give grid= (grid=: in Python, by whoever runs this page)'
    """

    def control(name: str, value: str) -> str | None:
        return f"“{controls[name]}”{f' at {value}' if value else ''}" if name in controls else None

    return reworded(" ".join(message.split()), control, "({names}: in Python, by whoever runs this page)")
