"""The colours of a signed map: white at zero, red for, blue against, equally strong on both sides.

The colours are made in Oklab, where equal steps look equal: lightness falls in proportion to the score and chroma
grows, by the same amount in either hue. So a score of -0.4 looks exactly as strong as one of +0.4, zero is exactly
white, and the lightness alone tells the strength to a reader who sees no hues. An unsigned method uses the red half.
"""

from typing import TYPE_CHECKING, Union

import numpy as np
from jaxtyping import Float, UInt8

from vitrail.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

__all__ = ["AGAINST", "FOR", "ColormapLike", "colour", "grey", "mapped"]

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
    """The sRGB colour, from 0 to 1, of scores from -1 to 1; scores beyond are shown as the end they passed.

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
    """The sRGB colour, from 0 to 1, of scores from -1 to 1 in a Matplotlib colormap; without one, `colour`.

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
    """The luminance of an RGB image, from 0 to 1, in sRGB's own coding."""
    red, green, blue = (np.take(share, image[..., channel]) for channel, share in enumerate(_SHARES))
    return red + green + blue


_SHARES = LUMA[:, None] * (np.arange(256) / 255.0)  # of each channel's 256 values in the luminance

FOR: tuple[float, float, float] = tuple(colour(np.array(1.0)).tolist())
AGAINST: tuple[float, float, float] = tuple(colour(np.array(-1.0)).tolist())
