"""The usual way to compute the same maps, written from the methods' description: the form that Vitrail is held against.

Every block's attention and its gradient are stored whole, gradients of all weights are computed on the way, and N×N
matrices are multiplied, as in the released code of GAE.
"""

import torch
from torch import Tensor, nn


class WrittenOutAttention(nn.Module):
    """A timm attention block's own weights, with the attention map kept."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.inner = attention
        self.map: Tensor | None = None

    def forward(self, x: Tensor, **_: object) -> Tensor:
        batch, tokens, width = x.shape
        inner = self.inner
        qkv = inner.qkv(x).reshape(batch, tokens, 3, inner.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        self.map = (query * inner.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        self.map.retain_grad()
        return inner.proj((self.map @ value).transpose(1, 2).reshape(batch, tokens, width))


def stored_maps(model: nn.Module, images: Tensor, targets: Tensor, method: str) -> Tensor:
    """GAE or the complete-gradient map of a timm ViT whose blocks' attention is `WrittenOutAttention`; (batch, patches)."""
    model.zero_grad(set_to_none=True)
    logits = model(images)
    logits.gather(1, targets[:, None]).sum().backward()
    relevance = torch.eye(model.blocks[0].attn.map.shape[-1]).expand(len(images), -1, -1)
    for block in model.blocks:
        weighted = block.attn.map.grad * block.attn.map.detach()
        weighted = weighted.clamp(min=0) if method == "gae" else weighted
        relevance = relevance + weighted.mean(dim=1) @ relevance
        block.attn.map = None
    return relevance[:, 0, 1:]
