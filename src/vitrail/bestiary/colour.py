"""Colours chosen in OKLCH, where equal steps look equal, so that random palettes stay harmonious."""

from typing import NamedTuple

import numpy as np

Rgb = tuple[float, float, float]


class Palette(NamedTuple):
    """The colours of one creature, each RGB in [0, 1]: skin, ornaments, and the light marks on both."""

    skin: Rgb
    ornament: Rgb
    mark: Rgb
    outline: Rgb


def oklch(lightness: float, chroma: float, hue: float) -> Rgb:
    """RGB in [0, 1] of an OKLCH colour (lightness in [0, 1], chroma about [0, 0.3], hue in turns)."""
    a, b = chroma * np.cos(2 * np.pi * hue), chroma * np.sin(2 * np.pi * hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (_encode(min(max(float(value), 0.0), 1.0)) for value in linear)
    return red, green, blue


def _encode(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def sample_palette(rng: np.random.Generator) -> Palette:
    """A palette of three hues with fixed relations and random lightness; it never looks at the species."""
    hue, light, chroma = rng.uniform(), rng.uniform(0.56, 0.80), rng.uniform(0.07, 0.15)
    second = hue + rng.choice([-0.33, -0.12, 0.12, 0.33, 0.5]) + rng.uniform(-0.04, 0.04)
    other = light + rng.choice([-0.16, 0.14])
    return Palette(
        skin=oklch(light, chroma, hue),
        ornament=oklch(float(np.clip(other, 0.45, 0.9)), rng.uniform(0.07, 0.15), second),
        mark=oklch(0.93 if light < 0.74 else 0.42, 0.05, second + 0.03),
        outline=oklch(0.26, 0.05, hue),
    )
