"""Scenes as immutable parameters, which are all that `render` needs, and scenes drawn at random.

An intervention changes one entry of one creature and leaves every other random choice as it was. Nothing but the
diagnostic parts and the body depends on the species.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from vitrail.bestiary.anatomy import Pose, outlines
from vitrail.bestiary.backdrop import THEMES, paint
from vitrail.bestiary.shapes import Palette, motion, sample_palette
from vitrail.bestiary.species import (
    CLASS_NAMES,
    FAMILIES,
    SPECIES,
    VARIANTS,
    BestiaryError,
    ImpossibleCreatureError,
    Species,
    UnknownNameError,
    check_parts,
    crossings,
    difference,
    posterior,
    refuse_name,
)
from vitrail.bestiary.species import species as find_species


@dataclass(frozen=True)
class Placement:
    """Where a creature stands, in units of the image side with y upwards: centre, scale, turn (radians), facing."""

    x: float
    y: float
    scale: float
    angle: float = 0.0
    flip: float = 1.0


@dataclass(frozen=True)
class Creature:
    """One creature: its family, its drawn parts as (slot, variant) pairs, and how it looks and stands."""

    family: str
    drawn: tuple[tuple[str, str], ...]
    pose: Pose
    palette: Palette
    placement: Placement

    def __post_init__(self) -> None:
        if len(dict(self.drawn)) != len(self.drawn):
            raise ImpossibleCreatureError(f"a part is given twice: {', '.join(slot for slot, _ in self.drawn)}")
        check_parts(self.family, dict(self.drawn))

    @property
    def parts(self) -> Mapping[str, str]:
        """Returns the variant of each part that is drawn."""
        return MappingProxyType(dict(self.drawn))

    @property
    def species(self) -> str | None:
        """Returns the class whose every required part this creature has, if there is one."""
        for name, candidate in SPECIES.items():
            if all(self.parts.get(slot) == variant for slot, variant in candidate.parts.items()):
                return name
        return None


@dataclass(frozen=True)
class Light:
    """Where the light comes from (radians), how deep it models, how warm and how bright it is."""

    angle: float = 2.2
    relief: float = 0.5
    warmth: float = 0.0
    gain: float = 1.0
    vignette: float = 0.1


@dataclass(frozen=True)
class Backdrop:
    """The landscape: one of the themes, the seed of its layout, how much grows there (0 to 1), and what is not drawn of
    it.
    """

    theme: int = 0
    seed: int = 0
    clutter: float = 0.6
    hidden: tuple[int, ...] = field(default=(), repr=False)  # a scene's own words, by which runs resume, stay


@dataclass(frozen=True)
class Occluder:
    """Something in front of the creatures: "grass", "leaf" or "stone", in units of the image side."""

    form: str
    x: float
    y: float
    size: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; `labels` are the classes it was made for, whatever has been done to it since."""

    kind: str
    labels: tuple[str, ...]
    creatures: tuple[Creature, ...]
    backdrop: Backdrop = Backdrop()
    light: Light = Light()
    occluders: tuple[Occluder, ...] = ()

    def without(self, creature: int, part: str | None = None) -> "Scene":
        """Returns the very same scene with one part of one creature not drawn (the whole creature if `part` is None).

        Raises `UnknownNameError` for a creature or part that is not in the scene.

        >>> from vitrail.bestiary import sample_scene
        >>> scene = sample_scene("single", seed=0, species="tavel")
        >>> "crown" in scene.without(0, "crown").creatures[0].parts
        False
        """
        subject = self._subject(creature, part)
        if part is None:
            return replace(self, creatures=self.creatures[:creature] + self.creatures[creature + 1 :])
        return self._with(creature, tuple(pair for pair in subject.drawn if pair[0] != part))

    def things(self) -> int:
        """Returns how many things stand around the creatures: in the landscape, and in front of it."""
        land = self.backdrop
        return paint(land.theme, land.seed, land.clutter, lambda *_, **__: None) + len(self.occluders)

    def without_thing(self, thing: int) -> "Scene":
        """Returns the very same scene with one of the `things` around the creatures not drawn, the foremost last.

        Raises `UnknownNameError` for a number without one.

        >>> scene = sample_scene("single", seed=0)
        >>> scene.without_thing(0) == scene
        False
        """
        things = self.things()
        behind = things - len(self.occluders)
        if not 0 <= thing < things:
            raise UnknownNameError(f"there is no thing {thing}: the scene has {things}, counted from 0")
        if thing < behind:
            return replace(self, backdrop=replace(self.backdrop, hidden=(*self.backdrop.hidden, thing)))
        front = thing - behind
        return replace(self, occluders=self.occluders[:front] + self.occluders[front + 1 :])

    def exchange(self, creature: int, part: str, variant: str) -> "Scene":
        """Returns the very same scene with one part of one creature in another variant.

        Raises `UnknownNameError` for unknown names, `ImpossibleCreatureError` for a part that the family cannot have.

        >>> from vitrail.bestiary import sample_scene
        >>> sample_scene("single", seed=0, species="tavel").exchange(0, "crown", "curls").creatures[0].species
        'borrin'
        """
        subject = self._subject(creature, None)
        check_parts(subject.family, {part: variant})
        self._subject(creature, part)
        return self._with(creature, tuple((slot, variant if slot == part else old) for slot, old in subject.drawn))

    def evidence(self) -> Float[np.ndarray, " classes"]:
        """Returns the soft label: the mean over creatures of their `posterior`; uniform when empty."""
        if not self.creatures:
            return np.full(len(CLASS_NAMES), 1 / len(CLASS_NAMES))
        return np.mean([posterior(creature.parts) for creature in self.creatures], axis=0)

    def _subject(self, creature: int, part: str | None) -> Creature:
        if not 0 <= creature < len(self.creatures):
            raise UnknownNameError(
                f"there is no creature {creature}: the scene has {len(self.creatures)}, counted from 0"
            )
        subject = self.creatures[creature]
        if part is not None and part not in subject.parts:
            known = ", ".join(slot for slot in FAMILIES[subject.family].slots if slot in subject.parts)
            raise UnknownNameError(f"creature {creature}, a {subject.family}, shows no {part!r}; it shows {known}")
        return subject

    def _with(self, creature: int, drawn: tuple[tuple[str, str], ...]) -> "Scene":
        changed = replace(self.creatures[creature], drawn=drawn)
        return replace(self, creatures=(*self.creatures[:creature], changed, *self.creatures[creature + 1 :]))


