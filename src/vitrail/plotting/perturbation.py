"""The curves of the perturbation experiment: accuracy over the share taken out, one panel each way and region."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitrail.experiments.stitched_perturbation import CONTROL, RANDOM, REGIONS, WAYS, Curve
from vitrail.metrics.aggregation import Interval
from vitrail.plotting.lettering import lines, write
from vitrail.plotting.overlay import resize
from vitrail.plotting.panel import FRAME, INK, PALE, Box, axes_at, blank, pixels, show, signed_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CurveSet", "Drawn", "draw_perturbation"]

MARGIN, GAP = 0.24, 0.3  # inches
SIDE, STEP = 1.55, 0.62  # the example's pictures, and the room below each
WIDE, HIGH, LEGEND = 2.9, 1.75, 2.0  # a panel, and the words beside it
AXIS, BELOW = 0.5, 0.52  # left of a panel and below it, for numbers
TITLE, HEAD = 0.34, 0.3
NOTE, NOTE_SIZE = 0.14, 7.0
RESAMPLES = 500

# Neither red nor blue, which are the maps'; apart in lightness as in hue.
COLOURS = {"complete": "#c77700", "gae": "#222222", CONTROL: "#2a8f6d", RANDOM: "#9a9a9a"}
TITLES = {
    "positive": "highest first, should fall soon",
    "negative": "lowest first, should hold",
}
PLACES = {
    REGIONS[0]: "any patch may go",
    REGIONS[1]: "control: the guide stays",
    REGIONS[2]: "control: the guide is all black",
}


@dataclass(frozen=True, eq=False)
class CurveSet:
    """The curves of all photographs under one ranking, and the mean area under them with its interval."""

    what: Curve
    hits: Float[Tensor, "photographs steps"]
    area: Interval


@dataclass(frozen=True, eq=False)
class Drawn:
    """An example beside the curves: pixels from 0 to 1, maps by name, and the two classes."""

    pixels: Float[Tensor, "3 height width"]
    maps: Mapping[str, Float[Tensor, "rows cols"]]
    names: tuple[str, str]


def draw_perturbation(
    curves: Sequence[CurveSet], example: Drawn, differences: Mapping[str, Interval], words: str
) -> "Figure":
    """Draw the example on the left and a panel for each way and region, with areas and intervals beside the curves.

    Bands are 95 % bootstrap intervals of the mean over photographs. `differences` are paired, in words below.
    """
    panel = AXIS + WIDE + LEGEND
    width = 2 * MARGIN + SIDE + GAP + 2 * panel
    notes = [line for note in _notes(differences, words) for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    row = HEAD + HIGH + BELOW
    height = MARGIN + TITLE + len(REGIONS) * row + NOTE * len(notes) + MARGIN / 2
    figure = blank(width, height)
    top = height - MARGIN / 2 - TITLE
    limit = _top(curves)
    for column, way in enumerate(WAYS):
        x = MARGIN + SIDE + GAP + column * panel
        title = f"{way} perturbation ({TITLES[way]})"
        write(figure, x + AXIS, top + 0.1, title, width=panel - AXIS - 0.1, size=11.0, weight="bold", color=INK)
        for number, region in enumerate(REGIONS):
            box = (x + AXIS, top - number * row - HEAD - HIGH, WIDE, HIGH)
            some = [one for one in curves if one.what.region == region and one.what.way in (way, RANDOM)]
            _panel(figure, some, box, PLACES[region], top=limit)
    _example(figure, example, top)
    for line, note in enumerate(reversed(notes)):
        place = MARGIN / 2 + line * NOTE
        write(figure, MARGIN, place, note, width=width - 2 * MARGIN, size=NOTE_SIZE, smallest=5.0, color=PALE)
    return figure


def _top(curves: Sequence[CurveSet]) -> float:
    """Where the axis of all panels ends: one scale, so that they can be compared."""
    return min(1.0, max(0.1, *(_band(one.hits.double().numpy(force=True))[1].max() for one in curves)) * 1.05)


def _panel(figure: "Figure", curves: Sequence[CurveSet], box: Box, title: str, top: float) -> None:
    x, y, wide, high = box
    axes = axes_at(figure, box)
    shares = np.arange(curves[0].hits.shape[1]) / 10
    for one in curves:
        rows = one.hits.double().numpy(force=True)
        colour = COLOURS[one.what.map]
        style: dict[str, Any] = {"linestyle": (0, (1, 1.2))} if one.what.map == RANDOM else {}
        low, high_ = _band(rows)
        if one.what.map != RANDOM:
            axes.fill_between(shares, low, high_, color=colour, alpha=0.13, linewidth=0)
        axes.plot(shares, rows.mean(axis=0), color=colour, linewidth=1.7, **style)
    axes.set(xlim=(0, 0.9), ylim=(0, top))
    axes.set_xticks(np.arange(0, 10, 2) / 10, [f"{10 * tick} %" for tick in range(0, 10, 2)])
    step = 0.2 if top > 0.5 else 0.1 if top > 0.25 else 0.05
    ticks = np.arange(0, top + 1e-9, step)
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.tick_params(labelsize=7.5, colors=PALE, length=2.5, width=0.6)
    axes.grid(axis="y", color=FRAME, linewidth=0.4)
    axes.set_axisbelow(True)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    write(figure, x, y + high + 0.07, title, width=wide, size=8.5, color=INK)
    write(figure, x - 0.06, y + high + 0.07, "top-1", width=AXIS, size=7.5, ha="right", color=PALE)
    write(figure, x + wide / 2, y - 0.36, "patches taken out", width=wide, size=7.5, ha="center", color=PALE)
    place = y + high - 0.14
    write(figure, x + wide + 0.12, place, "area under the curve", width=LEGEND - 0.2, size=7.5, color=PALE)
    for one in sorted(curves, key=lambda each: -each.area.mean):
        place -= 0.33
        style = {"width": LEGEND - 0.2, "color": COLOURS[one.what.map]}
        write(figure, x + wide + 0.12, place, one.what.map, size=8.5, weight="bold", **style)
        write(figure, x + wide + 0.12, place - 0.145, _words(one.area), size=8.0, **style)


def _example(figure: "Figure", example: Drawn, top: float) -> None:
    image = np.rint(255 * example.pixels.permute(1, 2, 0).numpy(force=True).clip(0, 1)).astype(np.uint8)
    high = SIDE * image.shape[0] / image.shape[1]
    y = top - HEAD - high
    box = (MARGIN, y, SIDE, high)
    show(axes_at(figure, box), resize(image, pixels(box)))
    write(figure, MARGIN, top + 0.1, "an example", width=SIDE, size=11.0, weight="bold", color=INK)
    write(figure, MARGIN, y + high + 0.07, f"{example.names[0]} beside {example.names[1]}", width=SIDE, size=8.5)
    for name in ("complete", "gae"):
        y -= high + STEP - 0.02 if name == "gae" else high + 0.3
        scores = example.maps[name].double().numpy(force=True)
        signed_map(figure, scores, image, (MARGIN, y, SIDE, high), signed=name == "complete")
        style = {"width": SIDE, "size": 8.5, "weight": "bold", "color": COLOURS[name]}
        write(figure, MARGIN, y + high + 0.07, name, **style)


def _band(rows: Float[np.ndarray, "photographs steps"]) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.quantile(rows[chosen].mean(axis=1), (0.025, 0.975), axis=0)
    return low, high


def _words(interval: Interval, *, sign: bool = False) -> str:
    form = "{:+.3f}" if sign else "{:.3f}"
    low, high = form.format(interval.low), form.format(interval.high)
    return f"{form.format(interval.mean)} [{low}, {high}]".replace("-", "−")


def _notes(differences: Mapping[str, Interval], words: str) -> list[str]:
    said = "; ".join(f"{name} {_words(interval, sign=True)}" for name, interval in differences.items())
    return [
        f"{words}. Each is squashed to the left half beside the guide; patches go to black before normalisation; top-1 "
        "is the photograph's class. Area: trapezoid over 0, 10 … 90 and 100 %, where it is taken as 0. Bands and "
        "brackets: 95 % bootstrap intervals over photographs.",
        f"Paired differences of areas: {said}.",
    ]
