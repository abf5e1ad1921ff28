"""The options that several commands share, each worded once, and the words that they take."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

__all__ = [
    "DEFAULT_OUTPUT",
    "AsJson",
    "AutoBatchSize",
    "BatchSize",
    "Centred",
    "Checkpoint",
    "ClassNamesFile",
    "Device",
    "Dtype",
    "Figure",
    "Figures",
    "FolderFormat",
    "FolderFormats",
    "FolderOutput",
    "Format",
    "Formats",
    "Gradient",
    "GradientMode",
    "ImageFile",
    "Images",
    "InputSize",
    "Method",
    "ModelName",
    "NumClasses",
    "OptionalModelName",
    "Output",
    "OutputKind",
    "Precision",
    "Resize",
    "StartLayer",
    "Target",
    "how_to_load",
    "kinds",
    "parse_batch",
    "parse_size",
    "split_option",
]


class Figure(StrEnum):
    """The kind of file that a figure becomes."""

    png = "png"
    jpg = "jpg"
    pdf = "pdf"
    svg = "svg"


class Format(StrEnum):
    """What is written for each image."""

    png = "png"
    jpg = "jpg"
    pdf = "pdf"
    svg = "svg"
    safetensors = "safetensors"
    all = "all"


class FolderFormat(StrEnum):
    """What `vitrail explain` writes for each image."""

    png = "png"
    jpg = "jpg"
    pdf = "pdf"
    svg = "svg"
    safetensors = "safetensors"
    overlay = "overlay"
    all = "all"


class Gradient(StrEnum):
    """What the backward pass holds constant."""

    full = "full"
    leaf = "leaf"
    libra = "libra"


class Precision(StrEnum):
    """The floating point type in which the model runs."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Kind(StrEnum):
    """What the model's numbers are, as `vitrail.outputs` has it."""

    logits = "logits"
    multilabel = "multilabel"
    probabilities = "probabilities"
    log_probabilities = "log_probabilities"
    scores = "scores"
    embedding = "embedding"


DEFAULT_OUTPUT = Path("out")
MODEL_HELP = "Model name: one that `vitrail models` lists, or hf/ and an id or a folder."

Images: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns.")
]
ImageFile: TypeAlias = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image file.")]
ModelName: TypeAlias = Annotated[str, typer.Option("--model", "-m", envvar="VITRAIL_MODEL", help=MODEL_HELP)]
OptionalModelName: TypeAlias = Annotated[
    str | None, typer.Option("--model", "-m", envvar="VITRAIL_MODEL", help=MODEL_HELP)
]
Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        "-c",
        envvar="VITRAIL_CHECKPOINT",
        help="Weights: .safetensors, .pth without code in it, or a folder of them. Default: the published ones.",
    ),
]
NumClasses: TypeAlias = Annotated[
    int | None, typer.Option("--num-classes", min=0, help="Number of classes. Default: as the checkpoint's head has.")
]
ClassNamesFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--class-names", metavar="FILE", help="Names of the classes: .txt (one a line), .json, or .csv."),
]
Target: TypeAlias = Annotated[
    str | None, typer.Option("--target", "-t", help="Class to explain, by name or index. Default: the predicted class.")
]
Method: TypeAlias = Annotated[
    str, typer.Option("--method", help="Attribution method: a name that `vitrail methods` lists.")
]
GRADIENT_HELP = "What the backward pass holds constant: full nothing; leaf attention; libra norms and gates too."
GradientMode: TypeAlias = Annotated[Gradient, typer.Option("--gradient", help=GRADIENT_HELP)]
OwnGradientMode: TypeAlias = Annotated[
    Gradient | None,
    typer.Option("--gradient", help=f"{GRADIENT_HELP} Default: the method's own, of complete libra."),
]
StartLayer: TypeAlias = Annotated[
    int | None,
    typer.Option("--start-layer", help="First block whose attention counts, from 0. Default: the method's own."),
]
Centred: TypeAlias = Annotated[
    bool, typer.Option("--centred", help="Subtract from each row of the attention's gradient its mean.")
]
Output: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder for the results, created if missing; or a file, by an ending such as .png."
    ),
]
FolderOutput: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the results, created if missing.")
]
Formats: TypeAlias = Annotated[
    list[Format] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="KIND",
        help="Kind of file: png, jpg, pdf, svg, safetensors, or all; several: repeat. Default: png.",
    ),
]
Figures: TypeAlias = Annotated[
    list[Figure] | None,
    typer.Option(
        "--format", "-f", metavar="KIND", help="Kind of figure: png, jpg, pdf, svg; several: repeat. Default: png."
    ),
]
OutputKind: TypeAlias = Annotated[
    Kind | None,
    typer.Option(
        "--output-kind",
        metavar="KIND",
        help="What the model's numbers are: logits, multilabel, probabilities, log_probabilities, scores, embedding. "
        "Default: recognised, else logits.",
    ),
]
FolderFormats: TypeAlias = Annotated[
    list[FolderFormat] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="KIND",
        help="Kind of file: png, jpg, pdf, svg, safetensors, overlay, or all; several: repeat. Default: png; overlay "
        "and safetensors for more than 100 images.",
    ),
]
InputSize: TypeAlias = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Input size in pixels, as in 224x336. Default: the model's own."),
]
Resize: TypeAlias = Annotated[
    int | None,
    typer.Option("--resize", min=1, help="Shorter side in pixels before the crop. Default: the model's own."),
]
Device: TypeAlias = Annotated[
    str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, mps; auto: the best there is.")
]
Dtype: TypeAlias = Annotated[
    Precision,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Floating point type in which the model runs: float32, float64, bfloat16, float16.",
    ),
]
AutoBatchSize: TypeAlias = Annotated[
    str,
    typer.Option("--batch-size", "-b", help="Images per pass; auto: as many as memory holds and speed gains by."),
]
BatchSize: TypeAlias = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per pass.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def kinds(formats: Sequence[StrEnum] | None) -> tuple[str, ...]:
    """The kinds of file that are asked for, each once; "all" is every kind but jpg, the same figure as png.

    >>> kinds([Format.svg, Format.png, Format.svg]), kinds([Format.all]), kinds(None)
    (('svg', 'png'), ('png', 'pdf', 'svg', 'safetensors'), ())
    """
    if formats and "all" in formats:
        return tuple(kind.value for kind in type(formats[0]) if kind.value not in ("all", "jpg"))
    return tuple(dict.fromkeys(kind.value for kind in formats or []))


def how_to_load(
    device: str,
    dtype: Precision,
    size: str | None,
    output: Kind | None = None,
    num_classes: int | None = None,
    class_names: Path | None = None,
) -> dict[str, Any]:
    """The keyword arguments of `cli.request.load_named`; `BadParameter` for anything but a size."""
    pixels = None if size is None else parse_size(size)
    how = {"device": device, "dtype": dtype.value, "size": pixels, "output": output and output.value}
    return {**how, "num_classes": num_classes, "class_names": class_names}


def parse_batch(text: str) -> int:
    """The number of images per pass, 0 for "auto"; `BadParameter` for anything else."""
    if text.lower() == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(
            f"{text!r} is no number of images per pass; write 1 or more, or auto", param_hint="--batch-size"
        )
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels from "224x336", or from one number for a square; `BadParameter` for anything else."""
    height, _, width = text.lower().partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or not int(height) * int(width or height):
        raise typer.BadParameter(
            f"{text!r} is no size; write HEIGHTxWIDTH in pixels, as in 224x336", param_hint="--size"
        )
    return int(height), int(width or height)


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
