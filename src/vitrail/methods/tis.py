"""Transformer Input Sampling: the class's probability when the model sees half of the patches, a thousand halves.

    s_k   = p(target | class token and the patches of mask k)
    S(j)  = Σ_k s_k m_k(j) / Σ_k m_k(j)

The masks are what the model itself tells apart: every channel of every block's output is a map over the patches;
k-means groups the maps, and each centroid keeps its highest patches.
Source: Englebert, Stassin, Nanfack, Mahmoudi, Siebert, Cornu, De Vleeschouwer 2023 (ICCV workshops), Section 3.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attention.token_stream import TokenStream
from ..errors import OptionError, UnsupportedOperationError
from ..silence import silenced
from .context import AttributionContext
from .dropped_tokens import TokenDropper
from .registry import register_method

__all__ = ["centroids", "coverage_mean", "highest_patches", "tis"]

# Lloyd's iterations. The masks are the centroids' upper halves, which hardly move after the first few.
ITERATIONS = 20


@register_method(
    "tis",
    signed=False,
    class_specific=True,
    uses_gradient=False,
    passes="1F + masks × ½F",
    reference="Englebert et al. 2023",
    objectives=("probability", "difference"),
)
def tis(
    context: AttributionContext,
    *,
    masks: int = 1024,
    keep: float = 0.5,
    seed: int = 0,
    masks_per_pass: int = 32,
    drop: str = "auto",
) -> Float[Tensor, "images targets tokens"]:
    """Input sampling: the mean probability of the class over the masks that keep a patch; tokens really dropped.

    `masks` k-means centroids (at most as many as there are channels) keep the share `keep` of the patches each;
    `masks_per_pass` of them go through the model together. `drop`: "cut", "mask" or "auto", see `TokenDropper`.
    """
    _check(masks, keep, masks_per_pass)
    patches = context.layout.patches
    kept = int(keep * patches)
    if not kept:
        raise OptionError(f"keep={keep} of {patches} patches keeps none; keep at least {1 / patches:.3f}")
    streams = context.watch()
    dropper = TokenDropper(context, streams, drop)
    first, total = context.layout.prefix, context.layout.all_tokens
    rows = []
    for image, stream in enumerate(streams):
        maps = _channel_maps(context, stream)
        chosen = highest_patches(centroids(maps, min(masks, len(maps)), seed), kept)
        distinct, again = torch.unique(chosen, dim=0, return_inverse=True)
        logits = []
        for part in distinct.split(masks_per_pass):
            logits.append(dropper.logits(image, part))
            done = image * len(distinct) + sum(map(len, logits))
            context.report("sampling tokens", done, len(streams) * len(distinct))
        scores = context.values(torch.cat(logits), image)[again.to(logits[0].device)]
        mask = torch.zeros(len(chosen), patches, dtype=torch.bool).scatter(1, chosen, True).to(scores.device)
        tokens = scores.new_zeros(scores.shape[1], total)
        tokens[:, first : first + patches] = coverage_mean(mask, scores)
        rows.append(tokens)
    return torch.stack(rows)


def centroids(
    maps: Float[Tensor, "channels patches"], count: int, seed: int, iterations: int = ITERATIONS
) -> Float[Tensor, "count patches"]:
    """Returns `count` centroids of the maps by k-means (Euclidean; begun at maps drawn with `seed`), on the CPU.

    Example:
        >>> centroids(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2, seed=0).sort(0).values.T
        tensor([[0.0500, 5.0500]])
    """
    from scipy.cluster.vq import kmeans2

    points = maps.detach().cpu()
    points = points if points.dtype == torch.float64 else points.float()
    drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:count]
    # Channels that are alike leave a centroid without points where it was drawn, which is as good as any.
    with silenced(UserWarning):
        found, _ = kmeans2(points.numpy(), points[drawn].numpy(), iter=iterations, minit="matrix")
    return torch.from_numpy(found)


def highest_patches(maps: Float[Tensor, "masks patches"], kept: int) -> Int[Tensor, "masks kept"]:
    """Returns the `kept` highest patches of each map, ascending by index.

    Example:
        >>> highest_patches(torch.tensor([[0.3, 0.1, 0.9, 0.2]]), 2)
        tensor([[0, 2]])
    """
    return maps.topk(kept, dim=1).indices.sort(dim=1).values


def coverage_mean(
    masks: Bool[Tensor, "masks patches"], scores: Float[Tensor, "masks targets"]
) -> Float[Tensor, "targets patches"]:
    """Returns S(j) = Σ_k s_k m_k(j) / Σ_k m_k(j); a patch that no mask keeps, of which nothing is known, gets the mean
    score.

    Example:
        >>> masks = torch.tensor([[True, False, True, False], [True, True, False, False]])
        >>> coverage_mean(masks, torch.tensor([[0.2], [0.6]]))
        tensor([[0.4000, 0.6000, 0.2000, 0.4000]])
    """
    kept = masks.to(scores.dtype)
    coverage = kept.sum(dim=0)
    mean = scores.mean(dim=0)[:, None]
    return torch.where(coverage > 0, (scores.T @ kept) / coverage.clamp(min=1), mean)


def _channel_maps(context: AttributionContext, stream: TokenStream) -> Float[Tensor, "channels patches"]:
    first, patches = context.layout.prefix, context.layout.patches
    maps = []
    for number, block in enumerate(stream.blocks):
        if block is None:
            raise UnsupportedOperationError(
                f"after attention {number} of {context.model.name} no sum of two token streams is all that the rest of "
                "the model sees, so there is no block's output to make masks of; vit_cx makes its masks of a norm's "
                "output"
            )
        maps.append(block[first : first + patches].T)
    return torch.cat(maps)


def _check(masks: int, keep: float, masks_per_pass: int) -> None:
    if masks < 1 or masks_per_pass < 1:
        raise OptionError(f"masks={masks} and masks_per_pass={masks_per_pass} must be 1 or more")
    if not 0 < keep <= 1:
        raise OptionError(f"keep={keep} must be a share of the patches, above 0 and at most 1")
