"""`vitrail explain`: pictures of why, for images, folders and patterns."""

import json
import random
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli.console import stop

__all__ = ["Request", "explain_command", "parse_size"]


class Format(StrEnum):
    """What is written for each image."""

    png = "png"
    pdf = "pdf"
    svg = "svg"
    safetensors = "safetensors"
    all = "all"


class Gradient(StrEnum):
    """What the backward pass holds constant; auto: libra where one class dominates, else full."""

    auto = "auto"
    full = "full"
    leaf = "leaf"
    libra = "libra"


class Precision(StrEnum):
    """The floating point type in which the model runs."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True)
class Request:
    """One call of the command, its words already read."""

    images: list[str]
    model: str
    checkpoint: Path | None
    targets: list[str]
    against: list[str]
    question: dict[str, Any]  # method, objective, gradient, …: keyword arguments of vitrail.explain
    options: dict[str, Any]  # the method's own
    load: dict[str, Any]  # device, dtype, size: keyword arguments of vitrail.load
    batch_size: int
    output: Path
    formats: tuple[str, ...]
    as_json: bool
    seed: int | None


def explain_command(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name that `vitrail models` lists, or hf/….")],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="Class by name or index; several: repeat. Default: the predicted class."),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Class to compare with; one, or one for each target.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="For CLIP: a text to hold the image against, as a target; several: repeat."),
    ] = None,
    against_text: Annotated[
        list[str] | None, typer.Option("--against-text", help="For CLIP: a text to compare with; one, or one per text.")
    ] = None,
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
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="What is differentiated. Default: logit; with --against, Eq. 8."),
    ] = None,
    gradient: Annotated[
        Gradient,
        typer.Option(
            "--gradient",
            help="Leaf: attention held constant backward; libra: norms, gates too; auto: libra where one class "
            "dominates an image, else full.",
        ),
    ] = Gradient.auto,
    start_layer: Annotated[
        int | None, typer.Option("--start-layer", help="First block that takes part, from 0.")
    ] = None,
    centred: Annotated[bool, typer.Option("--centred", help="Take the row mean out of the gradient.")] = False,
    readout: Annotated[
        str | None,
        typer.Option("--readout", help="Token to read: class, mean, all, an index, or ROW,COLUMN of a patch."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the method; several: repeat."),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Input size, if not the model's own.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, or auto.")] = "cpu",
    dtype: Annotated[Precision, typer.Option("--dtype", help="Precision of the model.")] = Precision.float32,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per pass.")] = 8,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of whatever is random in the method.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Draw which patches argue for a class (red) and which against it (blue).

    Each image becomes OUTPUT/<stem>.<target>.png. One that fails gets a line on stderr, the others are still done, and
    the exit code is 1; it is 2 when the question itself cannot be asked.
    """
    from vitrail.cli.explaining import run
    from vitrail.errors import VitrailError

    formats = tuple(dict.fromkeys(kind.value for kind in format_ or [Format.png]))
    options = dict(_option(text) for text in option or [])
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
            "gradient": gradient.value,
            "start_layer": start_layer,
            "centred": centred,
            "readout": None if readout is None else _readout(readout),
        },
        options=options,
        load={
            "device": device,
            "dtype": dtype.value,
            "size": None if size is None else parse_size(size),
            "texts": texts or None,
        },
        batch_size=batch_size,
        output=output,
        formats=tuple(kind.value for kind in Format if kind is not Format.all) if "all" in formats else formats,
        as_json=as_json,
        seed=seed,
    )
    if seed is not None:
        _sow(seed)
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels from "224x336", or from one number for a square; `BadParameter` for anything else."""
    height, _, width = text.lower().partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or not int(height) * int(width or height):
        raise typer.BadParameter(
            f"{text!r} is no size; write HEIGHTxWIDTH in pixels, as in 224x336", param_hint="--size"
        )
    return int(height), int(width or height)


def _readout(text: str) -> Any:
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        return int(parts[0]), int(parts[1])
    return int(text) if text.removeprefix("-").isdecimal() else text


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(
            f"{text!r} is no option; write NAME=VALUE, as in variant=released", param_hint="--option"
        )
    try:
        return name, json.loads(value)  # numbers, true, false, null, lists; whatever is none of these is a word
    except ValueError:
        return name, value


def _sow(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that a method calls may draw from the global generator)
    torch.manual_seed(seed)
