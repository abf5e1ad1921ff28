"""`vitrail detail`: class against class on one photograph, every loss both ways, a sheet per pair."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stop
from vitrail.cli.explain import Request

__all__ = ["DetailRequest", "detail_command"]


class Loss(StrEnum):
    """The scalars that compare two classes, and the target's logit."""

    logit = "logit"
    normalized_difference = "normalized_difference"
    difference = "difference"
    ratio = "ratio"


@dataclass(frozen=True)
class DetailRequest(Request):
    """One call of the command, its words already read."""

    top: int
    losses: tuple[str, ...] | None
    typical: Path | None


def detail_command(
    images: shared.Images,
    model: shared.ModelName,
    target: shared.Target = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Classes to compare with, one sheet each. Default: the model's best classes."),
    ] = None,
    top: Annotated[
        int,
        typer.Option("--top", min=2, help="Without --against: number of the model's best classes that are compared."),
    ] = 3,
    typical: Annotated[
        Path | None,
        typer.Option(
            "--typical",
            help="Folder of typical pictures of the opposing class, or one per class, to be drawn too. Default: none.",
        ),
    ] = None,
    loss: Annotated[
        list[Loss] | None,
        typer.Option(
            "--loss", help="Objective that is differentiated; several: repeat. Default: all four; for scores two."
        ),
    ] = None,
    method: shared.Method = "complete",
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Formats = None,
    gradient: shared.OwnGradientMode = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    as_json: shared.AsJson = False,
) -> None:
    """Show which details make it the one class (red) rather than the other (blue).

    `vitrail detail photo.jpg --target snail --against conch slug` writes OUTPUT/photo.detail.snail-and-conch.png and
    one for the slug: every loss, both ways. Without classes the pairs are those among the model's best three.
    """
    from vitrail.cli.detailing import run
    from vitrail.errors import VitrailError

    request = DetailRequest(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=against or [],
        question={
            "method": method,
            "gradient": gradient and gradient.value,
            "start_layer": start_layer,
            "centred": centred,
        },
        options={},
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=None,
        top=top,
        losses=tuple(dict.fromkeys(one.value for one in loss)) if loss else None,
        typical=typical,
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)
