"""Beyond Intuition (Chen, Li, Yu, Dou, Qiao, TMLR 2023): perception of the tokens times feedback from the decision.

    map = (P ⊙ F) at the readout
    P = ∏ (I + Ā^l),  later layers on the left, from start_layer
    F = E_h[( (1/K) Σ_α ∇A^L(α x) )⁺],  α = 0 … 1 in K steps

head by head (BI-H):    Ā = Σ_h θ_h A_h,  θ_h = I_h / Σ_h I_h,  I_h = mean_ij |A_hᵀ ∇A_h|
token by token (BI-T):  Ā = E_h[A] · diag(‖z_j W_V W_O‖ / ‖z_j‖)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.record import CallRecorder, rows_times_attention
from ..attention.watchers import ValueProjection
from ..errors import NoSignalError
from .context import AttributionContext
from .integrated_gradients import Rows, integrated_gradients
from .registry import register_method

__all__ = ["bi_head", "bi_token"]


@register_method(
    "bi_head",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="20F, 1B, 19B of the last block",
    reference="Chen et al. 2023, BI-H",
    accepts=("start_layer",),
    start_layer=3,
)
def bi_head(
    context: AttributionContext, *, samples: int = 20, dino: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """Attention with heads weighed by I_h = mean |A_hᵀ∇A_h|, times the last layer's positive integrated gradient.

    `samples` is K, both ends included. `dino` reads the class token's row and the mean of the patches' rows.
    """
    rows = Rows.of(context, dino)
    first = context.first_layer
    feedback = integrated_gradients(context, rows, samples, head_importance=True)
    maps = []
    for weight, heard in zip(feedback.by_target, feedback.pictures, strict=True):
        row = rows.identity(context)
        for number in reversed(range(first, context.layout.layers)):
            layer = feedback.layers[number]
            row = _grow(row, rows_times_attention(row, layer, _shares(heard.importance[number], number)))
        maps.append(rows.read(row * weight))
    return torch.stack(maps, dim=1)


@register_method(
    "bi_token",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="20F, 20B of the last block",
    reference="Chen et al. 2023, BI-T",
    accepts=("start_layer",),
    start_layer=5,
)
def bi_token(
    context: AttributionContext, *, samples: int = 20, dino: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """Attention with tokens weighed by ‖z W_V W_O‖/‖z‖, times the last layer's positive integrated gradient.

    z is a token before the block's norm, W_V its value (bias included), W_O the output projection (bias left out, layer
    scale taken in). `samples` is K, both ends included. `dino` reads the class token's row and the mean of the
    patches' rows.
    """
    rows = Rows.of(context, dino)
    first = context.first_layer
    recorder = CallRecorder()
    projection = ValueProjection(recorder)
    feedback = integrated_gradients(context, rows, samples, recorder=recorder, watcher=projection)
    row = rows.identity(context)
    for number in reversed(range(first, context.layout.layers)):
        seen = rows_times_attention(row, feedback.layers[number])
        row = _grow(row, seen * projection.gain(number)[:, None].to(seen.dtype))
    return torch.stack([rows.read(row * weight) for weight in feedback.by_target], dim=1)


def _grow(
    row: Float[Tensor, "images rows queries"], update: Float[Tensor, "images rows keys"]
) -> Float[Tensor, "images rows keys"]:
    """r (I + Ā); where a few queries pool the tokens, r Ā, because no identity joins them to the tokens."""
    return row + update if row.shape == update.shape else update


def _shares(importance: Float[Tensor, "images heads"], layer: int) -> Float[Tensor, "images heads"]:
    """θ_h = I_h / Σ_h I_h."""
    total = importance.sum(dim=1, keepdim=True)
    if bool((total == 0).any()):
        raise NoSignalError(f"the objective has no gradient at attention {layer}, so its heads cannot be weighed")
    return importance / total
