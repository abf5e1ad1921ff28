"""`vitrail guide`: a photograph explained beside a picture of another class."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stop
from vitrail.cli.explain import Request

__all__ = ["GuideRequest", "guide_command"]


class Layout(StrEnum):
    """How original and guide share the input."""

    side = "side"
    stack = "stack"
    wide = "wide"
    tall = "tall"


class Side(StrEnum):
    """Where the original lies."""

    left = "left"
    right = "right"
    top = "top"
    bottom = "bottom"
    both = "both"


class ResizeMode(StrEnum):
    """How a picture is brought into its half."""

    squash = "squash"
    crop = "crop"
    pad = "pad"


@dataclass(frozen=True)
class GuideRequest(Request):
    """One call of the command, its words already read."""

    guide: dict[str, Any]  # keyword arguments of vitrail.Guide


def guide_command(
    images: shared.Images,
    model: shared.ModelName,
    guide: Annotated[
        list[str] | None,
        typer.Option(
            "--guide",
            "-g",
            help="Picture of another class, or a folder; several: repeat. Default: auto, which the model draws.",
        ),
    ] = None,
    target: shared.Target = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Class to compare with; the objective is then the difference.")
    ] = None,
    layout: Annotated[
        list[Layout] | None,
        typer.Option(
            "--layout",
            help="Side by side or stacked; wide, tall: at full resolution. Several: their mean. Default: side.",
        ),
    ] = None,
    side: Annotated[
        Side | None, typer.Option("--side", help="Where the original lies; both: the mean. Default: left or top.")
    ] = None,
    resize_mode: Annotated[
        ResizeMode, typer.Option("--resize-mode", help="How each picture is brought into its half.")
    ] = ResizeMode.squash,
    guide_class: Annotated[
        str | None,
        typer.Option(
            "--guide-class", help="Class that auto draws, by name or index. Default: one far from the target."
        ),
    ] = None,
    guide_limit: Annotated[
        int, typer.Option("--guide-limit", min=1, help="Largest number of pictures taken from a folder of guides.")
    ] = 8,
    method: shared.Method = "complete",
    gradient: shared.GradientMode = shared.Gradient.full,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Formats = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    batch_size: shared.BatchSize = 8,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the guide that the model draws.")] = 0,
    as_json: shared.AsJson = False,
) -> None:
    """Explain a photograph beside a guide, a picture of another class, which takes the evidence against the target.

    Each image becomes OUTPUT/<stem>.<target>.guided.png: its map with and without the guide, and the whole stitched
    map. `--guide auto` needs no picture: the model draws one. The other files, exit codes and lines on stderr are those
    of `vitrail explain`.
    """
    from vitrail.cli.guiding import run
    from vitrail.errors import VitrailError

    pictures = guide or ["auto"]
    request = GuideRequest(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=[] if against is None else [against],
        question={
            "method": method,
            "objective": None,
            "gradient": gradient.value,
            "start_layer": start_layer,
            "centred": centred,
        },
        options={},
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=batch_size,
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=seed,
        guide={
            "pictures": pictures[0] if len(pictures) == 1 else pictures,
            "layout": tuple(one.value for one in layout or [Layout.side]),
            "side": None if side is None else side.value,
            "fit": resize_mode.value,
            "most": guide_limit,
            "guide_class": guide_class,
            "seed": seed,
        },
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)
