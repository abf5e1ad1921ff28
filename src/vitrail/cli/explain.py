"""`vitrail explain`: pictures of why, for images, folders and patterns."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stop

__all__ = ["Request", "explain_command", "split_option"]


@dataclass(frozen=True)
class Request:
    """One call of the command, its words already read."""

    images: list[str]
    model: str
    checkpoint: Path | None
    targets: list[str]
    against: list[str]
    question: dict[str, Any]  # method, objective, gradient, …: keyword arguments of vitrail.explain
    options: dict[str, Any]  # the method's own; as words until the method is known
    load: dict[str, Any]  # device, dtype, size: keyword arguments of vitrail.load
    batch_size: int  # 0: as many as memory holds
    output: Path
    formats: tuple[str, ...]  # none: by the number of images
    as_json: bool
    seed: int | None


def explain_command(
    images: shared.Images,
    model: shared.ModelName,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", help="Class to explain, by name or index; several: repeat. Default: the predicted class."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Class to compare with; one, or one for each target. Default: none."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="For CLIP models: a text as the target; several: repeat."),
    ] = None,
    against_text: Annotated[
        list[str] | None,
        typer.Option("--against-text", help="For CLIP models: a text to compare with; one, or one for each --text."),
    ] = None,
    method: shared.Method = "complete",
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.FolderFormats = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="What is differentiated. Default: logit; with --against difference."),
    ] = None,
    gradient: shared.OwnGradientMode = None,
    compete: Annotated[
        bool | None,
        typer.Option(
            "--compete/--no-compete",
            help="Subtract what argues for other classes in the image. Default: yes for complete, unless --gradient, "
            "--objective or --against is given.",
        ),
    ] = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    readout: Annotated[
        str | None,
        typer.Option(
            "--readout",
            help="Token to read: class, mean, all, an index, or ROW,COLUMN of a patch. Default: the model's own.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="An option of the method, as in variant=released; several: repeat."
        ),
    ] = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    batch_size: shared.AutoBatchSize = "auto",
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed of the method. Default: none.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Estimate memory and time instead of explaining.")] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Draw which patches argue for a class (red) and which against it (blue).

    Each image becomes OUTPUT/<stem>.<target>.png, a figure. More than 100 images become small overlays (.jpg) and maps
    (.safetensors) instead, unless --format says otherwise. A failed image is reported on stderr and sets exit code 1;
    the others continue. Exit code 2: the question itself cannot be asked.
    """
    from vitrail.cli.explaining import run
    from vitrail.cli.planning import show_plan
    from vitrail.errors import VitrailError

    options = dict(split_option(text) for text in option or [])
    texts = [*(text or []), *(against_text or [])]
    if texts and (target or against):
        raise typer.BadParameter(
            "a text is a target of its own: give --text and --against-text, or --target and --against",
            param_hint="--text",
        )
    if against_text and not text:
        raise typer.BadParameter("say what it is compared with, by --text", param_hint="--against-text")
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=text or target or [],
        against=against_text or against or [],
        question={
            "method": method,
            "objective": objective,
            "gradient": gradient and gradient.value,
            "compete": compete,
            "start_layer": start_layer,
            "centred": centred,
            "readout": None if readout is None else _readout(readout),
        },
        options=options,
        load={**shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names), "texts": texts or None},
        batch_size=shared.parse_batch(batch_size),
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=seed,
    )
    if seed is not None:
        _sow(seed)
    try:
        failed = show_plan(request) if plan else run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def _readout(text: str) -> Any:
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        return int(parts[0]), int(parts[1])
    return int(text) if text.removeprefix("-").isdecimal() else text


def split_option(
    text: str, form: str = "NAME=VALUE, as in variant=released", *, dotted: bool = False
) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`, both still words; `BadParameter` for anything else.

    With `dotted` the name is METHOD.NAME.
    """
    name, equals, value = text.partition("=")
    parts = name.split(".")
    if not equals or len(parts) != 1 + dotted or not all(part.isidentifier() for part in parts):
        raise typer.BadParameter(f"{text!r} is no option; write {form}", param_hint="--option")
    return name, value


def _sow(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that a method calls may draw from the global generator)
    torch.manual_seed(seed)
