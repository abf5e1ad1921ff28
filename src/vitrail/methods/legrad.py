"""LeGrad: every block asked by itself, through the model's own head (Bousselham et al., ICCV 2025).

Block l's output Z^l is averaged over its tokens and put through all that follows the last block (norm, projection,
classifier), which gives the block's own logits and score s_l. With ∇A^l = ∂s_l/∂A^l,

    map_j = Σ_l mean_h mean_q (∇A^l_hqj)⁺
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.calls import blocks, compute_dtype
from ..attention.modules import at_output, tokens_first
from ..attention.record import RecordedLayer
from ..attention.visitors import LeafAttention
from ..errors import ForwardError, OptionError, OutputError, UnsupportedOperationError
from .context import AttributionContext, required_blocks
from .registry import register_method

__all__ = ["legrad"]

VARIANTS = ("paper", "released")


@register_method(
    "legrad",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 2B",
    reference="Bousselham et al. 2025",
    accepts=("start_layer", "compete"),
    start_layer=-2,
)
def legrad(context: AttributionContext, *, variant: str = "paper") -> Float[Tensor, "images targets tokens"]:
    """LeGrad: the positive gradient of each block's own score at its attention, summed over the last two blocks.

    `start_layer` says from which block on: −2 as in the released code; more for deeper models (one backward pass to its
    own attention each). `variant="paper"` takes the logits; "released" brings each block's logits, without the
    classifier's bias, to length 1, as the released code does with CLIP's embedding.
    """
    if variant not in VARIANTS:
        raise OptionError(f"variant={variant!r} is none of {', '.join(VARIANTS)}")
    count = len(context.images)
    found = _blocks(context)
    chosen = range(context.first_layer, len(found))
    if not chosen:
        raise OptionError(
            f"start_layer={context.start_layer} is the attention that pools the tokens: legrad needs a block, so give "
            f"{len(found) - 1} or less"
        )
    visitor = LeafAttention(context.gradient, chosen)
    logits = _logits_of_blocks(context, visitor, [found[layer] for layer in chosen])
    by_block = logits[count:].unflatten(0, (len(chosen), count))
    if variant == "released":
        by_block = _of_length_one(by_block, context)
    maps = []
    for number in range(context.questions):
        replaced = torch.zeros(count, dtype=torch.bool, device=logits.device)
        rows = []
        for layer, own in zip(chosen, by_block, strict=True):
            values, instead = context.objective_values(own, number)
            replaced |= instead
            (gradient,) = torch.autograd.grad(values.sum(), [visitor.leaves[layer]], retain_graph=True)
            rows.append(positive_gradient(visitor.layers[layer], gradient))
        context.replaced.append(replaced)
        maps.append(torch.stack(rows).sum(dim=0))
    return torch.stack(maps, dim=1)


def positive_gradient(layer: RecordedLayer, gradient: Tensor) -> Float[Tensor, "images keys"]:
    """Returns (∇A)⁺ averaged over heads and queries; `gradient` is that of the output, ∇A = dO Vᵀ, or ∇A itself."""
    dtype = compute_dtype(gradient.dtype)
    if layer.call is None:
        return gradient.to(dtype).clamp(min=0).mean(dim=(1, 2))
    total = torch.zeros(layer.images, layer.keys, dtype=dtype, device=gradient.device)
    for block in blocks(layer.call):
        value = layer.call.value[block.images, block.heads].to(dtype)
        product = gradient[block.images, block.heads, block.rows].to(dtype) @ value.transpose(2, 3)
        total[block.images] += product.clamp(min=0).sum(dim=(1, 2))
    return total / (layer.heads * layer.queries)


def _blocks(context: AttributionContext) -> list[nn.Module]:
    found = required_blocks(context)
    if len(found) == 1:
        raise UnsupportedOperationError(
            f"legrad tells a block from what follows it by the other blocks, and {context.model.name} has only one: "
            "use complete, gae or gradcam"
        )
    return found


def _logits_of_blocks(
    context: AttributionContext, visitor: LeafAttention, chosen: list[nn.Module]
) -> Float[Tensor, "rows classes"]:
    """Returns the images' logits, and behind them those of each chosen block's mean token, from one forward pass.

    The last block's output is made longer by images all of whose tokens are a block's mean token, so that whatever the
    head reads of them, it reads that.
    """
    count = len(context.images)
    means: list[Tensor] = []

    def average(output: Tensor) -> Tensor:
        means.append(_mean_token(output, count))
        return output

    def lengthen(output: Tensor) -> Tensor:
        average(output)
        first = 0 if output.shape[0] == count else 1
        like = output if first == 0 else output.transpose(0, 1)
        longer = torch.cat([like, *(mean.expand_as(like) for mean in means)])
        return longer if first == 0 else longer.transpose(0, 1)

    watchers: list[AbstractContextManager] = [at_output(block, average) for block in chosen[:-1]]
    watchers.append(at_output(chosen[-1], lengthen))
    try:
        return context.graph(visitor, *watchers, rows=(1 + len(chosen)) * count)
    except (OutputError, ForwardError, RuntimeError) as error:
        raise UnsupportedOperationError(
            f"legrad sends each block's mean token through what follows the blocks, as more images of the batch, and "
            f"{context.model.name} does not take them ({str(error).splitlines()[0]}): use complete, gae or gradcam"
        ) from error


def _mean_token(output: Tensor, images: int) -> Float[Tensor, "images 1 width"]:
    for tokens in (output.shape[1], output.shape[0]):
        view = tokens_first(output, images, tokens)
        if view is not None:
            return view.mean(dim=1, keepdim=True)
    raise UnsupportedOperationError(f"a block returned a tensor of shape {tuple(output.shape)}, which is no tokens")


def _of_length_one(
    logits: Float[Tensor, "blocks images classes"], context: AttributionContext
) -> Float[Tensor, "blocks images classes"]:
    """Returns the logits without the classifier's bias, brought to length 1; similarities to texts are so already."""
    from ..models.similarity import ImageTextSimilarity

    if isinstance(context.model.module, ImageTextSimilarity):
        return logits
    heads = [part for part in context.model.module.modules() if isinstance(part, nn.Linear)]
    heads = [part for part in heads if part.out_features == logits.shape[2] and part.bias is not None]
    return F.normalize(logits - heads[-1].bias.detach() if heads else logits, dim=2)
