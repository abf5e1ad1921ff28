"""A map laid over its image like stained glass: the picture in grey behind panes of colour.

The image's luminance, lightened so that dark fur does not swallow the colour, is multiplied by the colour of the score.
Where the score is zero the glass is clear and the picture stands alone; nowhere does the picture disappear.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitrail.errors import OptionError
from vitrail.plotting.palette import ColormapLike, grey, mapped

__all__ = ["check_threshold", "enlarge", "overlay", "resize", "sides", "strength"]

SHADE = 0.5  # what black becomes behind the glass, from 0 (black) to 1 (white): raise it and the picture fades
STEPS = 2048  # colours on either side of white: finer than 8 bits can tell, and a hundred times faster than colour()
ROUNDING = 0.02  # of an unsigned map's largest score: what lies below zero by no more means nothing


def strength(scores: Float[np.ndarray, "*shape"]) -> float:
    """The largest absolute score, by which a map is scaled; 0 for a map without signal, NaN and infinity included."""
    largest = float(np.abs(scores).max(initial=0.0))
    return largest if np.isfinite(largest) else 0.0


def sides(scores: Float[np.ndarray, "rows cols"], signed: bool) -> tuple[Float[np.ndarray, "rows cols"], bool]:
    """The scores as every picture draws them, and whether both sides of zero have a colour in it.

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
    """Colour an image by a signed map: RGB of `size`, by default that of the image (without one, 16 pixels a patch).

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
    """The photograph at another size, (height, width), without jagged edges."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def enlarge(
    scores: Float[np.ndarray, "rows cols"], size: tuple[int, int], *, smooth: bool = True
) -> Float[np.ndarray, "height width"]:
    """A map on a finer grid, bilinear (corners not aligned, as `Explanation.upsample` does) or in panes."""
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
