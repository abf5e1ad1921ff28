"""What an explanation costs, drawn: time and memory against the tokens, time against the targets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..plotting.canvas import FRAME, INK, PALE, Box, axes_at, blank, write
from ..report.styles import COLOURS, DASHES
from .results import Results
from .rows import LIMIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

WIDE, HIGH = 2.75, 2.3  # a panel, in inches
LEFT, RIGHT, BELOW, HEAD = 0.62, 0.3, 0.52, 0.62
MARGIN, ROW, ACROSS = 0.14, 0.21, 3
LIMIT_COLOUR = "#8a8a8a"

Line = tuple[Sequence[float | int], Sequence[float | int]]


def draw(results: Results) -> "Figure":
    """The figure: one panel for each of the three that was measured at two points or more, and a legend below."""
    panels = [panel for panel in (_time(results), _memory(results), _targets(results)) if panel is not None]
    labels = list(dict.fromkeys(label for _, lines, _ in panels for label in lines))
    style = _styles(labels)
    down = -(-len(labels) // ACROSS)
    one = LEFT + WIDE + RIGHT
    width = 2 * MARGIN + max(len(panels), 2) * one
    figure = blank(width, 2 * MARGIN + HEAD + HIGH + BELOW + ROW * (down + 1))
    floor = MARGIN + ROW * (down + 1)
    for number, (titles, lines, axis) in enumerate(panels):
        _panel(figure, titles, lines, style, axis, (MARGIN + number * one + LEFT, floor + BELOW, WIDE, HIGH))
    across = (width - 2 * MARGIN) / ACROSS
    for number, label in enumerate(labels):
        x, y = MARGIN + number % ACROSS * across, floor - ROW * (number // ACROSS) - 0.1
        axes = axes_at(figure, (x, y, 0.36, 0.1))
        axes.axis("off")
        axes.plot([0, 1], [0, 0], **style[label])
        write(figure, x + 0.45, y + 0.01, label, width=across - 0.55, size=8.5, color=style[label]["color"])
    note = f"{results.machine.partition(';')[0]}; {results.dtype}, {results.date}"
    write(figure, MARGIN, MARGIN / 2, note, width=width - 2 * MARGIN, size=7.0, smallest=5.0, color=PALE)
    return figure


Panel = tuple[tuple[str, str, str], Mapping[str, Line], Mapping[str, Any]]


def _time(results: Results) -> Panel | None:
    tables = [table for one in results.tokens for table in one.tables]
    if len(tables) < 2:
        return None
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for table in tables:
        for row in table.rows:
            if row.over_limit is not None:
                x, y = lines.setdefault(row.name, ([], []))
                x.append(table.tokens)
                y.append(row.over_limit.median)
    titles = ("Time", f"of one forward and backward pass, {results.tokens[0].model}", "tokens")
    return titles, lines, {"xscale": "log", "ylabel": "times the limit"}


def _memory(results: Results) -> Panel | None:
    table = results.memory[0] if results.memory else None
    if table is None or len(table.tokens) < 2:
        return None
    lines: dict[str, Line] = {}
    for row in table.rows:
        known = [(tokens, peak / 2**20) for tokens, peak in row.bytes.items() if peak is not None]
        if known:
            lines[row.name] = [tokens for tokens, _ in known], [peak for _, peak in known]
    titles = ("Peak memory", f"beyond weights and images, {table.model}", "tokens")
    return titles, lines, {"xscale": "log", "yscale": "log", "ylabel": "MiB"}


def _targets(results: Results) -> Panel | None:
    table = results.targets[0] if results.targets else None
    counts = [] if table is None else list(next(iter(table.calls.values())))
    if table is None or len(counts) < 2:
        return None
    lines: dict[str, Line] = {"a call for each target": (counts, counts)}
    for method, calls in table.calls.items():
        lines[f"vitrail {method}"] = list(calls), list(calls.values())
    titles = ("Several targets", f"of one image in one call, {table.case.model}", "targets")
    return titles, lines, {"ylabel": "times a call for one target"}


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Grey for what is no explanation; the methods' own colours as in reports; the stored-maps form in long dashes."""
    found: dict[str, dict[str, Any]] = {}
    colours = {"vitrail gae": COLOURS[0], "vitrail complete": COLOURS[1], "stored maps: gae": COLOURS[4]}
    free = [colour for colour in COLOURS if colour not in colours.values()]
    for label in labels:
        if label == LIMIT:
            look: dict[str, Any] = {"color": LIMIT_COLOUR, "linestyle": DASHES[0]}
        elif label in ("plain forward", "a call for each target"):
            look = {"color": LIMIT_COLOUR, "linestyle": DASHES[1 if label == "plain forward" else 2]}
        else:
            colour = colours.get(label) or free.pop(0)
            look = {"color": colour, "linestyle": DASHES[3 if label.startswith("stored") else 0]}
        # What is no explanation lies below, broad enough to be seen beside what lies on it.
        found[label] = look | {"linewidth": 4.0 if label == LIMIT else 1.7}
    return found


def _panel(
    figure: "Figure",
    titles: tuple[str, str, str],
    lines: Mapping[str, Line],
    style: Mapping[str, dict[str, Any]],
    axis: Mapping[str, Any],
    box: Box,
) -> None:
    x, y, wide, high = box
    axes = axes_at(figure, box)
    for label, (across, up) in lines.items():
        axes.plot(across, up, marker="o", markersize=3, **style[label])
    _ticks(axes, lines, axis)
    axes.grid(axis="y", color=FRAME, linewidth=0.4)
    axes.set_axisbelow(True)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    write(figure, x - LEFT + 0.05, y + high + 0.38, titles[0], width=wide + LEFT, size=10.5, weight="bold", color=INK)
    write(figure, x - LEFT + 0.05, y + high + 0.2, titles[1], width=wide + LEFT, size=8.0, color=PALE)
    write(figure, x - LEFT + 0.05, y + high + 0.04, axis["ylabel"], width=LEFT + wide / 2, size=7.5, color=PALE)
    write(figure, x + wide / 2, y - 0.4, titles[2], width=wide, size=8.0, ha="center", color=PALE)


def _ticks(axes: "Axes", lines: Mapping[str, Line], axis: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    shown = FuncFormatter(lambda value, _: f"{value:,.10g}".replace(",", " "))
    if axis.get("xscale") == "log":
        axes.set_xscale("log")
        axes.set_xticks(sorted({number for across, _ in lines.values() for number in across}))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xticks(sorted({number for across, _ in lines.values() for number in across}))
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(shown)
    if axis.get("yscale") == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(shown)
    axes.tick_params(which="both", labelsize=8, colors=PALE, length=2.5, width=0.6)
