"""What is measured: one model, some images, and a target for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..errors import ModelError
from ..models import VisionModel, load
from .machine import synchroniser

__all__ = ["Case", "Subject"]


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
        """Random images, and random weights unless `weights` (keyword arguments of `vitrail.load`) has a checkpoint.

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
        """Rows and columns of patches."""
        rows, cols = self.module.patch_embed.grid_size  # pyright: ignore[reportGeneralTypeIssues]
        return rows, cols

    @property
    def heads(self) -> int:
        """Of one block."""
        return next(self.module.blocks.children()).get_submodule("attn").num_heads  # pyright: ignore

    @property
    def synchronise(self) -> Callable[[], object]:
        """What to call before the clock is read."""
        return synchroniser(self.device)

    def one_image(self) -> "Subject":
        """The same with the first image alone."""
        return replace(
            self, case=replace(self.case, batch=1), images=self.images[:1].clone(), targets=self.targets[:1].clone()
        )
