"""A run's tables as Markdown, its figure, and the page of the documentation whose measured part they replace.

The figure shows time and memory against the tokens, and time against the targets.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputFileError
from ..files import atomic_write
from ..plotting.canvas import FRAME, INK, PALE, Box, axes_at, blank, write
from ..plotting.saving import save_figure
from ..report.curves import COLOURS, DASHES
from .results import Measured, MemoryTable, Peak, Results, TargetTable, TimeTable, TokenTable
from .rows import LIMIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "markdown", "write_page"]

WIDE, HIGH = 2.75, 2.3  # a panel, in inches
LEFT, RIGHT, BELOW, HEAD = 0.62, 0.3, 0.52, 0.62
MARGIN, ROW, ACROSS = 0.14, 0.21, 3
LIMIT_COLOUR = "#8a8a8a"

Line = tuple[Sequence[float | int], Sequence[float | int]]
Panel = tuple[tuple[str, str, str], Mapping[str, Line], Mapping[str, Any]]


def markdown(results: Results, picture: str | None = None) -> str:
    """Returns all tables of a run, with what it was measured on; `picture` is the plot's path as the page shall
    name it.
    """
    load = "" if results.load is None else f"; load average {results.load:.1f} when it began"
    clock = "processor time" if results.clock == "processor" else "wall time"
    parts = [
        f"{results.date}, {results.dtype} on {results.device}{load}. {results.machine}.",
        f"Medians of {results.rounds} rounds after {results.warmup} to warm up, {clock}, quartiles in brackets; a "
        "ratio is that of two times of the same round.",
    ]
    if results.command:
        parts.append(f"Made by `{results.command}`.")
    if picture:
        parts.append(f"![Time and memory against tokens, time against targets]({picture})")
    parts += [_time_table(table) for table in results.times]
    parts += [_target_table(table) for table in results.targets]
    parts += [_token_table(table) for table in results.tokens]
    parts += [_memory_table(table) for table in results.memory]
    return "\n\n".join(parts) + "\n"


def write_page(results: Results, path: str | os.PathLike[str]) -> Path:
    """Puts the tables between the two marks of the page, or makes a page of them; the plot is saved in `pictures`.

    A page may have a measured part for each kind of device; the others, and the prose around them, stay as they are.
    Returns the picture's path.

    Raises:
        OutputFileError: when a file cannot be read or written, or the page has one mark and not the other.
    """
    page, kind = Path(path), results.device.partition(":")[0]
    begin, end = (f"<!-- vitrail bench on {kind}: {word} -->" for word in ("begin", "end"))
    picture = save_figure(draw(results), page.parent / "pictures" / f"performance-{kind}.svg")
    measured = f"{begin}\n\n{markdown(results, f'pictures/{picture.name}')}\n{end}"
    try:
        old = page.read_text(encoding="utf-8") if page.exists() else f"# Speed and memory\n\n{begin}\n{end}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise OutputFileError(f"cannot read {page} to replace its measured part: {error}") from error
    if (begin in old) != (end in old) or old.count(begin) > 1 or old.find(end) < old.find(begin):
        raise OutputFileError(f"{page} must have the lines {begin} and {end} once each, in this order, or neither")
    if begin in old:
        new = old[: old.index(begin)] + measured + old[old.index(end) + len(end) :]
    else:
        new = f"{old.rstrip()}\n\n## On {kind}\n\n{measured}\n"
    with atomic_write(page) as file:
        file.write(new.encode())
    return picture


def _time_table(table: TimeTable) -> str:
    header = ("row", "passes", "seconds", "images/s", "× limit", "stored GAE takes", "agrees with ours to")
    return f"### {table.case}: {table.tokens} tokens\n\n" + _table(header, (_time_row(row) for row in table.rows))


def _time_row(row: Measured) -> tuple[str, ...]:
    if row.seconds is None:
        return row.name, row.passes, row.note, "", "", "", ""
    return (
        row.name,
        row.passes,
        f"{row.seconds:.3f}",
        f"{row.images_per_second:.2f}",
        "" if row.over_limit is None else str(row.over_limit),
        "" if row.faster_than_stored is None else f"{row.faster_than_stored:.2f}×",
        "" if row.agreement is None else f"{row.agreement:.0e}",
    )


def _target_table(table: TargetTable) -> str:
    counts = list(next(iter(table.share.values())))
    header = ("method", *(f"{count} target{'s' if count > 1 else ''}" for count in counts))
    rows = [(method, *(str(one[count]) for count in counts)) for method, one in table.share.items()]
    title = f"### {table.case}: several targets in one call, over as many calls"
    return f"{title}\n\n{_table(header, rows)}"


def _token_table(table: TokenTable) -> str:
    header = ("× limit", *(f"{one.tokens} tokens, {one.case.size} px" for one in table.tables))
    rows = []
    for place, first in enumerate(table.tables[0].rows):
        cells = (one.rows[place] for one in table.tables)
        rows.append((first.name, *(row.note if row.over_limit is None else str(row.over_limit) for row in cells)))
    seconds = [row.seconds for one in table.tables for row in one.rows if row.name.startswith("limit")]
    rows.append(("limit, seconds", *(f"{some:.3f}" if some else "" for some in seconds)))
    return f"### {table.model}, batch {table.batch}: time against tokens\n\n{_table(header, rows)}"


def _memory_table(table: MemoryTable) -> str:
    sizes = zip(table.tokens, table.sizes, strict=True)
    header = ("MiB (× limit)", *(f"{tokens} tokens, {size} px" for tokens, size in sizes), "fit", "what grows")
    rows = [(row.name, *_peaks(row, table.rows[0], table.tokens), *_fit(row)) for row in table.rows]
    title = f"### {table.model}, batch {table.batch}: peak memory beyond weights and images"
    return f"{title}\n\n{_table(header, rows)}"


def _peaks(row: Peak, limit: Peak, tokens: Sequence[int]) -> list[str]:
    cells = []
    for number in tokens:
        peak, base = row.bytes[number], limit.bytes[number]
        over = f" ({peak / base:.2f}×)" if peak is not None and base else ""
        cells.append(row.notes.get(number, "") if peak is None else f"{peak / 2**20:.0f}{over}")
    return cells


def _fit(row: Peak) -> tuple[str, str]:
    if row.fit is None:
        return "", ""
    fit = row.fit
    text = f"{fit.constant / 2**20:.0f} MiB + {fit.linear / 2**10:.0f} KiB·N + {fit.quadratic:.1f} B·N²"
    share = max(fit.linear_share, fit.quadratic_share)
    return text, f"{fit.dominant}, {share:.0%} of the last"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(results: Results) -> "Figure":
    """Returns the figure: one panel for each of the three that was measured at two points or more, and a legend
    below.
    """
    panels = [panel for make in (_time_panel, _memory_panel, _target_panel) if (panel := make(results)) is not None]
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


def _time_panel(results: Results) -> Panel | None:
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


def _memory_panel(results: Results) -> Panel | None:
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


def _target_panel(results: Results) -> Panel | None:
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
    """Returns the styles: grey for plain passes, the methods' colours as in reports, long dashes for stored maps."""
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
        # What is no explanation lies below, broad enough to be seen next to what lies on it.
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
