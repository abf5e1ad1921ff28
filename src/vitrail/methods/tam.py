"""TAM, transition attention maps (Yuan, Li, Xiong, Cao, Yang 2021).

The states of a Markov chain are the tokens. From the last layer's attention at the readout the chain walks back, and
the state is weighed with the gradient of the last layer, averaged along the way from a grey image to the picture:

    u = E_h[A^L] at the readout;   u ← u + u E_h[A^l]   for l = L−1 … start_layer
    W = E_h[( (1/K) Σ_α ∇A^L(α x) )⁺] at the readout,   α = 0 … 1 in K steps
    map = u ⊙ W
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.record import rows_times_attention
from .context import AttributionContext
from .integrated_gradients import Rows, integrated_gradients
from .registry import register_method

__all__ = ["tam"]


@register_method(
    "tam",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="20F, 20B of the last block",
    reference="Yuan et al. 2021",
    accepts=("start_layer",),
    start_layer=4,
)
def tam(context: AttributionContext, *, samples: int = 20) -> Float[Tensor, "images targets tokens"]:
    """Attention followed back from the readout, times the last layer's positive gradient averaged from grey to image.

    `samples` is K, both ends included.
    """
    rows = Rows.of(context)
    first = context.first_layer
    feedback = integrated_gradients(context, rows, samples)
    *before, last = feedback.layers
    state = rows_times_attention(rows.identity(context), last)
    for layer in reversed(before[first:]):
        state = state + rows_times_attention(state, layer)
    return torch.stack([rows.read(state * weight) for weight in feedback.by_target], dim=1)