Seed = int | tuple[int, ...] | np.random.Generator
Cell = tuple[float, float, float, float]  # left, bottom, right, top in units of the image side


def sample_scene(kind: str, seed: Seed, *, species: str | tuple[str, ...] | None = None) -> Scene:
    """Returns a random scene: "single", "pair", "chimera" or "intervention" (a single with one part removed or
    exchanged).

    `species` fixes the class or, for pairs and chimeras, both classes; otherwise they are drawn at random. A chimera of
    (A, B) has A's first diagnostic part and B's second. The same seed gives the same scene. Raises `UnknownNameError`,
    `ImpossibleCreatureError` (a chimera of classes that do not cross), `BestiaryError` (a wrong number of classes).

    >>> sample_scene("pair", seed=3, species=("tavel", "murlo")).labels
    ('tavel', 'murlo')
    """
    if kind not in KINDS:
        refuse_name("kind of scene", kind, tuple(KINDS))
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    names = (species,) if isinstance(species, str) else species
    return KINDS[kind](rng, names)


def _single(rng: np.random.Generator, names: tuple[str, ...] | None) -> Scene:
    (name,) = _named(rng, names, 1)
    side = rng.uniform(0.58, 0.9)
    left, bottom = rng.uniform(0.02, 0.98 - side, 2)
    creature = _creature(rng, find_species(name), None, (left, bottom, left + side, bottom + side))
    return _scene("single", rng, (name,), (creature,))


def _pair(rng: np.random.Generator, names: tuple[str, ...] | None) -> Scene:
    first, second = _named(rng, names, 2)
    if first == second:
        raise BestiaryError(f"a pair needs two different classes, not {first} twice")
    cut, shift = rng.uniform(0.46, 0.54), rng.uniform(0.0, 0.3, 2)
    if rng.uniform() < 0.6:
        cells = [(0.02, 0.04 + shift[0], cut, 0.7 + shift[0]), (cut, 0.04 + shift[1], 0.98, 0.7 + shift[1])]
    else:
        cells = [(0.04 + shift[0], 0.02, 0.7 + shift[0], cut), (0.04 + shift[1], cut, 0.7 + shift[1], 0.98)]
    if rng.uniform() < 0.5:
        cells.reverse()
    creatures = tuple(
        _creature(rng, find_species(name), None, cell) for name, cell in zip((first, second), cells, strict=True)
    )
    return _scene("pair", rng, (first, second), creatures)


def _chimera(rng: np.random.Generator, names: tuple[str, ...] | None) -> Scene:
    pairs = crossings()
    first, second = _named(rng, names, 2) if names is not None else pairs[rng.integers(len(pairs))]
    if len(difference(first, second)) != 2:
        raise ImpossibleCreatureError(f"{first} and {second} differ in one part only: no chimera can be between them")
    a, b = find_species(first), find_species(second)
    side = rng.uniform(0.62, 0.9)
    left, bottom = rng.uniform(0.02, 0.98 - side, 2)
    slot = a.family.diagnostic[1]
    creature = _creature(rng, a, {slot: b.parts[slot]}, (left, bottom, left + side, bottom + side))
    return _scene("chimera", rng, (first, second), (creature,))


def _intervention(rng: np.random.Generator, names: tuple[str, ...] | None) -> Scene:
    scene = _single(rng, names)
    parts = scene.creatures[0].parts
    slot = str(rng.choice(sorted(parts)))
    others = [variant for variant in VARIANTS[slot] if variant != parts[slot]]
    if slot == "body" or rng.uniform() < 0.5:
        return scene.without(0, slot)
    return scene.exchange(0, slot, str(rng.choice(others)))


