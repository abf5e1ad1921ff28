"""What an image of noise shows of a model at work, and what is said of models that no map of attention explains."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.calls import AttentionCall
from ..attention.observe import AttentionShape, Observation, ShapeObserver
from ..attention.places import PixelGradient, Places, StemObserver, find_places
from ..attention.tap import OTHER_WAY, Tap, eager
from ..errors import ForwardError, ModelError, MovingTokensError, NoAttentionError, UnsupportedAttentionError
from ..outputs import may_be_probabilities
from .vision_model import VisionModel

__all__ = [
    "grid_candidates",
    "grid_layers",
    "map_in",
    "no_chain",
    "noise_like",
    "observe",
    "other_way",
    "reads_of_another",
    "reads_texts",
    "refuse_an_order_of_its_own",
    "why_not",
]

# Class, distillation and register tokens together; more than this is not a prefix but a grid that does not fit.
LARGEST_PREFIX = 32
WINDOWS = (
    "attention within windows (Swin, MaxViT, SAM, ViTDet, TNT) is not supported, a map needs attention over the whole "
    "image"
)
# Modules whose output has the shape of a map and is none.
_NO_FEATURES = re.compile(r"softmax|dropout|attn|attention|\bc?r?pe\d|\bpos", re.IGNORECASE)
# Two passes whose numbers differ by this share of the largest do not do the same.
DIFFERENT = 1e-2
_DRAWN = (
    "Models that shuffle or drop tokens at random (ViTMAE, ViLT) do so also with model.eval(): let them draw the same "
    "for every image, with forward_options= (for ViTMAE {'noise': torch.arange(patches)[None]}), or in a module around "
    "them that seeds the draw before each image and sends one image after the other; then wrap again"
)


def observe(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> Observation:
    """Sends an image of noise through the model twice, and look at the attention it calls and the tokens its head
    reads.

    The first pass shows which pixels each token takes, the second what depends on what.

    Raises:
        NoAttentionError: when the model calls no attention that PyTorch can show, or its logits depend on none.
        UnsupportedAttentionError: when the same image does not give the same tokens twice.
    """
    noise = noise_like(images, 1, seed=0)
    size = (images.shape[-2], images.shape[-1])
    places: list[Places | None] = []

    def look(tokens: int, gradient: PixelGradient) -> None:
        grids = grid_candidates(model, tokens, stem_tap.patch_grids, size)
        # A convolution other than the stem may have a grid that fits by chance; the pixels refute it, and others are
        # tried.
        grids += _possible_grids(tokens, size) if model.grid is None else []
        places.append(find_places(tokens, gradient, grids))

    stem_tap: Tap
    with torch.enable_grad():
        # The sum is no leaf, so the tap takes it for an activation.
        image = noise.clone().requires_grad_() + 0
        stem = StemObserver(image, look)
        stem_tap = Tap(stem, images=1)
        with eager(), stem_tap:
            try:
                first_numbers = model.answer(image).detach()
            except ForwardError as error:
                if not reads_texts(model.module):
                    raise
                raise ModelError(
                    f"{model.name} takes texts as well as images and ran without them ({error.__cause__}): embed the "
                    "texts first, with vitrail.load(…, texts=[…]), or wrap its image tower with a head of its own"
                ) from error
    more = None
    if model.output is not None or may_be_probabilities(first_numbers):
        with eager(), torch.no_grad():
            more = model.answer(noise_like(images, 1, seed=1))  # then a second image has to tell the kind of output
    observer = ShapeObserver(mixing=True)
    with torch.enable_grad():
        tap = Tap(observer, images=1)
        with eager(), tap:
            numbers = model.answer(noise)
            logits = model.learn_kind(numbers, more).logits(numbers)
        many = next((shape for shape, dim in tap.other_softmax if len(shape) > 4 and dim in (-1, len(shape) - 1)), None)
        if many is not None and min(many[-2:]) > 1:
            raise MovingTokensError(
                f"{model.name} takes a softmax over {many}, {len(many)} dimensions: attention within windows (Hiera, "
                f"VOLO), which is not supported; {OTHER_WAY}"
            )
        if not observer.shapes:
            raise NoAttentionError(no_attention(model, stem_tap))
        if stem.windows:
            raise MovingTokensError(
                f"the heads of attention 0 of {len(observer.shapes)} see different parts of the image: they are "
                f"windows (ViTDet, SAM) that the model joins with its heads; {WINDOWS}; {OTHER_WAY}"
            )
        _refuse_chance(model, stem.first, observer.first, first_numbers, numbers.detach())
        seen = observer.observation(logits, tuple(tap.patch_grids))
    if not seen.shapes:
        raise NoAttentionError(
            f"{model.name} calls attention {len(observer.shapes)} times, but its logits do not depend on any of it: "
            "the output is constant, detached from the graph inside the model or computed in integers (quantized "
            "activations have no gradient), or weights that are zero, as before training, keep the attention out"
        )
    return replace(seen, places=places[0] if places else None)


def noise_like(images: Tensor, count: int, seed: int) -> Float[Tensor, "count channels height width"]:
    """Returns `count` images of noise, in the size and type of `images` and on their device."""
    return torch.randn(count, *images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)


def grid_candidates(
    model: VisionModel, tokens: int, patch_grids: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Grids that the patches may form: the user's, else those of convolutions at the start, else by arithmetic."""
    if model.grid is not None:
        rows, cols = model.grid
        return [(rows, cols)]
    seen = [grid for grid in dict.fromkeys(reversed(patch_grids)) if 0 <= tokens - grid[0] * grid[1] <= LARGEST_PREFIX]
    return seen or _possible_grids(tokens, image_size)


