"""The photographs that a figure needs, found by class through the model, and the bestiary's scenes in their place.

A figure asks for kinds ("zebra", "elephant", …), which are classes of ImageNet or creatures of the bestiary. A file's
name is a hint, asked only for pictures that are labelled with a class and not recognised as one of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..bestiary import CLASS_NAMES, render, sample_scene
from ..errors import ExperimentError, UnknownClassError
from ..files import atomic_write, writable_folder
from ..guidance.typical import TypicalPictures, classified_files
from ..models.vision_model import VisionModel
from ..outputs import percent
from .perturbation import labels_by_name

__all__ = ["BESTIARY", "IMAGENET", "Album", "Choice", "draw_scenes", "is_bestiary"]

# The classes of each kind, the paper's own first. Any of them will do in a photograph.
IMAGENET: Mapping[str, tuple[str, ...]] = {
    "zebra": ("zebra",),
    "elephant": ("tusker", "African elephant", "Indian elephant"),
    "cat": ("tiger cat", "tabby", "Egyptian cat"),
    "dog": ("bull mastiff", "boxer"),
    "snail": ("snail",),
    "conch": ("conch",),
    "slug": ("slug",),
    "eagle": ("bald eagle",),
    "kite": ("kite",),
}
# Siblings stand for what is hard to tell apart: tavel and borrin differ in the crown alone, murlo and konka in the
# shell, and the model with planted label errors takes the first two for each other.
BESTIARY: Mapping[str, tuple[str, ...]] = {
    "zebra": ("wumple",),
    "elephant": ("zelk",),
    "cat": ("quillow",),
    "dog": ("lindle",),
    "snail": ("murlo",),
    "conch": ("konka",),
    "slug": ("spindrel",),
    "eagle": ("tavel",),
    "kite": ("borrin",),
}
AMONG = 5  # best classes of a photograph of two kinds in which the second must be
EACH, PAIRS = 3, 8  # scenes of each creature, and of each pair of creatures
TYPICAL = 3


@dataclass(frozen=True)
class Choice:
    """A photograph, the class that it shows of each kind asked for, and why it was taken."""

    path: Path
    classes: Mapping[str, int]
    reason: str


@dataclass(frozen=True, eq=False)
class Album:
    """Photographs with the model's probabilities of each."""

    model: VisionModel
    kinds: Mapping[str, tuple[int, ...]]
    paths: tuple[Path, ...]
    probabilities: Float[Tensor, "photographs classes"]
    places: str  # where they were looked for

    @classmethod
    def of(
        cls,
        model: VisionModel,
        files: Sequence[Path],
        places: str,
        report: Callable[[str, int, int], object] = lambda *_: None,
    ) -> "Album":
        """Classifies photographs found in `places`; files that cannot be read are skipped.

        Raises:
            ExperimentError: where there is none, or the model lacks the classes of the figures.
        """
        kinds = {}
        for kind, names in (BESTIARY if is_bestiary(model) else IMAGENET).items():
            try:
                kinds[kind] = tuple(model.class_index(name) for name in names)
            except UnknownClassError as error:
                raise ExperimentError(
                    f"{model.name} has no class {names[0]!r}, by which the paper's photographs are found: give a "
                    "figure its images by hand, with their classes as targets="
                ) from error
        found = []
        for number, one in enumerate(classified_files(model, files, [])):
            found.append((one.path, one.probabilities))
            report("photographs looked at", number + 1, len(files))
        if not found:
            raise ExperimentError(f"no photograph in {places} can be read: name a folder of image files")
        paths, rows = zip(*found, strict=True)
        return cls(model, kinds, paths, torch.stack(rows), places)

    def showing(self, *kinds: str) -> Choice:
        """Returns the photograph that shows one kind, or two, most surely.

        A photograph shows a kind where the predicted class is of it. It shows two where the predicted class is of one
        and a class of the other is among the five best; of these the one counts whose less probable kind is the most
        probable.

        Raises:
            ExperimentError: where there is none, saying which comes nearest and what to do.
        """
        best = self.probabilities.topk(min(AMONG, self.probabilities.shape[1])).indices
        sure = torch.stack([self.probabilities[:, list(self.kinds[kind])].amax(dim=1) for kind in kinds])
        holds = [torch.isin(best, torch.tensor(self.kinds[kind])) for kind in kinds]
        right = torch.stack([held.any(dim=1) for held in holds]).all(dim=0)
        right &= torch.stack([held[:, 0] for held in holds]).any(dim=0)
        worth = sure.amin(dim=0)
        place = int(torch.where(right, worth, -1).argmax())
        if not right.any():
            place = int(worth.argmax())
            names = " and ".join("/".join(map(self._name, self.kinds[kind])) for kind in kinds)
            rule = "is predicted as" if len(kinds) == 1 else f"has among its {AMONG} best classes, one of them first,"
            raise ExperimentError(
                f"no photograph of {len(self.paths)} in {self.places} {rule} {names}; nearest comes "
                f"{self.paths[place].name} ({self._said(place, 2)}). Put one that {self.model.name} recognises there, "
                f"or give the figure its image by hand, with targets= and against="
            )
        classes = {}
        for kind in kinds:
            index = torch.tensor(self.kinds[kind])
            classes[kind] = int(index[self.probabilities[place, index].argmax()])
        others = f", the surest of {int(right.sum())}" if right.sum() > 1 else ""
        said = ", ".join(
            f"{self._name(one)} {percent(float(self.probabilities[place, one]))}" for one in classes.values()
        )
        return Choice(self.paths[place], classes, f"{self.paths[place].name}: {said}{others}")

    def typical(self, kind: str) -> tuple[TypicalPictures, str]:
        """Returns pictures of a kind, the surest first, and why they were taken.

        They have at least half of the probability; where none has, the surest alone. Where the model recognises none,
        those count that are labelled so by folder or file name: what a label says is what such pictures are for.

        Raises:
            ExperimentError: where there is none of either.
        """
        label, name = self.kinds[kind][0], self._name(self.kinds[kind][0])
        found = self.probabilities[:, label]
        predicted = self.probabilities.argmax(dim=1) == label
        order = [place for place in found.argsort(descending=True).tolist() if predicted[place]]
        sure = [place for place in order if found[place] >= 0.5]
        chosen = [self.paths[place] for place in sure[:TYPICAL] or order[:1]]
        why = "predicted"
        if not chosen:
            chosen = [path for path, index in labels_by_name(self.model, self.paths).items() if index == label][
                :TYPICAL
            ]
            why = "labelled, not predicted"
        if not chosen:
            raise ExperimentError(
                f"no photograph of {len(self.paths)} in {self.places} is predicted as, or named, {name}: give pictures "
                f"of it by hand with typical=, and the figure its image"
            )
        pictures = TypicalPictures(label, chosen[0].parent, tuple(classified_files(self.model, chosen, [])))
        return pictures, f"{name}: {', '.join(path.name for path in chosen)} ({why})"

    def _name(self, index: int) -> str:
        return self.model.class_name(index)

    def _said(self, place: int, count: int) -> str:
        best = self.probabilities[place].topk(count)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return ", ".join(f"{self._name(index)} {percent(value)}" for index, value in pairs)


def is_bestiary(model: VisionModel) -> bool:
    """Returns whether a model knows the creatures of the bestiary, whose scenes then serve as photographs."""
    return model.class_names == CLASS_NAMES


def draw_scenes(folder: Path, report: Callable[[str, int, int], object] = lambda *_: None, size: int = 96) -> Path:
    """Draws scenes of each creature, and of the pairs that figures ask for, into a folder; those there already stay."""
    kinds = {kind: names[0] for kind, names in BESTIARY.items()}
    wanted = [("single", name, number) for name in CLASS_NAMES for number in range(EACH)]
    pairs = ((kinds["elephant"], kinds["zebra"]), (kinds["cat"], kinds["dog"]))
    wanted += [("pair", pair, number) for pair in pairs for number in range(PAIRS)]
    for count, (kind, species, number) in enumerate(wanted):
        report("scenes drawn", count + 1, len(wanted))
        name = species if isinstance(species, str) else " and ".join(species)
        path = writable_folder(folder / name) / f"{name.replace(' ', '-')}-{number}.png"
        if not path.exists():
            scene = sample_scene(kind, seed=(1, number), species=species)
            with atomic_write(path) as file:
                Image.fromarray(np.asarray(render(scene, size).image)).save(file, format="png")
    return folder
