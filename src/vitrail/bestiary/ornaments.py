"""The diagnostic parts: crowns, tails, wings and shells, each growing from (0, 0) upwards to about (0, 1).

A shape takes one `bend` in [-1, 1], the part's share of the pose. Bodies set the parts in their place (see `anatomy`).
"""

from collections.abc import Callable

import numpy as np

from vitrail.bestiary.shapes import Shape, closed, disc, limb, moved

Ornament = Callable[[float], list[Shape]]
ORNAMENTS: dict[tuple[str, str], Ornament] = {}


def ornament(slot: str, variant: str) -> Callable[[Ornament], Ornament]:
    """Registers the drawing of one variant of a slot."""

    def register(draw: Ornament) -> Ornament:
        ORNAMENTS[slot, variant] = draw
        return draw

    return register


@ornament("crown", "antlers")
def antlers(bend: float) -> list[Shape]:
    """Returns two branching antlers, side by side."""

    def branch(side: float) -> tuple[np.ndarray, ...]:
        tilt = side * (0.36 + 0.06 * bend)
        beam = limb([(0, 0), (tilt * 0.75, 0.36), (tilt * 1.55, 0.7), (tilt * 1.7, 1.12)], [0.17, 0.16, 0.14, 0.06])
        inner = limb([(tilt * 0.7, 0.36), (tilt * 0.62, 0.66), (tilt * 0.85, 0.9)], [0.13, 0.12, 0.05])
        outer = limb([(tilt * 1.3, 0.58), (tilt * 2.1, 0.7), (tilt * 2.5, 0.95)], [0.13, 0.12, 0.05])
        return inner, outer, beam

    return [Shape(branch(-1.0)), Shape(branch(1.0))]


@ornament("crown", "curls")
def curls(bend: float) -> list[Shape]:
    """Returns two ram's horns, each rolled up to its side."""
    turn = np.linspace(0.0, 1.0, 9)
    angle = -0.42 * np.pi + (1.72 + 0.12 * bend) * np.pi * turn
    radius = 0.40 - 0.26 * turn
    shapes = []
    for side in (-1.0, 1.0):
        spine = np.stack([side * (0.40 + radius * np.cos(angle)), 0.36 + radius * np.sin(angle)], axis=1)
        # The root of the horn sits on the head, the curl opens to the side.
        spine[0] = (side * 0.06, 0.02)
        shapes.append(Shape((limb(spine, 0.28 - 0.2 * turn),)))
        ridges = tuple(disc(float(spine[k, 0]), float(spine[k, 1]), 0.045, count=10) for k in (2, 4, 6))
        shapes.append(Shape(ridges, "accent", outlined=False))
    return shapes


@ornament("crown", "spike")
def spike(bend: float) -> list[Shape]:
    """Returns one tall banded horn."""
    lean = 0.16 + 0.12 * bend
    cone = closed(
        [(-0.2, -0.05), (-0.1 + lean * 0.4, 0.55), (lean * 1.2, 1.28), (0.12 + lean * 0.4, 0.55), (0.2, -0.05)]
    )
    bands = tuple(
        limb([(lean * h * 0.8 - w, h - 0.06), (lean * h * 0.8 + w, h + 0.07)], [0.09, 0.09], 2)
        for h, w in ((0.24, 0.14), (0.52, 0.1), (0.78, 0.06))
    )
    return [Shape((cone,)), Shape(bands, "accent", outlined=False)]


@ornament("crown", "crest")
def crest(bend: float) -> list[Shape]:
    """Returns a fan of five rounded feathers."""
    feather = closed([(0, 0), (-0.15, 0.45), (-0.17, 0.75), (0, 0.95), (0.17, 0.75), (0.15, 0.45)])
    tip = disc(0, 0.74, 0.09, 0.12, count=14)
    angles = np.array([1.15, 0.68, 0.22, -0.24, -0.7]) + 0.12 * bend
    return [
        Shape((moved(polygon, 0, 0, float(angle), 0.98),), ink, outlined)
        for angle in angles
        for polygon, ink, outlined in ((feather, "base", True), (tip, "accent", False))
    ]


