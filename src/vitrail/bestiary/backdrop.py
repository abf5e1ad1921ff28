"""The landscape behind the creatures and the plants in front of them.

Everything is laid out from the seed of the backdrop alone. Ornaments of creatures grow there too, in the colours of
plants: antlers as dry shrubs, stalks as reeds, fans as palms. A part without its creature must tell a model nothing.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitrail.bestiary.ornaments import ORNAMENTS
from vitrail.bestiary.shapes import Rgb, Shape, closed, disc, limb, moved, oklch, opened

Lch = tuple[float, float, float]
Spot = tuple[float, float, float, float]  # x, y, turn in radians and size at which shapes are set
HERE: Spot = (0.0, 0.0, 0.0, 1.0)  # shapes that are in image units already


@runtime_checkable
class Fill(Protocol):
    """Fills shapes set at a spot with the colours of the three inks."""

    def __call__(
        self, shapes: list[Shape], inks: tuple[Rgb, Rgb, Rgb], opacity: float = 1.0, spot: Spot = HERE
    ) -> None: ...


class Theme(NamedTuple):
    """The OKLCH colours of a landscape from the top of the sky to the ground in front."""

    zenith: Lch
    horizon: Lch
    far: Lch
    middle: Lch
    near: Lch
    plant: Lch


THEMES: tuple[Theme, ...] = (
    Theme(
        (0.84, 0.06, 0.64),
        (0.94, 0.03, 0.30),
        (0.80, 0.06, 0.44),
        (0.72, 0.09, 0.36),
        (0.60, 0.09, 0.37),
        (0.52, 0.08, 0.40),
    ),
    Theme(
        (0.78, 0.07, 0.82),
        (0.91, 0.07, 0.13),
        (0.75, 0.06, 0.92),
        (0.64, 0.07, 0.90),
        (0.52, 0.07, 0.85),
        (0.46, 0.06, 0.80),
    ),
    Theme(
        (0.46, 0.08, 0.77),
        (0.76, 0.10, 0.13),
        (0.54, 0.07, 0.84),
        (0.46, 0.06, 0.79),
        (0.38, 0.05, 0.74),
        (0.33, 0.05, 0.70),
    ),
    Theme(
        (0.86, 0.05, 0.60),
        (0.94, 0.05, 0.22),
        (0.83, 0.06, 0.18),
        (0.76, 0.08, 0.19),
        (0.66, 0.08, 0.16),
        (0.56, 0.07, 0.34),
    ),
    Theme(
        (0.30, 0.06, 0.76),
        (0.50, 0.07, 0.70),
        (0.42, 0.05, 0.67),
        (0.37, 0.05, 0.60),
        (0.31, 0.04, 0.55),
        (0.40, 0.05, 0.50),
    ),
    Theme(
        (0.82, 0.06, 0.57),
        (0.93, 0.03, 0.52),
        (0.77, 0.06, 0.55),
        (0.68, 0.07, 0.50),
        (0.58, 0.07, 0.47),
        (0.50, 0.07, 0.42),
    ),
    Theme(
        (0.87, 0.04, 0.24),
        (0.95, 0.05, 0.28),
        (0.78, 0.08, 0.21),
        (0.68, 0.10, 0.15),
        (0.55, 0.09, 0.11),
        (0.48, 0.08, 0.08),
    ),
    Theme(
        (0.72, 0.05, 0.70),
        (0.90, 0.02, 0.72),
        (0.84, 0.03, 0.68),
        (0.90, 0.02, 0.70),
        (0.95, 0.01, 0.70),
        (0.60, 0.04, 0.45),
    ),
    Theme(
        (0.70, 0.06, 0.73),
        (0.88, 0.06, 0.00),
        (0.72, 0.06, 0.78),
        (0.63, 0.09, 0.84),
        (0.53, 0.08, 0.86),
        (0.48, 0.07, 0.40),
    ),
)


def gradient(theme: int, size: int) -> Float[np.ndarray, "3 size 1"]:
    """Returns the sky from top to bottom, RGB planes in [0, 1]."""
    top, low = (np.array(oklch(*colour))[:, None, None] for colour in (THEMES[theme].zenith, THEMES[theme].horizon))
    t = np.linspace(0, 1, size)[None, :, None] ** 0.8
    return top + (low - top) * t


def texture(seed: int, size: int) -> Float[np.ndarray, "size size"]:
    """Returns soft noise around 0 in three octaves, the same texture at every size."""
    rng = np.random.default_rng((seed, 1))
    field = np.zeros((1, 1), dtype=np.float32)
    for cells, weight in ((4, 0.4), (12, 0.3), (40, 0.45)):
        field = _resized(field, cells) + weight * rng.standard_normal((cells, cells), dtype=np.float32)
    return _resized(field, size)


def _resized(field: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def paint(theme: int, seed: int, clutter: float, fill: Fill, hidden: Collection[int] = ()) -> int:
    """Paints the sun, clouds, hills and plants with `fill`, from the back to the front.

    Returns the number of things that stand in the landscape: plants, stones, and blobs of no creature. Those `hidden`,
    counted from 0 in the order of painting, are not filled in, and all others are as they were.
    """
    things = 0

    def thing() -> Fill:
        nonlocal things
        things += 1
        return _nothing if things - 1 in hidden else fill

    rng = np.random.default_rng((seed, 0))
    colours = THEMES[theme]
    drift = rng.uniform(-0.03, 0.03)
    tint = [oklch(lch[0] + rng.uniform(-0.03, 0.03), lch[1], lch[2] + drift) for lch in colours]
    pale = oklch(min(colours.horizon[0] + 0.05, 0.98), 0.03, colours.horizon[2])
    if rng.uniform() < 0.5:
        x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.6, 0.95), rng.uniform(0.05, 0.1)
        fill([Shape((disc(x, y, radius * 1.6),), outlined=False)], (pale, pale, pale), 0.35)
        fill([Shape((disc(x, y, radius),), outlined=False)], (pale, pale, pale), 0.9)
    for _ in range(int(rng.integers(0, 3))):
        fill([_cloud(rng)], (pale, pale, pale), 0.55)
    height = rng.uniform(0.42, 0.72)
    for depth in range(3):
        colour = tint[2 + depth]
        fill([_ridge(rng, height, 0.10 - 0.02 * depth)], (colour, colour, colour))
        for _ in range(round(clutter * rng.uniform(1, 5))):
            base = height - rng.uniform(0.0, 0.16)
            _plant(rng, colours, (rng.uniform(0.0, 1.0), base), 0.07 + 0.035 * depth, thing())
        height -= rng.uniform(0.14, 0.26)
    for _ in range(round(clutter * rng.uniform(0, 4))):
        stone = oklch(rng.uniform(0.5, 0.8), 0.02, rng.uniform())
        shape = pebble(rng, rng.uniform(0, 1), rng.uniform(0, 0.3), rng.uniform(0.02, 0.06))
        thing()([shape], (stone, stone, stone))
    for _ in range(round(clutter * rng.uniform(0, 3))):
        _stray(rng, thing())
    return things


def _nothing(shapes: list[Shape], inks: tuple[Rgb, Rgb, Rgb], opacity: float = 1.0, spot: Spot = HERE) -> None:
    """Leaves the canvas as it is."""


def _ridge(rng: np.random.Generator, height: float, swing: float) -> Shape:
    xs = np.linspace(-0.1, 1.1, 7)
    ys = height + swing * rng.uniform(-1, 1, 7)
    line = opened(np.stack([xs, ys], axis=1))
    return Shape((np.concatenate([line, [(1.1, -0.1), (-0.1, -0.1)]]),), outlined=False)


def _cloud(rng: np.random.Generator) -> Shape:
    x, y, size = rng.uniform(0, 1), rng.uniform(0.65, 0.95), rng.uniform(0.05, 0.11)
    puffs = [
        disc(x + dx * size, y + dy * size, r * size, 0.8 * r * size)
        for dx, dy, r in ((-1, 0, 0.7), (0, 0.25, 1), (1, 0, 0.75))
    ]
    return Shape(tuple(puffs), outlined=False)


def pebble(rng: np.random.Generator, x: float, y: float, size: float) -> Shape:
    """Returns a stone: an irregular flat disc."""
    angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    radius = size * rng.uniform(0.75, 1.1, 8)
    return Shape(
        (closed(np.stack([x + radius * np.cos(angle), y + 0.7 * radius * np.sin(angle)], axis=1), 5),), outlined=False
    )


def _plant(rng: np.random.Generator, colours: Theme, root: tuple[float, float], size: float, fill: Fill) -> None:
    light, chroma, hue = colours.plant
    leaf = oklch(light + rng.uniform(-0.08, 0.14), chroma, hue + rng.uniform(-0.06, 0.06))
    flower = oklch(rng.uniform(0.6, 0.85), rng.uniform(0.04, 0.11), rng.uniform())
    size *= rng.uniform(0.8, 1.7)
    form = int(rng.integers(4))
    if form == 0:
        fill([blades(rng, *root, size, 5)], (leaf, leaf, leaf))
    elif form == 1:
        trunk = limb([root, (root[0], root[1] + size)], [0.16 * size, 0.12 * size], 2)
        crown = disc(root[0], root[1] + 1.35 * size, rng.uniform(0.4, 0.62) * size, rng.uniform(0.5, 0.85) * size)
        fill([Shape((trunk,), "dark", False), Shape((crown,), "base", False)], (leaf, leaf, _dim(leaf, 0.75)))
    else:
        # A part of some creature as a plant: see the head of the file.
        names = sorted(ORNAMENTS)
        shapes = _sprout(*names[int(rng.integers(len(names)))], int(rng.integers(-2, 3)))
        fill(shapes, (leaf, flower, _dim(leaf, 0.6)), spot=(*root, rng.uniform(-0.5, 0.5), 1.3 * size))


@lru_cache(maxsize=128)
def _sprout(slot: str, variant: str, bend: int) -> list[Shape]:
    return ORNAMENTS[slot, variant](0.5 * bend)


def _stray(rng: np.random.Generator, fill: Fill) -> None:
    """Draws a blob or limb in the colours of a creature's skin, belonging to no creature."""
    x, y = rng.uniform(0, 1, 2)
    size = rng.uniform(0.04, 0.1)
    skin = oklch(rng.uniform(0.5, 0.82), rng.uniform(0.03, 0.12), rng.uniform())
    if rng.uniform() < 0.5:
        shape = pebble(rng, x, y, size)
    else:
        spine = np.array([x, y]) + np.cumsum(rng.uniform(-0.8, 0.8, (4, 2)) * size, axis=0)
        shape = Shape((limb(spine, rng.uniform(0.2, 0.5, 4) * size),), outlined=False)
    fill([shape], (skin, skin, skin), 0.9)


