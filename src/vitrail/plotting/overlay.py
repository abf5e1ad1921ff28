"""Signed maps as colours: red for, blue against, white at zero, laid over the image like stained glass.

The colours are made in Oklab, where equal steps look equal: lightness falls in proportion to the score and chroma
grows, by the same amount in either hue. So a score of -0.4 looks exactly as strong as one of +0.4, zero is exactly
white, and the lightness alone tells the strength to a reader who sees no hues. An unsigned method uses the red half.

Over an image, its luminance, lightened so that dark fur does not swallow the colour, is multiplied by the colour of the
score. Where the score is zero the glass is clear and the picture stands alone; nowhere does the picture disappear.
"""

import io
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..errors import OptionError
from ..explanation import Explanation
from ..files import atomic_write

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

__all__ = [
    "AGAINST",
    "FOR",
    "ColormapLike",
    "check_threshold",
    "colour",
    "draw_light",
    "enlarge",
    "grey",
    "mapped",
    "overlay",
    "resize",
    "save_light",
    "sides",
    "strength",
]

ColormapLike = Union[str, "Colormap"]  # a Matplotlib colormap or its name

RED, BLUE = np.deg2rad(26.0), np.deg2rad(258.0)  # hues; nobody with a common colour blindness confuses the two
CHROMA = 0.185  # of the strongest score: the most that sRGB has for both hues at that lightness
DEPTH = 0.46  # how much darker than white the strongest score is
RISE = 0.8  # below 1: the colour comes a little before the shade, or middling scores would look like pale skin

# Oklab to linear sRGB (B. Ottosson, 2020).
FROM_LAB = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
)
TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.707614701],
    ]
)
LUMA = np.array([0.2126, 0.7152, 0.0722])


