"""What is said of models that no map of attention explains: the true reason, and the way that is open to them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.observe import AttentionShape, Observation
from ..attention.tap import OTHER_WAY, Tap, eager
from .vision_model import VisionModel

__all__ = ["LARGEST_PREFIX", "WINDOWS", "map_in", "no_attention", "no_chain", "other_way", "reads_texts", "why_not"]

# Class, distillation and register tokens together; more than this is not a prefix but a grid that does not fit.
LARGEST_PREFIX = 32
WINDOWS = (
    "attention within windows (Swin, MaxViT, SAM, ViTDet, TNT) is not supported, a map needs attention over the whole "
    "image"
)
# Modules whose output has the shape of a map and is none.
_NO_FEATURES = re.compile(r"softmax|dropout|attn|attention|\bc?r?pe\d|\bpos", re.IGNORECASE)


def no_attention(model: VisionModel, tap: Tap) -> str:
    """Why no attention was seen under the tap, in words."""
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
    many = next((shape for shape, dim in tap.other_softmax if len(shape) > 4 and dim in (-1, len(shape) - 1)), None)
    if many is not None:
        return (
            f"{start}, but a softmax over {many}, {len(many)} dimensions: attention within windows (Hiera, MaxViT), "
            f"which is not supported; {OTHER_WAY}"
        )
    factor = next(((shape, dim) for shape, dim in tap.other_softmax if len(shape) > 2), None)
    if factor is not None:
        return (
            f"{start}, but a softmax over dimension {factor[1]} of {factor[0]}: attention that is factorised (CoaT) or "
            f"of another form, without a matrix of queries and keys to follow; {OTHER_WAY}"
        )
    if tap.products:
        return (
            f"{start}, but products of activations without a softmax: linear attention (EfficientViT), which has no "
            f"matrix of queries and keys to follow; {OTHER_WAY}"
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
    """Whether a model of images and texts is among the parts."""
    return any(
        hasattr(part, "encode_text") or (hasattr(part, "text_model") and hasattr(part, "vision_model"))
        for part in module.modules()
    )


def no_chain(model: VisionModel, seen: Observation, broken: int) -> str:
    """Why attention number `broken` does not follow from the one before, in words."""
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
    """The reason why the attention `index` breaks the chain, in words."""
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
    """Grad-CAM at the last layer that gives a grid, which needs no tokens; how to make one where there is none."""
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
    if not layers:
        return (
            'method="gradcam" with layer= would need none of this, but no layer here gives a grid: lead the features '
            "through an nn.Identity as (images, channels, rows, columns), and name that"
        )
    name, (rows, cols) = layers[-1]
    return f'method="gradcam" with layer="{name}", the last layer that gives a grid ({rows}×{cols}), needs none of this'


def map_in(output: Tensor, size: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of a map of features, channels first or last; None where the tensor is none."""
    shape = output.shape
    for rows, cols in (shape[2:], shape[1:3]) if len(shape) == 4 else ():
        fits = rows <= size[0] and cols <= size[1] and abs(rows * size[1] / (cols * size[0]) - 1) < 0.2
        if rows * cols > 1 and fits:
            return rows, cols
    return None
