"""The usual way to compute the same maps, written from the methods' description: the form that Vitrail is held against.

Every block's attention and its gradient are stored whole, gradients of all weights are computed on the way, and N×N
matrices are multiplied, as in the released code of GAE.
"""

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["StoredMaps"]


class WrittenOutAttention(nn.Module):
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
        self.map.retain_grad()
        return self.proj((self.map @ value).transpose(1, 2).reshape(batch, tokens, width))


class StoredMaps:
    """GAE and the complete-gradient map of a timm ViT, whose attention modules are replaced for good."""

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model
        self.attentions = []
        for block in model.blocks.children():
            written_out = WrittenOutAttention(block.get_submodule("attn"))  # pyright: ignore[reportArgumentType]
            block.register_module("attn", written_out)
            self.attentions.append(written_out)

    def __call__(self, images: Tensor, targets: Tensor, method: str) -> Tensor:
        """The map (batch, patches) by "gae" or "complete"."""
        self.model.zero_grad(set_to_none=True)
        self.model(images).gather(1, targets[:, None]).sum().backward()
        tokens = self.attentions[0].map.shape[-1]
        relevance = torch.eye(tokens).expand(len(images), -1, -1)
        for attention in self.attentions:
            gradient = attention.map.grad
            assert gradient is not None
            weighted = gradient * attention.map.detach()
            weighted = weighted.clamp(min=0) if method == "gae" else weighted
            relevance = relevance + weighted.mean(dim=1) @ relevance
            attention.map = torch.empty(0)
        return relevance[:, 0, 1:]
