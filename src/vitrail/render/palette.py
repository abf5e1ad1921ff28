"""The colours of a signed map: white at zero, red for, blue against, equally strong on both sides.

The colours are made in Oklab, where equal steps look equal: lightness falls in proportion to the score and chroma
grows, by the same amount in either hue. So a score of -0.4 looks exactly as strong as one of +0.4, zero is exactly
white, and the lightness alone tells the strength to a reader who sees no hues. An unsigned method uses the red half.
"""

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["AGAINST", "FOR", "colour", "grey"]

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


def grey(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """The luminance of an RGB image, from 0 to 1, in sRGB's own coding."""
    red, green, blue = (np.take(share, image[..., channel]) for channel, share in enumerate(_SHARES))
    return red + green + blue


_SHARES = LUMA[:, None] * (np.arange(256) / 255.0)  # of each channel's 256 values in the luminance

FOR: tuple[float, float, float] = tuple(colour(np.array(1.0)).tolist())
AGAINST: tuple[float, float, float] = tuple(colour(np.array(-1.0)).tolist())
