"""Class against class: which details of one image make it the one class rather than the other, and the reverse.

Cui, Fan and Chen call this internal guidance: the second class is in no picture but in the model's head, and the loss
compares the two logits (Eq. 8). Red argues for the first class, blue for the second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attribution import attribute
from ..errors import OptionError, SameClassError, TargetError
from ..explanation import Explanation
from ..inputs import ImagesLike, prepare
from ..models import wrap
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel
from ..objectives import OBJECTIVES, check_objective, evaluate_objective
from ..outputs import Output
from ..targets import Wanted, as_lists, predicted

__all__ = ["LOSSES", "Detail", "detail", "ordered", "top_pairs"]

# Eq. 7 of each class alone, Eq. 8, and the two other forms that the paper allows.
LOSSES = ("logit", "normalized_difference", "difference", "ratio")

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Detail:
    """The maps of one image for pairs of classes, under several losses, each pair both ways.

    `maps` holds one explanation per loss, of one image and several targets: for `logit` the classes of all pairs, each
    once; for the comparing losses every pair as given, each followed by its reverse. `pairs` are class indices.
    """

    pairs: tuple[Pair, ...]
    maps: Mapping[str, Explanation]

    @property
    def losses(self) -> tuple[str, ...]:
        """Returns the losses that were asked for, in order."""
        return tuple(self.maps)

    @property
    def logits(self) -> Float[Tensor, " classes"]:
        """Returns the model's logits of the image."""
        return next(iter(self.maps.values())).logits[0]

    @property
    def output(self) -> Output:
        """Returns the kind of the model's output."""
        return next(iter(self.maps.values())).output

    def view(self, loss: str, target: int, against: int) -> Explanation:
        """Returns one map: an explanation of one image and one question, with the notes of this question.

        Raises:
            TargetError: for a pair that was not asked.
            OptionError: for a loss that was not asked.
        """
        if loss not in self.maps:
            raise OptionError(f"loss {loss!r} was not asked for; there are {', '.join(self.maps)}")
        ex = self.maps[loss]
        compares = ex.against is not None
        others: list[int | None] = ex.against[0].tolist() if ex.against is not None else [None] * ex.targets
        questions: list[tuple[int, int | None]] = list(zip(ex.target[0].tolist(), others, strict=True))
        question = (target, against if compares else None)
        if question not in questions or (target, against) not in ordered(self.pairs):
            raise TargetError(f"class {target} against {against} was not asked for; there are {list(self.pairs)}")
        at = questions.index(question)
        instead = compares and ex.provenance.difference_instead[0][at]
        note = f"A logit is not above zero, where {loss} means nothing: the difference is shown."
        notes = ((note,) if instead else (),)
        return replace(
            ex,
            scores=ex.scores[:, at],
            target=ex.target[:, at],
            against=None if ex.against is None else ex.against[:, at],
            rivals=None if ex.rivals is None else ex.rivals.of_target(at),
            provenance=replace(ex.provenance, image_notes=notes, difference_instead=((instead,),)),
        )

    def value(self, loss: str, target: int, against: int) -> float:
        """Returns the scalar that was differentiated: the loss, or the plain difference where that stood in."""
        other = torch.tensor([against]) if OBJECTIVES[loss].compares else None
        values, _ = evaluate_objective(loss, self.logits[None], torch.tensor([target]), other, output=self.output)
        return float(values[0])

    def reversal(self, loss: str, target: int, against: int) -> float:
        """Returns Pearson's correlation of the map with that of the reverse question: −1 where they are opposites.

        NaN where a map is the same everywhere.
        """
        both = [self.view(loss, *pair).scores.double().flatten() for pair in ((target, against), (against, target))]
        return float(torch.corrcoef(torch.stack(both))[0, 1])


