"""How a creature is put together: the outlines of all its parts from its family, variants and pose, facing right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vitrail.bestiary.ornaments import ORNAMENTS
from vitrail.bestiary.shapes import Shape, closed, disc, limb


@dataclass(frozen=True)
class Pose:
    """The joints of a creature, each in [-1, 1]; a family uses those that it has."""

    head: float = 0.0
    crown: float = 0.0
    tail: float = 0.0
    wings: float = 0.0
    stride: float = 0.0
    plump: float = 0.0
    bend: float = 0.0
    pattern: float = 0.0


class Anchor(NamedTuple):
    """Where an ornament is set: its root, the turn of its upward axis in radians, its size and mirroring."""

    x: float
    y: float
    angle: float
    size: float
    flip: float = 1.0


Outlines = dict[str, list[Shape]]
Plan = Callable[[Pose, Mapping[str, str]], tuple[Outlines, dict[str, Anchor]]]

# From the back to the front, the same for every family, so that removing a part never reorders the others.
LAYERS = ("far_wings", "tail", "far_legs", "shell", "legs", "body", "coat", "wings", "crown", "head", "eyes")


@lru_cache(maxsize=256)
def outlines(family: str, parts: tuple[tuple[str, str], ...], pose: Pose) -> tuple[tuple[str, tuple[Shape, ...]], ...]:
    """Returns the (part, shapes) of a creature from the back to the front, in units of about half a creature's length.

    `parts` are (slot, variant) pairs; a slot that is absent is not drawn and changes nothing else.
    """
    variants = dict(parts)
    shapes, anchors = PLANS[family](pose, {"head": "round", "legs": "slender", "eyes": "open", **variants})
    for slot, anchor in anchors.items():
        draw = ORNAMENTS.get((slot, variants.get(slot, "")))
        if draw is not None:
            shapes[slot] = [shape.moved(*anchor) for shape in draw(getattr(pose, slot, pose.bend))]
    shapes["coat"] = _coat(variants.get("coat", "plain"), shapes["body"][0].polygons[0], pose.pattern)
    drawn = []
    for layer in LAYERS:
        slot = layer.removeprefix("far_")
        if slot in variants and shapes.get(layer):
            drawn.append((slot, tuple(shapes[layer])))
    return tuple(drawn)


def _coat(variant: str, body: np.ndarray, shift: float) -> list[Shape]:
    """Marks over the box of the body; the renderer clips them to the body itself."""
    low, high = body.min(axis=0), body.max(axis=0)
    wide, tall = high - low
    if variant == "stripes":
        # Bands across the body, a little slanted.
        count = max(3, round(wide / 0.26))
        xs = low[0] + (np.arange(count) + 0.5 + 0.25 * shift) * wide / count
        bands = tuple(
            limb([(x - 0.05, low[1]), (x + 0.03, low[1] + 0.5 * tall), (x - 0.03, high[1])], [0.1, 0.12, 0.1], 3)
            for x in xs
        )
        return [Shape(bands, outlined=False)]
    if variant == "spots":
        rows, columns = max(2, round(tall / 0.3)), max(3, round(wide / 0.3))
        spots = tuple(
            disc(
                low[0] + (column + 0.5 + 0.5 * (row % 2) + 0.2 * shift) * wide / columns,
                low[1] + (row + 0.5) * tall / rows,
                0.095,
                count=12,
            )
            for row in range(rows)
            for column in range(columns)
        )
        return [Shape(spots, outlined=False)]
    if variant == "saddle":
        middle = low[0] + wide * (0.46 + 0.06 * shift)
        half, top = 0.26 * wide, high[1] + 0.1
        patch = closed(
            [
                (middle - half, top),
                (middle - 0.7 * half, low[1] + 0.42 * tall),
                (middle, low[1] + 0.3 * tall),
                (middle + 0.7 * half, low[1] + 0.42 * tall),
                (middle + half, top),
            ]
        )
        return [Shape((patch,), outlined=False)]
    return []


def _face(x: float, y: float, size: float, variant: str) -> list[Shape]:
    """Returns one large eye with a pupil and a glint; a sleepy one is half closed."""
    white = Shape((disc(x, y, size, size * 1.1),))
    pupil = Shape((disc(x + 0.22 * size, y, 0.6 * size, 0.7 * size, count=16),), "dark", outlined=False)
    glint = Shape((disc(x + 0.4 * size, y + 0.28 * size, 0.2 * size, count=10),), "base", outlined=False)
    if variant == "sleepy":
        angle = np.linspace(0.06, np.pi - 0.06, 10)
        lid = np.stack([x + 1.06 * size * np.cos(angle), y + 1.16 * size * np.sin(angle)], axis=1)
        return [white, pupil, Shape((lid,), "accent")]
    return [white, pupil, glint]


def _leg(x: float, y: float, foot: float, ground: float, width: float) -> tuple[Shape, Shape]:
    knee = (x + 0.55 * (foot - x) + 0.04, 0.5 * (y + ground))
    shin = limb([(x, y), knee, (foot, ground)], [width * 1.35, width, width * 0.9], 5)
    return Shape((shin,)), Shape((disc(foot + 0.04, ground + 0.02, width * 0.72, width * 0.5, count=14),), "accent")


def strider(pose: Pose, parts: Mapping[str, str]) -> tuple[Outlines, dict[str, Anchor]]:
    """Returns a four-legged animal of the meadows, its head held high."""
    tall = 0.34 + 0.05 * pose.plump
    body = closed(
        [
            (-0.66, 0.1),
            (-0.52, tall),
            (-0.05, tall - 0.05),
            (0.42, tall + 0.02),
            (0.64, 0.08),
            (0.46, -0.27),
            (0.0, -0.33 - 0.05 * pose.plump),
            (-0.5, -0.28),
        ]
    )
    x, y = 0.86 + 0.05 * pose.head, 0.66 + 0.1 * pose.head
    muzzle = 0.26 if parts["head"] == "round" else 0.36
    neck = limb([(0.42, 0.05), (0.62, 0.36), (x - 0.03, y)], [0.46, 0.34, 0.34])
    skull = closed(
        [
            (x - 0.24, y + 0.04),
            (x - 0.12, y + 0.24),
            (x + 0.12, y + 0.2),
            (x + muzzle, y + 0.0),
            (x + muzzle + 0.05, y - 0.14),
            (x + 0.14, y - 0.2),
            (x - 0.12, y - 0.2),
        ]
    )
    nose = disc(x + muzzle + 0.02, y - 0.02, 0.06, 0.05, count=12)
    ear = closed([(x - 0.2, y + 0.1), (x - 0.36, y + 0.3), (x - 0.42, y + 0.1), (x - 0.3, y + 0.02)])
    width = 0.15 if parts["legs"] == "slender" else 0.21
    swing = 0.18 * pose.stride
    near = [*_leg(0.36, -0.12, 0.36 + swing, -0.9, width), *_leg(-0.42, -0.12, -0.42 - swing, -0.9, width)]
    far = [*_leg(0.48, -0.1, 0.54 - swing, -0.84, width), *_leg(-0.28, -0.1, -0.24 + swing, -0.84, width)]
    shapes: Outlines = {
        "far_legs": far,
        "legs": near,
        "body": [Shape((body,))],
        "head": [Shape((neck, skull)), Shape((ear,), "accent"), Shape((nose,), "dark", outlined=False)],
        "eyes": _face(x + 0.05, y + 0.06, 0.1, parts["eyes"]),
    }
    return shapes, {
        "crown": Anchor(x - 0.05, y + 0.16, 0.1 + 0.12 * pose.head, 0.82),
        "tail": Anchor(-0.6, 0.14, 0.95 + 0.3 * pose.tail, 0.98),
    }


def flutter(pose: Pose, parts: Mapping[str, str]) -> tuple[Outlines, dict[str, Anchor]]:
    """Returns a plump upright bird."""
    wide = 0.5 + 0.05 * pose.plump
    body = closed(
        [(-0.46, -0.32), (-wide, 0.1), (-0.3, 0.46), (0.1, 0.54), (wide - 0.06, 0.14), (0.36, -0.36), (-0.06, -0.52)]
    )
    x, y = 0.3 + 0.08 * pose.head, 0.62 + 0.05 * pose.head
    skull = disc(x, y, 0.37, 0.35)
    beak = 0.26 if parts["head"] == "round" else 0.44
    bill = closed(
        [(x + 0.28, y + 0.1), (x + 0.32 + 0.5 * beak, y + 0.04), (x + 0.3 + beak, y - 0.1), (x + 0.26, y - 0.14)]
    )
    width = 0.1 if parts["legs"] == "slender" else 0.16
    swing = 0.12 * pose.stride

    def foot(hip: float, toe: float, ground: float) -> list[Shape]:
        shank = limb([(hip, -0.4), (toe - 0.03, ground + 0.12), (toe, ground)], [width * 1.2, width, width], 4)
        toes = limb([(toe - 0.1, ground - 0.02), (toe + 0.2, ground - 0.03)], [width * 1.1, width], 4)
        return [Shape((shank, toes), "accent")]

    shapes: Outlines = {
        "far_legs": foot(0.18, 0.2 - swing, -0.82),
        "legs": foot(-0.08, -0.06 + swing, -0.88),
        "body": [Shape((body,))],
        "head": [Shape((bill,), "accent"), Shape((skull,))],
        "eyes": _face(x + 0.1, y + 0.06, 0.12, parts["eyes"]),
    }
    return shapes, {
        "crown": Anchor(x - 0.04, y + 0.26, 0.08 + 0.1 * pose.head, 0.82),
        "tail": Anchor(-0.38, -0.18, 1.2 + 0.25 * pose.tail, 1.05),
        "wings": Anchor(0.06, 0.12, 1.5 + 0.2 * pose.wings, 0.52),
    }


def creeper(pose: Pose, parts: Mapping[str, str]) -> tuple[Outlines, dict[str, Anchor]]:
    """Returns a snail: a long foot, a neck, and a shell on its back."""
    arch = 0.05 * pose.bend
    body = closed(
        [
            (-1.12, -0.52),
            (-0.8, -0.36),
            (-0.3, -0.2 + arch),
            (0.3, -0.2 + arch),
            (0.62, 0.02),
            (0.7, 0.26),
            (1.0, 0.22),
            (1.0, -0.2),
            (0.9, -0.5),
            (0.3, -0.58),
            (-0.5, -0.6),
        ]
    )
    x, y = 0.88 + 0.05 * pose.head, 0.34 + 0.06 * pose.head
    long = 0.06 if parts["head"] == "long" else 0.0
    skull = disc(x, y, 0.31 + long, 0.27)
    smile = limb([(x + 0.04, y - 0.13), (x + 0.14, y - 0.17), (x + 0.24 + long, y - 0.11)], [0.035, 0.045, 0.035], 4)
    shapes: Outlines = {
        "body": [Shape((body,))],
        "head": [Shape((skull,)), Shape((smile,), "dark", outlined=False)],
        "eyes": _face(x + 0.13, y + 0.05, 0.12, parts["eyes"]),
    }
    return shapes, {
        "shell": Anchor(-0.18, -0.26 + arch, 0.12 * pose.wings, 1.0 + 0.05 * pose.plump),
        "crown": Anchor(x - 0.02, y + 0.17, -0.06 + 0.14 * pose.head, 0.82),
    }


def coiler(pose: Pose, parts: Mapping[str, str]) -> tuple[Outlines, dict[str, Anchor]]:
    """Returns a winding dragon."""
    wave = 0.12 * pose.bend
    thick = 0.38 + 0.05 * pose.plump
    x, y = 0.72 + 0.05 * pose.head, 0.56 + 0.08 * pose.head
    spine = [
        (-0.84, 0.02),
        (-0.66, -0.36),
        (-0.26, -0.42 - wave),
        (0.06, -0.14),
        (0.34, 0.02 + 0.5 * wave),
        (0.52, 0.3),
        (x - 0.08, y),
    ]
    body = limb(spine, [0.14, 0.26, thick, thick, thick * 0.95, 0.34, 0.28])
    reach = 0.34 if parts["head"] == "round" else 0.46
    skull = closed(
        [
            (x - 0.26, y),
            (x - 0.14, y + 0.22),
            (x + 0.1, y + 0.2),
            (x + reach, y + 0.04),
            (x + reach, y - 0.12),
            (x, y - 0.2),
        ]
    )
    nostril = disc(x + reach - 0.06, y + 0.0, 0.035, count=8)
    jaw = limb([(x + 0.06, y - 0.1), (x + 0.2, y - 0.12), (x + reach - 0.02, y - 0.08)], [0.03, 0.04, 0.03], 4)
    shapes: Outlines = {
        "body": [Shape((body,))],
        "head": [Shape((skull,)), Shape((nostril, jaw), "dark", outlined=False)],
        "eyes": _face(x + 0.03, y + 0.08, 0.11, parts["eyes"]),
    }
    return shapes, {
        "wings": Anchor(-0.02, -0.04, 0.14 + 0.2 * pose.wings, 1.0),
        "tail": Anchor(-0.82, 0.0, 0.5 + 0.3 * pose.tail, 0.86),
    }


def drifter(pose: Pose, parts: Mapping[str, str]) -> tuple[Outlines, dict[str, Anchor]]:
    """Returns a whale that swims in the sky."""
    tall = 0.5 + 0.05 * pose.plump
    lift = 0.1 * pose.tail
    body = closed(
        [
            (-1.06, 0.3 + lift),
            (-0.66, 0.16),
            (-0.2, tall - 0.1),
            (0.34, tall),
            (0.78, 0.3),
            (0.9, -0.04),
            (0.7, -0.36),
            (0.2, -tall),
            (-0.36, -0.4),
            (-0.76, -0.08),
            (-1.1, 0.12 + lift),
        ]
    )
    fluke = (
        closed(
            [(-1.08, 0.14 + lift), (-1.3, 0.3 + lift), (-1.42, 0.62 + lift), (-1.12, 0.52 + lift), (-1.0, 0.2 + lift)]
        ),
        closed(
            [(-1.0, 0.22 + lift), (-1.22, 0.1 + lift), (-1.5, 0.12 + lift), (-1.3, 0.32 + lift), (-1.06, 0.32 + lift)]
        ),
    )
    long = 0.16 if parts["legs"] == "slender" else 0.0
    swing = 0.12 * pose.stride
    fin = closed([(0.2, -0.26), (0.42, -0.3), (0.3 + swing, -0.6), (0.0 + swing, -0.82 - long), (0.02 + swing, -0.5)])
    mouth = limb([(0.58, -0.2), (0.7, -0.15), (0.87, -0.1)], [0.035, 0.045, 0.03], 4)
    shapes: Outlines = {
        "body": [Shape((body, *fluke)), Shape((mouth,), "dark", outlined=False)],
        "eyes": _face(0.58, 0.04, 0.12, parts["eyes"]),
        "far_legs": [Shape((fin,), "accent")],
    }
    return shapes, {"wings": Anchor(-0.04, 0.3, 0.16 + 0.2 * pose.wings, 0.98)}


PLANS: Mapping[str, Plan] = {
    "strider": strider,
    "flutter": flutter,
    "creeper": creeper,
    "coiler": coiler,
    "drifter": drifter,
}
