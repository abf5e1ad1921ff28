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
    against: str | None
    also: list[str]
    question: dict[str, Any]  # steps, lr, optimiser, constraint: keyword arguments of `transfer`
    figure_steps: list[int]
    frame_interval: int | None
    device: str
    dtype: str
    resize: int | None
    output_kind: str | None
    num_classes: int | None
    class_names: Path | None
    output: Path
    pictures: tuple[str, ...]  # none: png
    film: str
    restart: bool
    as_json: bool


def transfer_command(
    image: shared.ImageFile,
    model: shared.ModelName,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Class whose logit is lowered, by name or index. Default: the predicted."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Class to watch as well, by name or index. Default: the strongest other."),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="One more class to watch; several: repeat. Default: none.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps of gradient descent.")] = 50,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of the descent.")] = 4e-4,
    optimiser: Annotated[Optimiser, typer.Option("--optimiser", help="Plain gradient descent, or Adam.")] = (
        Optimiser.sgd
    ),
    constraint: Annotated[
        Constraint,
        typer.Option("--constraint", help="clamp: no negative attention; softmax: rows stay distributions."),
    ] = Constraint.none,
    figure_step: Annotated[
        list[int] | None,
        typer.Option(
            "--figure-step", help="Step drawn in the figure; several: repeat. Default: 0, 5, 10, 20, 50, last."
        ),
    ] = None,
    frame_interval: Annotated[
        int | None,
        typer.Option("--frame-interval", min=1, help="Steps between frames of the film. Default: about 60 frames."),
    ] = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Figures = None,
    film: Annotated[Film, typer.Option("--film", help="Kind of film; mp4 needs ffmpeg.")] = Film.gif,
    resize: shared.Resize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of resuming an interrupted run.")
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Lower the logit of a class by gradient descent on all attention maps, and draw where its reasons go.

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
        against=against,
        also=also or [],
        question={"steps": steps, "lr": lr, "optimiser": optimiser.value, "constraint": constraint.value},
        figure_steps=figure_step or [],
        frame_interval=frame_interval,
        device=device,
        dtype=dtype.value,
        resize=resize,
        output_kind=output_kind and output_kind.value,
        num_classes=num_classes,
        class_names=class_names,
        output=output,
        pictures=shared.kinds(format_),
        film=film.value,
        restart=restart,
        as_json=as_json,
    )
    try:
        code = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(code)
