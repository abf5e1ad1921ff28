"""Input times gradient at every block: FullGrad+ and AttCAT (Mehri et al. 2025; Qiang et al. 2022).

x_l are the tokens that enter block l, s the objective. Both are sums over blocks, signed, and mean most with
`gradient="libra"`, where the gradient splits the logit over what makes it up instead of following its slope.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import compute_dtype
from ..attention.modules import at_input, tokens_first
from ..attention.record import CallRecorder, RecordedLayer, row_times_attention
from ..attention.tap import Visitor
from ..attention.visitors import LeafAttention
from ..errors import OptionError, UnsupportedOperationError
from ..models.blocks import blocks_of
from .context import AttributionContext
from .registry import register_method

__all__ = ["attcat", "fullgrad_plus"]


@register_method(
    "attcat",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Qiang et al. 2022, as in LibraGrad",
    accepts=("start_layer", "compete"),
)
def attcat(context: AttributionContext) -> Float[Tensor, "images targets tokens"]:
    """AttCAT: Σ_l a^l ⊙ Σ_c (x_{l+1} ⊙ ∂s/∂x_{l+1}), a^l how much attention each token is given in block l.

    a^l_j is A^l[:, j] averaged over heads and query rows; the last block, whose output enters no other, is left out.
    """
    blocks = context.layout.layers - context.layout.pools
    if context.first_layer >= blocks - 1:
        raise OptionError(
            f"start_layer={context.start_layer} leaves attcat nothing: it pairs each block with the next one's input, "
            f"and the model has {blocks} block(s); give {max(blocks - 2, 0)} or less"
        )
    recorder = CallRecorder(inner=LeafAttention(context.gradient))
    products = _input_times_gradient(context, range(context.first_layer + 1, blocks), recorder)
    attention = torch.stack([_attention_received(layer) for layer in recorder.layers[context.first_layer : blocks - 1]])
    return torch.stack([(attention * rows).sum(dim=0) for rows in products], dim=1)


@register_method(
    "fullgrad_plus",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Mehri et al. 2025",
    accepts=("start_layer", "compete"),
)
def fullgrad_plus(context: AttributionContext) -> Float[Tensor, "images targets tokens"]:
    """FullGrad+: Σ_l Σ_c (x_l ⊙ ∂s/∂x_l) over the inputs of all blocks; give gradient="libra" for Libra FullGrad+.

    The terms of the biases are left out. `start_layer` of half the depth gives SkipPLUS.
    """
    blocks = context.layout.layers - context.layout.pools
    if context.first_layer >= blocks:
        raise OptionError(
            f"start_layer={context.start_layer} is the attention that pools the tokens: give {blocks - 1}"
        )
    products = _input_times_gradient(context, range(context.first_layer, blocks), LeafAttention(context.gradient))
    return torch.stack([rows.sum(dim=0) for rows in products], dim=1)


def _input_times_gradient(
    context: AttributionContext, chosen: range, visitor: Visitor
) -> list[Float[Tensor, "blocks images tokens"]]:
    """Returns Σ_c (x_l ⊙ ∂s/∂x_l) at the input of each chosen block, per target; the graph begins at the first
    of them.
    """
    found = blocks_of(context.model, context.images, context.layout)
    inputs: list[Tensor] = []

    def see(tokens: Tensor) -> Tensor:
        # The first is a leaf that enters as a copy (the tap takes leaves for weights); all others are in its graph.
        inputs.append(tokens if inputs else tokens.detach().requires_grad_())
        return tokens if len(inputs) > 1 else inputs[0].clone()

    watchers = []
    for layer in chosen:
        block = found[layer]
        if block is None:
            raise UnsupportedOperationError(
                f"the input of every block is needed, but around attention {layer} of {context.model.name} no module "
                "takes and returns all tokens: use complete, gae or gradcam"
            )
        watchers.append(at_input(block, see))
    logits = context.graph(visitor, *watchers)
    products = []
    count = context.questions
    for number in range(count):
        gradients = torch.autograd.grad(context.scalar(logits, number), inputs, retain_graph=number + 1 < count)
        products.append(
            torch.stack([_product(x, g, len(context.images)) for x, g in zip(inputs, gradients, strict=True)])
        )
    return products


def _product(tokens: Tensor, gradient: Tensor, images: int) -> Float[Tensor, "images tokens"]:
    dtype = compute_dtype(tokens.dtype)
    product = (tokens.detach().to(dtype) * gradient.to(dtype)).sum(dim=2)[..., None]
    count = tokens.shape[1] if tokens.shape[0] == images else tokens.shape[0]
    ordered = tokens_first(product, images, count)
    assert ordered is not None
    return ordered[..., 0]


def _attention_received(layer: RecordedLayer) -> Float[Tensor, "images keys"]:
    """Returns A averaged over heads and query rows."""
    like = layer.call.query if layer.call is not None else layer.probabilities()
    row = torch.full((layer.images, layer.queries), 1 / layer.queries, dtype=compute_dtype(like.dtype))
    return row_times_attention(row.to(like.device), layer)
