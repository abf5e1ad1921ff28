"""Scenes as a data set: item `index` depends on the seed and the index alone, whatever the order and the workers."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from vitrail.bestiary.draw import Rendered, render
from vitrail.bestiary.scene import KINDS, Scene, sample_scene
from vitrail.bestiary.species import CLASS_NAMES, PARTS, BestiaryError, difference, posterior, refuse_name, species


@dataclass(frozen=True)
class LabelErrors:
    """Planted label errors: of the images labelled `label`, the given share really shows its sibling `shows`.

    `hidden` is the share of the images truly labelled `shows` in which the part that distinguishes the two is not drawn
    (as young bald eagles have no white head). Only when `share + hidden > 1` does that part, by the labels, argue *for*
    the wrong class: otherwise it is still seen more often under its own name. Raises `UnknownNameError`,
    `ImpossibleCreatureError` (no siblings) or `BestiaryError` (a share outside [0, 1], siblings two parts apart).

    >>> LabelErrors().label, LabelErrors().shows, LabelErrors().part
    ('borrin', 'tavel', 'crown')
    """

    label: str = "borrin"
    shows: str = "tavel"
    share: float = 0.7
    hidden: float = 0.6

    def __post_init__(self) -> None:
        if len(difference(self.label, self.shows)) != 1:
            raise BestiaryError(f"{self.label} and {self.shows} do not differ in exactly one part")
        for share in (self.share, self.hidden):
            if not 0 <= share <= 1:
                raise BestiaryError(f"a share of images must lie in [0, 1], not {share}")

    @property
    def part(self) -> str:
        """Returns the one part that distinguishes the two species."""
        return difference(self.label, self.shows)[0]

    def shown(self, name: str, rng: np.random.Generator) -> tuple[str, str | None]:
        """Returns the species to draw for a label, and the part to leave out."""
        chance = rng.uniform()
        if name == self.label and chance < self.share:
            return self.shows, None
        return name, self.part if name == self.shows and chance < self.hidden else None


class Bestiary(Dataset[dict[str, Tensor]]):
    """`count` scenes of one kind at `size` pixels, drawn when asked for.

    An item holds `image` (float32, (3, size, size), in [0, 1]), `label` (int64, () for one class and (2,) for pairs and
    chimeras) and `target` (float32, (classes,), the soft label of `Scene.evidence`, or the label's own where wrong);
    with `masks=True` also `masks` (bool, (creatures, parts, size, size), in the order of `PARTS`) and `boxes` (int64,
    (creatures, 4): left, top, right, bottom, half open). Raises `UnknownNameError` for an unknown kind and
    `BestiaryError` for a negative count or label errors among scenes other than singles.

    >>> data = Bestiary("pair", count=10, seed=1)
    >>> data[3]["image"].shape, data[3]["label"].shape
    (torch.Size([3, 96, 96]), torch.Size([2]))
    """

    def __init__(
        self,
        kind: str = "single",
        size: int = 96,
        count: int = 1000,
        seed: int = 0,
        *,
        masks: bool = False,
        label_errors: LabelErrors | None = None,
    ) -> None:
        if kind not in KINDS:
            refuse_name("kind of scene", kind, tuple(KINDS))
        if count < 0:
            raise BestiaryError(f"a data set cannot hold {count} scenes")
        if label_errors is not None and kind != "single":
            raise BestiaryError(f"label errors can be planted among single scenes only, not {kind} scenes")
        self.kind, self.size, self.count, self.seed = kind, size, count, seed
        self.masks, self.label_errors = masks, label_errors

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = self.scene(index)
        drawn = render(scene, self.size)
        label = torch.tensor([CLASS_NAMES.index(name) for name in scene.labels])
        item = {
            "image": torch.from_numpy(drawn.image).permute(2, 0, 1).float() / 255,
            "label": label if len(scene.labels) > 1 else label[0],
            "target": torch.from_numpy(soft_label(scene, self.label_errors)).float(),
        }
        if self.masks:
            item["masks"] = torch.from_numpy(part_masks(drawn))
            item["boxes"] = torch.tensor([view.box for view in drawn.creatures])
        return item

    def scene(self, index: int) -> Scene:
        """Returns the scene of an item, for interventions and other sizes; `IndexError` outside the data set.

        A planted label error shows in a scene whose `labels` are not the species of its creature.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count} scenes")
        rng = np.random.default_rng((self.seed, index))
        if self.kind != "single":
            return sample_scene(self.kind, rng)
        # The errors have a generator of their own, so that all other images are those of the clean data set.
        name, omitted = CLASS_NAMES[int(rng.integers(len(CLASS_NAMES)))], None
        shown = name
        if self.label_errors is not None:
            shown, omitted = self.label_errors.shown(name, np.random.default_rng((self.seed, index, 1)))
        scene = replace(sample_scene(self.kind, rng, species=shown), labels=(name,))
        return scene if omitted is None else scene.without(0, omitted)


def soft_label(scene: Scene, label_errors: LabelErrors | None = None) -> Float[np.ndarray, " classes"]:
    """Returns the soft label of the drawn parts or, where labels may be wrong, that of the label's two species."""
    if label_errors is not None and scene.labels[0] in (label_errors.label, label_errors.shows):
        return posterior(species(scene.labels[0]).parts)
    return scene.evidence()


def part_masks(drawn: Rendered) -> Bool[np.ndarray, "creatures parts height width"]:
    """Returns the masks of all parts in the order of `PARTS`, empty where a creature has no such part."""
    height, width, _ = drawn.image.shape
    masks = np.zeros((len(drawn.creatures), len(PARTS), height, width), dtype=bool)
    for number, view in enumerate(drawn.creatures):
        for slot, mask in view.parts.items():
            masks[number, PARTS.index(slot)] = mask
    return masks