def detail(
    model: VisionModel | nn.Module,
    image: ImagesLike,
    target: Wanted = None,
    against: Wanted = None,
    *,
    top: int = 3,
    losses: Sequence[str] | None = None,
    **options: Any,
) -> Detail:
    """Compares classes on one image: every pair in both directions, under each loss, with one backward pass per map.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`, or a bare module.
        image: one path, PIL image, uint8 array, or normalised float tensor.
        target: the class asked about; None for the predicted class.
        against: one class or several to compare it with, one pair each; None for the model's own: with a target its
            `top` − 1 strongest rivals, without one all pairs among the `top` classes.
        top: how many of the model's best classes take part where `against` is None; 2 or more.
        losses: names of `LOSSES`, in the order in which they are shown; default: all that mean something to the
            model's kind of output (for scores and embeddings the number itself and the difference).
        **options: those of `vitrail.explain`: `method`, `gradient`, `centred`, …

    Raises:
        SameClassError: when a class is held against itself.
        OptionError: for `top` below 2 or above the number of classes, an unknown loss, or several images.
        VitrailError: whatever `vitrail.explain` raises.

    Example:
        >>> import timm, torch
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> found = detail(vit, torch.randn(1, 3, 160, 160), target=3, against=[7, 8])
        >>> found.pairs, found.maps["ratio"].scores.shape
        (((3, 7), (3, 8)), torch.Size([1, 4, 10, 10]))
    """
    if not isinstance(model, VisionModel):
        model = wrap(model)
    unknown = [loss for loss in losses or () if loss not in LOSSES]
    if unknown or (losses is not None and not losses):
        raise OptionError(f"losses={list(losses or ())} must be some of {', '.join(LOSSES)}")
    refuse_training(model.module)
    inputs = prepare(model, image)
    if len(inputs.batch) != 1:
        raise OptionError(f"detail looks at one image, but {len(inputs.batch)} are given: call it for each")
    with torch.no_grad():
        logits = model.logits(inputs.batch)[0].float().cpu()
    output = model.kind_for(inputs.batch)
    if losses is None:
        losses = [loss for loss in LOSSES if output.link is not None or not OBJECTIVES[loss].positive_only]
    for loss in losses:
        check_objective(OBJECTIVES[loss], output)
    if target is None:
        predicted(logits[None], output)
    pairs = _pairs(model, logits, target, against, top)
    classes = list(dict.fromkeys(index for pair in pairs for index in pair))
    both_ways = ordered(pairs)
    maps = {}
    for loss in losses:
        asked = [pair[0] for pair in both_ways] if OBJECTIVES[loss].compares else classes
        others = [[pair[1] for pair in both_ways]] if OBJECTIVES[loss].compares else None
        # Each map is that of the formula above it: the plain logit's, with nothing subtracted.
        question = {"compete": False, **options, "against": others, "objective": loss}
        found = attribute(model, inputs.batch, [asked], **question)
        maps[loss] = replace(found.named(*inputs.sources), images=inputs.pictures)
    return Detail(pairs=tuple(pairs), maps=maps)


def top_pairs(logits: Float[Tensor, " classes"], top: int) -> list[Pair]:
    """Returns all pairs among the `top` strongest classes, the stronger one first.

    >>> top_pairs(torch.tensor([0.0, 3.0, 1.0, 2.0]), 3)
    [(1, 3), (1, 2), (3, 2)]
    """
    best = logits.topk(top).indices.tolist()
    return [(one, other) for i, one in enumerate(best) for other in best[i + 1 :]]


def ordered(pairs: Sequence[Pair]) -> list[Pair]:
    """Returns every pair, each followed by its reverse; what occurs twice is kept once.

    >>> ordered([(1, 2), (1, 3)])
    [(1, 2), (2, 1), (1, 3), (3, 1)]
    """
    return list(dict.fromkeys(question for one, other in pairs for question in ((one, other), (other, one))))


def _pairs(
    model: VisionModel, logits: Float[Tensor, " classes"], target: Wanted, against: Wanted, top: int
) -> list[Pair]:
    count = len(logits)
    if against is None and not 2 <= top <= count:
        raise OptionError(f"top={top} must be 2 or more, and at most the model's {count} classes")
    if target is None and against is None:
        return top_pairs(logits, top)
    own = int(logits.argmax()) if target is None else _one(model, target, count)
    if against is None:
        rivals = [index for index in logits.argsort(descending=True).tolist() if index != own]
        return [(own, rival) for rival in rivals[: top - 1]]
    plain = as_lists(against, "against", count)
    others: list[Any] = plain if isinstance(plain, list) else [plain]
    if not others:
        raise TargetError("against=[] names no class: give at least one, or None for the model's own choice")
    indices = list(dict.fromkeys(_one(model, other, count) for other in others))
    if own in indices:
        chosen = " (the predicted class)" if target is None else ""
        raise SameClassError(
            f"{model.class_name(own)} ({own}){chosen} is held against itself: give two different classes"
        )
    return [(own, other) for other in indices]


def _one(model: VisionModel, wanted: Any, count: int) -> int:
    if isinstance(wanted, bool | list | tuple) or getattr(wanted, "ndim", 0):
        raise TargetError(f"{wanted!r} is no single class: give a name or an index")
    return model.class_index(wanted, count)
