"""`vitrail report`: a page with the results of `vitrail evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show, show_json, show_table, stages

__all__ = ["report_command"]


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `vitrail evaluate --output` wrote.", metavar="RUN…")],
    output: shared.FolderOutput = Path("report"),
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Number of best and of worst images shown for each method.")
    ] = 3,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help='Measure that ranks the images, as in "perturbation: positive AUC". Default: the first.'
        ),
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Number of bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the bootstrap.")] = 0,
    as_json: shared.AsJson = False,
) -> None:
    """Write a page with leaderboard, curves, paired differences, best and worst images, failures and the protocol.

    OUTPUT/index.html needs no other file; figures (PNG, SVG) and tables (CSV, Markdown, LaTeX) are written next to it.
    Several runs are shown side by side, with a warning where they differ in more than their methods.
    """
    from vitrail.cli.inputs import destination
    from vitrail.report import write_report
    from vitrail.report.tables import ARROWS, ordered, summary

    destination(output)
    with stages() as progress:
        written = write_report(
            runs, output, pictures=pictures, by=by, resamples=resamples, seed=seed, progress=progress
        )
    if as_json:
        found = {
            "page": str(written.page),
            "files": [str(path) for path in written.files],
            "warnings": list(written.warnings),
            "leaderboard": summary(written.board),
        }
        show_json(found)
        return
    for warning in written.warnings:
        show(f"warning: {warning}", err=True)
    columns = written.board.columns
    show_table(
        ("method", *(f"{column.title} {ARROWS[column.better]}".strip() for column in columns)),
        (
            (label, *(column.text(column.cells[label].mean) if label in column.cells else "–" for column in columns))
            for label in ordered(written.board)
        ),
    )
    show(f"Open {written.page}", err=True)
