"""`vitrail transfer`: lower a class's logit by moving attention alone, and watch where the reasons go."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stop

__all__ = ["TransferRequest", "transfer_command"]


class Optimiser(StrEnum):
    """How a step is taken."""

    sgd = "sgd"
    adam = "adam"


class Constraint(StrEnum):
    """What attention is held to."""

    none = "none"
    clamp = "clamp"
    softmax = "softmax"


class Picture(StrEnum):
    """The kind of file that the figure becomes."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


class Film(StrEnum):
    """The kind of file that the film becomes."""

    gif = "gif"
    webp = "webp"
    mp4 = "mp4"
    none = "none"


@dataclass(frozen=True)
class TransferRequest:
    """One call of the command, its words already read."""

    image: Path
    model: str
    checkpoint: Path | None
    target: str | None
    opposing: str | None
    also: list[str]
    question: dict[str, Any]  # steps, lr, optimiser, constraint: keyword arguments of `transfer`
    at: list[int]
    every: int | None
    device: str
    dtype: str
    resize: int | None
    output_kind: str | None
    output: Path
    pictures: tuple[str, ...]
    film: str
    restart: bool
    as_json: bool


def transfer_command(
    image: shared.ImageFile,
    model: shared.ModelName,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Class whose logit is lowered. Default: the predicted class.")
    ] = None,
    opposing: Annotated[
        str | None, typer.Option("--opposing", help="Class that is watched. Default: the strongest other class.")
    ] = None,
    also: Annotated[list[str] | None, typer.Option("--also", help="Another class to watch; several: repeat.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps of gradient descent.")] = 50,
    lr: Annotated[float, typer.Option("--lr", help="Length of a step.")] = 4e-4,
    optimiser: Annotated[Optimiser, typer.Option("--optimiser", help="Plain gradient descent, or Adam.")] = (
        Optimiser.sgd
    ),
    constraint: Annotated[
        Constraint,
        typer.Option("--constraint", help="None; clamp: no negative attention; softmax: rows stay distributions."),
    ] = Constraint.none,
    at: Annotated[
        list[int] | None,
        typer.Option("--at", help="Step drawn in the figure; several: repeat. Default: 0, 5, 10, 20, 50, the last."),
    ] = None,
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="Steps from one frame of the film to the next.")
    ] = None,
    checkpoint: shared.Checkpoint = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: Annotated[
        list[Picture] | None, typer.Option("--format", "-f", help="Kind of figure; several: repeat. Default: png.")
    ] = None,
    film: Annotated[Film, typer.Option("--film", help="Kind of film; mp4 needs ffmpeg.")] = Film.gif,
    resize: Annotated[
        int | None,
        typer.Option("--resize", min=1, help="Shorter side in pixels before the crop, if not the model's own."),
    ] = None,
    device: shared.Device = "cpu",
    dtype: shared.Dtype = shared.Precision.float32,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever an interrupt has left.")] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Lower a class's logit by gradient descent on all attention maps, and draw where its reasons go.

    OUTPUT gets a figure (classes by steps, with the logits' curves), a film, and a .safetensors record of everything.
    Ctrl-C leaves a state there from which the same command goes on, to the very same numbers; the exit code is then
    130. It is 1 when the image cannot be read, and 2 when the question cannot be asked.
    """
    from vitrail.cli.transferring import run
    from vitrail.errors import VitrailError

    request = TransferRequest(
        image=image,
        model=model,
        checkpoint=checkpoint,
        target=target,
        opposing=opposing,
        also=also or [],
        question={"steps": steps, "lr": lr, "optimiser": optimiser.value, "constraint": constraint.value},
        at=at or [],
        every=every,
        device=device,
        dtype=dtype.value,
        resize=resize,
        output_kind=output_kind and output_kind.value,
        output=output,
        pictures=tuple(dict.fromkeys(kind.value for kind in format_ or [Picture.png])),
        film=film.value,
        restart=restart,
        as_json=as_json,
    )
    try:
        code = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(code)
