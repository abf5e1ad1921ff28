"""Scenes as immutable parameters: everything that `render` needs and nothing that it decides.

An intervention changes one entry of one creature and leaves every other random choice as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from vitrail.bestiary.anatomy import Pose
from vitrail.bestiary.colour import Palette
from vitrail.bestiary.errors import ImpossibleCreatureError, UnknownNameError
from vitrail.bestiary.species import CLASS_NAMES, FAMILIES, SPECIES, check_parts, posterior


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
        """The variant of each part that is drawn."""
        return MappingProxyType(dict(self.drawn))

    @property
    def species(self) -> str | None:
        """The class whose every required part this creature has, if there is one."""
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
    """The landscape: one of the themes, the seed of its layout, and how much grows there (0 to 1)."""

    theme: int = 0
    seed: int = 0
    clutter: float = 0.6


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
        """The very same scene with one part of one creature not drawn (the whole creature if `part` is None).

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

    def exchange(self, creature: int, part: str, variant: str) -> "Scene":
        """The very same scene with one part of one creature in another variant.

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
        """Soft label: the mean over creatures of what their drawn parts say (`posterior`); uniform when empty."""
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
