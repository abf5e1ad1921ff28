"""`vitrail rewrite`: a picture that looks the same and is another class."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Terminal, show, show_json, stop

if TYPE_CHECKING:
    from vitrail.counterfactual.rewrite import Progress

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


class Resolution(StrEnum):
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
        str | None,
        typer.Option("--source", "-s", help="The class to leave, by name or index. Default: the predicted class."),
    ] = None,
    until: Annotated[float, typer.Option("--until", help="Probability of the target at which to stop.")] = 0.9,
    objective: Annotated[
        Slope | None,
        typer.Option(
            "--objective", help="What the descent lowers. Default: difference; within a budget log_probability."
        ),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option("--variant", help="What a step follows. Default: gradient; within an L∞ budget sign."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Largest total change, pixels counted from 0 to 1: 0.03 or 8/255. Default: none."
        ),
    ] = None,
    norm: Annotated[Norm, typer.Option("--norm", help="The norm of the budget.")] = Norm.linf,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Largest number of steps.")] = 500,
    step_size: Annotated[
        str | None,
        typer.Option(
            "--step-size", help="Largest change of a pixel in one step, as for --budget. Default: by variant."
        ),
    ] = None,
    resolution: Annotated[
        Resolution,
        typer.Option("--resolution", help="Where pixels change: the photograph's own resolution, or the input's."),
    ] = Resolution.photograph,
    resize: shared.Resize = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the results, created if missing; or the picture, .png or .webp."
        ),
    ] = shared.DEFAULT_OUTPUT,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="File of the figure: .png, .jpg, .pdf or .svg. Default: next to the picture."),
    ] = None,
    method: shared.Method = "complete",
    gradient: shared.OwnGradientMode = None,
    device: shared.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Change a photograph as little as it takes until the model names another class; for auditing one's own model.

    The picture, OUTPUT/<stem>.rewritten.<target>.png, is saved without loss at its own resolution, read again and
    classified. The exit code is 0 when that file is the target class with the probability asked for, 1 when not (the
    best found is saved all the same), and 2 when the question cannot be asked.
    """
    limit, size = _number(budget, "--budget"), _number(step_size, "--step-size")

    from vitrail.cli.inputs import Found, OutputNames, destination, slug
    from vitrail.cli.request import load_named
    from vitrail.counterfactual.rewrite import rewrite, takes_for, unresized
    from vitrail.errors import VitrailError
    from vitrail.plotting.saving import save_figure

    fresh = not output.exists()
    try:
        place = destination(output, ("png", "webp"))
        if figure is not None:
            destination(figure, ("png", "jpg", "pdf", "svg"), option="--figure")
        original = Found(image, Path(image.stem))
        names = OutputNames(place.folder, [original], place.file)
        how = {"device": device, "num_classes": num_classes, "class_names": class_names}
        loaded = load_named(model, checkpoint, resize=resize, output=output_kind and output_kind.value, **how)
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
                at=resolution.value,
                method=method,
                gradient=gradient and gradient.value,
                progress=progress,
            )
        kind = "png" if place.file is None else place.formats[0]
        saved = result.save(names.path(original, f"rewritten.{slug(result.names[1])}", kind))
        drawn = save_figure(result.plot(), figure or saved.with_name(f"{saved.stem}.figure.png"))
        asked = unresized(loaded) if resolution is Resolution.input else loaded
        held, probability = takes_for(asked, saved, result.target, until)
    except VitrailError as error:
        if fresh:
            with suppress(OSError):  # other results are in it by now
                output.rmdir()
        stop(error, as_json=as_json)
    reached = result.reached and held
    if as_json:
        read_back = {"file": str(saved), "figure": str(drawn), "probability_of_file": probability}
        show_json(result.record() | {"reached": reached} | read_back)
    else:
        show(f"{image}: {result.summary()}", err=not reached)
        show(
            f"{saved}: read back, {result.names[1]} {100 * probability:.2f} %; "
            f"L2 {result.similarity.l2:.3f}, SSIM {result.similarity.ssim:.4f}; drawn in {drawn}"
        )
    raise typer.Exit(0 if reached else 1)


@contextmanager
def _bar(until: float, *, hidden: bool) -> "Iterator[Callable[[Progress], None] | None]":
    """How far the target's probability has come, where a person watches."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich import progress

    columns = (
        progress.TextColumn("step {task.fields[step]}"),
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
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
