"""Where one class dominates a photograph, the full gradient's signs cannot be trusted; what to do instead."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ..explanation import PER_IMAGE, Explanation
from ..inputs import prepare
from ..models.vision_model import VisionModel
from ..targets import Wanted, parse_targets, predicted
from .far_class import class_rows

__all__ = ["MARGIN", "UNLIKE", "WARNING", "dominates", "explain_by_rule", "logits_of", "misleads"]

# A class competes when it is unlike the target (the cosine of their rows of the classifier is below `UNLIKE`) and its
# logit within `MARGIN` of the target's. Classes that are alike (two breeds of dog) mostly name one and the same object.
# Measured on 158 photographs with boxes (ViT-Ti/16), where the plain margin to the second class predicts nothing
# (correlation +0.05 with what libra gains over full in the box) and the margin to the best unlike class does (+0.21).
# A smaller MARGIN gains a little more in the box (energy 0.62 at 1, 0.60 at 3; full 0.55), but counts a zebra among
# elephants as alone, where the full gradient is the sharper one.
UNLIKE, MARGIN = 0.3, 3.0

WARNING = (
    "No class unlike the target comes near it here: with the full gradient, blue may lie on the object itself. "
    'gradient="libra" (or a guide) is the safer map here.'
)
INSTEAD = (
    "No class unlike the target comes near it here, where the full gradient may paint the object blue: "
    "the libra gradient was taken instead."
)


def dominates(
    logits: Float[Tensor, "images classes"],
    target: Int[Tensor, "images targets"],
    rows: Float[Tensor, "classes width"] | None = None,
) -> Bool[Tensor, "images targets"]:
    """Whether the target's logit is `MARGIN` or more above that of every class unlike it.

    `rows` are the classifier's, from `class_rows`; without them every other class counts as unlike.

    Example:
        >>> logits = torch.tensor([[5.0, 4.9, 0.0], [5.0, 0.0, 4.9]])
        >>> dominates(logits, torch.tensor([[0], [0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
        [[True], [False]]
    """
    own = logits.gather(1, target)
    alike = one_hot(target, logits.shape[1]).bool() if rows is None else rows[target] @ rows.T >= UNLIKE
    rivals = logits[:, None].expand_as(alike).masked_fill(alike, -torch.inf).amax(dim=2)
    return own - rivals >= MARGIN


def misleads(method: str, objective: str) -> bool:
    """Whether the rule is about this question at all: the complete gradient of one class's logit."""
    return method == "complete" and objective == "logit"


@torch.no_grad()
def logits_of(model: VisionModel, batch: Float[Tensor, "images channels height width"], step: int) -> Tensor:
    """The logits of a batch, `step` images at a time, on the CPU."""
    return torch.cat([model.logits(some).float().cpu() for some in batch.split(step)])


def explain_by_rule(
    ask: Callable[..., Explanation], model: VisionModel, images: Any, target: Wanted, step: int | None
) -> Explanation:
    """Explain each image with the full gradient, or with libra where one class dominates it, and say which.

    `ask(model, batch, target, gradient=…)` explains a batch. An image with several targets gets libra when any of them
    dominates, so that its maps can be compared.
    """
    inputs = prepare(model, images)
    logits = logits_of(model, inputs.batch, step or len(inputs.batch))
    parsed = parse_targets(model, target, len(logits), logits.shape[1]) or predicted(logits)
    libra = dominates(logits, parsed.index, class_rows(model, logits.shape[1])).any(dim=1)
    question = parsed.index.tolist() if parsed.nested else parsed.index[:, 0].tolist()
    chosen: dict[int, Explanation] = {}
    for mode in ("full", "libra"):
        which = (libra == (mode == "libra")).nonzero()[:, 0].tolist()
        if which:
            ex = ask(model, inputs.batch[which], [question[i] for i in which], gradient=mode)
            chosen |= dict(zip(which, ex, strict=True))
    ex = _in_order([chosen[i] for i in range(len(logits))])
    notes = [
        [INSTEAD, *one] if by_libra else one
        for one, by_libra in zip(ex.metadata["image_notes"], libra.tolist(), strict=True)
    ]
    modes = ["libra" if by_libra else "full" for by_libra in libra.tolist()]
    gradient = modes[0] if len(set(modes)) == 1 else "auto"
    metadata = {**ex.metadata, "sources": list(inputs.sources), "image_notes": notes}
    metadata |= {"gradient": gradient, "gradients": modes, "gradient_asked": "auto"}
    return replace(ex, images=inputs.pictures, metadata=metadata)


def _in_order(single: list[Explanation]) -> Explanation:
    """Explanations of one image each as one of all."""
    first = single[0]
    joined = {
        name: torch.cat([getattr(ex, name) for ex in single])
        for name in ("scores", "logits", "target", "against")
        if getattr(first, name) is not None
    }
    lists = {
        key: [ex.metadata[key][0] for ex in single] for key in PER_IMAGE if len(first.metadata.get(key) or ()) == 1
    }
    return replace(first, **joined, images=None, metadata={**first.metadata, **lists})
