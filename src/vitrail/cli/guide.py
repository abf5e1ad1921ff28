"""`vitrail guide`: a photograph explained beside a picture of another class."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli.console import stop
from vitrail.cli.explain import Format, Gradient, Precision, Request, parse_size

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


class Fit(StrEnum):
    """How a picture is brought into its half."""

    squash = "squash"
    crop = "crop"
    pad = "pad"


@dataclass(frozen=True)
class GuideRequest(Request):
    """One call of the command, its words already read."""

    guide: dict[str, Any]  # keyword arguments of vitrail.Guide


def guide_command(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name that `vitrail models` lists, or hf/….")],
    guide: Annotated[
        list[str] | None,
        typer.Option("--guide", "-g", help="A picture of another class, or a folder; several: repeat. Default: auto."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Class by name or index. Default: the predicted class.")
    ] = None,
    layout: Annotated[
        list[Layout] | None,
        typer.Option("--layout", help="Side, stack; wide, tall: at full resolution. Several: mean. Default: side."),
    ] = None,
    side: Annotated[
        Side | None, typer.Option("--side", help="Where the original lies; both: mean. Default: left or top.")
    ] = None,
    fit: Annotated[Fit, typer.Option("--fit", help="How each picture is brought into its half.")] = Fit.squash,
    guide_class: Annotated[
        str | None, typer.Option("--guide-class", help="The class that auto draws. Default: one far from the target.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="So many pictures of a folder at most.")] = 8,
    method: Annotated[str, typer.Option("--method", help="A name that `vitrail methods` lists.")] = "complete",
    gradient: Annotated[
        Gradient, typer.Option("--gradient", help="Leaf: attention held constant backward; libra: norms, gates too.")
    ] = Gradient.full,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="Weights: .safetensors, or .pth without code in it.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; created if missing.")] = Path(
        "out"
    ),
    format_: Annotated[
        list[Format] | None, typer.Option("--format", "-f", help="Kind of result; several: repeat. Default: png.")
    ] = None,
    start_layer: Annotated[
        int | None, typer.Option("--start-layer", help="First block that takes part, from 0.")
    ] = None,
    centred: Annotated[bool, typer.Option("--centred", help="Take the row mean out of the gradient.")] = False,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Input size, if not the model's own.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, or auto.")] = "cpu",
    dtype: Annotated[Precision, typer.Option("--dtype", help="Precision of the model.")] = Precision.float32,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per pass.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the guide that the model draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Explain a photograph beside a guide, a picture of another class, which takes the evidence against the target.

    Each image becomes OUTPUT/<stem>.<target>.guided.png: its map with and without the guide, and the whole stitched
    map. `--guide auto` needs no picture: the model draws one. The other files, exit codes and lines on stderr are those
    of `vitrail explain`.
    """
    from vitrail.cli.guiding import run
    from vitrail.errors import VitrailError

    formats = tuple(dict.fromkeys(kind.value for kind in format_ or [Format.png]))
    pictures = guide or ["auto"]
    request = GuideRequest(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=[],
        question={
            "method": method,
            "objective": None,
            "gradient": gradient.value,
            "start_layer": start_layer,
            "centred": centred,
        },
        options={},
        load={"device": device, "dtype": dtype.value, "size": None if size is None else parse_size(size)},
        batch_size=batch_size,
        output=output,
        formats=tuple(kind.value for kind in Format if kind is not Format.all) if "all" in formats else formats,
        as_json=as_json,
        seed=seed,
        guide={
            "pictures": pictures[0] if len(pictures) == 1 else pictures,
            "layout": tuple(one.value for one in layout or [Layout.side]),
            "side": None if side is None else side.value,
            "fit": fit.value,
            "most": most,
            "guide_class": guide_class,
            "seed": seed,
        },
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)
