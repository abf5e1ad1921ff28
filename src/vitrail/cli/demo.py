"""`vitrail demo`: what Vitrail does, on a page made from the built-in world."""

from typing import Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show, stages, stop

__all__ = ["demo_command"]


def demo_command(
    output: shared.FolderOutput = shared.DEFAULT_OUTPUT,
    count: Annotated[
        int, typer.Option("--count", "-n", min=2, help="Number of scenes of each kind in the table.")
    ] = 30,
    quick: Annotated[
        bool, typer.Option("--quick", help="Draw the first picture alone, in seconds; no other methods, no table.")
    ] = False,
) -> None:
    """Write a page that shows what Vitrail does: offline, from its own creatures and model, in a minute or two."""
    from vitrail.cli.inputs import destination
    from vitrail.demo import write_demo
    from vitrail.errors import VitrailError

    try:
        folder = destination(output).folder
        with stages() as report:
            page = write_demo(folder, count=count, quick=quick, progress=report)
    except VitrailError as error:
        stop(error)
    show(f"Open {page}")
