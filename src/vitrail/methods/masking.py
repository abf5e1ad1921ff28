"""Masks made of the model's own features: what is left of the class's probability behind each, two ways.

ViT-CX: how much of the class's probability each region of the model's own feature maps causes.

    s_i   = p(x ⊙ M_i + n_i ⊙ (1 − M_i)) − p(x + n_i ⊙ (1 − M_i)) + p(x),    n_i ~ 0.1 · N(0, 1)
    S(u)  = (1/N) Σ_i s_i M_i(u) / Σ_k M_k(u)

The masks M_i are the channels of the norm before the last attention, resized to the image and scaled to [0, 1]; those
that are alike are summed to one. The second term takes out what the noise does by itself.
Source: Xie, Li, Cao, Zhang 2023 (IJCAI), Section 3.

Transformer Input Sampling (TIS): the class's probability when the model sees half of the patches, a thousand halves.

    s_k   = p(target | class token and the patches of mask k)
    S(j)  = Σ_k s_k m_k(j) / Σ_k m_k(j)

The masks are what the model itself tells apart: every channel of every block's output is a map over the patches;
k-means groups the maps, and each centroid keeps its highest patches.
Source: Englebert, Stassin, Nanfack, Mahmoudi, Siebert, Cornu, De Vleeschouwer 2023 (ICCV workshops), Section 3.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention.tap import eager
from ..attention.token_stream import TokenStream
from ..errors import NoSignalError, OptionError, UnsupportedOperationError, silenced
from ..objectives import evaluate_objective
from ..targets import ask_function
from .context import AttributionContext
from .dropped_tokens import TokenDropper
from .registry import register_method

__all__ = [
    "causal_map",
    "centroids",
    "coverage_mean",
    "feature_masks",
    "highest_patches",
    "merge_masks",
    "similar_masks",
    "tis",
    "vit_cx",
]

NOISE = 0.1


@register_method(
    "vit_cx",
    signed=False,
    class_specific=True,
    uses_gradient=False,
    passes="1F + 2 masks F",
    level="pixel",
    reference="Xie et al. 2023",
    objectives=("probability", "difference"),
)
def vit_cx(
    context: AttributionContext, *, threshold: float = 0.1, seed: int = 0, masks_per_pass: int = 16
) -> Float[Tensor, "images targets height width"]:
    """Causal impact: the probability that regions of the model's feature maps keep when all else is noise.

    Feature maps closer than `threshold` (cosine distance, complete linkage) make one mask; `masks_per_pass` of them go
    through the model together. Mostly positive. `seed` draws the noise.
    """
    if not 0 < threshold <= 1 or masks_per_pass < 1:
        raise OptionError(f"threshold={threshold} must be above 0 and at most 1, masks_per_pass={masks_per_pass} ≥ 1")
    maps = []
    streams = context.watch()
    for image, stream in enumerate(streams):
        features = feature_masks(_features(context, stream), (context.images.shape[-2], context.images.shape[-1]))
        masks = merge_masks(features, similar_masks(features.flatten(1), threshold))
        generator = torch.Generator().manual_seed(seed)
        whole = _values(context, context.logits[image : image + 1], image)
        scores = []
        for part in masks.split(masks_per_pass):
            noise = NOISE * torch.randn(len(part), *context.images.shape[1:], generator=generator)
            masked, noisy = _answers(context, image, part, noise.to(context.images))
            scores.append(masked - noisy + whole)
            context.report("masking pixels", image * len(masks) + sum(map(len, scores)), len(streams) * len(masks))
        maps.append(causal_map(masks, torch.cat(scores).to(masks)))
    return torch.stack(maps)


def feature_masks(
    features: Float[Tensor, "channels rows cols"], size: tuple[int, int]
) -> Float[Tensor, "masks height width"]:
    """Returns each feature map resized to the image (bilinear, antialiased) and scaled to [0, 1]; constant ones left
    out.
    """
    resized = interpolate(features[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return _scaled(resized)


def similar_masks(masks: Float[Tensor, "masks pixels"], threshold: float) -> Int[Tensor, " masks"]:
    """Returns the cluster, from 0, of each mask: complete linkage of cosine distances, cut at `threshold`, on the CPU.

    Example:
        >>> similar_masks(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 0.1).tolist()
        [0, 0, 1]
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(masks) == 1:
        return torch.zeros(1, dtype=torch.long)
    unit = torch.nn.functional.normalize(masks.double().cpu(), dim=1)
    distance = (1 - unit @ unit.T).clamp(min=0)
    above = torch.triu_indices(len(masks), len(masks), offset=1)
    tree = linkage(distance[above[0], above[1]].numpy(), method="complete")
    return torch.from_numpy(fcluster(tree, threshold, criterion="distance")).long() - 1


