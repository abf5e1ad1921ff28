"""Maps from gradient times attention, multiplied through the layers: Ā^l = I + E_h[f(∇A^l) ⊙ A^l].

The map is the readout's row of Ā^L … Ā^1 at the patches: one forward pass, one backward pass per target. The three
methods differ in what f does with the sign of the gradient; the formulas stand in `attention.relevance_row`.

The identity's own share of that row is left out unless `identity=True`. For a class token it lies outside the patches
and changes nothing. For a head that reads the mean of P patches it is the same 1/P on every patch, hundreds of times
larger than what the layers add: a signed map would be red everywhere.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.relevance_row import RelevanceRow
from ..errors import OptionError
from .context import AttributionContext
from .registry import register_method

__all__ = ["absolute", "complete", "gae"]


@register_method(
    "gae",
    aliases=("positive",),
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Chefer, Gur, Wolf 2021 (Eq. 4 of Cui, Fan, Chen)",
    accepts=("start_layer", "centred", "compete"),
    text=True,
)
def gae(
    context: AttributionContext, *, identity: bool = False, clamp: str = "head"
) -> Float[Tensor, "images targets tokens"]:
    """Positive gradient: Ā = I + E_h[(∇A)⁺ ⊙ A]; what speaks against the class is dropped.

    `clamp="mean"` drops it after the mean over heads, Ā = I + (E_h[∇A ⊙ A])⁺, as the re-implementations in Beyond
    Intuition (`generate_genattr`) and vit-explain do: the numbers printed there for GAE are of that map.
    """
    if clamp not in ("head", "mean"):
        raise OptionError(f"clamp={clamp!r} is neither 'head' nor 'mean'")
    return _relevance(context, "positive", identity, clamp_mean=clamp == "mean")


@register_method(
    "complete",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Cui, Fan, Chen, Eq. 5; class competition: Vitrail",
    accepts=("start_layer", "centred", "compete"),
    text=True,
    gradient="libra",
    competes=True,
)
def complete(context: AttributionContext, *, identity: bool = False) -> Float[Tensor, "images targets tokens"]:
    """Complete gradient: Ā = I + E_h[∇A ⊙ A]; signed, red for the class and blue against it."""
    return _relevance(context, "complete", identity)


@register_method(
    "absolute",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Cui, Fan, Chen, Eq. 6",
    accepts=("start_layer", "centred", "compete"),
    text=True,
)
def absolute(context: AttributionContext, *, identity: bool = False) -> Float[Tensor, "images targets tokens"]:
    """Absolute gradient: Ā = I + E_h[|∇A| ⊙ A]; how much the logit hangs on a patch, either way."""
    return _relevance(context, "absolute", identity)


def _relevance(
    context: AttributionContext, rule: str, identity: bool, clamp_mean: bool = False
) -> Float[Tensor, "images targets tokens"]:
    rows = torch.stack(context.differentiate(RelevanceRow(rule, context.centred, clamp_mean)), dim=1)
    readout = context.readout_row()[:, None]
    # A head that pools by attention has queries of its own, and no identity joins them to the tokens.
    return rows + readout if identity and not context.layout.pools else rows