def _dim(colour: Rgb, by: float) -> Rgb:
    return colour[0] * by, colour[1] * by, colour[2] * by


def blades(rng: np.random.Generator, x: float, y: float, size: float, count: int) -> Shape:
    """Returns a tuft of grass whose blades rise from about (x, y)."""
    lean = 2 * np.arange(count) / (count - 1) - 1
    root, tip = x + 0.3 * size * lean, x + size * (0.6 * lean + rng.uniform(-0.25, 0.25, count))
    top = y + size * rng.uniform(0.7, 1.25, count)
    knee, half = root + 0.35 * (tip - root), y + 0.5 * (top - y)
    ground = y - size * (0.3 - 0.1 * lean**2)
    wide, slim = 0.09 * size, 0.065 * size
    across = [(x + 0.5 * (root - x), ground - 0.1 * size), (root - wide, ground), (knee - slim, half), (tip, top)]
    across += [(knee + slim, half), (root + wide, ground)]
    return Shape(tuple(np.array(across).transpose(2, 0, 1)), outlined=False)


def occluder(
    form: str, x: float, y: float, size: float, seed: int, theme: int
) -> tuple[list[Shape], tuple[Rgb, Rgb, Rgb]]:
    """Returns the shapes of something in the foreground within `size` of (x, y), and the colours of its inks."""
    rng = np.random.default_rng((seed, 2))
    light, chroma, hue = THEMES[theme].plant
    leaf = oklch(light + rng.uniform(-0.12, 0.1), chroma + 0.02, hue + rng.uniform(-0.05, 0.05))
    inks = leaf, _dim(leaf, 1.25), _dim(leaf, 0.6)
    if form == "grass":
        return [blades(rng, x, y - 0.7 * size, size * 1.35, 7)], inks
    if form == "stone":
        stone = oklch(rng.uniform(0.45, 0.75), 0.02, hue)
        return [pebble(rng, x, y, size * 0.95)], (stone, stone, _dim(stone, 0.6))
    angle = rng.uniform(0, 2 * np.pi)
    blade = closed([(-1, 0), (-0.45, 0.36), (0.3, 0.4), (1, 0), (0.3, -0.4), (-0.45, -0.36)])
    vein = limb([(-1, 0), (0, 0.04), (0.8, 0)], [0.1, 0.08, 0.03], 4)
    return [
        Shape((moved(blade, x, y, angle, size * 0.95),), outlined=False),
        Shape((moved(vein, x, y, angle, size * 0.95),), "accent", False),
    ], inks
