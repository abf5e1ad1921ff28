"""The curves of a protocol: one panel for each measure, a line and a band for each method, in the method's own look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..plotting.canvas import FRAME, INK, PALE, Box, axes_at, blank, write
from .leaderboard import Board, Entry
from .significance import Band, band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "DASHES", "Chart", "Look", "charts", "draw_chart", "draw_charts", "looks"]

# Neither red nor blue, which are the maps'; each has a contrast of 3 : 1 and more to white.
COLOURS = ("#222222", "#b86e00", "#1f8563", "#8e4fa8", "#c2418c", "#5f7a00", "#2b8497", "#8a6a4f")
OWN = {"gae": 0, "complete": 1}
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.4)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.2, 1.4)), (0, (9, 2)))
CSS_DASHES = ("", "7 3", "2 2", "9 3 2 3", "14 4")

MOST_STEPS = 51  # of a band: more cannot be seen
WIDE, HIGH = 3.5, 2.25  # a panel, in inches
LEFT, RIGHT, BELOW, HEAD = 0.62, 0.26, 0.5, 0.36
MARGIN, ROW, LEGEND = 0.14, 0.2, 2.3


class Look(NamedTuple):
    """A colour, Matplotlib's dash and the same dash for a page."""

    colour: str
    dash: Any
    css_dash: str


def looks(entries: Sequence[Entry]) -> Mapping[str, Look]:
    """Returns a look for each entry: methods of a kind share the colour, their modes and runs differ in dash."""
    names = list(dict.fromkeys(entry.method.partition(":")[0] for entry in entries))
    free = [number for number in range(len(COLOURS)) if number not in [OWN[name] for name in names if name in OWN]]
    others = [name for name in names if name not in OWN]
    colours = OWN | {name: free[place % len(free)] for place, name in enumerate(others)}
    later = {name: place // len(free) for place, name in enumerate(others)}  # colours are used up: go on with dashes
    found: dict[str, Look] = {}
    used: dict[int, int] = {}
    for entry in entries:
        name = entry.method.partition(":")[0]
        number = colours[name]
        dash = max(used.get(number, 0), later.get(name, 0)) % len(DASHES)
        used[number] = dash + 1
        found[entry.label] = Look(COLOURS[number], DASHES[dash], CSS_DASHES[dash])
    return found


@dataclass(frozen=True, eq=False)
class Chart:
    """A measure over its steps: its band for each entry. `what` is the measure without the way of "way.what"."""

    protocol: str
    measure: str
    way: str
    what: str
    steps: tuple[float, ...]
    bands: Mapping[str, Band]

    @property
    def share(self) -> bool:
        """Returns whether the steps are shares of an image."""
        return min(self.steps) >= 0 and max(self.steps) <= 1


def charts(board: Board, protocol: str) -> list[Chart]:
    """Returns the charts of a protocol; the ways of one measure stand together, in the order in which they were
    measured.
    """
    own = {label: curves for (label, name), curves in board.curves.items() if name == protocol}
    steps: dict[str, tuple[float, ...]] = {}
    for curves in own.values():
        for measure, some in curves.steps.items():
            numbers = tuple(step for step in some if step is not None)
            if len(numbers) > 1 and len(numbers) == len(some):
                steps[measure] = tuple(sorted({*steps.get(measure, ()), *numbers}))
    found = []
    for measure, all_steps in steps.items():
        some = np.unique(np.linspace(0, len(all_steps) - 1, MOST_STEPS).round().astype(int))
        kept = tuple(all_steps[place] for place in some)
        way, _, what = measure.rpartition(".")
        bands = {
            label: band(_at(curves.values[measure], curves.steps[measure], kept), seed=board.seed)
            for label, curves in own.items()
            if measure in curves.values
        }
        found.append(Chart(protocol, measure, way, what, kept, bands))
    order = list(dict.fromkeys(chart.what for chart in found))
    return sorted(found, key=lambda chart: order.index(chart.what))


def _at(values: np.ndarray, steps: Sequence[float | None], kept: Sequence[float]) -> np.ndarray:
    """The columns of the steps that are kept; NaN where this method has none."""
    place = {step: number for number, step in enumerate(steps)}
    table = np.full((len(values), len(kept)), np.nan)
    for number, step in enumerate(kept):
        if step in place:
            table[:, number] = values[:, place[step]]
    return table


def draw_chart(chart: Chart, style: Mapping[str, Look]) -> "Figure":
    """Returns one panel by itself, for a page that has its own legend; the lines carry their method's number as id."""
    figure = blank(LEFT + WIDE + RIGHT, HEAD + HIGH + BELOW)
    _panel(figure, chart, style, (LEFT, BELOW, WIDE, HIGH))
    return figure


def draw_charts(some: Sequence[Chart], style: Mapping[str, Look], note: str) -> "Figure":
    """Panels side by side, two in a row, and the legend of all on the right: for a paper."""
    across = min(len(some), 2)
    down = -(-len(some) // across)
    labels = list(dict.fromkeys(label for chart in some for label in chart.bands))
    one = LEFT + WIDE + RIGHT
    high = max(down * (HEAD + HIGH + BELOW), HEAD + ROW * len(labels) + BELOW)
    figure = blank(2 * MARGIN + across * one + LEGEND, 2 * MARGIN + high + ROW)
    top = MARGIN + high + ROW
    for number, chart in enumerate(some):
        x, y = MARGIN + number % across * one + LEFT, top - (number // across + 1) * (HEAD + HIGH + BELOW) + BELOW
        _panel(figure, chart, style, (x, y, WIDE, HIGH))
    x, y = MARGIN + across * one + 0.15, top - HEAD - 0.08
    for label in labels:
        axes = axes_at(figure, (x, y - 0.05, 0.36, 0.1))
        axes.axis("off")
        axes.plot([0, 1], [0, 0], color=style[label].colour, linestyle=style[label].dash, linewidth=1.7)
        write(figure, x + 0.45, y - 0.04, label, width=LEGEND - 0.6, size=8.5, color=style[label].colour)
        y -= ROW
    write(figure, MARGIN, MARGIN / 2, note, width=across * one + LEGEND, size=7.0, smallest=5.0, color=PALE)
    return figure


def _panel(figure: "Figure", chart: Chart, style: Mapping[str, Look], box: Box) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    x, y, wide, high = box
    axes = axes_at(figure, box)
    order = list(style)
    alpha = 0.16 if len(chart.bands) <= 5 else 0.06  # of many methods bands would hide one another
    for label, one in chart.bands.items():
        look, number = style[label], order.index(label)
        if not np.isfinite(one.mean).any():
            continue
        axes.fill_between(
            chart.steps, one.low, one.high, color=look.colour, alpha=alpha, linewidth=0, gid=f"band-{number}"
        )
        axes.plot(chart.steps, one.mean, color=look.colour, linestyle=look.dash, linewidth=1.6, gid=f"line-{number}")
    axes.set_xlim(min(chart.steps), max(chart.steps))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if chart.share:
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.tick_params(labelsize=8, colors=PALE, length=2.5, width=0.6)
    axes.grid(axis="y", color=FRAME, linewidth=0.4)
    axes.set_axisbelow(True)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    title = f"{chart.way}: {chart.what}" if chart.way else chart.what
    write(figure, x, y + high + 0.12, title.replace("_", " "), width=wide, size=10.5, weight="bold", color=INK)
    under = "share of the image" if chart.share else "step"
    write(figure, x + wide / 2, y - 0.4, under, width=wide, size=8.0, ha="center", color=PALE)