def colour(scores: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """Returns the sRGB colour, from 0 to 1, of scores from -1 to 1; scores beyond are shown as the end they passed.

    >>> colour(np.array([0.0])).tolist()
    [[1.0, 1.0, 1.0]]
    """
    score = np.clip(scores.astype(np.float64), -1, 1)
    strength = np.abs(score)
    hue = np.where(score > 0, RED, BLUE)
    chroma = CHROMA * strength**RISE
    lab = np.stack([1 - DEPTH * strength, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear = np.clip((lab @ FROM_LAB.T) ** 3 @ TO_RGB.T, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.where(strength[..., None] == 0, 1.0, rgb)  # the matrices are rounded; zero is white without a remainder


def mapped(
    scores: Float[np.ndarray, "*shape"], colormap: ColormapLike | None, *, signed: bool = True
) -> Float[np.ndarray, "*shape 3"]:
    """Returns the sRGB colour, from 0 to 1, of scores from -1 to 1 in a Matplotlib colormap; without one, `colour`.

    The middle of the colormap is zero. For a map without signs a colormap that is not brightest in its middle runs from
    0 to 1 instead.

    Raises:
        OptionError: for a name that Matplotlib does not know.

    Example:
        >>> zero = np.zeros(1)
        >>> mapped(zero, "gray").round(1).tolist(), mapped(zero, "gray", signed=False).tolist()
        ([[0.5, 0.5, 0.5]], [[0.0, 0.0, 0.0]])
    """
    if colormap is None:
        return colour(scores)
    from matplotlib import colormaps

    if isinstance(colormap, str):
        if colormap not in colormaps:
            raise OptionError(
                f"colormap={colormap!r} is unknown to Matplotlib: give a name from matplotlib.colormaps, such as "
                '"RdBu_r" or "coolwarm", or leave colormap= out for red and blue'
            )
        colormap = colormaps[colormap]
    low, middle, high = (float(np.dot(LUMA, colormap(place)[:3])) for place in (0.0, 0.5, 1.0))
    centred = signed or middle > max(low, high)
    return np.asarray(colormap(np.clip((scores + 1) / 2 if centred else scores, 0, 1)))[..., :3]


def grey(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """Returns the luminance of an RGB image, from 0 to 1, in sRGB's own coding."""
    red, green, blue = (np.take(share, image[..., channel]) for channel, share in enumerate(_SHARES))
    return red + green + blue


_SHARES = LUMA[:, None] * (np.arange(256) / 255.0)  # of each channel's 256 values in the luminance

FOR: tuple[float, float, float] = tuple(colour(np.array(1.0)).tolist())
AGAINST: tuple[float, float, float] = tuple(colour(np.array(-1.0)).tolist())

SHADE = 0.5  # what black becomes behind the glass, from 0 (black) to 1 (white): raise it and the picture fades
STEPS = 2048  # colours on either side of white: finer than 8 bits can tell, and a hundred times faster than colour()
ROUNDING = 0.02  # of an unsigned map's largest score: what lies below zero by no more means nothing


def strength(scores: Float[np.ndarray, "*shape"]) -> float:
    """Returns the largest absolute score, by which a map is scaled; 0 for a map without signal, NaN and
    infinity included.
    """
    largest = float(np.abs(scores).max(initial=0.0))
    return largest if np.isfinite(largest) else 0.0


def sides(scores: Float[np.ndarray, "rows cols"], signed: bool) -> tuple[Float[np.ndarray, "rows cols"], bool]:
    """Returns the scores as every picture draws them, and whether both sides of zero have a colour in it.

    In a signed map both have. Below zero an unsigned one has rounding only, which is drawn as zero: blue would claim
    more. But where it goes well below zero, its sides are the two ends of an axis (eigencam), and both are drawn.

    >>> sides(np.array([[1.0, -1e-9]]), signed=False), sides(np.array([[1.0, -0.5]]), signed=False)[1]
    ((array([[1., 0.]]), False), True)
    """
    both = signed or bool(scores.min(initial=0.0) < -ROUNDING * scores.max(initial=0.0))
    return (scores if both else np.maximum(scores, 0)), both


def overlay(
    scores: Float[np.ndarray, "rows cols"],
    image: UInt8[np.ndarray, "height width 3"] | None = None,
    *,
    opacity: float | int = 1.0,
    smooth: bool = True,
    limit: float | int | None = None,
    size: tuple[int, int] | None = None,
    colormap: ColormapLike | None = None,
    signed: bool = True,
    threshold: float | int = 0.0,
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Colours an image by a signed map: RGB of `size`, by default that of the image (without one, 16 pixels a patch).

    A score of +`limit` is full red, one of -`limit` full blue, zero is clear; `limit` is the map's own largest absolute
    score unless given, so no map is stretched to look stronger than it is on either side. `smooth` interpolates between
    the patches; otherwise each patch is one pane. `opacity` goes from 0, the photograph in its own colours, to 1. A map
    without signal (zero everywhere, or not finite) leaves the image grey; for `signed=False` see `sides`. `colormap` is
    a Matplotlib colormap or its name, its middle at zero (see `mapped`). Scores whose absolute value is below
    `threshold`, from 0 to 1 of `limit`, are drawn as zero.

    Raises `OptionError` for an unknown colormap and a threshold out of its range.

    >>> overlay(np.array([[1.0, 0.0], [0.0, -0.5]]), smooth=False, size=(2, 2))[0, 1].tolist()
    [255, 255, 255]
    """
    check_threshold(threshold)
    if size is None:
        size = image.shape[:2] if image is not None else (16 * scores.shape[0], 16 * scores.shape[1])
    scores, signed = sides(scores, signed)
    limit = strength(scores) if limit is None else limit
    has_signal = limit > 0 and strength(scores) > 0
    relative = scores / limit if has_signal else np.zeros(scores.shape)
    steps = np.rint(np.clip(enlarge(relative, size, smooth=smooth), -1, 1) * STEPS).astype(np.int64) + STEPS
    if threshold:
        steps[np.abs(steps - STEPS) < threshold * STEPS] = STEPS
    glass = np.take(_panes(colormap, signed), steps, axis=0)
    if image is None:
        return _bytes(glass)
    image = resize(image, size)
    glass *= (SHADE + (1 - SHADE) * grey(image))[..., None]
    return _bytes(glass if opacity == 1 else opacity * glass + (1 - opacity) * image / 255.0)


def resize(image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "tall wide 3"]:
    """Returns the photograph at another size, (height, width), without jagged edges."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def enlarge(
    scores: Float[np.ndarray, "rows cols"], size: tuple[int, int], *, smooth: bool = True
) -> Float[np.ndarray, "height width"]:
    """Returns a map on a finer grid, bilinear (corners not aligned, as `Explanation.upsample` does) or in panes."""
    return _stretch(_stretch(scores.astype(np.float64), size[0], smooth).T, size[1], smooth).T


def _stretch(rows: Float[np.ndarray, "rows cols"], length: int, smooth: bool) -> Float[np.ndarray, "length cols"]:
    last = len(rows) - 1
    place = (np.arange(length) + 0.5) * len(rows) / length  # in rows, whose centres lie at the halves
    if not smooth:
        return rows[np.clip(place.astype(int), 0, last)]
    place = np.clip(place - 0.5, 0, last)
    below = np.clip(place.astype(int), 0, max(last - 1, 0))
    share = (place - below)[:, None]
    return (1 - share) * rows[below] + share * rows[np.minimum(below + 1, last)]


def check_threshold(threshold: float | int) -> None:
    """Raises `OptionError` for a threshold that is no share."""
    if not 0 <= threshold < 1:
        raise OptionError(
            f"threshold={threshold} must lie between 0 (every score is coloured) and 1 (exclusive): it is the share of "
            "the largest absolute score below which a score is drawn as zero"
        )


def _panes(colormap: ColormapLike | None, signed: bool) -> Float[np.ndarray, "steps 3"]:
    if colormap is None or isinstance(colormap, str):
        return _known_panes(colormap, signed)
    return mapped(np.arange(-STEPS, STEPS + 1) / STEPS, colormap, signed=signed)  # an object cannot be a key


@cache
def _known_panes(colormap: str | None, signed: bool) -> Float[np.ndarray, "steps 3"]:
    return mapped(np.arange(-STEPS, STEPS + 1) / STEPS, colormap, signed=signed)


def _bytes(rgb: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    levels = rgb.clip(0, 1)
    levels *= 255
    return np.rint(levels, out=levels).astype(np.uint8)


SHORTEST = 224  # pixels of the shorter side; images that the model sees smaller are enlarged in whole steps
GAP = 4  # white pixels between the maps of several targets
QUALITY = 95  # with full colour resolution; JPEG, because PNG takes ten times as long for pixels no eye tells apart


def draw_light(ex: Explanation, image: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the maps of one image over it, RGB at the model's input size, its targets side by side.

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
    """Writes `draw_light` as a JPEG, whole or not at all. Returns the path.

    Raises `OutputFileError` when the file cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(draw_light(ex, image)).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    return Path(path)
