"""The model that a command names, on the device that it names."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.models import VisionModel

__all__ = ["load_named", "named_device"]


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
    from vitrail.errors import ModelError
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
        raise ModelError(f"{model.name} comes without preprocessing, so --resize {resize} means nothing to it")
    return replace(model, preprocess=replace(model.preprocess, resize=resize))