KINDS: dict[str, Callable[[np.random.Generator, tuple[str, ...] | None], Scene]] = {
    "single": _single,
    "pair": _pair,
    "chimera": _chimera,
    "intervention": _intervention,
}


def _named(rng: np.random.Generator, names: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(CLASS_NAMES[k] for k in rng.choice(len(CLASS_NAMES), count, replace=False))
    if len(names) != count:
        raise BestiaryError(
            f"this kind of scene needs {count} class{'es'[: 2 * (count > 1)]}, not {len(names)}: {names}"
        )
    return tuple(find_species(name).name for name in names)


def _creature(rng: np.random.Generator, kind: Species, swapped: dict[str, str] | None, cell: Cell) -> Creature:
    parts = {slot: str(rng.choice(VARIANTS[slot])) for slot in FAMILIES[kind.family.name].slots}
    parts |= dict(kind.parts) | (swapped or {})
    pose = Pose(*(float(value) for value in rng.uniform(-1, 1, 8)))
    angle, flip = float(rng.uniform(-0.2, 0.2)), float(rng.choice([-1.0, 1.0]))
    drawn = tuple(sorted(parts.items()))
    palette = sample_palette(rng)
    # Fit the turned outlines into the cell, so that no ornament is cut off and size tells nothing of the species.
    box = extent(Creature(kind.family.name, drawn, pose, palette, Placement(0.0, 0.0, 1.0, angle, flip)))
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min((cell[2] - cell[0]) / width, (cell[3] - cell[1]) / height)
    slack_x, slack_y = (cell[2] - cell[0]) - scale * width, (cell[3] - cell[1]) - scale * height
    x = cell[0] + rng.uniform() * slack_x - scale * box[0]
    y = cell[1] + rng.uniform() * slack_y - scale * box[1]
    return Creature(kind.family.name, drawn, pose, palette, Placement(float(x), float(y), float(scale), angle, flip))


def extent(creature: Creature, part: str | None = None) -> Cell:
    """Returns the box (left, bottom, right, top) of a creature, or of one part, hidden or not, in units of the
    image side.
    """
    place = creature.placement
    points = np.concatenate(
        [
            polygon
            for slot, shapes in outlines(creature.family, creature.drawn, creature.pose)
            if slot == part or (part is None and slot != "coat")
            for shape in shapes
            for polygon in shape.polygons
        ]
    )
    matrix, origin = motion(place.x, place.y, place.angle, place.scale, place.flip)
    turned = points @ matrix + origin
    (left, bottom), (right, top) = turned.min(axis=0), turned.max(axis=0)
    return float(left), float(bottom), float(right), float(top)


def _scene(kind: str, rng: np.random.Generator, labels: tuple[str, ...], creatures: tuple[Creature, ...]) -> Scene:
    backdrop = Backdrop(int(rng.integers(len(THEMES))), int(rng.integers(2**31)), float(rng.uniform(0.2, 1.0)))
    light = Light(
        angle=float(rng.uniform(0.15, 0.85) * np.pi),
        relief=float(rng.uniform(0.35, 0.7)),
        warmth=float(rng.uniform(-1, 1)),
        gain=float(rng.uniform(0.9, 1.12)),
        vignette=float(rng.uniform(0.0, 0.18)),
    )
    return Scene(kind, labels, creatures, backdrop, light, _occluders(rng, creatures))


def _occluders(rng: np.random.Generator, creatures: tuple[Creature, ...]) -> tuple[Occluder, ...]:
    """Grass, leaves and stones in front, none of which covers more than a third of the box of a diagnostic part."""
    guarded = [
        extent(creature, slot)
        for creature in creatures
        for slot in FAMILIES[creature.family].diagnostic
        if slot != "coat" and slot in creature.parts
    ]
    chosen: list[Occluder] = []
    for _ in range(int(rng.integers(0, 4))):
        form = ("grass", "leaf", "stone")[int(rng.integers(3))]
        size = float(rng.uniform(0.07, 0.14) * (1.5 if form == "grass" else 1.0))
        box = extent(creatures[int(rng.integers(len(creatures)))])
        x, y = float(rng.uniform(box[0], box[2])), float(rng.uniform(box[1] - 0.05, box[1] + 0.5 * (box[3] - box[1])))
        if form != "leaf":
            y = float(min(y, box[1] + 0.05))  # grass and stones lie at the feet
        if all(_share(part, (x - size, y - size, x + size, y + size)) < 0.33 for part in guarded):
            chosen.append(Occluder(form, x, y, size, int(rng.integers(2**31))))
    return tuple(chosen)


def _share(part: Cell, cover: Cell) -> float:
    width = min(part[2], cover[2]) - max(part[0], cover[0])
    height = min(part[3], cover[3]) - max(part[1], cover[1])
    return max(width, 0.0) * max(height, 0.0) / ((part[2] - part[0]) * (part[3] - part[1]))
