"""Maps made of attention alone: one forward pass, the same for every class, never negative."""

from jaxtyping import Float
from torch import Tensor

from ..attention.chain import row_times_attention
from ..attention.stream import add_update
from .registry import register_method
from .run import Run

__all__ = ["raw", "rollout"]


@register_method(
    "raw",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Abnar & Zuidema 2020",
    text=True,
)
def raw(run: Run) -> Float[Tensor, "images targets tokens"]:
    """The last layer's attention at the readout, averaged over heads: E_h[A^L]."""
    return row_times_attention(run.readout_row(), run.record()[-1])[:, None]


@register_method(
    "rollout",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Abnar & Zuidema 2020",
    accepts=("start_layer",),
    text=True,
)
def rollout(run: Run, *, row_normalise: bool = True) -> Float[Tensor, "images targets tokens"]:
    """Attention followed through the layers with the residual beside it: Ā = (I + E_h[A]) / 2.

    Rows of I + E_h[A] sum to 2, so `row_normalise=False` (Eq. 1–3 of Cui, Fan, Chen) is the same map times 2 per layer.
    """
    layers = run.record()
    row = run.readout_row()
    for layer in reversed(layers[run.first_layer :]):
        pooled = layer.queries != layer.keys
        row = add_update(row, row_times_attention(row, layer))
        row = row / 2 if row_normalise and not pooled else row
    return row[:, None]
