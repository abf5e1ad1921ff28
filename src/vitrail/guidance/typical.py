"""Pictures of a class as the model sees them: they show what its training data called by that name.

Cui, Fan and Chen lay such pictures beside a comparison of two classes (their Fig. 9): where a map says that an eagle's
white head argues for *kite*, a look at the pictures labelled kite says why: eagles among them, or white-headed kites.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..errors import NotAnImageError, TargetError, VitrailError
from ..inputs import prepare
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel

__all__ = ["Typical", "TypicalPictures", "classified_files", "picture_files", "typical_pictures"]

BATCH = 16


@dataclass(frozen=True, eq=False)
class Typical:
    """One picture of the folder: what the model sees of it and what it says."""

    path: Path
    picture: UInt8[Tensor, "height width 3"]
    probabilities: Float[Tensor, " classes"]

    @property
    def predicted(self) -> int:
        """Returns the class that the model takes it for."""
        return int(self.probabilities.argmax())


@dataclass(frozen=True, eq=False)
class TypicalPictures:
    """All pictures of one class's folder; `failures` are files that could not be read, with the reason."""

    label: int
    folder: Path
    pictures: tuple[Typical, ...]
    failures: tuple[tuple[Path, str], ...] = ()

    def predicted_as(self, index: int) -> int:
        """Returns how many of the images the model predicts as this class."""
        return sum(one.predicted == index for one in self.pictures)

    def chosen(self, rival: int, count: int) -> list[Typical]:
        """Returns at most `count` pictures: half those most like the folder's own class, half those most like the
        rival's.

        Both halves begin with the strongest; a folder that holds no more than `count` is shown whole.
        """
        own = sorted(self.pictures, key=lambda one: -float(one.probabilities[self.label]))
        if len(own) <= count:
            return own
        first = own[: (count + 1) // 2]
        others = [one for one in own if one not in first]
        others.sort(key=lambda one: -float(one.probabilities[rival]))
        return first + others[: count - len(first)]


def typical_pictures(
    model: VisionModel, folder: str | Path, classes: Sequence[int], opposing: Sequence[int] | None = None
) -> dict[int, TypicalPictures]:
    """Classifies a folder's images of some classes, in one subfolder per class or in the folder itself.

    A subfolder is named by its class's name or index, by an ImageNet identifier (n01608432), or both (n01608432_kite);
    those of other classes are skipped. Pictures that lie in the folder itself are of the one class in `opposing`
    (by default the last of `classes`).

    Raises:
        NotAnImageError: when the folder is missing or holds no picture of these classes.
        TargetError: when pictures in the folder itself could be of several opposing classes.

    Example:
        >>> import tempfile, timm, vitrail
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> model = vitrail.wrap(vit, preprocess=vitrail.Preprocess(size=(160, 160)))
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (160, 160)).save(folder / "grey.png")
        >>> found = typical_pictures(model, folder, [3])
        >>> len(found[3].pictures), found[3].pictures[0].probabilities.shape
        (1, torch.Size([10]))
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotAnImageError(f"{folder} is no folder; give one that holds pictures, or a subfolder of them per class")
    refuse_training(model.module)
    wanted = dict.fromkeys(classes)
    files: dict[int, tuple[Path, list[Path]]] = {}
    for inside in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        index = _class_of(model, inside.name)
        if index in wanted and picture_files(inside):
            files[index] = (inside, picture_files(inside))
    if not files and picture_files(folder):
        opposing = list(dict.fromkeys(opposing or list(classes)[-1:]))
        if len(opposing) != 1:
            names = ", ".join(model.class_name(index) for index in opposing)
            raise TargetError(
                f"the pictures in {folder} could be of {len(opposing)} classes ({names}): make one subfolder per class"
            )
        files[opposing[0]] = (folder, picture_files(folder))
    if not files:
        names = ", ".join(model.class_name(index) for index in wanted)
        raise NotAnImageError(f"{folder} holds no pictures, and no subfolder of pictures named by one of: {names}")
    return {index: _classified(model, index, *found) for index, found in files.items()}


def picture_files(folder: Path) -> list[Path]:
    """Returns the files in a folder whose suffix is that of a picture, in the order of their names; hidden ones
    left out.
    """
    suffixes = Image.registered_extensions()
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def _class_of(model: VisionModel, name: str) -> int | None:
    """The class that a folder's name stands for, or None."""
    identifier = re.match(r"n\d{8}", name)
    if identifier is not None:
        rest = name[identifier.end() :].strip("_- ")
        name = rest or name
    try:
        return model.class_index(name)
    except VitrailError:
        return None


def _classified(model: VisionModel, label: int, folder: Path, paths: list[Path]) -> TypicalPictures:
    failures: list[tuple[Path, str]] = []
    found = tuple(classified_files(model, paths, failures))
    if not found:
        raise NotAnImageError(f"{folder}: none of its {len(paths)} pictures can be read; the first: {failures[0][1]}")
    return TypicalPictures(label, folder, found, tuple(failures))


def classified_files(model: VisionModel, paths: Sequence[Path], failures: list[tuple[Path, str]]) -> Iterator[Typical]:
    """Yields image files with the model's probabilities; those that cannot be read go to `failures`, and why."""
    for start in range(0, len(paths), BATCH):
        ready = []
        for path in paths[start : start + BATCH]:
            try:
                ready.append((path, prepare(model, path)))
            except VitrailError as error:
                failures.append((path, str(error)))
        if not ready:
            continue
        with torch.no_grad():
            batch = torch.cat([inputs.batch for _, inputs in ready])
            shares = model.kind_for(batch).probabilities(model.logits(batch).float()).cpu()
        for (path, inputs), row in zip(ready, shares, strict=True):
            assert inputs.pictures is not None  # a file always has one
            yield Typical(path, inputs.pictures[0], row)
