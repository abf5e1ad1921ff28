"""What is asked of each image: target classes and the classes they are held against, by name or index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .errors import SameClassError, TargetCountError, TargetError

__all__ = ["HasClasses", "Targets", "Wanted", "pair_up", "parse_targets", "predicted", "refuse_same"]

Wanted: TypeAlias = str | int | Tensor | np.ndarray | Sequence[Any] | None


@runtime_checkable
class HasClasses(Protocol):
    """Whatever knows its classes by name: a model of pictures, of text, of both."""

    def class_index(self, name_or_index: Any, count: int | None = None) -> int:
        """The index of a class given by name or by index; raises the errors of `vitrail.models.class_names`."""
        ...

    def class_name(self, index: int) -> str:
        """What that class is called."""
        ...


@dataclass(frozen=True, eq=False)
class Targets:
    """Class indices for each image; `nested` says that several per image were asked for, so results keep that axis."""

    index: Int[Tensor, "images targets"]
    nested: bool

    def __getitem__(self, images: slice) -> "Targets":
        return Targets(self.index[images], self.nested)


def parse_targets(
    model: HasClasses, wanted: Wanted, images: int, classes: int | None = None, name: str = "target"
) -> Targets | None:
    """Read a target as users give it: one for all images, a list (one per image), a nested list (several per image).

    `classes` is the number of logits, where known. Returns None for None: the predicted class, known only after the
    forward pass.

    Raises:
        TargetCountError: when the numbers of targets and images disagree.
        UnknownClassError, AmbiguousClassError: from the model's class names.
        TargetError: for something that is no class.

    Example:
        >>> import vitrail
        >>> model = vitrail.wrap(torch.nn.Identity(), class_names=("horse", "zebra"))
        >>> parse_targets(model, "zebra", images=2).index.tolist()
        [[1], [1]]
        >>> parse_targets(model, [["zebra", "horse"]], images=1).index.tolist()
        [[1, 0]]
    """
    if wanted is None:
        return None
    if isinstance(wanted, Tensor | np.ndarray):
        wanted = wanted.tolist()
    if isinstance(wanted, str | int | np.integer):
        return Targets(torch.tensor([[_class_index(model, wanted, classes, name)]] * images), nested=False)
    if not isinstance(wanted, Sequence):
        raise TargetError(
            f"{name}={wanted!r} is no class: give a name, an index, a list of one per image, or a nested list"
        )
    if len(wanted) != images:
        remedy = f"; for several targets of one image nest them: {name}=[[…]]" if images == 1 else ""
        raise TargetCountError(f"{name} lists {len(wanted)} for {images} image(s): give one per image{remedy}")
    nested = [isinstance(item, Sequence) and not isinstance(item, str) for item in wanted]
    if not any(nested):
        return Targets(torch.tensor([[_class_index(model, item, classes, name)] for item in wanted]), nested=False)
    if not all(nested):
        raise TargetCountError(f"{name} mixes single classes with lists: give a list for every image, or for none")
    counts = sorted({len(item) for item in wanted})
    if len(counts) > 1 or counts[0] == 0:
        raise TargetCountError(
            f"{name} lists {' and '.join(map(str, counts))} targets for different images: give each as many"
        )
    return Targets(
        torch.tensor([[_class_index(model, one, classes, name) for one in item] for item in wanted]), nested=True
    )


def pair_up(target: Targets | None, against: Targets | None) -> tuple[Targets | None, Targets | None]:
    """Give every target a class it is held against: one for all of an image's targets, or as many as there are targets.

    Raises:
        TargetCountError: when the two lists differ in length.
    """
    if against is None:
        return target, None
    targets = 1 if target is None else target.index.shape[1]
    others = against.index.shape[1]
    if targets == others:
        nested = against.nested or (target is not None and target.nested)
        return (target and Targets(target.index, nested)), Targets(against.index, nested)
    if others == 1 and target is not None:
        return target, Targets(against.index.expand(-1, targets), target.nested)
    if targets == 1 and target is not None:
        return Targets(target.index.expand(-1, others), True), against
    raise TargetCountError(
        f"{targets} target(s) per image are held against {others}: give one class against, or as many"
    )


def refuse_same(model: HasClasses, target: Targets | None, against: Targets | None, *, chosen: bool = False) -> None:
    """Refuse a class that is held against itself; `chosen` says that the targets are the model's predictions.

    Raises:
        SameClassError: naming the class, and the first image for which it is so.
    """
    if target is None or against is None:
        return
    same = (target.index == against.index).nonzero()
    if len(same):
        image, column = same[0].tolist()
        index = int(target.index[image, column])
        why = " (the predicted class)" if chosen else ""
        which = f", image {image}," if len(target.index) > 1 else ""
        rest = "is held against itself: give two different classes"
        error = SameClassError(f"{model.class_name(index)} ({index}){why}{which} {rest}")
        error.images, error.cause = tuple(same[:, 0].unique().tolist()), f"the class{why} {rest}"
        raise error


def predicted(logits: Tensor) -> Targets:
    """The class with the largest logit."""
    return Targets(logits.argmax(dim=1, keepdim=True), nested=False)


def _class_index(model: HasClasses, wanted: Any, classes: int | None, name: str) -> int:
    if isinstance(wanted, bool) or not isinstance(wanted, str | int | np.integer):
        raise TargetError(f"{name}={wanted!r} ({type(wanted).__name__}) is no class: give a name or an index")
    return model.class_index(wanted, classes)
