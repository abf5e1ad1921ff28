"""The same numbers for other hands: CSV for programs, Markdown for a README, LaTeX for a paper."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..evaluate.run_reader import EvaluationRun
from .curves import Chart
from .leaderboard import Board, Column

__all__ = [
    "curves_csv",
    "differences_csv",
    "failures_csv",
    "latex",
    "leaderboard_csv",
    "markdown",
    "ordered",
    "summary",
]

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # what begins one in a spreadsheet
ARROWS = {1: "↑", -1: "↓", 0: ""}


def ordered(board: Board) -> list[str]:
    """Returns the labels, the best mean rank first; those without one last."""
    place = {entry.label: number for number, entry in enumerate(board.entries)}
    return sorted(place, key=lambda label: (_last(board.mean_rank[label]), place[label]))


def leaderboard_csv(board: Board) -> str:
    """Returns one row for each number of each method."""
    rows = [
        (column.protocol, column.name, column.better, label, cell.size, *cell[:3], column.ranks.get(label))
        for column in board.columns
        for label, cell in column.cells.items()
    ]
    return _csv(("protocol", "number", "better", "method", "images", "value", "low", "high", "rank"), rows)


def differences_csv(board: Board) -> str:
    """Returns one row for each ordered pair of methods and number."""
    rows = [
        (column.protocol, column.name, column.better, a, b, one.difference.size, *one.difference[:3], *one[1:])
        for column in board.columns
        for (a, b), one in column.pairs.items()
    ]
    head = ("protocol", "number", "better", "a", "b", "images", "a_minus_b", "low", "high")
    return _csv((*head, "certainty_a_is_better", "p", "p_holm"), rows)


def curves_csv(charts: Iterable[Chart]) -> str:
    """Returns one row for each step of each curve."""
    rows = [
        (chart.protocol, chart.measure, label, step, *(float(part[k]) for part in one[:3]), int(one.images[k]))
        for chart in charts
        for label, one in chart.bands.items()
        for k, step in enumerate(chart.steps)
    ]
    return _csv(("protocol", "measure", "method", "step", "mean", "low", "high", "images"), rows)


def failures_csv(runs: Mapping[str, EvaluationRun]) -> str:
    """Returns one row for each failure."""
    rows = [(name, *failure) for name, run in runs.items() for failure in run.failures]
    return _csv(("run", "image", "source", "method", "protocol", "reason"), rows)


def markdown(board: Board, protocols: Sequence[str] = ()) -> str:
    """Returns a table: a row for each method, the best bold, what cannot be told from the best with a †."""
    columns = board.columns
    head = ["method", *(_cell_text(f"{one.title} {ARROWS[one.better]}".strip()) for one in columns)]
    lines = [_row(head), _row(["---", *["---:"] * len(columns)])]
    lines += [_row([_cell_text(label), *(_markdown_cell(one, label) for one in columns)]) for label in ordered(board)]
    said = (
        f"Mean [95 % bootstrap interval, {board.resamples} resamples of images]. **Bold**: best. †: cannot be told "
        "from the best (paired, p ≥ 0.05 after Holm's correction)."
    )
    return "\n".join([*lines, "", said, *(one.replace("<", "&lt;") for one in protocols), ""])


def latex(board: Board) -> str:
    """Returns a booktabs table: a row for each method, the half width of the interval next to the mean."""
    columns = board.columns
    arrows = {1: r"$\uparrow$", -1: r"$\downarrow$", 0: ""}
    head = " & ".join(["method", *(f"{_tex(one.title)} {arrows[one.better]}".strip() for one in columns)])
    body = [
        " & ".join([_tex(label), *(_latex_cell(one, label) for one in columns)]) + r" \\" for label in ordered(board)
    ]
    return "\n".join(
        [
            f"% Mean over images, {board.resamples} bootstrap resamples; sub- and superscript: the 95 % interval.",
            r"% Bold: best. Dagger: not to be told from the best (paired, p >= 0.05 after Holm's correction).",
            r"\begin{tabular}{l" + "r" * len(columns) + "}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def summary(board: Board) -> list[dict[str, Any]]:
    """Returns the leaderboard as plain values, for JSON; unknown values are None."""
    return [
        {
            "method": label,
            "mean_rank": _plain(board.mean_rank[label]),
            "numbers": [
                {
                    "protocol": column.protocol,
                    "number": column.name,
                    "better": column.better,
                    "value": _plain(cell.mean),
                    "low": _plain(cell.low),
                    "high": _plain(cell.high),
                    "images": cell.size,
                    "rank": _plain(column.ranks.get(label)),
                    "best": label in column.best,
                    "tied_with_best": label in column.tied,
                }
                for column in board.columns
                if (cell := column.cells.get(label)) is not None
            ],
        }
        for label in ordered(board)
    ]


def _markdown_cell(column: Column, label: str) -> str:
    cell = column.cells.get(label)
    if cell is None or not cell.size:
        return "–"
    value = column.text(cell.mean)
    value = f"**{value}**" if label in column.best else f"{value}†" if label in column.tied else value
    return f"{value} [{column.text(cell.low)}, {column.text(cell.high)}]"


def _latex_cell(column: Column, label: str) -> str:
    cell = column.cells.get(label)
    if cell is None or not cell.size:
        return "--"
    value, low, high = (column.text(one).replace("−", "-") for one in cell[:3])
    value = rf"\mathbf{{{value}}}" if label in column.best else value
    dagger = r"\dagger\," if label in column.tied else ""
    return f"${value}_{{{low}}}^{{{dagger}{high}}}$"


def _tex(text: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(words.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", r"\|").replace("<", "&lt;")


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_field(value) for value in row] for row in rows)
    return buffer.getvalue()


def _field(value: Any) -> Any:
    """Enough digits for any use, nothing where nothing is known, and no text that a spreadsheet takes for a formula.

    >>> _field("=1+1"), _field("zebra.jpg"), _field(-0.5)
    ("'=1+1", 'zebra.jpg', '-0.5')
    """
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _last(rank: float) -> float:
    return math.inf if math.isnan(rank) else rank
