"""What is measured: one model, some images, a target for each, and the passes of the model without an explanation.

The limit of any explanation by gradients is one forward pass and one backward pass down to the first block's input,
attention fused, with no gradient of any weight: no method that asks a gradient of every block can do with less.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import ModelError
from ..models import VisionModel, load
from .measure import synchroniser

__all__ = ["Case", "Subject", "forward", "limit", "sharing_weights"]


@dataclass(frozen=True)
class Case:
    """A model of timm by name, the side of its square images in pixels, and how many of them."""

    model: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.model.removeprefix('timm/')}, {self.size}×{self.size} px, batch {self.batch}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A case with its model loaded; the module itself for the plain passes and for the peers."""

    case: Case
    model: VisionModel
    module: VisionTransformer
    images: Float[Tensor, "images channels height width"]
    targets: Int[Tensor, " images"]
    device: str

    @classmethod
    def make(
        cls,
        case: Case,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> "Subject":
        """Makes random images, and random weights unless `weights` (keyword arguments of `vitrail.load`) has a
        checkpoint.

        The time is the same.

        Raises:
            ModelError: for anything but a plain ViT of timm that reads its class token, which the stored-maps form and
                the peers' recipes for a ViT are written for.

        Example:
            >>> Subject.make(Case("test_vit", 160, 2)).tokens
            101
        """
        torch.manual_seed(seed)
        name = case.model if "/" in case.model else f"timm/{case.model}"
        given = {"pretrained": False, **(weights or {})}
        if given.get("checkpoint") is not None:
            del given["pretrained"]
        model = load(name, device=device, dtype=dtype, size=case.size, **given)
        module = model.module
        if not isinstance(module, VisionTransformer) or module.global_pool != "token":
            raise ModelError(f"{name} is no timm ViT that reads its class token: take vit_base_patch16_224, say")
        if not all(type(block.get_submodule("attn")) is Attention for block in module.blocks.children()):
            raise ModelError(f"the attention of {name} is not timm's plain one: take vit_base_patch16_224, say")
        images = torch.randn(case.batch, 3, case.size, case.size).to(device, dtype)
        targets = torch.arange(case.batch, device=device) % module.num_classes
        return cls(case, model, module, images, targets, device)

    @property
    def tokens(self) -> int:
        """Patches, and the tokens before them."""
        return int(self.module.patch_embed.num_patches) + self.module.num_prefix_tokens

    @property
    def grid(self) -> tuple[int, int]:
        """Returns the rows and columns of patches."""
        rows, cols = self.module.patch_embed.grid_size  # pyright: ignore[reportGeneralTypeIssues]
        return rows, cols

    @property
    def heads(self) -> int:
        """Returns the number of heads of a block."""
        return next(self.module.blocks.children()).get_submodule("attn").num_heads  # pyright: ignore

    @property
    def synchronise(self) -> Callable[[], object]:
        """Returns the function to call before reading the clock."""
        return synchroniser(self.device)


def forward(module: nn.Module, images: Float[Tensor, "images channels height width"]) -> None:
    """Runs a forward pass without gradients."""
    with torch.no_grad():
        module(images)


def limit(
    module: VisionTransformer,
    images: Float[Tensor, "images channels height width"],
    targets: Int[Tensor, " images"],
) -> None:
    """Runs a forward pass, and a backward pass of the targets' logits to the first block's input.

    `module` must be frozen (`sharing_weights(…, frozen=True)`), or weights get their gradients too.
    """
    handle = module.patch_embed.register_forward_hook(lambda *args: args[-1].detach().requires_grad_())
    try:
        logits = module(images)
    finally:
        handle.remove()
    logits.gather(1, targets[:, None]).sum().backward()


def sharing_weights(module: VisionTransformer, *, frozen: bool) -> VisionTransformer:
    """Returns a copy of the module that can be changed, with the very memory of its weights.

    Example:
        >>> import timm
        >>> vit = timm.create_model("test_vit")
        >>> twin = sharing_weights(vit, frozen=True)
        >>> twin.head.weight.data_ptr() == vit.head.weight.data_ptr(), twin.head.weight.requires_grad
        (True, False)
    """
    known = {id(one): nn.Parameter(one.data, requires_grad=not frozen) for one in module.parameters()}
    return copy.deepcopy(module, known)
