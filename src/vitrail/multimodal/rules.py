"""GAE's rules for models of two streams, such as text and image (Chefer, Gur, Wolf, ICCV 2021, Eq. 5 to 11).

A stream s has a relevance map R^ss of its tokens on its own, and one, R^sq, of the other stream's tokens on its own.
Both grow with every attention that s asks: R^ss from the identity, R^sq from zero. Here the identity is never stored:
what is kept of R^ss is R̂ = R^ss − I, what the layers have added. Stored together, additions below 10⁻⁷ would drown in
the ones of the identity, and the rules below, which scale R̂ up, would blow up the rounding.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.relevance_row import ELEMENTWISE

__all__ = ["averaged_heads", "cross_attention", "rescaled", "self_attention"]


def averaged_heads(
    attention: Float[Tensor, "batch heads queries keys"],
    gradient: Float[Tensor, "batch heads queries keys"],
    rule: str = "positive",
) -> Float[Tensor, "batch queries keys"]:
    """Returns Ā = E_h[(∇A ⊙ A)⁺] (Eq. 5); signed, without the ⁺, for `rule="complete"`; of |∇A| ⊙ A for "absolute".

    Example:
        >>> attention, gradient = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[2.0, -4.0]]]])
        >>> averaged_heads(attention, gradient).tolist(), averaged_heads(attention, gradient, "complete").tolist()
        ([[[1.0, 0.0]]], [[[1.0, -2.0]]])
    """
    return ELEMENTWISE[rule](attention, gradient).mean(dim=1)


def rescaled(added: Float[Tensor, "batch tokens tokens"]) -> Float[Tensor, "batch tokens tokens"]:
    """Returns R̃ = R̂ / Σ|R̂| + I, row by row (Eq. 8 and 9): the layers' additions weigh as much as the identity.

    The paper divides by ΣR̂, which is the same where nothing is negative. For signed maps ΣR̂ may be zero or turn the
    sign of a whole row, and the paper defines nothing; Σ|R̂| keeps every sign, and is this package's own choice.

    A row to which nothing has been added (no positive gradient, or a token that nothing depends on) stays the
    identity's. The authors' code divides zero by zero there: for LXMERT the NaN goes into the map; for DETR it spreads
    by the product that follows over the whole addition, which is then set to zero.

    Example:
        >>> rescaled(torch.tensor([[[0.0, 0.0], [1.0, -3.0]]])).tolist()
        [[[1.0, 0.0], [0.25, 0.25]]]
    """
    total = added.abs().sum(dim=-1, keepdim=True)
    identity = torch.eye(added.shape[-1], dtype=added.dtype, device=added.device)
    return added / torch.where(total == 0, 1.0, total) + identity


def self_attention(
    weights: Float[Tensor, "batch own own"],
    added: Float[Tensor, "batch own own"],
    cross: Float[Tensor, "batch own other"],
) -> tuple[Float[Tensor, "batch own own"], Float[Tensor, "batch own other"]]:
    """Returns the additions of self-attention with averaged heads Ā to R̂^ss and R^sq: Ā R^ss and Ā R^sq (Eq. 6
    and 7).
    """
    return weights + weights @ added, weights @ cross


def cross_attention(
    weights: Float[Tensor, "batch own other"],
    added: Float[Tensor, "batch own own"],
    added_other: Float[Tensor, "batch other other"],
    cross_other: Float[Tensor, "batch other own"],
    normalise: bool = True,
) -> tuple[Float[Tensor, "batch own own"], Float[Tensor, "batch own other"]]:
    """Returns the additions of attention of s to q to R̂^ss and R^sq: Ā R^qs and (R̃^ss)ᵀ Ā R̃^qq (Eq. 11 and 10).

    `normalise=False` puts R in the place of R̃, as the authors' ablation does.
    """
    if normalise:
        left, right = rescaled(added), rescaled(added_other)
    else:
        left, right = (a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) for a in (added, added_other))
    return weights @ cross_other, left.transpose(-1, -2) @ weights @ right
