"""The model that a command names, on the device that it names."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.models import VisionModel

__all__ = ["load_named"]


def load_named(
    name: str,
    checkpoint: Path | None,
    *,
    device: str,
    dtype: str = "float32",
    size: tuple[int, int] | None = None,
) -> "VisionModel":
    """What `vitrail.load` gives for the command's words; device "auto" is the best that this machine has.

    Raises the errors of `vitrail.load`.
    """
    import torch

    from vitrail.models import load

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return load(name, checkpoint=checkpoint, device=device, dtype=getattr(torch, dtype), size=size)
