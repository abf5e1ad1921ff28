"""Maps made of what enters block l, x_l, or the model, x: FullGrad+, AttCAT, CAAP, DAVE (Mehri et al. 2025; Qiang et
al. 2022; Izadi et al. 2026; Wróbel et al. 2026).

FullGrad+ and AttCAT take input times gradient, s being the objective. Both are sums over blocks, signed, and mean most
with `gradient="libra"`, where the gradient splits the logit over what makes it up instead of following its slope. CAAP
takes no gradient: it puts the tokens of one patch after the other into the pass of an image of nothing. DAVE takes
input times gradient at the pixels, of the image moved a little this way and that.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.calls import compute_dtype
from ..attention.modules import at_input, tokens_first
from ..attention.record import CallRecorder, RecordedLayer, row_times_attention
from ..attention.tap import Visitor
from ..attention.visitors import LeafAttention, Replacement
from ..errors import OptionError
from .context import AttributionContext, required_blocks
from .registry import register_method

__all__ = ["attcat", "caap", "dave", "fullgrad_plus", "smoothed"]


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
    inputs: list[Tensor] = []

    def see(tokens: Tensor) -> Tensor:
        # The first is a leaf that enters as a copy (the tap takes leaves for weights); all others are in its graph.
        inputs.append(tokens if inputs else tokens.detach().requires_grad_())
        return tokens if len(inputs) > 1 else inputs[0].clone()

    logits = context.graph(visitor, *(at_input(block, see) for block in required_blocks(context, chosen)))
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


@register_method(
    "caap",
    signed=True,
    class_specific=True,
    uses_gradient=False,
    passes="2F + patches F",
    reference="Izadi et al. 2026",
)
def caap(
    context: AttributionContext, *, first: float = 1 / 3, last: float = 2 / 3, patches_per_pass: int = 32
) -> Float[Tensor, "images targets tokens"]:
    """CAAP: how far one patch's tokens, put into the middle blocks of an image of nothing, move the class's score.

    The blocks are those from `first` to `last` of the depth. Nothing is 0 in the model's input space, the mean colour
    of its normalisation; its own score is subtracted. `patches_per_pass` patches go through the model together.
    """
    layout = context.layout
    depth = layout.layers - layout.pools
    inside = 0 <= first < last <= 1
    begin = round(first * depth) if inside else depth
    if begin == depth or patches_per_pass < 1:
        raise OptionError(
            f"first={first} and last={last} must be parts of the depth, 0 ≤ first < last ≤ 1, with one of the {depth} "
            f"blocks between them, and patches_per_pass={patches_per_pass} must be 1 or more"
        )
    chosen = range(begin, max(round(last * depth), begin + 1))
    blocks = required_blocks(context, chosen)
    images, tokens = len(context.images), layout.block_tokens
    entered: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        ordered = tokens_first(tensor, images, tokens)
        assert ordered is not None
        entered.append(ordered.clone())
        return tensor

    context.forward(Replacement({}), *(at_input(block, keep) for block in blocks))
    maps = context.readout_row().new_zeros(images, context.targets.index.shape[1], tokens)
    every = torch.arange(layout.prefix, layout.prefix + layout.patches)
    for image in range(images):
        nothing = _scores_with(context, image, torch.zeros(1, dtype=torch.long), blocks, [])
        own = [tensor[image] for tensor in entered]
        for some in every.split(patches_per_pass):
            scores = _scores_with(context, image, some, blocks, own)
            maps[image, :, some] = (scores - nothing).to(maps).T
            done = image * layout.patches + int(some[-1]) + 1 - layout.prefix
            context.report("patching activations", done, images * layout.patches)
    return maps


def _scores_with(
    context: AttributionContext,
    image: int,
    some: Int[Tensor, " rows"],
    blocks: Sequence[nn.Module],
    own: Sequence[Float[Tensor, "tokens width"]],
) -> Float[Tensor, "rows targets"]:
    """Returns the scores of images of nothing into which row i takes token `some[i]` of what enters the blocks."""
    index = torch.full((len(some),), image, device=context.images.device)
    row = context.at(torch.zeros_like(context.images[index]), index)
    tokens = len(own[0]) if own else 0
    numbers = torch.arange(len(some), device=index.device)

    def put(of_block: Tensor) -> Callable[[Tensor], Tensor]:
        def see(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            ordered = tokens_first(changed, len(some), tokens)
            assert ordered is not None
            ordered[numbers, some.to(index.device)] = of_block[some.to(index.device)].to(tensor.dtype)
            return changed

        return see

    row.forward(Replacement({}), *(at_input(block, put(x)) for block, x in zip(blocks, own, strict=False)))
    count = context.targets.index.shape[1]
    return torch.stack([row.objective_values(row.logits, number)[0] for number in range(count)], dim=1)


@register_method(
    "dave",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="51F 50B",
    reference="Wróbel et al. 2026",
    level="pixel",
    gradient="libra",
    objectives=("logit", "difference"),
)
def dave(
    context: AttributionContext, *, samples: int = 50, reach: int | None = None, blur: float = 1.0, seed: int = 0
) -> Float[Tensor, "images targets height width"]:
    """DAVE: input times gradient at the pixels, the mean over small shifts of the image, smoothed.

    The first of `samples` is the image as it is; in the others it is moved by up to `reach` pixels (half a patch where
    None) either way, its border reflected, by shifts that `seed` draws. Each map is moved back, and a pixel takes the
    mean of those that saw it. `blur` is the standard deviation, in pixels, of the last smoothing.
    """
    height, width = context.images.shape[-2:]
    far = min(height // context.layout.rows, width // context.layout.cols) // 2 if reach is None else reach
    if samples < 1 or not 0 <= far < min(height, width) or not 0 <= blur < min(height, width) / 4:
        raise OptionError(
            f"samples={samples} must be 1 or more, reach={reach} from 0 to {min(height, width) - 1}, and blur={blur} "
            f"at least 0 and below {min(height, width) / 4:g} pixels"
        )
    context.forward(Replacement({}))  # the classes are those of the image where it is
    images = context.images.detach()
    everyone = torch.arange(len(images), device=images.device)
    bordered = F.pad(images, (far, far, far, far), mode="reflect")
    dtype = context.readout_row().dtype
    maps = torch.zeros(len(images), context.targets.index.shape[1], height, width, dtype=dtype, device=images.device)
    seen = maps.new_zeros(height, width)
    drawn = torch.randint(-far, far + 1, (samples - 1, 2), generator=torch.Generator().manual_seed(seed))
    for number, (down, right) in enumerate([(0, 0), *drawn.tolist()]):
        moved = bordered[..., far - down : far - down + height, far - right : far - right + width]
        found = _pixel_products(context.at(moved, everyone))
        # What was at pixel u is at u + (down, right) now; the border that came in from outside says nothing.
        rows, cols = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
        maps[..., rows, cols] += found.roll((-down, -right), dims=(-2, -1))[..., rows, cols]
        seen[rows, cols] += 1
        context.report("moving the image", number + 1, samples)
    return smoothed(maps / seen, blur)


def _pixel_products(context: AttributionContext) -> Float[Tensor, "images targets height width"]:
    """Returns Σ_c x_c ∂s/∂x_c of every pixel."""
    pixels = context.images.detach().clone().requires_grad_()
    # The sum is no leaf, so the tap takes it for an activation.
    logits = context.graph(LeafAttention(context.gradient), images=pixels + 0)
    dtype, count = compute_dtype(pixels.dtype), context.targets.index.shape[1]
    maps = []
    for number in range(count):
        (gradient,) = torch.autograd.grad(context.scalar(logits, number), [pixels], retain_graph=number + 1 < count)
        maps.append((pixels.detach().to(dtype) * gradient.to(dtype)).sum(dim=1))
    return torch.stack(maps, dim=1)


def smoothed(maps: Float[Tensor, "*batch height width"], deviation: float) -> Float[Tensor, "*batch height width"]:
    """Returns maps or pictures under a Gaussian of that standard deviation in pixels, their border reflected."""
    if deviation == 0:
        return maps
    radius = math.ceil(3 * deviation)
    kernel = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device).div(deviation).square().mul(-0.5)
    kernel = kernel.softmax(dim=0)
    padded = F.pad(maps, (radius, radius, radius, radius), mode="reflect")
    across = padded.unfold(-1, 2 * radius + 1, 1) @ kernel
    return across.unfold(-2, 2 * radius + 1, 1) @ kernel
