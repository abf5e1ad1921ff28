"""The built-in world as data: scenes whose every part is known, drawn when asked for."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from PIL import Image

from vitrail.bestiary import CLASS_NAMES, FAMILIES, SPECIES, Bestiary, Rendered, Scene, render
from vitrail.bestiary.species import sufficient
from vitrail.datasets.base import Content, Sample, Source
from vitrail.datasets.label_resolver import LabelResolver
from vitrail.errors import DataError
from vitrail.metrics.protocol import Parts

__all__ = ["KINDS", "Creatures"]

KINDS = ("single", "pair", "chimera")
COUNT = 200
SIZE = 96  # pixels, where the model does not tell
FIRST_SEED = 2**22  # far from the seeds of training pools, of measured accuracy and of the scores


class Creatures(Source):
    """`count` scenes of one kind at `size` pixels: the class, box and silhouette of the first creature, and regions.

    The regions of a pair are its two creatures; those of a chimera, the one part that speaks for either class. A single
    has parts.

    Raises:
        DataError: for an unknown kind, a count below 1, or a model of other classes.
    """

    def __init__(
        self, classes: LabelResolver, kind: str = "single", count: int = COUNT, size: int = SIZE, seed: int = 0
    ):
        if kind not in KINDS:
            raise DataError(f"bestiary:{kind} is no kind of scene; choose one of {', '.join(KINDS)}")
        if count < 1:
            raise DataError(f"bestiary:{kind}:{count} holds no scene; give a count of at least 1")
        known = classes.match(CLASS_NAMES)
        self.classes = {name: index for name, index in zip(CLASS_NAMES, known, strict=True) if index is not None}
        if len(self.classes) < len(CLASS_NAMES):
            raise DataError(
                f"the model knows {len(self.classes)} of the bestiary's {len(CLASS_NAMES)} classes; "
                "use it with the model bestiary, or one trained on it"
            )
        self.kind, self.pixels, self.notes = kind, size, list[str]()
        self.data = Bestiary(kind, size=size, count=count, seed=FIRST_SEED + seed)
        self.annotations = frozenset({"label", "boxes", "mask", "parts" if kind == "single" else "regions"})
        self.labels = [self.classes[self.data.scene(index).labels[0]] for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def source(self, index: int) -> str:
        return f"{self.kind}-{index:06d}"

    def label(self, index: int) -> int | None:
        return self.labels[index]

    def content(self, index: int) -> Content:
        return str(self.data.scene(index)), str(self.pixels)

    def sample(self, index: int) -> Sample:
        scene = self.data.scene(index)
        drawn = render(scene, self.pixels)
        first, box = drawn.creatures[0], drawn.creatures[0].box
        return Sample(
            picture=Image.fromarray(drawn.image),
            label=self.labels[index],
            boxes=[(float(box[0]), float(box[1]), float(box[2]), float(box[3]))] if first.mask.any() else None,
            mask=first.mask if first.mask.any() else None,
            regions={self.classes[name]: region for name, region in _regions(scene, drawn).items() if region.any()},
            parts=partial(_parts, scene, drawn, self.classes) if self.kind == "single" else None,
        )


def _parts(scene: Scene, drawn: Rendered, classes: Mapping[str, int]) -> Parts[np.ndarray, Image.Image]:
    size, (view,) = len(drawn.image), drawn.creatures
    things = {}
    for number in range(scene.things()):
        changed = (render(scene.without_thing(number), size).image != drawn.image).any(axis=2)
        if changed.any():
            things[f"thing {number}"] = changed

    def draw(names: frozenset[str]) -> Image.Image:
        left = scene
        # The foremost thing first: those that remain keep their numbers.
        for name in sorted(names & things.keys(), key=lambda name: -int(name.split()[1])):
            left = left.without_thing(int(name.split()[1]))
        for slot in names - things.keys():
            left = left.without(0, slot)
        return Image.fromarray(render(left, size).image)

    shown, (name,) = set(scene.creatures[0].parts.items()), scene.labels
    return Parts(
        masks={slot: mask for slot, mask in view.parts.items() if mask.any()},
        things=things,
        draw=draw,
        shared={
            classes[other.name]: frozenset(slot for slot, _ in shown & set(other.parts.items()))
            for other in SPECIES.values()
            if other.name != name
        },
        sufficient=sufficient(name),
    )


def _regions(scene: Scene, drawn: Rendered) -> dict[str, np.ndarray]:
    if scene.kind == "pair":
        return {name: view.mask for name, view in zip(scene.labels, drawn.creatures, strict=True)}
    if scene.kind == "chimera":
        (view,), slots = drawn.creatures, FAMILIES[scene.creatures[0].family].diagnostic
        return {name: view.parts[slot] for name, slot in zip(scene.labels, slots, strict=True) if slot in view.parts}
    return {}
