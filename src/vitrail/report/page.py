"""The page: one file that stands alone, with figures, pictures and a little script inside."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from ..evaluate.run_reader import EvaluationRun
from ..metrics.aggregation import Interval
from ..plotting.saving import figure_bytes, inline_svg, web_page
from .curves import Chart, draw_chart, looks
from .examples import EncodedExample, Extreme, picture_of
from .leaderboard import ALPHA, Board, Column
from .protocol import asked, run_facts
from .significance import Paired
from .tables import ARROWS, ordered

__all__ = ["render_page"]

MOST_REASONS = 40  # on the page; all are in failures.csv
FULL = (31, 133, 99), (184, 110, 0)  # better and worse in the matrix: neither of the maps' colours


class Cell(NamedTuple):
    """A number of the leaderboard; `left`, `wide` and `dot` place its interval on the column's scale, in per cent."""

    text: str
    ends: str
    order: str
    kind: str
    images: int
    fewer: bool
    left: float
    wide: float
    dot: float


class Verdict(NamedTuple):
    """A cell of the matrix."""

    text: str
    certainty: str
    sure: bool
    background: str
    title: str


def render_page(
    runs: Sequence[EvaluationRun],
    board: Board,
    drawn: Mapping[str, Sequence[Chart]],
    shown: Mapping[str, Mapping[str, Sequence[Extreme]]],
    column: Column | None,
    warnings: Sequence[str],
) -> str:
    """Returns the page as HTML."""
    labels, style = ordered(board), looks(board.entries)
    first = runs[0].manifest
    groups = [(name, [one for one in board.columns if one.protocol == name]) for name in board.protocols]
    return web_page(
        "vitrail.report",
        runs=run_facts(runs),
        finished=[run.finished for run in runs],
        model=_named(first.get("model")),
        images=len(board.images),
        facts=[fact for run in runs[:1] if (fact := _explained(run))],
        labels=labels,
        groups=[(name, own) for name, own in groups if own],
        columns=board.columns,
        cells={label: [_cell(one, label) for one in board.columns] for label in labels},
        mean_rank={label: _rank(board.mean_rank[label]) for label in labels},
        arrows=ARROWS,
        findings=[found for one in board.columns if (found := _finding(one))],
        looks=style,
        numbers={label: number for number, label in enumerate(style)},
        charts={name: _panels(some, style) for name, some in drawn.items() if some},
        matrices=[_matrix(one, labels) for one in board.columns if one.pairs],
        pictures={label: _sides(sides, column) for label in labels if any((sides := shown.get(label, {})).values())},
        column=column,
        alone=len(board.entries) == 1,
        kept=sum(len(run.pictures) for run in runs) if shown else 0,
        failures=_failures(runs),
        failed=sum(len(run.failures) for run in runs),
        most_reasons=MOST_REASONS,
        asked=asked(runs),
        code=_code,
        warnings=warnings,
        resamples=board.resamples,
        seed=board.seed,
        alpha=ALPHA,
    )


def _explained(run: EvaluationRun) -> str:
    """Which class the maps are of, and how often the model is right."""
    known = list(run.about.values())
    if not known:
        return ""
    labelled = [one for one in known if one.label is not None]
    if all(one.target == one.predicted for one in known):
        said = "The maps are of the predicted class"
    elif labelled and all(one.target == one.label for one in known):
        said = "The maps are of the true class"
    else:
        said = "The maps are of a class chosen for each image"
    if not labelled:
        return f"{said}; the true classes are not known."
    right = sum(one.label == one.predicted for one in labelled)
    share = f"{100 * right / len(labelled):.1f} %"
    return f"{said}; the model predicts the true one on {right} of {len(labelled)} images ({share})."


