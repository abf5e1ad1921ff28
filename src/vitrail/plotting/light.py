"""Maps over their images as small pictures without letters, drawn in a hundredth of the time that a figure takes.

For folders of thousands: to leaf through, beside the numbers. The colours are those of the figure, each map scaled by
its own largest absolute score; the class is in the file's name, the range in the table that the command prints.
"""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitrail.explanation import Explanation
from vitrail.files import atomic_write
from vitrail.plotting.overlay import overlay

__all__ = ["draw_light", "save_light"]

SHORTEST = 224  # pixels of the shorter side; images that the model sees smaller are enlarged in whole steps
GAP = 4  # white pixels between the maps of several targets
QUALITY = 95  # with full colour resolution; JPEG, because PNG takes ten times as long for pixels no eye tells apart


def draw_light(ex: Explanation, image: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    """The maps of one image over it, RGB at the model's input size, its targets side by side.

    Example:
        >>> import torch
        >>> ex = Explanation(
        ...     scores=torch.eye(14)[None],
        ...     logits=torch.zeros(1, 2),
        ...     target=torch.tensor([0]),
        ...     method="gae",
        ...     objective="logit",
        ... )
        >>> draw_light(ex).shape
        (224, 224, 3)
    """
    picture = None if ex.images is None else ex.images[image].numpy(force=True)
    rows, cols = (16 * side for side in ex.grid) if picture is None else picture.shape[:2]
    times = -(-SHORTEST // min(rows, cols))
    size = rows * times, cols * times
    gap = np.full((size[0], GAP, 3), 255, np.uint8)
    parts = []
    for target in range(ex.targets):
        parts += [gap] * bool(parts)
        parts.append(overlay(ex.map(image, target).numpy(force=True), picture, size=size))
    return np.concatenate(parts, axis=1)


def save_light(ex: Explanation, path: str | os.PathLike[str], image: int = 0) -> Path:
    """Write `draw_light` as a JPEG, whole or not at all. Returns the path.

    Raises `OutputFileError` when the file cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(draw_light(ex, image)).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    return Path(path)
