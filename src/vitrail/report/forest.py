"""The leaderboard as a figure: each number a panel, each method a point with its interval."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..plotting.canvas import FRAME, INK, PALE, axes_at, blank, write
from .curves import Look
from .leaderboard import Board, Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_forest"]

NAMES, WIDE, GAP, ROW = 1.75, 1.75, 0.22, 0.22  # inches
MARGIN, HEAD, FOOT, NOTE = 0.16, 0.5, 0.3, 0.24
ACROSS = 4  # panels in a line


def draw_forest(board: Board, labels: Sequence[str], style: Mapping[str, Look]) -> "Figure":
    """Draws the columns of a board, four in a line, the methods in the order of `labels`."""
    across = min(len(board.columns), ACROSS)
    down = -(-len(board.columns) // across)
    band = HEAD + ROW * len(labels) + FOOT
    figure = blank(2 * MARGIN + NAMES + across * (WIDE + GAP), 2 * MARGIN + down * band + NOTE)
    for number, column in enumerate(board.columns):
        y = MARGIN + NOTE + (down - 1 - number // across) * band + FOOT
        if number % across == 0:
            for place, label in enumerate(labels):
                at = y + ROW * (len(labels) - place - 0.5) - 0.04
                write(figure, MARGIN, at, label, width=NAMES - 0.1, size=8.5, color=style[label].colour)
        x = MARGIN + NAMES + number % across * (WIDE + GAP)
        _panel(figure, column, labels, style, (x, y, WIDE, ROW * len(labels)))
    said = "Points: means over images; lines: 95 % bootstrap intervals. Filled: best, or not to be told from the best."
    write(figure, MARGIN, MARGIN, said, width=figure.get_size_inches()[0] - 2 * MARGIN, size=7.0, color=PALE)
    return figure


def _panel(
    figure: "Figure",
    column: Column,
    labels: Sequence[str],
    style: Mapping[str, Look],
    box: tuple[float, float, float, float],
) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y, wide, high = box
    axes = axes_at(figure, box)
    for place, label in enumerate(labels):
        cell = column.cells.get(label)
        if cell is None or not cell.size:
            continue
        at, colour = len(labels) - place - 0.5, style[label].colour
        axes.plot([cell.low, cell.high], [at, at], color=colour, linewidth=1.4)
        full = label in column.best | column.tied
        axes.plot([cell.mean], [at], "o", color=colour, markersize=4.5, markerfacecolor=colour if full else "white")
    axes.set_ylim(0, len(labels))
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7.5, colors=PALE, length=2.5, width=0.6, left=False)
    axes.grid(axis="x", color=FRAME, linewidth=0.4)
    axes.set_axisbelow(True)
    for spine in ("top", "right", "left"):
        axes.spines[spine].set_visible(False)
    arrow = {1: " ↑", -1: " ↓", 0: ""}[column.better]
    write(figure, x, y + high + 0.22, column.protocol, width=wide, size=7.5, color=PALE)
    write(figure, x, y + high + 0.06, column.name, ending=arrow, width=wide, size=9.0, weight="bold", color=INK)
