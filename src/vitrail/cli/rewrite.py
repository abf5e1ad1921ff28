"""`vitrail rewrite`: an adversarial image, which looks the same and is classified otherwise."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Terminal, show, show_json

if TYPE_CHECKING:
    from vitrail.counterfactual.rewrite import Progress

__all__ = ["rewrite_command"]


Variant = StrEnum("Variant", "gradient sign adam")
Slope = StrEnum("Slope", "difference log_probability")
Resolution = StrEnum("Resolution", "photograph input")
Norm = StrEnum("Norm", "linf l2")


def rewrite_command(
    image: shared.ImageFile,
    model: shared.ModelName,
    target: Annotated[str, typer.Option("--target", "-t", help="Class to reach, by name or index.")],
    source: Annotated[
        str | None,
        typer.Option("--source", "-s", help="Class to leave, by name or index. Default: the predicted class."),
    ] = None,
    until: Annotated[
        float, typer.Option("--until", help="Probability of the target at which the descent stops.")
    ] = 0.9,
    objective: Annotated[
        Slope | None,
        typer.Option(
            "--objective", help="Objective of the descent. Default: difference; log_probability with --budget."
        ),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option(
            "--variant",
            help="Direction of a step: gradient, its sign, or Adam. Default: gradient; sign with an L∞ --budget.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Largest total change of pixel values in [0, 1], as 0.03 or 8/255. Default: no limit."
        ),
    ] = None,
    norm: Annotated[Norm, typer.Option("--norm", help="Norm of the budget.")] = Norm.linf,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Largest number of steps.")] = 500,
    step_size: Annotated[
        str | None,
        typer.Option(
            "--step-size", help="Largest change of a pixel in one step, written as for --budget. Default: by variant."
        ),
    ] = None,
    resolution: Annotated[
        Resolution,
        typer.Option(
            "--resolution", help="Resolution at which pixels change: that of the photograph, or of the model's input."
        ),
    ] = Resolution.photograph,
    resize: shared.Resize = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the results, created if missing; or the image file, .png or .webp."
        ),
    ] = shared.DEFAULT_OUTPUT,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="File of the figure: .png, .jpg, .pdf or .svg. Default: next to the image."),
    ] = None,
    method: shared.Method = "complete",
    gradient: shared.OwnGradientMode = None,
    device: shared.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> bool:
    """Change a photograph as little as needed until the model predicts another class; for auditing one's own model.

    The image, OUTPUT/<stem>.rewritten.<target>.png, is saved without loss at its own resolution, read back and
    classified. Exit code 0: that file reaches the target with the requested probability. Exit code 1: it does not; the
    best image found is saved all the same. Exit code 2: the question is invalid.
    """
    limit, size = _number(budget, "--budget"), _number(step_size, "--step-size")

    from vitrail.cli.image_run import load_named
    from vitrail.cli.inputs import Found, OutputNames, destination, slug
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
        loaded = load_named(model, checkpoint, resize=resize, output=output_kind and str(output_kind), **how)
        with _bar(until, hidden=as_json) as progress:
            result = rewrite(
                loaded,
                image,
                target=target,
                source=source,
                until=until,
                objective=None if objective is None else str(objective),
                variant=None if variant is None else str(variant),
                budget=limit,
                norm=str(norm),
                steps=steps,
                step=size,
                at=str(resolution),
                method=method,
                gradient=gradient and str(gradient),
                progress=progress,
            )
        kind = "png" if place.file is None else place.formats[0]
        saved = result.save(names.path(original, f"rewritten.{slug(result.names[1])}", kind))
        drawn = save_figure(result.plot(), figure or saved.with_name(f"{saved.stem}.figure.png"))
        asked = unresized(loaded) if resolution is Resolution.input else loaded
        held, probability = takes_for(asked, saved, result.target, until)
    except VitrailError:
        if fresh:
            with suppress(OSError):  # other results are in it by now
                output.rmdir()
        raise
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
    return not reached


@contextmanager
def _bar(until: float, *, hidden: bool) -> "Iterator[Callable[[Progress], None] | None]":
    """Yields the callback of a progress bar for the target's probability, or None where nobody watches."""
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
