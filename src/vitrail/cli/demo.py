"""`vitrail demo`: a page that shows what Vitrail does, on images of the built-in world."""

from typing import Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show, stages

__all__ = ["demo_command"]


def demo_command(
    output: shared.FolderOutput = shared.DEFAULT_OUTPUT,
    count: Annotated[
        int, typer.Option("--count", "-n", min=2, help="Number of scenes of each kind in the table.")
    ] = 30,
    quick: Annotated[
        bool, typer.Option("--quick", help="Draw the first figure only, in seconds: no other methods, no table.")
    ] = False,
) -> None:
    """Write a page that shows what Vitrail does, offline, with the built-in images and model; in a minute or two."""
    from vitrail.cli.inputs import destination
    from vitrail.demo import write_demo

    folder = destination(output).folder
    with stages() as report:
        page = write_demo(folder, count=count, quick=quick, progress=report)
    show(f"Open {page}")