@ornament("crown", "stalks")
def stalks(bend: float) -> list[Shape]:
    """Returns two stalks that end in balls."""
    shapes = []
    for side in (-1.0, 1.0):
        top = side * (0.42 + 0.08 * bend), 0.86 + side * 0.05
        stem = limb([(side * 0.05, 0), (side * 0.12, 0.42), top], [0.11, 0.1, 0.09])
        shapes.append(Shape((stem,)))
        shapes.append(Shape((disc(*top, 0.22),)))
        shapes.append(Shape((disc(top[0] + 0.02, top[1] + 0.02, 0.1, count=14),), "accent", outlined=False))
    return shapes


@ornament("tail", "plume")
def plume(bend: float) -> list[Shape]:
    """Returns a bushy brush with a light tip."""
    c = 0.22 * bend
    brush = closed(
        [
            (-0.06, 0),
            (-0.24, 0.28),
            (-0.3 + c * 0.4, 0.62),
            (-0.16 + c, 0.98),
            (0.06 + c * 1.5, 1.2),
            (0.2 + c, 0.92),
            (0.32 + c * 0.4, 0.6),
            (0.22, 0.26),
            (0.06, 0),
        ]
    )
    tip = closed(
        [
            (-0.2 + c * 0.8, 0.86),
            (-0.16 + c, 0.98),
            (0.06 + c * 1.5, 1.2),
            (0.2 + c, 0.92),
            (0.25 + c * 0.8, 0.76),
            (0.1 + c, 0.88),
            (0.0 + c, 0.74),
            (-0.1 + c, 0.9),
        ],
        4,
    )
    return [Shape((brush,)), Shape((tip,), "accent", outlined=False)]


@ornament("tail", "tuft")
def tuft(bend: float) -> list[Shape]:
    """Returns a thin whip that ends in a star."""
    c = 0.3 * bend
    whip = limb([(0, 0), (0.16 + c * 0.3, 0.35), (-0.1 + c * 0.8, 0.72), (c, 0.96)], [0.14, 0.11, 0.09, 0.09])
    angle, radius = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.15, 0.29)
    star = np.stack([c + radius * np.cos(angle), 1.04 + radius * np.sin(angle)], axis=1)
    burr = closed(star, 4)
    return [Shape((whip,)), Shape((burr,), "accent"), Shape((disc(c, 1.04, 0.09, count=12),), "base", outlined=False)]


@ornament("tail", "fan")
def fan(bend: float) -> list[Shape]:
    """Returns a peacock's fan of five blades with eyes."""
    blade = closed([(0, 0), (-0.13, 0.5), (-0.2, 0.86), (0, 1.06), (0.2, 0.86), (0.13, 0.5)])
    shapes = []
    for k, angle in enumerate(np.linspace(-0.95, 0.95, 5) * (1 + 0.1 * bend)):
        shapes.append(Shape((moved(blade, 0, 0, float(angle)),), "base" if k % 2 == 0 else "accent"))
        spot = disc(-0.82 * np.sin(angle), 0.82 * np.cos(angle), 0.09, count=12)
        shapes.append(Shape((spot,), "accent" if k % 2 == 0 else "base", outlined=False))
    return shapes


@ornament("tail", "fork")
def fork(bend: float) -> list[Shape]:
    """Returns two long pointed blades, as of a swallow."""
    c = 0.12 * bend
    shapes = []
    for side in (-1.0, 1.0):
        blade = closed(
            [
                (-0.1 * side, 0),
                (0.08 * side + c, 0.5),
                (side * 0.5 + c, 1.12),
                (side * 0.36 + c, 0.5),
                (0.14 * side, 0.05),
            ]
        )
        tip = limb([(side * 0.4 + c, 0.84), (side * 0.47 + c, 1.04)], [0.12, 0.04], 3)
        shapes += [Shape((blade,)), Shape((tip,), "accent", outlined=False)]
    return shapes


@ornament("wings", "feather")
def feather(bend: float) -> list[Shape]:
    """Returns a wing of five rows of feathers."""
    quill = closed([(0, 0), (-0.11, 0.45), (-0.12, 0.86), (0, 1.0), (0.12, 0.86), (0.13, 0.45)])
    shapes = []
    for k, angle in enumerate((1.45, 1.1, 0.76, 0.44, 0.14)):
        size = 0.74 + 0.1 * k
        shapes.append(
            Shape((moved(quill, 0, 0.04 * k, angle * (1 + 0.12 * bend), size),), "base" if k % 2 else "accent")
        )
    shoulder = closed([(-0.34, -0.02), (-0.3, 0.26), (-0.04, 0.46), (0.13, 0.4), (0.14, 0.05), (-0.06, -0.12)])
    return [*shapes, Shape((shoulder,), "base")]


