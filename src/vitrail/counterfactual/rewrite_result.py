"""What one call of `rewrite` found: the picture, how it came about, and how far it lies from the photograph."""

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from ..errors import OptionError, OutputFileError
from ..explanation import Explanation
from ..files import atomic_write
from ..images import read_image
from ..outputs import percent

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["LOSSLESS", "Rewrite", "Similarity", "encode", "lossless_format", "similarity", "ssim"]

# Formats that give back every level, and what makes Pillow write them so.
LOSSLESS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "lossless": True, "exact": True, "method": 4},
}

_SIGMA, _RADIUS = 1.5, 5  # the window of Wang et al.: 11 pixels
_C1, _C2 = 0.01**2, 0.03**2


class Similarity(NamedTuple):
    """The difference of two pictures with pixels from 0 to 1.

    `linf` is the largest difference (in units of 1/255: `linf * 255` levels), `l2` the root of the sum of squares,
    `psnr` the peak signal-to-noise ratio in dB (infinite for equal pictures), `ssim` the structural similarity (1 for
    equal pictures; NaN for pictures smaller than its window of 11 x 11).
    """

    linf: float
    l2: float
    psnr: float
    ssim: float


def similarity(one: UInt8[np.ndarray, "height width 3"], other: UInt8[np.ndarray, "height width 3"]) -> Similarity:
    """Compares two 8-bit pictures of one size, over all pixels and channels.

    Example:
        >>> black = np.zeros((16, 16, 3), dtype=np.uint8)
        >>> round(similarity(black, black + np.uint8(1)).psnr, 2)
        48.13
    """
    a, b = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1).double() / 255 for x in (one, other))
    change = a - b
    squares = change.square().mean().item()
    return Similarity(
        linf=change.abs().max().item(),
        l2=change.norm().item(),
        psnr=math.inf if squares == 0 else -10 * math.log10(squares),
        ssim=ssim(a, b) if min(a.shape[1:]) > 2 * _RADIUS else math.nan,
    )


def ssim(one: Float[Tensor, "channels height width"], other: Float[Tensor, "channels height width"]) -> float:
    """Returns the structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, Eq. 13), for pixels from 0 to 1.

    The mean over channels and over all places where the Gaussian window of σ = 1.5 and 11 x 11 pixels lies inside, of

        (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)).
    """
    ramp = torch.arange(-_RADIUS, _RADIUS + 1, dtype=one.dtype)
    window = torch.exp(-(ramp**2) / (2 * _SIGMA**2))
    window = window / window.sum()

    def mean(x: Tensor) -> Tensor:
        return conv2d(conv2d(x[:, None], window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mu_x, mu_y = mean(one), mean(other)
    var_x, var_y = mean(one**2) - mu_x**2, mean(other**2) - mu_y**2
    covariance = mean(one * other) - mu_x * mu_y
    alike = (2 * mu_x * mu_y + _C1) * (2 * covariance + _C2)
    return (alike / ((mu_x**2 + mu_y**2 + _C1) * (var_x + var_y + _C2))).mean().item()


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Rewrite:
    """A photograph rewritten until the model names another class.

    `original` and `picture` are 8-bit RGB at the photograph's own size. Row i of `curves` holds the probabilities of
    `source` and `target` after i steps, each of the rounded picture as a file of it would be classified; `picture` is
    that of row `step`. `reached` says whether it is the target class with a probability of at least `until` after a
    round trip through a file; where not, `picture` is the most probable one found within the budget, and `reason` says
    what ended the search. `before` and `after` are the signed maps of both classes, unless they were not asked for.
    """

    original: UInt8[np.ndarray, "height width 3"]
    picture: UInt8[np.ndarray, "height width 3"]
    source: int
    target: int
    until: float | int
    reached: bool
    reason: str
    step: int
    curves: Float[np.ndarray, "steps 2"]
    similarity: Similarity
    names: tuple[str, str]
    before: Explanation | None = None
    after: Explanation | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def probability(self) -> float:
        """Returns the target's probability in the image."""
        return float(self.curves[self.step, 1])

    def summary(self) -> str:
        """Returns the outcome in one line.

        "zebra 98.0 % → bull mastiff 94.3 % after 43 steps, …" or "bull mastiff not reached: 21.3 % of 93.8 % …".
        """
        source, target = self.names
        way = f"PSNR {self.similarity.psnr:.1f} dB, L∞ {round(255 * self.similarity.linf)}/255"
        if self.reached:
            first = percent(float(self.curves[0, 0]))
            return f"{source} {first} → {target} {percent(self.probability)} after {self.step} steps; {way}"
        return (
            f"{target} not reached: {percent(self.probability)} of the {percent(self.until)} asked for is the most "
            f"found ({self.reason}); {way}"
        )

    def record(self) -> dict[str, Any]:
        """Returns all but the pictures and maps, as plain JSON values."""
        finite = {name: value if math.isfinite(value) else None for name, value in self.similarity._asdict().items()}
        return {
            **self.metadata,
            "source": self.names[0],
            "source_index": self.source,
            "target": self.names[1],
            "target_index": self.target,
            "until": self.until,
            "reached": self.reached,
            "reason": self.reason,
            "step": self.step,
            "source_probability": [float(self.curves[0, 0]), float(self.curves[self.step, 0])],
            "target_probability": [float(self.curves[0, 1]), self.probability],
            **finite,
            "curves": {"source": self.curves[:, 0].tolist(), "target": self.curves[:, 1].tolist()},
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the image as PNG or lossless WebP, by the suffix, and reads it back to check every level.

        Raises:
            OptionError: for another suffix; JPEG and its like change the levels on which the answer rests.
            OutputFileError: when the file cannot be written, or comes back different.
        """
        path, kind = Path(path), lossless_format(path)
        content = encode(self.picture, kind)
        with atomic_write(path) as file:
            file.write(content)
        if not np.array_equal(np.asarray(read_image(path)), self.picture):
            raise OutputFileError(f"{path} does not hold the pixels that were written to it; save as .png")
        return path

    def plot(self) -> "matplotlib.figure.Figure":
        """Draws both pictures, their difference amplified, the probabilities, and the signed maps before and after."""
        from ..plotting.rewriting import draw_rewrite

        return draw_rewrite(self)

    def __repr__(self) -> str:
        return f"Rewrite({self.summary()})"


def lossless_format(path: str | os.PathLike[str]) -> str:
    """Returns the format that a suffix names: "png" or "webp".

    Raises:
        OptionError: for any other.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in LOSSLESS:
        raise OptionError(
            f"cannot save a rewritten picture to {os.fspath(path)}: the answer rests on single levels, which only "
            "lossless files keep; name it .png or .webp"
        )
    return kind


def encode(picture: UInt8[np.ndarray, "height width 3"], kind: str = "png") -> bytes:
    """Returns the bytes of a lossless file.

    Raises:
        OutputFileError: when the format cannot hold the picture (WebP ends at 16383 pixels a side).
    """
    buffer = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, **LOSSLESS[kind])
    except (OSError, ValueError, KeyError) as error:
        raise OutputFileError(f"the picture cannot be written as {kind}: {error}; save it as .png") from error
    return buffer.getvalue()
