"""The features of a layer at the patches, and their gradient: the pass that all CAM methods share.

Nothing before the layer is differentiated, so a layer near the end costs little more than a forward pass.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import compute_dtype
from ..attention.modules import at_input, at_output, find_module, tokens_first
from ..attention.visitors import LeafAttention
from ..attention.watchers import NormWatcher
from ..errors import NoSignalError, OptionError, UnsupportedOperationError
from ..models.blocks import blocks_of
from ..models.layout import TokenLayout
from .context import AttributionContext

__all__ = ["Features", "features_and_gradients", "features_of", "on_all_tokens", "patches_of"]


class Features(NamedTuple):
    """A layer's output at the patches, and the gradient of the objective there for each target."""

    values: Float[Tensor, "images patches width"]
    gradients: list[Float[Tensor, "images patches width"]]


def features_and_gradients(context: AttributionContext, layer: str | None) -> Features:
    """One forward pass, and per target a backward pass that ends at the layer: a module's name, or the default.

    The default is the last block's first norm. (At the last block's output the patches of a model that reads its class
    token have no gradient at all.)

    Raises:
        OptionError: for a name that the model does not have, or a module whose output is no features of the patches.
        NoSignalError: when nothing that the objective reads comes from the patches' features there.
    """
    seen: list[Tensor] = []
    visitor, watchers, images = _reaching(context, layer, seen)
    logits = context.graph(visitor, *watchers, images=images)
    output = _last(seen, context, layer)
    gradients = []
    for number in range(context.questions):
        (gradient,) = torch.autograd.grad(
            context.scalar(logits, number), [output], retain_graph=True, allow_unused=True
        )
        gradient = torch.zeros_like(output) if gradient is None else gradient
        gradients.append(patches_of(gradient, context.layout, len(context.images), layer))
        _refuse_silence(gradients[-1], layer)
    return Features(patches_of(output.detach(), context.layout, len(context.images), layer), gradients)


def features_of(context: AttributionContext, layer: str | None) -> Float[Tensor, "images patches width"]:
    """One forward pass without gradients; raises as `features_and_gradients` does."""
    seen: list[Tensor] = []
    visitor, watchers, _ = _reaching(context, layer, seen)
    context.forward(visitor, *watchers)
    return patches_of(_last(seen, context, layer), context.layout, len(context.images), layer)


def _reaching(
    context: AttributionContext, layer: str | None, seen: list[Tensor]
) -> tuple[LeafAttention, list[AbstractContextManager], Tensor]:
    """The visitor and watchers that put the layer's output into `seen`, inside a graph that begins shortly before."""
    if layer is not None:
        module = find_module(context.model.module, layer)

        def leaf(output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_(torch.is_grad_enabled()))
            return seen[-1].clone()  # which the tap does not take for a weight

        return LeafAttention(context.gradient), [at_output(module, leaf)], context.images
    last = context.layout.layers - context.layout.pools - 1
    norms = NormWatcher()

    def reached(number: int) -> None:
        # A block that normalises first does so before anything else; queries and keys may be normalised after that.
        # One that normalises last takes what the block before it has normalised.
        output = norms.latest if norms.first is None else norms.first
        if number == last and output is not None:
            seen.append(output)

    def begins(tokens: Tensor) -> Tensor:
        norms.begin()
        return tokens

    block = blocks_of(context.model, context.images, context.layout)[last]
    watchers: list[AbstractContextManager] = [norms] if block is None else [norms, at_input(block, begins)]

    # The graph begins at the attention before, or for want of one at the images; the sum is no leaf, so the tap takes
    # it for an activation.
    images = context.images if last or not torch.is_grad_enabled() else context.images.detach().requires_grad_() + 0
    return LeafAttention(context.gradient, {last - 1}, reached), watchers, images


def _last(seen: list[Tensor], context: AttributionContext, layer: str | None) -> Tensor:
    if seen:
        return seen[-1]
    if layer is not None:
        raise OptionError(
            f"layer={layer!r} is a module of this model, but returns no tensor when an image is explained: it is not "
            "called, or called by another way than its forward"
        )
    raise UnsupportedOperationError(
        f"{context.model.name} calls no layer norm on its tokens before its last attention (it may be written out by "
        "hand): name a module with layer="
    )


def patches_of(
    tensor: Tensor, layout: TokenLayout, images: int, layer: str | None
) -> Float[Tensor, "images patches width"]:
    """The patches' part of a layer's output, in float32 (float64 for float64).

    Takes tokens with or without the prefix, images first or tokens first, and maps (images, width, rows, columns) or
    (images, rows, columns, width).

    Raises:
        OptionError: for any other shape.
    """
    tensor = tensor.to(compute_dtype(tensor.dtype))
    grid = (layout.rows, layout.cols)
    if tensor.dim() == 4 and tensor.shape[0] == images and layout.order is None:
        if tensor.shape[2:] == grid:
            return tensor.flatten(2).transpose(1, 2)
        if tensor.shape[1:3] == grid:
            return tensor.flatten(1, 2)
    for count in dict.fromkeys((layout.tokens, len(layout.readout), layout.patches)):
        tokens = tokens_first(tensor, images, count)
        if tokens is not None and count >= layout.patches:
            first = 0 if count == layout.patches else layout.prefix
            return tokens[:, first : first + layout.patches]
    raise OptionError(
        f"layer={layer!r} gives a tensor of shape {tuple(tensor.shape)}, which holds no features of the "
        f"{layout.rows}×{layout.cols} patches after {layout.prefix} other token(s): name a layer inside the blocks"
    )


def on_all_tokens(patches: Float[Tensor, "images patches"], layout: TokenLayout) -> Float[Tensor, "images tokens"]:
    """A map of the patches as a row over all tokens, zero at the prefix."""
    return torch.nn.functional.pad(patches, (layout.prefix, 0))


def _refuse_silence(gradient: Float[Tensor, "images patches width"], layer: str | None) -> None:
    silent = (gradient == 0).all(dim=2).all(dim=1)
    if bool(silent.any()) and layer is not None:
        raise NoSignalError(
            f"the gradient at layer={layer!r} is zero at every patch of image {silent.nonzero()[:, 0].tolist()[0]}: "
            "after it, what the objective reads no longer comes from the patches (as behind the last attention of a "
            "model that reads its class token); name a layer before that attention, or leave layer= out"
        )