def merge_masks(
    masks: Float[Tensor, "masks height width"], clusters: Int[Tensor, " masks"]
) -> Float[Tensor, "clusters height width"]:
    """Returns the sum of each cluster's masks, scaled to [0, 1]."""
    count = int(clusters.max()) + 1
    sums = masks.new_zeros(count, *masks.shape[1:]).index_add(0, clusters.to(masks.device), masks)
    return _scaled(sums)


def causal_map(
    masks: Float[Tensor, "masks height width"], scores: Float[Tensor, "masks targets"]
) -> Float[Tensor, "targets height width"]:
    """Returns S = (1/N) Σ_i s_i M_i / Σ_k M_k; zero where no mask covers a pixel.

    Example:
        >>> masks = torch.tensor([[[1.0, 0.5, 0.0]], [[0.0, 0.5, 0.0]]])
        >>> causal_map(masks, torch.tensor([[0.8], [0.2]]))
        tensor([[[0.4000, 0.2500, 0.0000]]])
    """
    coverage = masks.sum(dim=0)
    weighted = torch.einsum("mt,mhw->thw", scores, masks)
    covered = torch.where(coverage > 0, weighted / coverage.clamp(min=torch.finfo(coverage.dtype).tiny), 0)
    return covered / len(masks)


def _scaled(maps: Float[Tensor, "maps height width"]) -> Float[Tensor, "masks height width"]:
    lowest, highest = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    varies = (highest > lowest).flatten()
    if not bool(varies.any()):
        raise NoSignalError("every feature map before the last attention is the same everywhere: no mask can be made")
    return ((maps - lowest)[varies]) / (highest - lowest)[varies]


def _features(context: AttributionContext, stream: TokenStream) -> Float[Tensor, "channels rows cols"]:
    if stream.norm is None:
        raise UnsupportedOperationError(
            f"{context.model.name} calls no layer_norm or rms_norm of its tokens before the last block's attention, of "
            "whose output masks could be made; tis makes its masks of the blocks' outputs"
        )
    dtype = torch.float64 if stream.norm.dtype == torch.float64 else torch.float32
    return context.layout.as_grid(stream.norm.T.to(dtype))


def _answers(
    context: AttributionContext,
    image: int,
    masks: Float[Tensor, "masks height width"],
    noise: Float[Tensor, "masks channels height width"],
) -> tuple[Float[Tensor, "masks targets"], Float[Tensor, "masks targets"]]:
    """Returns the objective where a mask hides all else behind noise, and where the noise is laid over the
    whole image.
    """
    original, mask = context.images[image], masks[:, None].to(context.images)
    unseen = noise * (1 - mask)
    with eager(), torch.no_grad():
        logits = context.model.logits(torch.cat([original * mask + unseen, original + unseen]))
    masked, noisy = logits.split(len(masks))
    return _values(context, masked, image), _values(context, noisy, image)


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
    _check_sampling(masks, keep, masks_per_pass)
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
        scores = _values(context, torch.cat(logits), image)[again.to(logits[0].device)]
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


def _check_sampling(masks: int, keep: float, masks_per_pass: int) -> None:
    if masks < 1 or masks_per_pass < 1:
        raise OptionError(f"masks={masks} and masks_per_pass={masks_per_pass} must be 1 or more")
    if not 0 < keep <= 1:
        raise OptionError(f"keep={keep} must be a share of the patches, above 0 and at most 1")


def _values(
    context: AttributionContext, logits: Float[Tensor, "rows classes"], image: int
) -> Float[Tensor, "rows targets"]:
    """Returns the objective of one image's targets, for logits that the model gave of that image in many forms."""
    values, replaced = [], []
    for number in range(context.targets.index.shape[1]):
        target = context.targets.index[image, number].to(logits.device).expand(len(logits))
        against = None if context.against is None else context.against.index[image, number].to(logits.device)
        against = None if against is None else against.expand(len(logits))
        function = context.targets.function(image, number)
        value, instead = evaluate_objective(
            context.objective, logits, target.clamp(min=0), against, output=context.output
        )
        if function is not None:
            value = torch.stack([ask_function(function, row) for row in context.output.numbers(logits)])
        values.append(value)
        replaced.append(instead.any())
    _note_replaced(context, image, torch.stack(replaced))
    return torch.stack(values, dim=1)


def _note_replaced(context: AttributionContext, image: int, replaced: Bool[Tensor, " targets"]) -> None:
    if not context.replaced:
        context.replaced.extend(torch.zeros(len(context.images), dtype=torch.bool) for _ in replaced)
    for number, instead in enumerate(replaced.tolist()):
        context.replaced[number][image] |= instead