def _possible_grids(tokens: int, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of square patches that leave a small prefix, for models that embed patches without a convolution."""
    height, width = image_size
    grids = []
    for patch in range(2, min(height, width) + 1):
        if height % patch == 0 and width % patch == 0:
            rows, cols = height // patch, width // patch
            if rows * cols > 1 and 0 <= tokens - rows * cols <= 8:
                grids.append((rows, cols))
    return grids


def reads_of_another(
    model: VisionModel, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " queries"]:
    """Returns the readout of another image."""
    observer = ShapeObserver()
    with torch.enable_grad(), eager():
        with Tap(observer, images=1) as tap:
            logits = model.logits(noise_like(images, 1, seed=1))
        return observer.observation(logits, tuple(tap.patch_grids)).reads


def _refuse_chance(model: VisionModel, *pairs: Tensor | None) -> None:
    """Refuse a model of which two passes over the same image differ; `pairs` are its tokens twice, its logits twice."""
    for what, once, again in (("tokens", *pairs[:2]), ("logits", *pairs[2:])):
        if once is None or again is None:
            continue
        same = once.shape == again.shape
        largest = float(once.float().nan_to_num().abs().max()) if once.numel() else 0.0
        differ = float((once.float() - again.float()).nan_to_num().abs().max()) if same and once.numel() else 0.0
        if not same or differ > DIFFERENT * largest:
            by = f"differ by {differ:.3g} where the largest is {largest:.3g}" if same else "change in number"
            raise UnsupportedAttentionError(
                f"{model.name} does not do the same twice: given the same image again, its {what} {by}. {_DRAWN}"
            )


def refuse_an_order_of_its_own(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> None:
    """Refuses a model that places the tokens of each image of a batch anew; only its stem runs, on one image and on
    two.

    Raises:
        UnsupportedAttentionError: where two copies of an image do not get the tokens of the one.
    """
    image = noise_like(images, 1, seed=0).to(model.device, model.dtype)
    tokens = []
    for count in (1, 2):
        keeper = _FirstTokens()
        with suppress(Exception), torch.no_grad(), eager(), Tap(keeper, images=count):
            model.module(image.expand(count, -1, -1, -1).contiguous(), **model.forward_options)
        tokens.append(keeper.found)
    alone, both = tokens
    if alone is None or both is None or both.shape != (2 * len(alone), *alone.shape[1:]):
        return  # images in one sequence are sent one by one
    one, two = alone.float(), both.float()
    orders = two.unflatten(0, (2, -1)), two.unflatten(0, (-1, 2)).transpose(0, 1)  # of windows the images may alternate
    apart = min(float((order - one).nan_to_num().abs().max()) for order in orders)
    if apart > DIFFERENT * float(one.nan_to_num().abs().max()):
        raise UnsupportedAttentionError(
            f"{model.name} does not do the same with every image of a batch: two copies of an image get other tokens "
            f"than the image alone. {_DRAWN}"
        )


class _ReachedError(Exception):
    """The first attention is reached, and no more is needed."""


class _FirstTokens:
    """Keeps something of every token at the first attention, and ends the forward pass there."""

    found: Tensor | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        return self.normalise(call.key)

    def normalise(self, scores: Tensor) -> Tensor:
        self.found = scores.detach()
        raise _ReachedError


def no_attention(model: VisionModel, tap: Tap) -> str:
    """Returns the reason why no attention was seen under the tap."""
    start = (
        f"{model.name} ran, but no attention reached PyTorch's scaled_dot_product_attention, "
        "multi_head_attention_forward or a softmax over (images, heads, queries, keys)"
    )
    alike = re.compile("attn|attention|mhsa|mla$", re.IGNORECASE)  # LiteMLA: EfficientViT's linear attention
    gates = re.compile("^SE|squeeze|eca|context|cbam|channel|gate|identity", re.IGNORECASE)  # of CNNs, called attention
    names = [
        name
        for name, part in model.module.named_modules()
        if alike.search(type(part).__name__)
        or (alike.search(name.rpartition(".")[2]) and not gates.search(type(part).__name__))
    ]
    factor = next(((shape, dim) for shape, dim in tap.other_softmax if len(shape) > 2), None)
    if factor is not None and factor[0][-2] == 1:
        return (
            f"{start}, but a softmax over {factor[0]}: one query that pools all places, as for a gate (global "
            f"context), without a matrix of queries and keys to follow; {OTHER_WAY}"
        )
    if factor is not None:
        return (
            f"{start}, but a softmax over dimension {factor[1]} of {factor[0]}: attention that is factorised (CoaT) or "
            f"of another form, without a matrix of queries and keys to follow; {OTHER_WAY}"
        )
    if tap.products:
        return (
            f"{start}, but products of activations without a softmax: linear attention of another form than "
            f"EfficientViT's, without a matrix of queries and keys to follow; {OTHER_WAY}"
        )
    if not names and any(isinstance(part, nn.Conv2d | nn.Conv1d | nn.Conv3d) for part in model.module.modules()):
        return (
            f"{model.name} ran, but it has no attention: it looks like a convolutional network or an MLP, and Vitrail "
            "explains models by their attention; take a library for such networks, as Captum or pytorch-grad-cam. "
            f"{OTHER_WAY}"
        )
    like = f"modules that look like attention: {', '.join(names[:3])}" if names else "no module is named like attention"
    return (
        f"{start} ({like}). Either it has none, or one without a softmax (SwiftFormer), or compiled, scripted or "
        f"custom kernels hide it: then use its plain PyTorch form. {OTHER_WAY}"
    )


def reads_texts(module: nn.Module) -> bool:
    """Returns whether a model of images and texts is among the parts."""
    return any(
        hasattr(part, "encode_text") or (hasattr(part, "text_model") and hasattr(part, "vision_model"))
        for part in module.modules()
    )


def no_chain(model: VisionModel, seen: Observation, broken: int) -> str:
    """Returns the reason why attention number `broken` does not follow from the one before."""
    shapes, after = seen.shapes, seen.after
    start = (
        f"attention {broken} of {len(shapes)} does not follow from attention {broken - 1}, and a map needs one "
        "attention after the other"
    )
    if reads_texts(model.module):
        return f"{start}: a text tower runs next to the image's. Embed the texts first: vitrail.load(…, texts=[…])"
    group = [broken - 1]
    while group[-1] + 1 < len(shapes) and after[group[-1] + 1] == after[broken - 1]:
        group.append(group[-1] + 1)
    sizes = [shapes[layer].keys for layer in group]
    carrying = set() if seen.places is None else {seen.places.carrying}
    whole = {shape.keys for shape in shapes if shape.keys == shape.queries} - set(sizes)
    if len(group) > 1 and sum(sizes) in whole | carrying:
        return (
            f"{start}: each of {len(group)} attentions sees a window of {sizes[0]} tokens (Qwen2.5-VL), which is not "
            f"supported, a map needs attention over the whole image; {OTHER_WAY}"
        )
    if len(set(sizes)) > 1:
        return f"{start}: branches of {sizes[0]} and {sizes[1]} tokens stand side by side (CrossViT); {OTHER_WAY}"
    return (
        f"{start}: blocks stand side by side (parallel attention, ConViT's gates), the image goes through several "
        f"times, or a part runs under no_grad; {OTHER_WAY}"
    )


def why_not(shapes: Sequence[AttentionShape], index: int, pools: int) -> str:
    """Returns the reason why the attention `index` breaks the chain."""
    shape, first = shapes[index], shapes[0]
    if shape.images != 1 or (shape.keys != first.keys and shape.heads * shape.keys == first.heads * first.keys):
        return WINDOWS  # alone, or joined with the heads
    if shape.queries > shape.keys:
        return "keys are fewer than queries (PVT, SegFormer, MViT) or another set of tokens, which is not supported"
    if index == 0 and shape.queries < shape.keys:
        return (
            "already the first attention reads the tokens by fewer queries (Perceiver's latents, MobileViTv2's "
            "separable attention), so no layer joins patches to patches"
        )
    if pools == len(shapes):
        return "all its attentions pool, none is self-attention among patches"
    if shape.queries != shape.keys and index >= len(shapes) - pools:
        more = shape.keys - first.keys
        if more > LARGEST_PREFIX:
            return (
                "the blocks attend among other things than the tokens that the head reads, as attention among channels "
                "does (XCiT), which joins no patches"
            )
        if more > 0:
            return (
                f"{more} token(s) join after the blocks, to read the patches by class attention (CaiT, VOLO), which is "
                "not supported"
            )
        return f"the head's attention pooling leaves out {-more} of the blocks' tokens, which is not supported"
    if shape.queries < shape.keys:
        return "queries are fewer than keys: attention pools the tokens between stages (LeViT), which is not supported"
    return (
        "the number of tokens changes between attentions: stages of a pyramid (not supported), or attention among "
        "channels (XCiT, DaViT), which joins no patches"
    )


def other_way(model: VisionModel, image: Float[Tensor, "one channels height width"]) -> str:
    """Returns the advice to use Grad-CAM at the last layer that gives a grid, or how to make one where there is
    none.
    """
    layers = grid_layers(model, image)
    if not layers:
        return (
            'method="gradcam" with layer= would need none of this, but no layer here gives a grid: lead the features '
            "through an nn.Identity as (images, channels, rows, columns), and name that"
        )
    name, (rows, cols) = layers[-1]
    return f'method="gradcam" with layer="{name}", the last layer that gives a grid ({rows}×{cols}), needs none of this'


def grid_layers(
    model: VisionModel, image: Float[Tensor, "one channels height width"]
) -> list[tuple[str, tuple[int, int]]]:
    """Returns the layers whose output is a map of features, with its rows and columns, in the order of their end."""
    layers: list[tuple[str, tuple[int, int]]] = []

    def note(name: str, part: nn.Module, _args: Any, output: Any) -> None:
        found = map_in(output, image.shape[-2:]) if isinstance(output, Tensor) else None
        if found is not None and not _NO_FEATURES.search(f"{name} {type(part).__name__}"):
            layers.append((name, found))

    handles = [part.register_forward_hook(partial(note, name)) for name, part in model.module.named_modules() if name]
    try:
        with suppress(Exception), torch.no_grad(), eager():
            model.answer(image)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def map_in(output: Tensor, size: Sequence[int]) -> tuple[int, int] | None:
    """Returns the rows and columns of a feature map, channels first or last; None for other tensors."""
    shape = output.shape
    for rows, cols in (shape[2:], shape[1:3]) if len(shape) == 4 else ():
        fits = rows <= size[0] and cols <= size[1] and abs(rows * size[1] / (cols * size[0]) - 1) < 0.2
        if rows * cols > 1 and fits:
            return rows, cols
    return None
