"""`vitrail compare`: the same question asked of many methods, one sheet an image."""

from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stop
from vitrail.cli.explain import Request, split_option

__all__ = ["compare_command"]


def compare_command(
    images: shared.Images,
    model: shared.ModelName,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="Names, or groups: all, fast, signed, unsigned, class, gradient, patch, pixel; -NAME takes out; "
            "complete:libra asks in a gradient mode. Default: all.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Class by name or index; several (repeat) are rows of the sheet. Default: the predicted class.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Class to compare with; one, or one for each target. Default: none."),
    ] = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: Annotated[
        list[shared.Format] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="KIND",
            help="Kind of file: png, jpg, pdf, svg, safetensors (one per method), or all; several: repeat. "
            "Default: png.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="What is differentiated. Default: logit; with --against difference."),
    ] = None,
    gradient: Annotated[
        shared.Gradient | None,
        typer.Option("--gradient", help="Gradient mode of the methods that use gradients. Default: each method's own."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="METHOD.NAME=VALUE",
            help="An option of one method, as in tam.samples=10; several: repeat.",
        ),
    ] = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Random seed of every method that takes one. Default: each method's own."),
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Draw what each method says of the same question, with the time and the passes that it took.

    Each image becomes OUTPUT/<stem>.compare.<target>.png. A method that fails on this model keeps its place on the
    sheet, empty, gets a line on stderr, and makes the exit code 1.
    """
    from vitrail.cli.comparing import run
    from vitrail.errors import VitrailError

    words: dict[str, dict[str, Any]] = {}
    for text in option or []:
        name, value = split_option(text, "METHOD.NAME=VALUE, as in tam.samples=10", dotted=True)
        method, _, own = name.partition(".")
        words.setdefault(method, {})[own] = value
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=target or [],
        against=against or [],
        question={
            "methods": methods or ["all"],
            "objective": objective,
            "gradient": gradient and gradient.value,
            "seed": seed,
        },
        options=words,
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=seed,
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)
