"""Where one class dominates a photograph, the full gradient's signs cannot be trusted; what to do instead."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..explanation import PER_IMAGE, Explanation
from ..inputs import prepare
from ..models.vision_model import VisionModel
from ..targets import Wanted, parse_targets, predicted

__all__ = ["MARGIN", "WARNING", "dominates", "explain_by_rule", "logits_of", "misleads"]

# How far the largest logit stands above the second, in nats: the first class is then e² = 7 times as probable.
MARGIN = 2.0

WARNING = (
    "One class dominates this image: with the full gradient, blue may lie on the object itself. "
    'gradient="libra" (or a guide) is the safer map here.'
)
INSTEAD = (
    "One class dominates this image, where the full gradient may paint the object blue: "
    "the libra gradient was taken instead."
)


def dominates(
    logits: Float[Tensor, "images classes"], target: Int[Tensor, "images targets"]
) -> Bool[Tensor, "images targets"]:
    """Whether the target is the image's first class, and its logit `MARGIN` or more above the second.

    Example:
        >>> dominates(torch.tensor([[5.0, 1.0, 0.0], [5.0, 4.0, 0.0]]), torch.tensor([[0, 1], [0, 1]])).tolist()
        [[True, False], [False, False]]
    """
    if logits.shape[1] < 2:
        return torch.ones_like(target, dtype=torch.bool)
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return ((first - second) >= MARGIN)[:, None] & (target == logits.argmax(dim=1, keepdim=True))


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
    libra = dominates(logits, parsed.index).any(dim=1)
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
