"""Smooth closed outlines as polygons, of which creatures, plants and hills are made, and colours that go together."""

import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.path import Path
from numpy.typing import ArrayLike

Polygon = Float[np.ndarray, "points 2"]
Real = float | int
# Round ends of limbs: the half circle between the two sides, without the two points that the sides give already.
_CAP = np.array([(np.cos(turn), np.sin(turn)) for turn in np.linspace(0, np.pi, 7)[1:-1]])
STEPS = 7  # points drawn between two control points: no facets are seen at 512 px


@dataclass(frozen=True, eq=False)
class Shape:
    """Polygons filled with one of the three inks of a part: "base", "accent" or "dark"; outlined together if at all."""

    polygons: tuple[np.ndarray, ...]
    ink: str = "base"
    outlined: bool = True

    @cached_property
    def path(self) -> Path:
        """Returns the polygons as one path for the rasteriser."""
        points = np.concatenate([piece for polygon in self.polygons for piece in (polygon, polygon[:1])])
        return Path(points, _codes(tuple(len(polygon) for polygon in self.polygons)))

    def moved(self, x: Real, y: Real, angle: Real = 0.0, size: Real = 1.0, flip: Real = 1.0) -> "Shape":
        """Returns the same shape elsewhere, as `moved` moves one polygon."""
        matrix, origin = motion(x, y, angle, size, flip)
        return Shape(tuple(polygon @ matrix + origin for polygon in self.polygons), self.ink, self.outlined)


@lru_cache(maxsize=1024)
def _codes(lengths: tuple[int, ...]) -> np.ndarray:
    one = [[Path.MOVETO, *[Path.LINETO] * (length - 1), Path.CLOSEPOLY] for length in lengths]
    return np.array(reduce(operator.iadd, one, []), dtype=Path.code_type)


@lru_cache
def _catmull_rom(steps: int) -> np.ndarray:
    t = np.linspace(0, 1, steps, endpoint=False)
    basis = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    return np.stack([t**0, t, t**2, t**3], axis=1) @ basis


@lru_cache
def _windows(count: int, closed: bool) -> np.ndarray:
    first = np.arange(count if closed else count - 1)[:, None] + np.arange(-1, 3)
    return first % count if closed else first.clip(0, count - 1)


@lru_cache
def _circle(count: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def closed(points: ArrayLike, steps: int = STEPS) -> Polygon:
    """Returns a smooth closed outline through the given (count, 2) points."""
    control = np.asarray(points, dtype=float)
    return (_catmull_rom(steps) @ control[_windows(len(control), True)]).reshape(-1, 2)


def opened(points: ArrayLike, steps: int = STEPS) -> Polygon:
    """Returns a smooth open line through the given (count, 2) points."""
    control = np.asarray(points, dtype=float)
    line = (_catmull_rom(steps) @ control[_windows(len(control), False)]).reshape(-1, 2)
    return np.concatenate([line, control[-1:]])


def limb(spine: ArrayLike, widths: ArrayLike, steps: int = STEPS) -> Polygon:
    """Returns the outline of a limb: a smooth (count, 2) spine with a (count,) full width at each of its
    points, round ends.
    """
    path = np.array(spine, dtype=float)
    control = np.empty((len(path), 3))
    control[:, :2], control[:, 2] = path, widths
    swept = np.empty(((len(control) - 1) * steps + 1, 3))
    swept[:-1] = (_catmull_rom(steps) @ control[_windows(len(control), False)]).reshape(-1, 3)
    swept[-1] = control[-1]
    middle, radius = swept[:, :2], 0.5 * swept[:, 2:]
    tangent = np.empty_like(middle)
    tangent[1:-1] = middle[2:] - middle[:-2]
    tangent[0], tangent[-1] = middle[1] - middle[0], middle[-1] - middle[-2]
    tangent *= radius / (np.sqrt((tangent * tangent).sum(axis=1, keepdims=True)) + 1e-9)
    normal = tangent[:, ::-1] * (-1.0, 1.0)
    head = middle[-1] + _CAP @ np.stack((normal[-1], tangent[-1]))
    foot = middle[0] - _CAP @ np.stack((normal[0], tangent[0]))
    return np.concatenate((middle + normal, head, (middle - normal)[::-1], foot))


def disc(x: Real, y: Real, width: Real, height: Real | None = None, angle: Real = 0.0, count: int = 24) -> Polygon:
    """Returns an ellipse around (x, y) with two radii, turned by `angle` radians."""
    ellipse = _circle(count) * (width, width if height is None else height)
    return moved(ellipse, x, y, angle)


def motion(x: Real, y: Real, angle: Real, size: Real, flip: Real) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (2, 2) matrix, for points as rows, and the origin that scale, mirror, turn and shift a plane."""
    c, s = np.cos(angle) * size, np.sin(angle) * size
    return np.array(((c * flip, s * flip), (-s, c))), np.array((x, y))


def moved(polygon: Polygon, x: Real, y: Real, angle: Real = 0.0, size: Real = 1.0, flip: Real = 1.0) -> Polygon:
    """Returns the polygon scaled, mirrored in x when `flip` is -1, turned by `angle` radians, and put at (x, y)."""
    matrix, origin = motion(x, y, angle, size, flip)
    return polygon @ matrix + origin


Rgb = tuple[float, float, float]


class Palette(NamedTuple):
    """The colours of one creature, each RGB in [0, 1]: skin, ornaments, and the light marks on both."""

    skin: Rgb
    ornament: Rgb
    mark: Rgb
    outline: Rgb


def oklch(lightness: float, chroma: float, hue: float) -> Rgb:
    """Returns RGB in [0, 1] of a colour in OKLCH, where equal steps look equal, so that random palettes go together.

    Lightness lies in [0, 1], chroma in about [0, 0.3], hue is in turns.
    """
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
    """Returns a palette of three hues with fixed relations and random lightness; it never looks at the species."""
    hue, light, chroma = rng.uniform(), rng.uniform(0.56, 0.80), rng.uniform(0.07, 0.15)
    second = hue + rng.choice([-0.33, -0.12, 0.12, 0.33, 0.5]) + rng.uniform(-0.04, 0.04)
    other = light + rng.choice([-0.16, 0.14])
    return Palette(
        skin=oklch(light, chroma, hue),
        ornament=oklch(float(np.clip(other, 0.45, 0.9)), rng.uniform(0.07, 0.15), second),
        mark=oklch(0.93 if light < 0.74 else 0.42, 0.05, second + 0.03),
        outline=oklch(0.26, 0.05, hue),
    )
