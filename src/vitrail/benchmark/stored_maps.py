"""The usual way to compute the same maps, written from the methods' description: the form that Vitrail is held against.

Every block's attention and its gradient are stored whole, gradients of all weights are computed on the way, and N×N
matrices are multiplied, as in the released code of GAE.
"""

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .plain import sharing_weights

__all__ = ["STORED", "StoredMaps", "bytes_of_maps"]

STORED = ("gae", "complete", "rollout")


class StoredMaps:
    """GAE, the complete-gradient map and rollout of a timm ViT, on a copy whose attention is written out."""

    def __init__(self, module: VisionTransformer) -> None:
        self.module = sharing_weights(module, frozen=False)
        self.prefix = module.num_prefix_tokens
        self.attentions: list[_WrittenOutAttention] = []
        for block in self.module.blocks.children():
            written_out = _WrittenOutAttention(block.get_submodule("attn"))  # pyright: ignore[reportArgumentType]
            block.register_module("attn", written_out)
            self.attentions.append(written_out)

    def __call__(
        self, images: Float[Tensor, "images channels height width"], targets: Int[Tensor, " images"], method: str
    ) -> Float[Tensor, "images patches"]:
        """The map by one of `STORED`."""
        if method == "rollout":
            with torch.no_grad():
                self.module(images)
        else:
            self.module.zero_grad(set_to_none=True)
            self.module(images).gather(1, targets[:, None]).sum().backward()
        first = self.attentions[0].map
        identity = torch.eye(first.shape[-1], device=first.device, dtype=first.dtype)
        relevance = identity.expand(len(images), -1, -1)
        for attention in self.attentions:
            if method == "rollout":
                relevance = (attention.map.mean(dim=1) + identity) / 2 @ relevance
            else:
                gradient = attention.map.grad
                assert gradient is not None
                weighted = gradient * attention.map.detach()
                weighted = weighted.clamp(min=0) if method == "gae" else weighted
                relevance = relevance + weighted.mean(dim=1) @ relevance
            attention.map = torch.empty(0)
        return relevance[:, 0, self.prefix :]


class _WrittenOutAttention(nn.Module):
    """A timm attention block's own weights, with the attention map kept."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale = attention.num_heads, attention.scale
        self.map = torch.empty(0)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        self.map = (query * self.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        if self.map.requires_grad:
            self.map.retain_grad()
        return self.proj((self.map @ value).transpose(1, 2).reshape(batch, tokens, width))


def bytes_of_maps(layers: int, heads: int, tokens: int, images: int, method: str) -> int:
    """What all A, and for a gradient method all ∇A, fill in float32: the least that the stored form needs.

    Example:
        >>> bytes_of_maps(layers=12, heads=12, tokens=4097, images=1, method="gae")
        19336791168
    """
    return 4 * layers * heads * tokens**2 * images * (1 if method == "rollout" else 2)
