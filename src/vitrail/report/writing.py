"""Everything that `vitrail report` writes: a page that stands alone, and figures and tables next to it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import OptionError, RunFolderError
from ..evaluate.run_reader import EvaluationRun, read_run
from ..files import atomic_write, writable_folder
from ..metrics.aggregation import RESAMPLES
from ..plotting.saving import save_figure
from .checks import warnings
from .curves import Chart, charts, draw_charts, looks
from .examples import draw_gallery, extremes
from .forest import draw_forest
from .leaderboard import Board, Column, build_board, run_names
from .page import render_page
from .tables import curves_csv, differences_csv, failures_csv, latex, leaderboard_csv, markdown, ordered

__all__ = ["Written", "write_report"]

Progress = Callable[[str, int, int], None]


class Written(NamedTuple):
    """The page, all files, the numbers, and what a sceptical reader should know."""

    page: Path
    files: tuple[Path, ...]
    board: Board
    warnings: tuple[str, ...]


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    pictures: int = 3,
    by: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Written:
    """Reports on the runs in these folders, side by side.

    `output` gets index.html (nothing fetched from elsewhere), leaderboard.csv, .md and .tex, curves.csv,
    differences.csv, failures.csv, manifests.json, and figures/. `pictures` images on either side show where a method is
    best and worst by the number `by`, such as "perturbation: positive AUC" (default: the first that has a better way).

    Raises:
        RunFolderError: for a folder that is no run, or damaged.
        OptionError: for no folder, an unknown `by`, or too few resamples.
        OutputFileError: where `output` cannot be written.

    >>> write_report(["run"], "report").page.name  # doctest: +SKIP
    'index.html'
    """
    if not folders:
        raise OptionError("name at least one folder of a run")
    if resamples < 100 or pictures < 0:
        raise OptionError(f"resamples={resamples} must be 100 or more, and pictures={pictures} not negative")
    report = progress if progress is not None else lambda *_: None
    runs = []
    for folder in folders:
        runs.append(read_run(folder))
        report("reading runs", len(runs), len(folders))
    _refuse_empty(runs)
    report("comparing methods", 0, 1)
    board = build_board(runs, resamples=resamples, seed=seed)
    report("comparing methods", 1, 1)
    column = _headline(board, by)
    said = warnings(runs, board)
    drawn: dict[str, list[Chart]] = {}
    for number, protocol in enumerate(board.protocols, 1):
        drawn[protocol] = charts(board, protocol)
        report("drawing curves", number, len(board.protocols))
    shown = extremes(runs, board, column, pictures) if column is not None and pictures else {}
    page = render_page(runs, board, drawn, shown, column, said)
    place = writable_folder(output)  # not before: a run that is refused leaves no folder behind
    files = _tables(place, runs, board, drawn)
    files += _figures(place, board, drawn, shown, column, report)
    files.append(_write(place / "index.html", page))
    return Written(files[-1], tuple(files), board, tuple(said))


def _refuse_empty(runs: Sequence[EvaluationRun]) -> None:
    told = [run.unmeasured() for run in runs]
    if all(len(empty) == len(run.protocols) for empty, run in zip(told, runs, strict=True)):
        reasons = "; ".join(f"{name}: {reason}" for empty in told for name, reason in empty.items())
        raise RunFolderError(
            f"{', '.join(str(run.folder) for run in runs)}: there is nothing to report, for nothing was measured "
            f"({reasons or 'no protocol was asked for'}); run or resume `vitrail evaluate` first"
        )


def _headline(board: Board, by: str | None) -> Column | None:
    """The number by which images are good or bad."""
    if by is None:
        return next((column for column in board.columns if column.better), None)
    column = board.column(by)
    if column is None:
        known = ", ".join(repr(one.title) for one in board.columns) or "none"
        raise OptionError(f"no number is called {by!r}; there are {known}")
    return column


def _tables(
    place: Path, runs: Sequence[EvaluationRun], board: Board, drawn: Mapping[str, Sequence[Chart]]
) -> list[Path]:
    named = dict(zip(run_names(runs), runs, strict=True))
    options = [
        f"{name}, {protocol}: {', '.join(f'{key}={value}' for key, value in chosen.items()) or 'no options'}."
        for name, run in named.items()
        for protocol, chosen in run.protocols.items()
    ]
    texts = {
        "leaderboard.csv": leaderboard_csv(board),
        "leaderboard.md": markdown(board, ["", *options]),
        "leaderboard.tex": latex(board),
        "differences.csv": differences_csv(board),
        "curves.csv": curves_csv(chart for some in drawn.values() for chart in some),
        "failures.csv": failures_csv(named),
        "manifests.json": json.dumps({name: run.manifest for name, run in named.items()}, indent=1) + "\n",
    }
    return [_write(place / name, text) for name, text in texts.items()]


def _figures(
    place: Path,
    board: Board,
    drawn: Mapping[str, Sequence[Chart]],
    shown: Mapping,
    column: Column | None,
    report: Progress,
) -> list[Path]:
    style, labels = looks(board.entries), ordered(board)
    figures = {}
    if board.columns:
        figures["leaderboard"] = lambda: draw_forest(board, labels, style)
    counts = Counter(_stem(protocol) for protocol in drawn)
    for protocol, some in drawn.items():
        for what in dict.fromkeys(chart.what for chart in some):
            own = [chart for chart in some if chart.what == what]
            note = f"Means over images; bands: pointwise 95 % bootstrap intervals. {protocol}."
            name = (
                f"{_stem(protocol)}-{_stem(what)}" if counts[_stem(protocol)] == 1 else f"{len(figures)}-{_stem(what)}"
            )
            if len(name) > 80 or name in figures:
                name = f"{len(figures)}-{name[:80]}"
            figures[name] = lambda own=own, note=note: draw_charts(own, style, note)
    if column is not None and any(any(sides.values()) for sides in shown.values()):
        figures["best-and-worst"] = lambda: draw_gallery({one: shown[one] for one in labels if one in shown}, column)
    files = []
    for number, (name, draw) in enumerate(figures.items(), 1):
        figure = draw()
        # A gallery of photographs would be a hundred times larger as SVG, and no better.
        kinds = ("png",) if name == "best-and-worst" else ("png", "svg")
        files += [save_figure(figure, place / "figures" / f"{name}.{kind}") for kind in kinds]
        report("writing figures", number, len(figures))
    return files


def _stem(text: str) -> str:
    """A name for a file.

    >>> _stem("perturbation:unit=token")
    'perturbation-unit-token'
    """
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_-" else "-" for c in text)


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(text.encode())
    return path