def _code(text: str) -> Markup:
    """What stands between backticks as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _named(model: Any) -> str:
    name = model.get("name") if isinstance(model, Mapping) else model
    return str(name or "a model")


def _cell(column: Column, label: str) -> Cell | None:
    cell = column.cells.get(label)
    if cell is None or not cell.size:
        return None
    known = [one for one in column.cells.values() if one.size]
    low, high = min(one.low for one in known), max(one.high for one in known)
    span = high - low or 1.0
    return Cell(
        text=column.text(cell.mean),
        ends=f"{column.text(cell.low)} … {column.text(cell.high)}",
        order=f"{-column.better * cell.mean if column.better else -cell.mean:.9g}",  # ascending is best first
        kind="best" if label in column.best else "tied" if label in column.tied else "",
        images=cell.size,
        fewer=cell.size < max(one.size for one in known),
        left=100 * (cell.low - low) / span,
        wide=100 * (cell.high - cell.low) / span,
        dot=100 * (cell.mean - low) / span,
    )


def _rank(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _finding(column: Column) -> tuple[str, str] | None:
    """A sentence on who is best, and how far that is certain."""
    if not column.best or len(column.cells) < 2:
        return None
    best = sorted(column.best)
    cell = column.cells[best[0]]
    value = f"{column.text(cell.mean)} [{column.text(cell.low)}, {column.text(cell.high)}]"
    tied = sorted(column.tied, key=lambda label: column.ranks[label])
    said = f"{_listed(best)} {'share the first place' if len(best) > 1 else 'is best'} ({value})"
    if tied:
        said += f"; {_listed(tied)} cannot be told from {'it' if len(best) == 1 else 'them'}"
    elif len(column.cells) > len(best):
        said += "; all others differ from it" if len(best) == 1 else "; all others differ from them"
    return column.title, said + "."


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _panels(some: Sequence[Chart], style: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The panels of each measure as SVG; the first measure is shown at once, the others on demand."""
    found: dict[str, list[str]] = {}
    for chart in some:
        name = "".join(c if c.isalnum() else "-" for c in f"{chart.protocol}-{chart.measure}")
        svg = inline_svg(figure_bytes(draw_chart(chart, style), "svg").decode(), name, _told(chart))
        found.setdefault(chart.what, []).append(svg)
    return list(found.items())


def _told(chart: Chart) -> str:
    """The chart for those who cannot see it: where each curve begins, its middle and where it ends."""
    middle = len(chart.steps) // 2
    places = dict.fromkeys((0, middle, len(chart.steps) - 1))
    curves = [f"{label} {', '.join(f'{one.mean[k]:.3g}' for k in places)}" for label, one in chart.bands.items()]
    steps = ", ".join(f"{chart.steps[k]:.3g}" for k in places)
    return f"{chart.protocol}, {chart.measure}: mean at steps {steps}. {'; '.join(curves)}."


def _matrix(column: Column, labels: Sequence[str]) -> dict[str, Any]:
    known = [label for label in labels if label in column.cells and column.cells[label].size]
    known = sorted(known, key=lambda label: column.ranks.get(label, 0.0))
    return {
        "column": column,
        "labels": known,
        "rows": {a: [None if a == b else _verdict(column, a, b, column.pairs[a, b]) for b in known] for a in known},
    }


def _verdict(column: Column, a: str, b: str, one: Paired) -> Verdict:
    if not one.difference.size:
        return Verdict("–", "", False, "#fff", f"{a} and {b} have no image in common")
    sure = one.adjusted < ALPHA
    title = (
        f"{a} less {b}: {_interval(column, one.difference)} on {one.difference.size} images; "
        f"p = {one.p:.2g}, {one.adjusted:.2g} after Holm's correction"
    )
    background = "#fff"
    if column.better and not math.isnan(one.certainty):
        strength = 0.42 * abs(2 * one.certainty - 1) ** 2 * (1 if sure else 0.45)
        full = FULL[0] if one.certainty > 0.5 else FULL[1]
        background = "#" + "".join(f"{round(255 - strength * (255 - part)):02x}" for part in full)
    return Verdict(column.text(one.difference.mean, sign=True), _share(one.certainty), sure, background, title)


def _interval(column: Column, one: Interval) -> str:
    return f"{column.text(one.mean, sign=True)} [{column.text(one.low, sign=True)}, {column.text(one.high, sign=True)}]"


def _share(certainty: float) -> str:
    """A certainty in per cent, never more certain than resamples can tell.

    >>> _share(1.0), _share(0.978), _share(0.0001)
    ('> 99.9 %', '97.8 %', '< 0.1 %')
    """
    if math.isnan(certainty):
        return ""
    if certainty > 0.999 or certainty < 0.001:
        return "> 99.9 %" if certainty > 0.5 else "< 0.1 %"
    return f"{100 * certainty:.1f} %"


def _sides(sides: Mapping[str, Sequence[Extreme]], column: Column | None) -> list[tuple[str, list[EncodedExample]]]:
    assert column is not None
    return [(side, [picture_of(one, column) for one in some]) for side, some in sides.items()]


def _failures(runs: Sequence[EvaluationRun]) -> list[tuple[str, str, str, int, str]]:
    """Failures of the same method, protocol and reason together: what, in what, why, how often, where for example."""
    count: Counter[tuple[str, str, str]] = Counter()
    where: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in runs:
        for one in run.failures:
            key = (one.method or "the image itself", one.protocol or "all", " ".join(one.reason.split()))
            count[key] += 1
            where[key].append(one.source)
    return [
        (*key, number, ", ".join(where[key][:3]) + (" …" if number > 3 else "")) for key, number in count.most_common()
    ]
