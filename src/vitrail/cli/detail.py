"""`vitrail detail`: class against class on one photograph, every loss both ways, a sheet per pair."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.console import stop
from vitrail.cli.explain import Format, Gradient, Precision, Request, parse_size

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
    losses: tuple[str, ...]
    typical: Path | None


def detail_command(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name that `vitrail models` lists, or hf/….")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Class by name or index. Default: the predicted class.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Classes to compare with: one pair, one sheet each.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=2, help="Without --against: how many of the model's best classes take part.")
    ] = 3,
    typical: Annotated[
        Path | None,
        typer.Option("--typical", help="Pictures of the opposing class, or a subfolder per class: shown beside."),
    ] = None,
    loss: Annotated[list[Loss] | None, typer.Option("--loss", help="Repeat for several. Default: all four.")] = None,
    method: Annotated[str, typer.Option("--method", help="A name that `vitrail methods` lists.")] = "complete",
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="Weights: .safetensors, or .pth without code in it.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; created if missing.")] = Path(
        "out"
    ),
    format_: Annotated[
        list[Format] | None, typer.Option("--format", "-f", help="Kind of result; several: repeat. Default: png.")
    ] = None,
    gradient: Annotated[
        Gradient, typer.Option("--gradient", help="Leaf: attention held constant backward; libra: norms, gates too.")
    ] = Gradient.full,
    start_layer: Annotated[
        int | None, typer.Option("--start-layer", help="First block that takes part, from 0.")
    ] = None,
    centred: Annotated[bool, typer.Option("--centred", help="Take the row mean out of the gradient.")] = False,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Input size, if not the model's own.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, or auto.")] = "cpu",
    dtype: Annotated[Precision, typer.Option("--dtype", help="Precision of the model.")] = Precision.float32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Show which details make it the one class (red) rather than the other (blue).

    `vitrail detail photo.jpg --target snail --against conch slug` writes OUTPUT/photo.detail.snail-and-conch.png and
    one for the slug: every loss, both ways. Without classes the pairs are those among the model's best three.
    """
    from vitrail.cli.detailing import run
    from vitrail.errors import VitrailError

    formats = tuple(dict.fromkeys(kind.value for kind in format_ or [Format.png]))
    request = DetailRequest(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=against or [],
        question={"method": method, "gradient": gradient.value, "start_layer": start_layer, "centred": centred},
        options={},
        load={"device": device, "dtype": dtype.value, "size": None if size is None else parse_size(size)},
        batch_size=1,
        output=output,
        formats=tuple(kind.value for kind in Format if kind is not Format.all) if "all" in formats else formats,
        as_json=as_json,
        seed=None,
        top=top,
        losses=tuple(dict.fromkeys(one.value for one in loss or Loss)),
        typical=typical,
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)
