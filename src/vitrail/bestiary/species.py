"""Which creatures exist: the one table from which classes, siblings, chimeras and soft labels follow.

A family gives the body; two *diagnostic* slots distinguish its four species. With the slots X and Y the species are

    (x1, y1)   (x2, y1)   (x3, y2)   (x3, y3)

so the first two differ in X only, the last two in Y only, and any other two in both. Such a pair crosses into a chimera
(x1, y2) that is not a species. Families share variants, and an exchange can give any family any variant of its slots,
so a part without its body says nothing certain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import combinations, permutations
from types import MappingProxyType
from typing import NoReturn

import numpy as np
from jaxtyping import Float

from vitrail.errors import VitrailError

# Every variant of every slot. Slots that are not diagnostic in a family are drawn at random, whatever the species.
VARIANTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "crown": ("antlers", "curls", "spike", "crest", "stalks"),
        "tail": ("plume", "tuft", "fan", "fork"),
        "wings": ("feather", "bat", "petal"),
        "shell": ("spiral", "cone", "spines"),
        "coat": ("plain", "spots", "stripes", "saddle"),
        "head": ("round", "long"),
        "legs": ("slender", "stout"),
        "eyes": ("open", "sleepy"),
        "body": ("strider", "flutter", "creeper", "coiler", "drifter"),
    }
)
MISMATCH = 0.02  # likelihood of a part that contradicts a species, in the soft labels of `posterior`


@dataclass(frozen=True)
class Family:
    """A body plan: its slots in alphabetical order, and the two diagnostic ones."""

    name: str
    slots: tuple[str, ...]
    diagnostic: tuple[str, str]

    def __post_init__(self) -> None:
        if any(slot not in self.slots for slot in self.diagnostic):
            raise ImpossibleCreatureError(f"the diagnostic slots of {self.name} are not all among its slots")


@dataclass(frozen=True)
class Species:
    """A class of the bestiary: a family and the variants of its two diagnostic slots."""

    name: str
    family: Family
    traits: tuple[str, str]

    @cached_property
    def parts(self) -> Mapping[str, str]:
        """Returns the body and the diagnostic slots with the variant that this species must have."""
        return MappingProxyType(
            {"body": self.family.name, **dict(zip(self.family.diagnostic, self.traits, strict=True))}
        )


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("strider", ("body", "coat", "crown", "eyes", "head", "legs", "tail"), ("crown", "tail")),
            Family("flutter", ("body", "coat", "crown", "eyes", "head", "legs", "tail", "wings"), ("crown", "tail")),
            Family("creeper", ("body", "coat", "crown", "eyes", "head", "shell"), ("shell", "crown")),
            Family("coiler", ("body", "coat", "eyes", "head", "tail", "wings"), ("wings", "tail")),
            Family("drifter", ("body", "coat", "eyes", "legs", "wings"), ("coat", "wings")),
        )
    }
)
SPECIES: Mapping[str, Species] = MappingProxyType(
    {
        name: Species(name, FAMILIES[family], (first, second))
        for name, family, first, second in (
            ("tavel", "strider", "antlers", "plume"),
            ("borrin", "strider", "curls", "plume"),
            ("zelk", "strider", "spike", "tuft"),
            ("fenna", "strider", "spike", "fan"),
            ("pipkin", "flutter", "crest", "fork"),
            ("quillow", "flutter", "stalks", "fork"),
            ("jubb", "flutter", "spike", "fan"),
            ("tweel", "flutter", "spike", "plume"),
            ("murlo", "creeper", "spiral", "stalks"),
            ("konka", "creeper", "cone", "stalks"),
            ("spindrel", "creeper", "spines", "antlers"),
            ("oozel", "creeper", "spines", "curls"),
            ("lindle", "coiler", "feather", "tuft"),
            ("vesk", "coiler", "bat", "tuft"),
            ("ormit", "coiler", "petal", "fork"),
            ("skarn", "coiler", "petal", "fan"),
            ("balloo", "drifter", "spots", "petal"),
            ("wumple", "drifter", "stripes", "petal"),
            ("nimbo", "drifter", "saddle", "feather"),
            ("drola", "drifter", "saddle", "bat"),
        )
    }
)
CLASS_NAMES: tuple[str, ...] = tuple(SPECIES)
PARTS: tuple[str, ...] = tuple(sorted(VARIANTS))


def species(name: str) -> Species:
    """Looks up a species by name; `UnknownNameError` lists the known names.

    >>> species("tavel").parts["crown"]
    'antlers'
    """
    return SPECIES[name] if name in SPECIES else refuse_name("species", name, CLASS_NAMES)


def check_parts(family: str, parts: Mapping[str, str]) -> None:
    """Refuses parts that a creature of `family` cannot have (`UnknownNameError`, `ImpossibleCreatureError`)."""
    if family not in FAMILIES:
        refuse_name("family", family, tuple(FAMILIES))
    for slot, variant in parts.items():
        if slot not in VARIANTS:
            refuse_name("part", slot, PARTS)
        if slot not in FAMILIES[family].slots:
            raise ImpossibleCreatureError(
                f"a {family} has no {slot}; its parts are {', '.join(FAMILIES[family].slots)}"
            )
        if variant not in VARIANTS[slot]:
            refuse_name(f"variant of {slot}", variant, VARIANTS[slot])
    if parts.get("body", family) != family:
        raise ImpossibleCreatureError(f"a {family} cannot have the body of a {parts['body']}: choose another species")


def difference(first: str, second: str) -> tuple[str, ...]:
    """Returns the diagnostic slots in which two siblings differ (one or two of them).

    >>> difference("tavel", "borrin")
    ('crown',)
    """
    a, b = species(first), species(second)
    if a.family is not b.family:
        raise ImpossibleCreatureError(f"{first} (a {a.family.name}) and {second} (a {b.family.name}) are no siblings")
    return tuple(slot for slot in a.family.diagnostic if a.parts[slot] != b.parts[slot])


def siblings(name: str) -> tuple[str, ...]:
    """Returns the other species of the same family, nearest first."""
    others = [other for other in CLASS_NAMES if other != name and SPECIES[other].family is species(name).family]
    return tuple(sorted(others, key=lambda other: len(difference(name, other))))


def sufficient(name: str) -> tuple[frozenset[str], ...]:
    """Returns the smallest sets of required parts that no other species has all of: each alone tells this one.

    >>> [sorted(parts) for parts in sufficient("tavel")]
    [['body', 'crown'], ['crown', 'tail']]
    """
    own, others = set(species(name).parts.items()), [set(one.parts.items()) for one in SPECIES.values()]
    telling = [
        set(some)
        for count in range(1, len(own) + 1)
        for some in combinations(sorted(own), count)
        if sum(other.issuperset(some) for other in others) == 1
    ]
    least = [some for some in telling if not any(other < some for other in telling)]
    return tuple(frozenset(slot for slot, _ in some) for some in least)


def crossings() -> tuple[tuple[str, str], ...]:
    """Returns all ordered sibling pairs (A, B) that differ in both slots: a chimera has A's first slot and B's
    second.
    """
    return tuple(
        pair
        for family in FAMILIES.values()
        for pair in permutations([name for name in CLASS_NAMES if SPECIES[name].family is family], 2)
        if len(difference(*pair)) == 2
    )


def posterior(parts: Mapping[str, str]) -> Float[np.ndarray, " classes"]:
    """Returns each class's probability given the drawn parts of a creature; they sum to one.

    Each required part of a class multiplies its likelihood by 1 when it is there, by `MISMATCH` when another variant is
    in its place, and by the square root of `MISMATCH` when it is not drawn, so that evidence adds up in the logit.
    """
    drawn = set(parts)
    log_likelihood = np.zeros(len(CLASS_NAMES))
    for index, candidate in enumerate(SPECIES.values()):
        for slot, variant in candidate.parts.items():
            if slot not in drawn:
                log_likelihood[index] += 0.5 * np.log(MISMATCH)
            elif parts[slot] != variant:
                log_likelihood[index] += np.log(MISMATCH)
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    return likelihood / likelihood.sum()


class BestiaryError(VitrailError):
    """Base of every error of the bestiary."""


class UnknownNameError(BestiaryError, ValueError):
    """A species, family, part, variant, kind or creature that does not exist."""


class ImpossibleCreatureError(BestiaryError, ValueError):
    """A combination of parts that no creature can have."""


def refuse_name(what: str, name: object, known: tuple[str, ...]) -> NoReturn:
    """Raises `UnknownNameError` for `name`, with the known names and the nearest one."""
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"unknown {what} {name!r}; known: {', '.join(known)}.{hint}")
