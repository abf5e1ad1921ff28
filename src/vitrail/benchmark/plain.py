"""The plain model, which nothing explains: its forward pass, and the limit of any explanation by gradients.

The limit is one forward pass and one backward pass down to the first block's input, attention fused, with no gradient
of any weight: less than that no method can do that asks a gradient of every block.
"""

import copy

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["forward", "limit", "sharing_weights"]


def forward(module: nn.Module, images: Float[Tensor, "images channels height width"]) -> None:
    """One forward pass without gradients."""
    with torch.no_grad():
        module(images)


def limit(
    module: VisionTransformer,
    images: Float[Tensor, "images channels height width"],
    targets: Int[Tensor, " images"],
) -> None:
    """One forward pass, and one backward pass of the targets' logits down to the first block's input.

    `module` must be frozen (`sharing_weights(…, frozen=True)`), or weights get their gradients too.
    """
    handle = module.patch_embed.register_forward_hook(lambda *args: args[-1].detach().requires_grad_())
    try:
        logits = module(images)
    finally:
        handle.remove()
    logits.gather(1, targets[:, None]).sum().backward()


def sharing_weights(module: VisionTransformer, *, frozen: bool) -> VisionTransformer:
    """A copy of the module that can be changed, with the very memory of its weights.

    Example:
        >>> import timm
        >>> vit = timm.create_model("test_vit")
        >>> twin = sharing_weights(vit, frozen=True)
        >>> twin.head.weight.data_ptr() == vit.head.weight.data_ptr(), twin.head.weight.requires_grad
        (True, False)
    """
    known = {id(one): nn.Parameter(one.data, requires_grad=not frozen) for one in module.parameters()}
    return copy.deepcopy(module, known)
