"""`vitrail rewrite`: a picture that looks the same and is another class."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import one_line, stop

if TYPE_CHECKING:
    from vitrail.experiments.rewrite import Progress

__all__ = ["rewrite_command"]


class Variant(StrEnum):
    """What a step follows."""

    gradient = "gradient"
    sign = "sign"
    adam = "adam"


class Slope(StrEnum):
    """What goes down."""

    difference = "difference"
    log_probability = "log_probability"


class Place(StrEnum):
    """Which pixels are changed."""

    photograph = "photograph"
    input = "input"


class Norm(StrEnum):
    """How the budget is measured."""

    linf = "linf"
    l2 = "l2"


def rewrite_command(
    image: shared.ImageFile,
    model: shared.ModelName,
    target: Annotated[str, typer.Option("--target", "-t", help="The class to reach, by name or index.")],
    source: Annotated[
        str | None, typer.Option("--source", "-s", help="The class to leave. Default: the predicted class.")
    ] = None,
    until: Annotated[float, typer.Option("--until", help="Stop at this probability of the target.")] = 0.9,
    objective: Annotated[
        Slope | None,
        typer.Option("--objective", help="What goes down. Default: difference; within a budget log_probability."),
    ] = None,
    variant: Annotated[
        Variant | None, typer.Option("--variant", help="What a step follows. Default: gradient; within L∞ sign.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Largest change in all, pixels counted from 0 to 1: 0.03 or 8/255.")
    ] = None,
    norm: Annotated[Norm, typer.Option("--norm", help="The norm of the budget.")] = Norm.linf,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps at most.")] = 500,
    step: Annotated[
        str | None, typer.Option("--step", help="Largest change of a pixel in one step. Default: by the variant.")
    ] = None,
    at: Annotated[
        Place, typer.Option("--at", help="The photograph's own resolution, or the model's input size.")
    ] = Place.photograph,
    resize: Annotated[
        int | None,
        typer.Option("--resize", min=1, help="Shorter side in pixels before the crop, if not the model's own."),
    ] = None,
    checkpoint: shared.Checkpoint = None,
    output_kind: shared.OutputKind = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture, .png or .webp. Default: out/<stem>.<target>.png")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Drawing of it all, .png, .pdf or .svg. Default: beside the picture."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Of the signed maps before and after.")] = "complete",
    gradient: Annotated[shared.Gradient, typer.Option("--gradient", help="Of the signed maps.")] = shared.Gradient.full,
    device: shared.Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Change a photograph as little as it takes until the model names another class; for auditing one's own model.

    The picture is saved without loss at its own resolution, read again and classified. The exit code is 0 when that
    file is the target class with the probability asked for, 1 when not (the best found is saved all the same), and 2
    when the question cannot be asked.
    """
    limit, size = _number(budget, "--budget"), _number(step, "--step")

    from vitrail.cli.inputs import slug
    from vitrail.cli.loading import load_named
    from vitrail.errors import VitrailError
    from vitrail.experiments.rewrite import rewrite, takes_for, unresized
    from vitrail.experiments.rewritten import lossless_format
    from vitrail.render.sheet import save_figure, suffix_of

    try:
        for path, check in ((output, lossless_format), (figure, suffix_of)):
            if path is not None:
                check(path)  # before the search, which takes longer than a refusal should
        loaded = load_named(model, checkpoint, device=device, resize=resize, output=output_kind and output_kind.value)
        with _bar(until, hidden=as_json) as progress:
            result = rewrite(
                loaded,
                image,
                target=target,
                source=source,
                until=until,
                objective=None if objective is None else objective.value,
                variant=None if variant is None else variant.value,
                budget=limit,
                norm=norm.value,
                steps=steps,
                step=size,
                at=at.value,
                method=method,
                gradient=gradient.value,
                progress=progress,
            )
        saved = result.save(output or Path("out") / f"{image.stem}.{slug(result.names[1])}.png")
        drawn = save_figure(result.plot(), figure or saved.with_name(f"{saved.stem}.figure.png"))
        asked = unresized(loaded) if at is Place.input else loaded
        held, probability = takes_for(asked, saved, result.target, until)
    except VitrailError as error:
        stop(error, as_json=as_json)
    reached = result.reached and held
    if as_json:
        read_back = {"file": str(saved), "figure": str(drawn), "probability_of_file": probability}
        typer.echo(json.dumps(result.record() | {"reached": reached} | read_back, indent=2))
    else:
        typer.echo(f"{one_line(str(image))}: {result.summary()}", err=not reached)
        typer.echo(
            f"{one_line(str(saved))}: read back, {result.names[1]} {100 * probability:.2f} %; "
            f"L2 {result.similarity.l2:.3f}, SSIM {result.similarity.ssim:.4f}; drawn in {one_line(str(drawn))}"
        )
    raise typer.Exit(0 if reached else 1)


@contextmanager
def _bar(until: float, *, hidden: bool) -> "Iterator[Callable[[Progress], None] | None]":
    """How far the target's probability has come, where a person watches."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("step {task.fields[step]}"),
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rewriting", total=until, step="0")

        def show(at: "Progress") -> None:
            bar.update(
                task,
                completed=min(at.target, until),
                step=f"{at.step} of at most {at.steps}",
                description=f"target {100 * at.target:.1f} %, source {100 * at.source:.1f} %",
            )

        yield show


def _number(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        over, _, under = text.partition("/")
        return float(Fraction(over) / Fraction(under or 1))
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is no number; write 0.03 or 8/255", param_hint=option) from None
