"""What one call of a command asks, read and checked, and the model that it names, on the device that it names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vitrail.cli.options import Kind, Precision
from vitrail.errors import ModelError, OptionError, SameClassError

if TYPE_CHECKING:
    from vitrail.models import VisionModel

__all__ = [
    "FILES",
    "Request",
    "check_question",
    "classes_of",
    "how_to_load",
    "kinds",
    "load_model",
    "load_named",
    "named_device",
    "parse_batch",
    "parse_size",
    "split_option",
]

FILES = ("png", "jpg", "pdf", "svg", "safetensors")  # what a single result can be


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


def check_question(request: Request) -> str:
    """Refuse what needs no model to be refused (unknown methods, options, objectives); return the objective's name.

    Raises `VitrailError`, as `vitrail.explain` would.
    """
    from vitrail.methods import find_method
    from vitrail.methods.option_values import typed_options
    from vitrail.objectives import objective_name

    info = find_method(request.question["method"], request.options)
    request.options.update(typed_options(info, request.options))
    if request.seed is not None and "seed" in info.options:
        request.options.setdefault("seed", request.seed)
    if len(request.against) > 1 and len(request.targets) > 1 and len(request.against) != len(request.targets):
        raise OptionError(
            f"{len(request.targets)} targets against {len(request.against)} classes; "
            "give one --against, or one for each target"
        )
    objective = request.question["objective"] or info.default_objective(bool(request.against))
    return objective_name(objective, request.against or None)


def load_model(request: Request) -> "VisionModel":
    """The model of the request, on its device. Raises the errors of `vitrail.load`."""
    return load_named(request.model, request.checkpoint, **request.load)


def classes_of(request: Request, model: "VisionModel") -> tuple[list[int], list[int]]:
    """Returns the class indices of targets and contrastive targets. Raises `VitrailError` for an unknown class."""
    targets, against = ([model.class_index(name) for name in names] for names in (request.targets, request.against))
    pairs = max(len(targets), len(against)) if targets and against else 0
    for place in range(pairs):
        target, other = targets[place % len(targets)], against[place % len(against)]
        if target == other:
            name = model.class_name(target)
            raise SameClassError(f"{name} ({target}) is held against itself: give two different classes")
    return targets, against


def named_device(device: str, dtype: str = "float32") -> str:
    """The device of that name; "auto" is the best that this machine has for the floating point type."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and dtype != "float64" else "cpu"  # which mps lacks


def load_named(
    name: str,
    checkpoint: Path | None,
    *,
    device: str,
    dtype: str = "float32",
    size: tuple[int, int] | None = None,
    resize: int | None = None,
    texts: list[str] | None = None,
    output: str | None = None,
    num_classes: int | None = None,
    class_names: Path | None = None,
) -> "VisionModel":
    """What `vitrail.load` gives for the command's words; device "auto" is the best that this machine has.

    `texts` are what a CLIP model shall hold images against, `output` is the kind of its output; `resize` is the shorter
    side in pixels before the crop, in the place of the model's own. Raises the errors of `vitrail.load`, and
    `ModelError` where `resize` meets a model without preprocessing.
    """
    from vitrail.models import load

    model = load(
        name,
        checkpoint=checkpoint,
        device=named_device(device, dtype),
        dtype=dtype,
        size=size,
        texts=texts,
        output=output,
        num_classes=num_classes,
        class_names=class_names,
    )
    if resize is None:
        return model
    if model.preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so resize={resize} means nothing to it")
    return replace(model, preprocess=replace(model.preprocess, resize=resize))


def kinds(formats: Sequence[StrEnum] | None) -> tuple[str, ...]:
    """The kinds of file that are asked for, each once; "all" is every kind but jpg, the same figure as png.

    >>> from vitrail.cli.options import Format
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
    """The keyword arguments of `load_named`; `BadParameter` for anything but a size."""
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
