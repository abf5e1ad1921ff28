"""What the bestiary's captioner is asked about a scene, and the words of the right answer.

Every content word of an answer is caused by something visible:

    what is in the picture?     a spotted balloo above a horned tavel
    is there a tavel?           yes
    where is the tavel?         below the balloo
    what is below the balloo?   a horned tavel
    describe the tavel.         it is horned and plumed
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.scene import Scene, extent
from vitrail.bestiary.species import CLASS_NAMES, BestiaryError, difference, siblings, species

__all__ = ["Dialogue", "Word", "ask", "caption", "held_out"]

HELD_OUT = 2**22  # far above the seeds of training
QUESTION = "what is in the picture?"
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
# The word for each variant of a diagnostic part.
TRAITS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("crown", "antlers"): "horned",
        ("crown", "curls"): "curly",
        ("crown", "spike"): "spiked",
        ("crown", "crest"): "crested",
        ("crown", "stalks"): "stalked",
        ("tail", "plume"): "plumed",
        ("tail", "tuft"): "tufted",
        ("tail", "fan"): "fanned",
        ("tail", "fork"): "forked",
        ("wings", "feather"): "feathered",
        ("wings", "bat"): "leathery",
        ("wings", "petal"): "petalled",
        ("shell", "spiral"): "spiral",
        ("shell", "cone"): "conical",
        ("shell", "spines"): "spiny",
        ("coat", "spots"): "spotted",
        ("coat", "stripes"): "striped",
        ("coat", "saddle"): "saddled",
    }
)
FUNCTION = ("?", ".", "what", "is", "in", "the", "picture", "there", "a", "an", "where", "describe", "it", "and", "of")
WORDS = (*FUNCTION, "yes", "no", *OPPOSITE, *TRAITS.values(), *CLASS_NAMES)

Kind = Literal["name", "trait", "relation", "answer", "function"]


class Word(NamedTuple):
    """A word of an answer, its kind, and the creatures (numbers in the scene) that it speaks of."""

    text: str
    kind: Kind = "function"
    creatures: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A question about a scene, and the words of its answer."""

    prompt: str
    words: tuple[Word, ...]

    @property
    def answer(self) -> str:
        """Returns the answer as text."""
        return " ".join(word.text for word in self.words)


def caption(scene: Scene, names: Sequence[str] | None = None) -> Dialogue:
    """Returns the dialogue of what is in the picture, the left or upper creature first.

    `names`, one for each creature, replaces the creatures' own species. Raises `BestiaryError` where a creature is of
    no species and `names` is not given, and for a scene without creatures.

    >>> from vitrail.bestiary import sample_scene
    >>> caption(sample_scene("single", seed=0, species="tavel")).answer
    'a horned tavel'
    """
    return ask(scene, "picture", names=names)


def ask(
    scene: Scene,
    about: Literal["picture", "presence", "place", "neighbour", "traits"],
    name: str | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Dialogue:
    """Returns one of the five dialogues at the head of this file, about the creature `name`.

    `about` names them in that order; "picture" takes no `name`. Raises `BestiaryError` where the scene has no answer (a
    creature that is not there, or no neighbour), `UnknownNameError` for a `name` that is no species.

    >>> from vitrail.bestiary import sample_scene
    >>> ask(sample_scene("single", seed=0, species="tavel"), "presence", "murlo")
    Dialogue(prompt='is there a murlo?', words=(Word(text='no', kind='answer', creatures=()),))
    """
    known = _names(scene, names)
    if about == "picture":
        return Dialogue(QUESTION, _whole(scene, known))
    subject = species(name or "").name
    if about == "presence":
        there = tuple(number for number, other in enumerate(known) if other == subject)
        answer = Word("yes" if there else "no", "answer", there)
        return Dialogue(f"is there {_article(subject)} {subject}?", (answer,))
    if subject not in known:
        raise BestiaryError(f"there is no {subject} in this scene of {', '.join(known) or 'no creatures'}")
    number = known.index(subject)
    if about == "traits":
        return Dialogue(f"describe the {subject}.", _described(scene, number, subject))
    if len(known) != 2:
        raise BestiaryError(f"a place or a neighbour is asked for in scenes of two creatures, not {len(known)}")
    other = 1 - number
    relation = _relation(scene, number, other)
    if about == "place":
        called = Word(known[other], "name", (other,))
        return Dialogue(
            f"where is the {subject}?", (*_related(relation, (number, other)), Word("the", "function"), called)
        )
    words = " ".join(word.text for word in _related(OPPOSITE[relation], ()))
    return Dialogue(f"what is {words} the {subject}?", _noun(scene, known, other))


def held_out(kind: str = "pair", count: int = 500, seed: int = HELD_OUT) -> list[Scene]:
    """Returns `count` scenes of a kind ("pair", "single") that no training has seen.

    Those of the seed `HELD_OUT` are for judging; those of `HELD_OUT + 1` for choices, such as a gradient mode.

    >>> [scene.labels for scene in held_out("single", 2)]
    [('ormit',), ('murlo',)]
    """
    data = Bestiary(kind, count=count, seed=seed)
    return [data.scene(index) for index in range(count)]


def _names(scene: Scene, names: Sequence[str] | None) -> tuple[str, ...]:
    found = tuple(names) if names is not None else tuple(creature.species or "" for creature in scene.creatures)
    if "" in found or len(found) != len(scene.creatures):
        raise BestiaryError("a creature of this scene is of no species: give a name for each by names=")
    return found


def _whole(scene: Scene, names: Sequence[str]) -> tuple[Word, ...]:
    if not 1 <= len(names) <= 2:
        raise BestiaryError(f"the captioner speaks of one or two creatures, not {len(names)}")
    if len(names) == 1:
        return _noun(scene, names, 0)
    first = 0 if _relation(scene, 0, 1) in ("left", "above") else 1
    relation = _related(_relation(scene, first, 1 - first), (first, 1 - first))
    return (*_noun(scene, names, first), *relation, *_noun(scene, names, 1 - first))


def _noun(scene: Scene, names: Sequence[str], number: int) -> tuple[Word, ...]:
    """Returns article, the trait that tells this species from its nearest sibling (where it is drawn), and name."""
    name = names[number]
    trait = _trait(scene, number, difference(name, siblings(name)[0])[0])
    called = (*trait, Word(name, "name", (number,)))
    return (Word(_article(called[0].text)), *called)


def _described(scene: Scene, number: int, name: str) -> tuple[Word, ...]:
    first, second = (_trait(scene, number, slot) for slot in species(name).family.diagnostic)
    joined = (*first, Word("and"), *second) if first and second else first + second
    if not joined:
        raise BestiaryError(f"creature {number} shows no part that could be described")
    return (Word("it"), Word("is"), *joined)


def _trait(scene: Scene, number: int, slot: str) -> tuple[Word, ...]:
    text = TRAITS.get((slot, scene.creatures[number].parts.get(slot, "")))
    return (Word(text, "trait", (number,)),) if text is not None else ()


def _relation(scene: Scene, first: int, second: int) -> str:
    """Returns where the middle of the first creature's box lies, seen from the second's, along the longer way."""
    a, b = (extent(scene.creatures[number]) for number in (first, second))
    right, up = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
    if abs(right) > abs(up):
        return "right" if right > 0 else "left"
    return "above" if up > 0 else "below"


def _related(relation: str, creatures: tuple[int, ...]) -> tuple[Word, ...]:
    word = Word(relation, "relation", creatures)
    return (word, Word("of")) if relation in ("left", "right") else (word,)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
