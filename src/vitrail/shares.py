"""head_shares(): one map taken apart into what each head of each layer adds to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attention.gradient_modes import check_gradient_mode
from .attention.listeners import HeadShareListener
from .errors import ImageError, LayoutError, TargetError
from .explain import explain
from .explanation import Explanation
from .inputs import ImageLike, prepare
from .methods.context import AttributionContext
from .methods.gmar import head_weights
from .models import wrap
from .models.layout import layout_of
from .models.vision_model import VisionModel
from .objectives import class_rows, overlap
from .targets import Targets, Wanted

__all__ = ["HeadShares", "head_shares"]

# By layer: what each head adds to the row, and the norm of its gradient.
Shares = dict[int, tuple[Float[Tensor, "images heads keys"], Float[Tensor, "images heads"]]]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadShares:
    """A complete-gradient map as the sum of its heads' shares.

    `scores` are raw and signed; their sum over layers and heads is the map of `explanation`. `weights` are GMAR's:
    ‖∇A_h‖₁ as a share of its layer's.
    """

    scores: Float[Tensor, "layers heads rows cols"]
    weights: Float[Tensor, "layers heads"]
    explanation: Explanation

    def growth(self) -> Float[Tensor, "layers rows cols"]:
        """Returns the maps of the layers from l to the last, as `start_layer=l` gives them without competition.

        Where classes compete, every entry takes the whole map's factor for overlap.
        """
        return self.scores.sum(dim=1).flip(0).cumsum(dim=0).flip(0)


@torch.inference_mode(False)
def head_shares(
    model: VisionModel | nn.Module,
    image: ImageLike,
    target: Wanted = None,
    *,
    against: Wanted = None,
    gradient: str | None = None,
    compete: bool | None = None,
) -> HeadShares:
    """Takes the map of method `complete` apart into heads and layers, in one more pass.

    At layer l the relevance row takes r ← r + (1/H) Σ_h r · (∇A_h ⊙ A_h) (Cui, Fan, Chen, Eq. 5); here each summand is
    kept, with the norm ‖∇A_h‖₁ by which GMAR (Jo, Jang, Park 2025) weighs the head. Where classes compete, what a head
    adds to the rivals' map is taken from what it adds to the class's own; the norms are those of the class's own.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped.
        image: one image, in any form that `vitrail.explain` takes.
        target: class name or index; None for the predicted class.
        against: the class to compare with, by the difference of logits.
        gradient: as for `vitrail.explain`.
        compete: as for `vitrail.explain`.

    Raises:
        ImageError: for several images.
        LayoutError: for a model whose layers do not all see the same patches.
        VitrailError: whatever `vitrail.explain` raises.

    Example:
        >>> import timm, torch
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> found = head_shares(vit, torch.randn(1, 3, 160, 160), target=3)
        >>> found.scores.shape, found.growth().shape
        (torch.Size([6, 2, 10, 10]), torch.Size([6, 10, 10]))
    """
    if not isinstance(model, VisionModel):
        model = wrap(model)
    inputs = prepare(model, image)
    if len(inputs.batch) != 1:
        raise ImageError(f"one map is taken apart at a time, and {len(inputs.batch)} images are given")
    whole = explain(model, inputs.batch, target, against=against, gradient=gradient, compete=compete)
    if bool((whole.target < 0).any()):
        raise TargetError("target= is a function, and heads are told apart for a class: give a name or an index")
    layout = layout_of(model, inputs.batch)
    run = AttributionContext(
        model=model,
        images=inputs.batch,
        layout=layout,
        target=Targets(whole.target[:, None], nested=False),
        against=None if whole.against is None else Targets(whole.against[:, None], nested=False),
        objective=whole.objective,
        readout=layout.readout,
        gradient=check_gradient_mode(whole.provenance.gradient or "full"),
        output=model.kind_for(inputs.batch),
        competes=whole.rivals is not None,
        class_rows=None if whole.rivals is None else class_rows(model, layout.classes),
    )
    found, *competing = run.differentiate(HeadShareListener())
    sizes = sorted({shares.shape[-1] for shares, _ in found.values()})
    heads = sorted({shares.shape[1] for shares, _ in found.values()})
    if len(sizes) > 1 or len(heads) > 1:
        raise LayoutError(
            f"the layers see {' and '.join(map(str, sizes))} tokens with {' and '.join(map(str, heads))} heads: their "
            "shares form no one table; take another model, or one layer at a time"
        )
    layers = range(layout.layers)

    def by_head(shares: Shares) -> Float[Tensor, "layers heads rows cols"]:
        return torch.stack([layout.as_grid(shares[layer][0][0]) for layer in layers]).cpu()

    scores = by_head(found)
    for theirs in map(by_head, competing):
        scores = scores - (1 - overlap(scores.sum(dim=(0, 1)), theirs.sum(dim=(0, 1)))) * theirs
    return HeadShares(
        scores=scores,
        weights=torch.stack([head_weights(found[layer][1], layer)[0] for layer in layers]).cpu(),
        explanation=whole,
    )