@ornament("wings", "bat")
def bat(bend: float) -> list[Shape]:
    """Returns a membrane between four fingers."""
    angles = np.array([1.5, 1.02, 0.52, 0.02]) * (1 + 0.1 * bend)
    tips = np.stack([-np.sin(angles), np.cos(angles)], axis=1) * np.array([0.86, 1.02, 1.14, 1.2])[:, None]
    webs = (tips[1:] + tips[:-1]) / 2 * 0.7
    edge: list[np.ndarray] = [np.array([[0.05, -0.04]])]
    # The membrane hangs in arcs between the finger tips, which stay sharp because each arc is its own curve.
    for start, web, end in zip(tips[:-1], webs, tips[1:], strict=True):
        t = np.linspace(0, 1, 6)[:, None]
        edge.append((1 - t) ** 2 * start + 2 * t * (1 - t) * web + t**2 * end)
    membrane = np.concatenate(edge)
    bones = tuple(limb([(0, 0), tip * 0.5 + (0.03, 0.03), tip], [0.11, 0.07, 0.03], 3) for tip in tips)
    return [Shape((membrane,)), Shape(bones, "accent", outlined=False)]


@ornament("wings", "petal")
def petal(bend: float) -> list[Shape]:
    """Returns a butterfly's two lobes, each with an eye."""
    lobe = closed([(0, 0), (-0.26, 0.42), (-0.24, 0.86), (0.06, 1.06), (0.34, 0.88), (0.28, 0.42)])
    eye = disc(0.04, 0.7, 0.16, 0.18)
    pupil = disc(0.04, 0.7, 0.07, 0.08, count=12)
    shapes = []
    for angle, size in ((1.3 + 0.12 * bend, 0.74), (0.34 - 0.1 * bend, 1.05)):
        shapes.append(Shape((moved(lobe, 0, 0, angle, size),)))
        shapes.append(Shape((moved(eye, 0, 0, angle, size),), "accent", outlined=False))
        shapes.append(Shape((moved(pupil, 0, 0, angle, size),), "dark", outlined=False))
    return shapes


@ornament("shell", "spiral")
def spiral(bend: float) -> list[Shape]:
    """Returns a round shell with a spiral groove."""
    turn = np.linspace(0, 1, 12)
    angle = 0.35 + 0.2 * bend - 3.6 * np.pi * turn
    radius = 0.46 * (1 - turn) + 0.03
    groove = np.stack([radius * np.cos(angle), 0.52 + radius * np.sin(angle)], axis=1)
    return [
        Shape((disc(0, 0.52, 0.6, count=36),)),
        Shape((limb(groove, 0.11 - 0.04 * turn, 5),), "accent", outlined=False),
    ]


@ornament("shell", "cone")
def cone(bend: float) -> list[Shape]:
    """Returns a tall leaning turret with bands."""
    lean = -0.3 - 0.12 * bend
    turret = closed(
        [
            (-0.56, 0.0),
            (-0.36 + lean * 0.4, 0.5),
            (-0.14 + lean * 0.8, 1.0),
            (lean * 1.1, 1.36),
            (0.12 + lean * 0.8, 1.0),
            (0.36 + lean * 0.4, 0.5),
            (0.56, 0.02),
            (0.0, -0.1),
        ]
    )
    bands = tuple(
        limb([(lean * h - w, h - 0.02), (lean * h, h - 0.09), (lean * h + w, h + 0.04)], [0.1, 0.11, 0.1], 4)
        for h, w in ((0.3, 0.4), (0.62, 0.27), (0.92, 0.15))
    )
    return [Shape((turret,)), Shape(bands, "accent", outlined=False)]


@ornament("shell", "spines")
def spines(bend: float) -> list[Shape]:
    """Returns a low dome with five thorns."""
    thorn = np.array([(-0.17, 0.3), (0.0, 1.02), (0.17, 0.3)])
    thorns = [
        Shape((moved(thorn, 0.16 * np.sin(-angle), 0, float(angle)),), "accent")
        for angle in np.linspace(-1.15, 1.15, 5) + 0.1 * bend
    ]
    dome = closed([(-0.64, -0.02), (-0.56, 0.36), (-0.26, 0.6), (0.1, 0.62), (0.48, 0.42), (0.64, -0.02), (0.0, -0.1)])
    return [*thorns, Shape((dome,))]
