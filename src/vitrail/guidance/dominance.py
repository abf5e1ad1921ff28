"""Where one class dominates a photograph, the full gradient's signs cannot be trusted; what to do instead.

The rule: the full map of a class is to be trusted where a rival stands against it: a class unlike it (the cosine of
their rows of the classifier below `UNLIKE`), among the `RIVALS` best such, its logit within `NEAR` of the target's, and
its own full map the contrary of the target's (correlation below `CONTRARY`). Then both maps tell which patches are
whose. Without such a rival, blue lies on the object itself as often as not, and the libra gradient is the safer map.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ..explanation import PER_IMAGE, Explanation
from ..inputs import ImagesLike, prepare
from ..memory import in_passes
from ..models.class_likeness import class_rows
from ..models.vision_model import VisionModel
from ..targets import Wanted

__all__ = ["contrary", "dominates", "explain_by_rule", "misleads", "rivals"]

# Chosen on 158 validation photographs with boxes under half the image (ViT-Ti/16): pointing 0.87 and energy in the box
# 0.61, where full has 0.81 and 0.55, libra 0.87 and 0.62. `CONTRARY` between −0.2 and −0.6 moves neither by more than
# 0.01. What it decides is that two animals side by side (zebra and elephant, cat and dog) keep the full gradient, which
# is the sharper one there.
UNLIKE, NEAR, RIVALS, CONTRARY = 0.5, 5.0, 3, -0.3

WARNING = (
    "No class unlike the target comes near it here: with the full gradient, blue may lie on the object itself. "
    'gradient="libra" (or a guide) is the safer map here.'
)
INSTEAD = (
    "No class stands against the target here, and then the full gradient may paint the object blue: "
    "the libra gradient was taken instead."
)
SCORED = "The model's numbers are scores, which no class stands against: the libra gradient was taken."


def rivals(
    logits: Float[Tensor, "images classes"],
    target: Int[Tensor, "images targets"],
    rows: Float[Tensor, "classes width"] | None = None,
) -> tuple[Int[Tensor, "images targets rivals"], Bool[Tensor, "images targets rivals"]]:
    """The best classes unlike each target, at most `RIVALS` of them, and which are near enough to count.

    `rows` are the classifier's, from `class_rows`; without them every other class counts as unlike.
    """
    if rows is None:
        alike = one_hot(target, logits.shape[1]).bool()
    else:
        alike = (rows[target.to(rows.device)] @ rows.T >= UNLIKE).to(logits.device)
    others = logits[:, None].expand_as(alike).masked_fill(alike, -torch.inf)
    best, index = others.topk(min(RIVALS, logits.shape[1]), dim=2)
    return index, logits.gather(1, target)[..., None] - best <= NEAR


def dominates(
    logits: Float[Tensor, "images classes"],
    target: Int[Tensor, "images targets"],
    rows: Float[Tensor, "classes width"] | None = None,
) -> Bool[Tensor, "images targets"]:
    """Whether no class unlike the target comes within `NEAR` of its logit: what the logits alone can tell.

    Example:
        >>> logits = torch.tensor([[7.0, 6.9, 0.0], [7.0, 0.0, 6.9]])
        >>> dominates(logits, torch.tensor([[0], [0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
        [[True], [False]]
    """
    return ~rivals(logits, target, rows)[1].any(dim=2)


def contrary(
    target: Float[Tensor, "*question rows cols"], rival: Float[Tensor, "*question rows cols"]
) -> Bool[Tensor, "*question"]:
    """Whether two maps contradict each other: their correlation over the patches is below `CONTRARY`."""
    one, other = (maps.double().flatten(-2) for maps in (target, rival))
    one, other = (maps - maps.mean(dim=-1, keepdim=True) for maps in (one, other))
    correlation = (one * other).sum(dim=-1) / (one.norm(dim=-1) * other.norm(dim=-1))
    return correlation < CONTRARY


def misleads(method: str, objective: str) -> bool:
    """Whether the rule is about this question at all: the complete gradient of one class's logit."""
    return method == "complete" and objective == "logit"


@torch.no_grad()
def logits_of(model: VisionModel, batch: Float[Tensor, "images channels height width"], step: int) -> Tensor:
    """The logits of a batch, `step` images at a time (fewer where memory runs out), on the CPU."""

    def ask(some: slice) -> Tensor:
        return model.logits(batch[some]).float().cpu()

    return torch.cat(list(in_passes(ask, len(batch), size=partial(min, step))))


def explain_by_rule(
    ask: Callable[..., Explanation], model: VisionModel, images: ImagesLike, target: Wanted
) -> Explanation:
    """Explain each image with the full gradient where a rival stands against its targets, else with libra.

    `ask(model, batch, target, gradient=…)` explains a batch. All targets of one image share a gradient, so that their
    maps can be compared: libra when any of them has no rival. The notes say where libra was taken.
    """
    inputs = prepare(model, images, noted=True)
    # First libra, which most photographs keep: its forward pass shows at once which of them have rivals.
    libra = ask(model, inputs.batch, target, gradient="libra")
    if bool((libra.target < 0).any()):  # a function of the output has no rival class: the common gradient
        full = ask(model, inputs.batch, target, gradient="full")
        notes = [[*read, *one] for read, one in zip(inputs.notes, full.metadata["image_notes"], strict=True)]
        metadata = {**full.metadata, "sources": list(inputs.sources), "gradient_asked": "auto", "image_notes": notes}
        return replace(full, images=inputs.pictures, metadata=metadata)
    index = libra.target if libra.target.ndim == 2 else libra.target[:, None]
    nested, count = libra.target.ndim == 2, index.shape[1]
    found, near = rivals(libra.logits, index, class_rows(model, libra.logits.shape[1]))
    scored = libra.output.link is None
    near &= not scored  # free numbers do not compete
    doubtful = near.any(dim=2).all(dim=1).nonzero()[:, 0].tolist()
    chosen: dict[int, Explanation] = {}
    if doubtful:
        # The best rival comes first, so the near ones of every target are in front.
        near = near[doubtful]
        near = near[..., : int(near.sum(dim=2).max())]
        found = found[doubtful][..., : near.shape[2]]
        asked = torch.cat([index[doubtful], found.flatten(1)], dim=1)
        ex = ask(model, inputs.batch[doubtful], asked.tolist(), gradient="full")
        own, theirs = ex.scores[:, :count], ex.scores[:, count:].unflatten(1, found.shape[1:])
        opposed = (contrary(own[:, :, None].expand_as(theirs), theirs) & near).any(dim=2).all(dim=1)
        chosen = {
            i: _first_targets(one, count, nested)
            for i, one, kept in zip(doubtful, ex, opposed.tolist(), strict=True)
            if kept
        }
    ex = _in_order([chosen.get(i, one) for i, one in enumerate(libra)]) if chosen else libra
    modes = ["full" if i in chosen else "libra" for i in range(len(libra))]
    told = SCORED if scored else INSTEAD
    notes = [
        [*read, *([told] if mode == "libra" else []), *one]
        for read, one, mode in zip(inputs.notes, ex.metadata["image_notes"], modes, strict=True)
    ]
    gradient = modes[0] if len(set(modes)) == 1 else "auto"
    metadata = {**ex.metadata, "sources": list(inputs.sources), "image_notes": notes}
    metadata |= {"gradient": gradient, "gradients": modes, "gradient_asked": "auto"}
    return replace(ex, images=inputs.pictures, metadata=metadata)


def _first_targets(ex: Explanation, count: int, nested: bool) -> Explanation:
    """The explanation of one image without the rivals that were asked about beside its targets."""
    scores, target = ex.scores[:, :count], ex.target[:, :count]
    fallback = [one[:count] for one in ex.metadata["difference_instead"]]
    # Whether a rival is near enough was for the rule to say: the warning was about the rivals too.
    metadata = {**ex.metadata, "difference_instead": fallback, "image_notes": [[] for _ in fallback]}
    if not nested:
        scores, target = scores[:, 0], target[:, 0]
    return replace(ex, scores=scores, target=target, metadata=metadata)


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
